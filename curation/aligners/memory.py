"""Memory that runs out while a module runs: telling it from other errors, and giving back what is held."""

import gc

from ..errors import WorkError


class OutOfMemoryError(WorkError):
    """A module's device, or the machine, has too little memory for a pair."""


def has_run_out(error: BaseException) -> bool:
    """Whether an error says that memory has run out: torch's own, Python's, or one that only its text tells."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _SAID)


# Of older versions, of TorchScript, of CUDA's libraries, and of the CPU.
_SAID = ("out of memory", "can't allocate memory", "alloc_failed", "failed to allocate memory")


def give_back() -> None:
    """Free what nobody holds any more, so that the next pair has all there is."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # which does nothing where CUDA is not in use
