"""Aligner modules: loading one, and calling it with numpy arrays.

A module takes (1, 1, X, Y) images and a (1, 2, X, Y) prior field in pixels, and returns the whole field, prior
included; fields follow the conventions of `fields`.
"""

import contextlib
import ctypes
import importlib.util
import inspect
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UsageError, WorkError
from .memory import OutOfMemoryError, has_run_out
from .pyramid import Module, create_path, script_path

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
                if create_path(module).exists():
                    model = _create(module, {"checkpoint_name": checkpoint_name, **CREATE_PARAMS}, params)
                else:
                    model = _load_script(script_path(module, checkpoint_name), self._device)
                self._model = _placed(model, self._device)
            self._takes = _keywords(self._model)
        except UsageError:
            raise
        except (Exception, SystemExit) as error:
            raise WorkError(f"{module.folder}: could not be loaded: {_text(error, module.folder)}") from error

    def __call__(self, source: Any, target: Any, prior: Any) -> Any:
        """The field, (2, X, Y) float32 pixels, that warps source onto target, both (X, Y).

        prior: (2, X, Y) or None. A failure is a `WorkError` that names the module; `OutOfMemoryError` is one.
        """
        offered = {
            "src_agg_field": None if prior is None else self._tensor(prior)[None],
            "train": False,
            "return_state": False,
        }
        images = [self._tensor(image)[None, None] for image in (source, target)]
        try:
            with _seeded(self._device), _printing_to_stderr(), _autocast(self._device, self._precision):
                given = self._model(*images, **{key: value for key, value in offered.items() if key in self._takes})
            return self._field(given, source.shape)
        except WorkError:
            raise
        except (Exception, SystemExit) as error:  # a module that ends the program has not made its field
            kind = OutOfMemoryError if has_run_out(error) else WorkError
            raise kind(f"{self._folder}: {_text(error, self._folder)}") from error

    def _tensor(self, array: Any) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

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


def _load_script(path: Path, device: torch.device) -> Any:
    try:
        return torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise UsageError(f"{path}: not a TorchScript file: {error}") from None


@contextlib.contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """What a module prints goes to stderr, from Python and from C: stdout is for results."""
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
            ctypes.CDLL(None).fflush(None)  # what C has not written yet
            os.dup2(before, _STDOUT)
            os.close(before)


_STDOUT, _STDERR = 1, 2


def _create(module: Module, ours: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
    """What a module's `create` returns, called with what it takes of `ours`, and with all of `params`."""
    folder = module.folder.absolute()  # the working directory is about to change
    with _neighbours_importable(folder):
        spec = importlib.util.spec_from_file_location(
            "aligner_module", folder / "create.py", submodule_search_locations=[str(folder)]
        )
        if spec is None or spec.loader is None:
            raise WorkError("create.py cannot be imported")
        package = importlib.util.module_from_spec(spec)
        sys.modules["aligner_module"] = package  # so that it can import its neighbours relatively too
        spec.loader.exec_module(package)
        create = getattr(package, "create", None)
        if not callable(create):
            raise WorkError("create.py has no function create")
        takes = _parameters(create)
        unknown = [key for key in params if key not in takes]
        if unknown:
            known = ", ".join(inspect.signature(create).parameters) or "no parameter"
            raise UsageError(f"{folder}: create does not take {', '.join(unknown)} of --model_params: it takes {known}")
        return create(**{key: value for key, value in {**ours, **params}.items() if key in takes})


@contextlib.contextmanager
def _neighbours_importable(folder: Path) -> Iterator[None]:
    """While a module loads, its folder is the working directory and the first place to import from."""
    before = Path.cwd()
    known = set(sys.modules)
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path.remove(str(folder))
        for name in set(sys.modules) - known:  # another module's neighbours may have the same names
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder) + os.sep):
                del sys.modules[name]


def _placed(model: Any, device: torch.device) -> Callable[..., Any]:
    if isinstance(model, torch.nn.Module):
        # Not torch.no_grad() around the call: some modules finetune a field of their own by gradients as they run.
        # Weights that want no gradient keep the pass itself as cheap.
        for weights in model.parameters():
            weights.requires_grad_(False)
        return model.to(device).eval()
    if not callable(model):
        raise WorkError(f"create returned {type(model).__name__}: want a model that can be called")
    placed: Callable[..., Any] = model
    return placed


class _Everything:
    """What a function with **keywords takes."""

    def __contains__(self, name: object) -> bool:
        return True


def _keywords(model: Any) -> "set[str] | _Everything":
    """The keywords that a model's forward takes."""
    if isinstance(model, torch.jit.ScriptModule):
        forward: Any = model.forward
        return {argument.name for argument in forward.schema.arguments}
    return _parameters(model.forward if isinstance(model, torch.nn.Module) else model)


def _parameters(function: Callable[..., Any]) -> "set[str] | _Everything":
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return _Everything()
    return set(parameters)


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
