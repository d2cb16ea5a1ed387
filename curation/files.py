"""Files that are finished or not there: written beside their place, flushed to the disk, then renamed into it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from .errors import UsageError, WorkError

PathLike = str | os.PathLike[str]


def check_new(path: PathLike, overwrite: bool) -> None:
    """Refuse to replace what is there, unless told to."""
    if not overwrite and Path(path).exists():
        raise UsageError(f"{path} is there already: take another name, or --overwrite to replace it")


def check_folder(path: PathLike) -> None:
    """Refuse a folder that is missing or cannot be written to."""
    folder = Path(path)
    if not folder.exists():
        raise UsageError(f"{folder}: no such folder; make it first")
    if not folder.is_dir():
        raise UsageError(f"{folder}: not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{folder}: cannot be written to")


@contextmanager
def written_whole(path: PathLike, overwrite: bool) -> Iterator[TextIO]:
    """A text file that appears under `path` whole when the block ends, and not at all if it raises."""
    target = Path(path)
    check_folder(target.parent)
    check_new(target, overwrite)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8", newline="\n") as file:
            yield file
        publish(temporary, target)
    except OSError as error:
        raise WorkError(f"{target}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, target: Path) -> None:
    """Move a written file into its place, so that a crash leaves the old file or the new one, never between.

    The data must be on the disk before the name is, and the name is on the disk once its folder is: without the
    two fsyncs a power cut can leave a renamed, empty file.
    """
    sync(temporary)
    os.replace(temporary, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
