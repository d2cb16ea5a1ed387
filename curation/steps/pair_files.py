"""The text files that hold pairs, a spec and a link to see it: compared with what is there, and written."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..annotations.coordinate_spaces import Resolution
from ..annotations.viewer_states import commands_to_serve, read_state, state_file
from ..errors import UsageError
from ..files import Existing, PathLike, check_destination, check_name, holds, make_folder, written_whole
from ..spec import Note, Spec, read_spec, spec_file


@dataclass(frozen=True)
class PairFile:
    """A text file that holds pairs.

    text: gives the file's text in pieces, anew each time. pairs: how many pairs it holds. pairs_in: how many pairs a
    file holds that is there; a `UsageError` if it is none of this kind.
    """

    path: Path
    text: Callable[[], Iterable[str]]
    pairs: int
    pairs_in: Callable[[Path], int]


def spec_of_pairs(path: PathLike, spec: Spec, starts: np.ndarray, notes: Mapping[int, Note]) -> PairFile:
    """The file of a spec with other pairs; see `spec_file`."""
    return PairFile(Path(path), lambda: spec_file(spec, starts, notes), len(starts), _pairs_in_spec)


def link_file(
    path: PathLike, spec: Spec, starts: np.ndarray, notes: Mapping[int, Note], resolution: Resolution
) -> PairFile:
    """The file that shows pairs in Neuroglancer; see `state_file`."""
    text = state_file(path, spec, starts, notes, resolution)
    return PairFile(Path(path), lambda: [text], len(starts), _pairs_in_state)


def link_remarks(path: PathLike, spec: Spec) -> list[str]:
    """What to say of a link: how to look at volumes that lie on this machine."""
    commands = commands_to_serve(spec)
    if not commands:
        return []
    return [
        f"{path} shows volumes of this machine, which a browser reads only while they are served: "
        "let each of these commands run in a terminal of its own",
        *(f"  {command}" for command in commands),
    ]


def check_paths(*paths: PathLike | None) -> None:
    """Refuse files that cannot be written, before any of them is: one would stay without the others."""
    given = [Path(path) for path in paths if path is not None]
    if len({path.resolve() for path in given}) < len(given):
        raise UsageError(f"{given[0]} is to be both the spec and the link: take another name for one of them")
    for path in given:
        check_destination(path.parent)
        check_name(path)


def write_pair_files(files: Sequence[PairFile], existing: Existing) -> list[bool]:
    """Write the files, and tell of each whether it was done already.

    A file that holds its text already is left as it is, unless all is to be made anew. One that holds something else is
    a `UsageError` before any file is written, unless `existing` says that it is to be replaced.
    """
    done = [existing is not Existing.REPLACED and holds(file.path, file.text()) for file in files]
    for file, is_done in zip(files, done, strict=True):
        if existing is Existing.REFUSED and not is_done and file.path.exists():
            raise UsageError(
                f"{file.path} is there already, with other content{_counts(file)}: "
                "--update or --overwrite replaces it, or take another name"
            )
    for file, is_done in zip(files, done, strict=True):
        if not is_done:
            make_folder(file.path.parent)
            with written_whole(file.path) as written:
                written.writelines(file.text())
    return done


def _counts(file: PairFile) -> str:
    try:
        return f" ({file.pairs_in(file.path)} pairs there, {file.pairs} now)"
    except UsageError:
        return ""


def _pairs_in_spec(path: Path) -> int:
    return len(read_spec(path, template=True).pairs)


def _pairs_in_state(path: Path) -> int:
    return len(read_state(str(path), "pairs").shapes)
