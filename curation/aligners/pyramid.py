"""Pyramids of aligner modules: finding the module of a stage.

A pyramid is a folder of module folders named `<STAGE>_mip<IN_MIP>in_<SUFFIX>`. A module folder is a modelhouse
package (`create.py` with `create(**params)`), or holds an exported model: a TorchScript file `<checkpoint_name>.pt`, a
program of torch.export `<checkpoint_name>.pt2`, or an ONNX file `<checkpoint_name>.onnx`. The packages are those of
https://github.com/seung-lab/metroem.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import PathLike
from .exported_files import FORMS, check_exported

_NAME = re.compile(r"(\d+)_mip(\d+)in_(.+)")


@dataclass(frozen=True)
class Module:
    """A module folder, and what its name says: its stage, and the MIP of the images it takes."""

    folder: Path
    stage: int
    in_mip: int


def find_modules(pyramid_path: PathLike) -> list[Module]:
    """All modules of a pyramid, by their stages; whichever files they hold."""
    pyramid = Path(pyramid_path)
    if not pyramid.is_dir():
        raise UsageError(f"{pyramid}: no such folder; want a pyramid, a folder of <STAGE>_mip<IN_MIP>in_<SUFFIX>")
    named = ((folder, _NAME.fullmatch(folder.name)) for folder in pyramid.iterdir() if folder.is_dir())
    modules = [Module(folder, int(match[1]), int(match[2])) for folder, match in named if match]
    return sorted(modules, key=lambda module: (module.stage, module.folder))


def find_module(pyramid_path: PathLike, stage: int, src_mip: int, checkpoint_name: str) -> Module:
    """The module of a stage; whatever is amiss is a `UsageError` that lists what is there."""
    modules = find_modules(pyramid_path)
    have = ", ".join(sorted(module.folder.name for module in modules)) or "no <STAGE>_mip<IN_MIP>in_<SUFFIX> folder"
    found = [module for module in modules if module.stage == stage]
    if len(found) != 1:
        count = "no module" if not found else "more than one module"
        raise UsageError(f"{pyramid_path}: {count} of stage {stage}; there is {have}")
    module = found[0]
    if module.in_mip != src_mip:
        raise UsageError(f"{module.folder}: takes images of MIP {module.in_mip}, not src_mip {src_mip}")
    if not create_path(module).exists():
        check_exported(exported_path(module, checkpoint_name))
    return module


def check_params(module: Module, checkpoint_name: str, params: Mapping[str, Any]) -> None:
    """Refuse parameters for a module that has no `create` to take them."""
    if params and not create_path(module).exists():
        path = exported_path(module, checkpoint_name)
        raise UsageError(
            f"{path} is {FORMS[path.suffix].name}, which takes no --model_params: "
            "leave them out, or add a create.py that takes them"
        )


def create_path(module: Module) -> Path:
    """Where its code is, if it is a modelhouse package."""
    return module.folder / "create.py"


def exported_path(module: Module, checkpoint_name: str) -> Path:
    """Where the exported model of a module without `create.py` is; a `UsageError` unless it is in one file."""
    paths = [module.folder / f"{checkpoint_name}{suffix}" for suffix in FORMS]
    found = [path for path in paths if path.exists()]
    if not found:
        checkpoints = (path.name for path in module.folder.iterdir() if path.suffix in FORMS)
        names = ", ".join(path.name for path in paths[:-1])
        raise UsageError(
            f"{module.folder}: no create.py and no {names} or {paths[-1].name}; "
            f"checkpoints there: {', '.join(sorted(checkpoints)) or 'none'}"
        )
    if len(found) > 1:
        raise UsageError(
            f"{module.folder}: holds {' and '.join(path.name for path in found)}: want one file of this name, "
            "so that it is clear which model runs"
        )
    return found[0]


def content_hash(module: Module) -> str:
    """A hash of a module's files, by which shards know whether they were made by the same one."""
    digest = hashlib.sha256()
    for path in sorted(_files(module.folder, ())):
        digest.update(os.fsencode(path.relative_to(module.folder)) + b"\0")
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _files(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """The files below a folder, also those behind links, which a module imports as it does its own."""
    above = (*above, folder.resolve())
    for path in folder.iterdir():
        if path.is_file():
            yield path
        elif path.is_dir() and path.name != "__pycache__" and path.resolve() not in above:
            yield from _files(path, above)
