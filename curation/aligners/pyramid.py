"""Pyramids of aligner modules: finding the module of a stage.

A pyramid is a folder of module folders named `<STAGE>_mip<IN_MIP>in_<SUFFIX>`. A module folder is a modelhouse
package (`create.py` with `create(**params)`) or holds a TorchScript file `<checkpoint_name>.pt`. These are the pyramids
of https://github.com/seung-lab/metroem.
"""

import hashlib
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import PathLike

_NAME = re.compile(r"(\d+)_mip(\d+)in_(.+)")


@dataclass(frozen=True)
class Module:
    """A module folder, and what its name says: its stage, and the MIP of the images it takes."""

    folder: Path
    stage: int
    in_mip: int


def find_module(pyramid_path: PathLike, stage: int, src_mip: int, checkpoint_name: str) -> Module:
    """The module of a stage; whatever is amiss is a `UsageError` that lists what is there."""
    modules = list(_modules(Path(pyramid_path)))
    have = ", ".join(sorted(module.folder.name for module in modules)) or "no <STAGE>_mip<IN_MIP>in_<SUFFIX> folder"
    found = [module for module in modules if module.stage == stage]
    if len(found) != 1:
        count = "no module" if not found else "more than one module"
        raise UsageError(f"{pyramid_path}: {count} of stage {stage}; there is {have}")
    module = found[0]
    if module.in_mip != src_mip:
        raise UsageError(f"{module.folder}: takes images of MIP {module.in_mip}, not src_mip {src_mip}")
    if not (create_path(module).exists() or script_path(module, checkpoint_name).exists()):
        checkpoints = ", ".join(sorted(path.name for path in module.folder.glob("*.pt"))) or "none"
        raise UsageError(f"{module.folder}: no create.py and no {checkpoint_name}.pt; checkpoints there: {checkpoints}")
    script = script_path(module, checkpoint_name)
    if not create_path(module).exists() and _holds_weights(script):
        raise UsageError(
            f"{script}: holds weights (a state_dict), not a TorchScript module: want one made by torch.jit.save, or a "
            "create.py that loads them"
        )
    return module


def check_params(module: Module, checkpoint_name: str, params: Mapping[str, Any]) -> None:
    """Refuse parameters for a module that has no `create` to take them."""
    if params and not create_path(module).exists():
        raise UsageError(
            f"{script_path(module, checkpoint_name)} is a TorchScript file, which takes no --model_params: "
            "leave them out, or add a create.py that takes them"
        )


def _holds_weights(path: Path) -> bool:
    """Whether a file is what torch.save or pickle writes of weights, in whatever form; not a TorchScript file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}  # below one folder, of any name
        return "data.pkl" in names and "constants.pkl" not in names
    except (zipfile.BadZipFile, OSError):
        with suppress(OSError), open(path, "rb") as file:
            return file.read(2) in _PICKLES
    return False


_PICKLES = {bytes([0x80, protocol]) for protocol in range(2, 6)}  # how a pickle begins, and torch.save did before 1.6


def _modules(pyramid: Path) -> Iterator[Module]:
    if not pyramid.is_dir():
        raise UsageError(f"{pyramid}: no such folder; want a pyramid, a folder of <STAGE>_mip<IN_MIP>in_<SUFFIX>")
    for folder in pyramid.iterdir():
        match = _NAME.fullmatch(folder.name)
        if match and folder.is_dir():
            yield Module(folder, int(match[1]), int(match[2]))


def create_path(module: Module) -> Path:
    """Where its code is, if it is a modelhouse package."""
    return module.folder / "create.py"


def script_path(module: Module, checkpoint_name: str) -> Path:
    """Where its TorchScript file is, if it has one."""
    return module.folder / f"{checkpoint_name}.pt"


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
