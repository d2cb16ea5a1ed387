"""Dataset files of which only the last used ones stay open: each takes half a MiB, and a folder may hold thousands."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import h5py

from ..errors import WorkError
from .stored import SampleReader

MOST_OPEN = 64  # if no more are used at the same time


class OpenFile:
    """An open file: `file`, and `main` in it. users: how many threads use it now."""

    def __init__(self, main: h5py.Dataset) -> None:
        self.file = main.file
        self.main = main
        self.users = 0

    @cached_property
    def read(self) -> SampleReader:
        """Reads its samples, in any thread; made when it is first wanted, as it looks for all chunks."""
        return SampleReader(self.main)


Stamp = tuple[int, int]
"""What tells whether a file is still the same: its size, and when it was changed."""


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file that is there."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


class OpenFiles:
    """Files that were looked at before, by their places; each is opened when it is used, in any thread.

    mains: the path of each, its stamp, and the name of `main` in it. A `WorkError` where a file has changed since.
    """

    def __init__(self, mains: Sequence[tuple[Path, Stamp, str]]) -> None:
        self._mains = mains
        self._folder = Path.cwd()  # of relative paths: while a module is loaded, it is the module's folder
        self._open: OrderedDict[int, OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def of_one(cls, path: Path, main: h5py.Dataset) -> "OpenFiles":
        """A file that is open, and stays so: it may be written just now."""
        files = cls([(path, (0, 0), main.name)])
        files._open[0] = OpenFile(main)
        return files

    @contextmanager
    def using(self, place: int) -> Iterator[OpenFile]:
        """One of the files, which stays open for as long as the block lasts, or longer."""
        with self._lock:
            file = self._open.get(place) or OpenFile(self._main(place))
            self._open[place] = file
            self._open.move_to_end(place)
            file.users += 1
            self._close_some()
        try:
            yield file
        finally:
            with self._lock:
                file.users -= 1

    def close(self) -> None:
        """Close all; nothing may use them any more."""
        for file in self._open.values():
            file.file.close()
        self._mains = []
        self._open.clear()

    def _main(self, place: int) -> h5py.Dataset:
        path, stamp, name = self._mains[place]
        try:
            if stamp_of(self._folder / path) == stamp:
                return h5py.File(self._folder / path, "r")[name]
        except (OSError, KeyError) as error:
            raise WorkError(f"{path}: cannot be opened again: {error}") from error
        raise WorkError(f"{path}: changed while it was read")

    def _close_some(self) -> None:
        unused = [place for place, file in self._open.items() if not file.users]
        for place in unused[: max(0, len(self._open) - MOST_OPEN)]:
            self._open.pop(place).file.close()
