"""Aligner modules: loading one, and calling it with numpy arrays.

A module takes (1, 1, X, Y) images and a (1, 2, X, Y) prior field in pixels, and returns the whole field, prior
included; fields follow the conventions of `fields`.
"""

import contextlib
import ctypes
import os
import random
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UsageError, WorkError
from .exported import load_exported
from .memory import OutOfMemoryError, has_run_out
from .models import Model
from .packages import Package
from .pyramid import Module, create_path, exported_path

# What metroem's modules are created with; a module whose `create` does not take one is not given it.
CREATE_PARAMS: Mapping[str, Any] = {
    "finetune": True,
    "finetune_lr": 0.3,
    "finetune_sm": 60.0,
    "finetune_iter": 200,
    "pass_field": True,
}


# Checkpoints hold weights. torch.load then refuses one that would run code as it is unpickled, whoever calls it.
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


def _loaded(module: Module, checkpoint_name: str, params: Mapping[str, Any], device: torch.device) -> Model:
    if create_path(module).exists():
        return Package(module.folder, {"checkpoint_name": checkpoint_name, **CREATE_PARAMS}, params, device)
    return load_exported(exported_path(module, checkpoint_name), device)


class Aligner:
    """A loaded module on a device, called with numpy arrays."""

    def __init__(
        self,
        module: Module,
        checkpoint_name: str,
        params: Mapping[str, Any],
        device: str,
        precision: str = "float32",
    ) -> None:
        """precision: "bfloat16" or "float16" for torch's autocast to that type around the calls; "float32" for none."""
        self._folder = module.folder
        self._precision = precision
        self._device = torch.device(device)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # where a module that only says `cuda` puts its own tensors
        try:
            with _seeded(self._device), _printing_to_stderr():
                self._model = _loaded(module, checkpoint_name, params, self._device)
        except UsageError:
            raise
        except (Exception, SystemExit) as error:
            raise WorkError(f"{module.folder}: could not be loaded: {_text(error, module.folder)}") from error

    def __call__(self, source: Any, target: Any, prior: Any) -> Any:
        """The field, (2, X, Y) float32 pixels, that warps source onto target, both (X, Y).

        prior: (2, X, Y) or None. A failure is a `WorkError` that names the module, and `OutOfMemoryError` is one; sizes
        that a model cannot take are a `UsageError`.
        """
        source_image, target_image = (self._tensor(image)[None, None] for image in (source, target))
        start = None if prior is None else self._tensor(prior)[None]
        try:
            with _seeded(self._device), _printing_to_stderr(), _autocast(self._device, self._precision):
                given = self._model(source_image, target_image, start)
            with torch._C.DisableTorchFunctionSubclass():  # a tensor of a class of its own is judged as a plain one
                return self._field(given, source.shape)
        except (UsageError, WorkError):
            raise
        except (Exception, SystemExit) as error:  # a module that ends the program has not made its field
            kind = OutOfMemoryError if has_run_out(error) else WorkError
            raise kind(f"{self._folder}: {_text(error, self._folder)}") from error

    def _tensor(self, array: Any) -> torch.Tensor:
        # A copy on the CPU too: the module may write to what it is given, and the pair is measured afterwards.
        return torch.from_numpy(array).to(self._device, non_blocking=True, copy=True)

    def _field(self, given: Any, shape: tuple[int, int]) -> Any:
        wanted = (1, 2, *shape)
        if not isinstance(given, torch.Tensor):
            raise WorkError(f"{self._folder}: returned {type(given).__name__}: want a field tensor of shape {wanted}")
        if tuple(given.shape) != wanted or not given.is_floating_point():
            raise WorkError(
                f"{self._folder}: returned {given.dtype} of shape {tuple(given.shape)}: want float32 of shape {wanted}"
            )
        # A torchfields Field is a tensor of a class of its own; what is stored is its plain numbers.
        plain = given.detach().as_subclass(torch.Tensor)[0]
        # A copy, and the only one: the module may write to its own again while this is stored.
        if plain.device.type == "cpu" and plain.dtype == torch.float32:
            return np.array(plain.numpy(), order="C")  # torch would wake threads for it, which takes longer
        if plain.device.type != "cuda":
            return plain.to("cpu", torch.float32, copy=True).numpy()
        copied = torch.empty(plain.shape, pin_memory=True)  # to which a GPU copies faster
        return copied.copy_(plain.to(torch.float32)).numpy()  # after all that the GPU has still to do


def limit_threads(cores: int) -> None:
    """Have torch use no more threads in this process than it may use cores."""
    torch.set_num_threads(cores)
    with contextlib.suppress(RuntimeError):  # this process has used them already, and their number stays what it is
        torch.set_num_interop_threads(cores)


def _autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))


@contextlib.contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Random numbers begin anew, so that a field does not depend on which worker makes it, nor on the pairs before it.

    Afterwards they go on as if nothing had been: this process may be another program's.
    """
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if torch.cuda.is_available():
            torch.manual_seed(0)
        else:  # what that does on the CPU, without formatting a traceback for GPUs that are not there
            torch.default_generator.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@contextlib.contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """What a module prints goes to stderr, from Python and from C: stdout is for results."""
    _flush()
    with contextlib.redirect_stdout(sys.stderr):
        try:
            before = os.dup(_STDOUT)
        except OSError:  # there is no stdout to be kept free
            yield
            return
        with contextlib.suppress(OSError):  # nor a stderr to print to
            os.dup2(_STDERR, _STDOUT)
        try:
            yield
        finally:
            _flush()
            os.dup2(before, _STDOUT)
            os.close(before)


def _flush() -> None:
    """Write what was printed by now to where stdout leads by now, though it was printed to another name of stdout."""
    with contextlib.suppress(Exception):  # of a stdout that is closed, or none
        sys.__stdout__.flush()  # type: ignore[union-attr]
    ctypes.CDLL(None).fflush(None)  # what C has not written yet


_STDOUT, _STDERR = 1, 2


def _text(error: BaseException, folder: Path) -> str:
    """An error, and the last line of the module's own files that it came from, if it came from one."""
    if isinstance(error, WorkError):
        return str(error)
    place = _place(error, folder.absolute())
    said = error.msg if isinstance(error, SyntaxError) and place else str(error)
    return f"{place}{type(error).__name__}: {said}"


def _place(error: BaseException, folder: Path) -> str:
    """`FILE, line N: SOURCE TEXT: ` of the last line in a folder that an error came from; "" if it came from none."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [(frame.filename, frame.lineno, frame.line) for frame in frames]
    if isinstance(error, SyntaxError):  # of a file that was not run: it is no frame
        lines.append((error.filename or "", error.lineno, error.text))
    own = [line for line in lines if Path(line[0]).is_relative_to(folder)]
    if not own:
        return ""
    path, number, text = own[-1]
    return f"{Path(path).relative_to(folder)}, line {number}: {(text or '').strip()}: "
