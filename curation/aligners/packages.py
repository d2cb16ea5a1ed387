"""Modelhouse packages: running a folder's `create.py`, and calling the model that its `create` returns.

Several packages may be loaded in one process, and their files may have the same names. So what a package imports from
its own folder, its *neighbours*, can only be seen while this package is loaded or called.
"""

import contextlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import UsageError, WorkError
from .models import FLAGS, PRIOR, SOURCE, TARGET, placed

_NAME = "aligner_module"  # of the package itself, so that it can import its neighbours relatively too
_OF_THE_TOOLKIT = frozenset(sys.modules)  # such as torch and the standard library, which no neighbour shadows


class Package:
    """A model that a package's `create` made, on a device."""

    def __init__(self, folder: Path, ours: Mapping[str, Any], params: Mapping[str, Any], device: torch.device) -> None:
        """Call `create` with what it takes of `ours`, and with all of `params`."""
        folder = folder.absolute()  # the working directory is about to change
        self._neighbours = _Neighbours(folder)
        with self._neighbours.importable(), contextlib.chdir(folder):
            self._model = placed(_create(folder, ours, params), device)
        self._takes = _takes_of(self._model)

    def __call__(self, source: torch.Tensor, target: torch.Tensor, prior: torch.Tensor | None) -> Any:
        """What the model returns; see `Model`."""
        offered = {PRIOR: prior, **dict.fromkeys(FLAGS, False)}
        keywords = {name: value for name, value in offered.items() if name in self._takes.keywords}
        # The working directory stays as it is: threads that read and write files meanwhile share it.
        with self._neighbours.importable():
            if self._takes.images_by_name:
                return self._model(**{SOURCE: source, TARGET: target}, **keywords)
            return self._model(source, target, **keywords)


def _create(folder: Path, ours: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
    spec = importlib.util.spec_from_file_location(_NAME, folder / "create.py", submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None:
        raise WorkError("create.py cannot be imported")
    package = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = package
    spec.loader.exec_module(package)
    create = getattr(package, "create", None)
    if not callable(create):
        raise WorkError("create.py has no function create")
    takes = _takes_of(create).keywords
    unknown = [key for key in params if key not in takes]
    if unknown:
        known = ", ".join(inspect.signature(create).parameters) or "no parameter"
        raise UsageError(f"{folder}: create does not take {', '.join(unknown)} of --model_params: it takes {known}")
    return create(**{key: value for key, value in {**ours, **params}.items() if key in takes})


class _Everything:
    """What a function with **keywords takes."""

    def __contains__(self, name: object) -> bool:
        return True


@dataclass(frozen=True)
class _Takes:
    """What a function takes.

    keywords: the names of its parameters. images_by_name: whether it must be called with its images by their names,
    because it takes keywords alone, as metroem's models do, or takes the images in other places than the first two.
    """

    keywords: Container[object]
    images_by_name: bool


def _takes_of(model: Any) -> _Takes:
    if isinstance(model, torch.jit.ScriptModule):
        forward: Any = model.forward
        names = [argument.name for argument in forward.schema.arguments[1:]]
        return _Takes(names, images_by_name=_moved(names, names))
    function: Callable[..., Any] = model.forward if isinstance(model, torch.nn.Module) else model
    parameters = inspect.signature(function).parameters
    kinds = [parameter.kind for parameter in parameters.values()]
    takes_all = inspect.Parameter.VAR_KEYWORD in kinds
    ordered = [name for name, kind in zip(parameters, kinds, strict=True) if kind in _IN_ORDER]
    by_keyword_alone = takes_all and len(ordered) < 2 and inspect.Parameter.VAR_POSITIONAL not in kinds
    return _Takes(_Everything() if takes_all else list(parameters), by_keyword_alone or _moved(ordered, parameters))


def _moved(ordered: Sequence[str], names: Container[str]) -> bool:
    return SOURCE in names and TARGET in names and list(ordered[:2]) != [SOURCE, TARGET]


_IN_ORDER = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class _Neighbours:
    """The modules that a package has imported from its folder, and the places from which it imports."""

    def __init__(self, folder: Path) -> None:
        self._folders = (folder, folder.resolve())
        self._names = {
            path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
        }
        self._places = [str(folder)]
        self._modules: dict[str, ModuleType] = {}

    @contextlib.contextmanager
    def importable(self) -> Iterator[None]:
        """Meanwhile, the folder is the first place to import from, and the neighbours that are known are imported."""
        places, foreign = list(sys.path), self._foreign()
        for name in foreign:
            del sys.modules[name]
        known = set(sys.modules)
        sys.path[:] = [*self._places, *(place for place in places if place not in self._places)]
        sys.modules.update(self._modules)
        try:
            yield
        finally:
            names = (set(sys.modules) - known) | self._modules.keys()
            self._modules = {name: sys.modules[name] for name in names if self._is_own(sys.modules.get(name))}
            self._places = list(sys.path)  # with what the package itself has put there
            for name in self._modules:
                del sys.modules[name]
            sys.modules.update(foreign)
            sys.path[:] = places

    def _foreign(self) -> dict[str, ModuleType]:
        """What others have imported by the name of a neighbour, but for what the toolkit itself has."""
        if not any(name in sys.modules for name in (*self._names, *self._modules)):
            return {}
        named = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in self._names}
        named |= {name: sys.modules[name] for name in self._modules if name in sys.modules}
        return {name: module for name, module in named.items() if name not in _OF_THE_TOOLKIT}

    def _is_own(self, module: Any) -> bool:
        path = getattr(module, "__file__", None)
        paths: Sequence[str] = [path] if path else list(getattr(module, "__path__", ()))  # a folder without __init__.py
        return any(Path(each).is_relative_to(folder) for each in paths for folder in self._folders)
