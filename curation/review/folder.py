"""The folder of a review: a page that any browser opens, without a server, and the pictures beside it.

    index.html, *.js, style.css     the page, copied from `page/` beside this module
    data.js                         what is known of all pairs, in columns
    wheel.png                       the legend of the colours of fields
    pairs/000012/                   the pictures and the numbers of pair 12

A page that was opened as a file may load scripts and pictures, but no other files: so data are calls in scripts.
index.html is written last. A folder without it is unfinished.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..errors import UsageError, WorkError
from ..files import check_destination, make_folder
from . import pictures

INDEX, DATA, PAIRS, WHEEL = "index.html", "data.js", "pairs", "wheel.png"
WHEEL_PIXELS = 160

_PAGE = Path(__file__).parent / "page"
_BEGUN = b"review.load("


def check_review_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something else, or a finished review that is not to be replaced."""
    check_destination(folder)
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()}
    if names and not _is_review(folder):
        raise UsageError(f"{folder} holds {sorted(names)[0]} and is no review: want a new folder, or an empty one")
    if INDEX in names and not overwrite:
        raise UsageError(f"{folder} holds a review already: --overwrite replaces it, or take another --dst_path")


def _is_review(folder: Path) -> bool:
    """Whether a review was made or begun there: its data are written first, and nobody else begins a file like that."""
    try:
        with open(folder / DATA, "rb") as file:
            return file.read(len(_BEGUN)) in (b"", _BEGUN)  # nothing, where the disk was full
    except OSError:
        return False


def begin_review(folder: Path) -> None:
    """Make the folder, and take the page of an earlier review away. From now on, the folder is told to be a review."""
    make_folder(folder)
    try:
        (folder / INDEX).unlink(missing_ok=True)
        (folder / DATA).write_bytes(script("load", None))
    except OSError as error:
        raise WorkError(f"{folder}: {error.strerror or error}") from error
    make_folder(folder / PAIRS)


def write_pair(folder: Path, place: int, files: Mapping[str, bytes]) -> int:
    """Write the files of a pair by their names; what an earlier review had of it is taken away. Gives the bytes."""
    own = folder / PAIRS / f"{place:06}"
    try:
        own.mkdir(exist_ok=True)
        for path in own.iterdir():
            if path.name not in files:
                path.unlink()
        for name, content in files.items():
            (own / name).write_bytes(content)
    except OSError as error:
        raise WorkError(f"{own}: {error.strerror or error}") from error
    return sum(map(len, files.values()))


def finish_review(folder: Path, data: Mapping[str, Any], places: set[int]) -> None:
    """Write what is known of all pairs, and the page. places: of the pairs; others of an earlier review are deleted."""
    kept = {f"{place:06}" for place in places}
    try:
        for path in (folder / PAIRS).iterdir():
            if path.name.isdecimal() and path.name not in kept:
                shutil.rmtree(path)
        (folder / DATA).write_bytes(script("load", data))
        (folder / WHEEL).write_bytes(pictures.as_png(pictures.wheel(WHEEL_PIXELS)))
        pages = sorted(_PAGE.iterdir(), key=lambda path: path.name == INDEX)
        for path in pages:
            shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise WorkError(f"{folder}: {error.strerror or error}") from error


def script(name: str, *arguments: Any) -> bytes:
    """A script that calls a function of the page. What is no number, NaN, becomes null."""
    return b"review.%s(%s);\n" % (name.encode(), b", ".join(map(msgspec.json.encode, arguments)))
