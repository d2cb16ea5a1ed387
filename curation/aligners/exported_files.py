"""Files of exported models, `<checkpoint_name>.pt`, `.pt2` and `.onnx`: telling by their content what they are.

Nothing is loaded here, and torch is not imported: what is wrong with a file is told before any work begins.
"""

import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..errors import UsageError


@dataclass(frozen=True)
class Form:
    """A form of exported models: the suffix of its files, what such a file is, and which function writes one."""

    suffix: str
    name: str
    maker: str


FORMS = {
    form.suffix: form
    for form in (
        Form(".pt", "a TorchScript file", "torch.jit.save"),
        Form(".pt2", "a program of torch.export", "torch.export.save"),
        Form(".onnx", "an ONNX file", "torch.onnx.export"),
    )
}

_HEAD_BYTES = 512
_PICKLES = {bytes([0x80, protocol]) for protocol in range(2, 6)}  # how a pickle begins, and torch.save did before 1.6
_ONNX_SECOND_FIELDS = {0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42}  # what follows the version at the start of a model


def check_exported(path: Path) -> None:
    """A `UsageError` that says what a file is, unless it is what its suffix says, as far as its content tells."""
    form = FORMS[path.suffix]
    found = _found(path)
    if found == "weights":
        raise UsageError(
            f"{path}: holds weights (a state_dict), not {form.name}: want one made by {form.maker}, or a create.py "
            "that loads them"
        )
    if found in FORMS and found != path.suffix:
        raise UsageError(f"{path}: is {FORMS[found].name}, not {form.name}: name it {path.with_suffix(found).name}")
    if found is None and path.suffix != ".onnx":  # an ONNX file cannot be told for certain; onnxruntime will tell
        raise UsageError(f"{path}: not {form.name}: want one made by {form.maker}")
    if found is not None and found != path.suffix:
        raise UsageError(f"{path}: is {found}, not {form.name}: want one made by {form.maker}")
    if path.suffix == ".onnx" and find_spec("onnxruntime") is None:
        raise UsageError(
            f"{path}: onnxruntime, which runs ONNX files, is not installed: pip install onnxruntime "
            "(onnxruntime-gpu to run them on GPUs)"
        )


def _found(path: Path) -> str | None:
    """The suffix of the form that a file is of, "weights", or what else it is; None if nothing is known of it."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    if head.startswith(b"PK"):
        return _found_in_archive(path)
    if head[:2] in _PICKLES or head[8:9] == b"{":  # safetensors: the length of a JSON object, and the object
        return "weights"
    if head[:1] == b"\x08" and len(head) > 2 and head[2] in _ONNX_SECOND_FIELDS:
        return ".onnx"
    if not head:
        return "empty"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, perhaps an error message that was saved"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS (git lfs pull gets the file itself)"
    return None


def _found_in_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return "a file whose end is missing"
    below = {name.partition("/")[2] for name in names}  # all but the older programs lie below one folder, of any name
    if "data.pkl" in below:
        return ".pt" if "constants.pkl" in below else "weights"
    if "serialized_exported_program.json" in names or any(name.startswith("models/") for name in below):
        return ".pt2"
    if any(name.startswith("data/aotinductor/") for name in below):
        return "a compiled program (AOTInductor)"
    return "a zip archive"
