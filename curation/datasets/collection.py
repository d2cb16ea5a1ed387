"""Pairs of one dataset file, or of all shards in a folder, read as one; also of a file that is still being written."""

import resource
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import UsageError
from ..files import PathLike
from ..provenance import fingerprint
from .dataset import Dataset, open_dataset
from .partial import partial_path
from .shards import Shard, gaps, gaps_text, shards_in, spec_beside
from .stored import Empty, SampleReader

NOTES = "note"  # the dataset of an image file that is there only if a pair has a note

_ATTEMPTS = 5  # to open a file while its writer may be flushing it
_PAUSE_S = 0.5
_OTHER_FILES = 100  # that a process has open beside those of a folder


@dataclass(frozen=True)
class Collection:
    """Samples in one or several open files, one after the other.

    path: what was opened, a file or a folder. parts: the files. numbers: (N,) int64, the place of each sample in the
    whole dataset; a folder may lack shards. done: (N,) bool, which samples are there; all are, unless a file is still
    being written. shards: those that the files are, where a folder was opened.
    """

    path: Path
    parts: tuple[Dataset, ...]
    numbers: np.ndarray
    done: np.ndarray
    shards: tuple[Shard, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 2, X, Y)."""
        return (len(self.numbers), *self.parts[0].main.shape[1:])

    @property
    def mip(self) -> int | None:
        """The MIP of the pixels; None where the files do not say."""
        return self.parts[0].mip

    @property
    def kind(self) -> str | None:
        """ "image" or "field"; None where older files do not tell."""
        return self.parts[0].kind

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The attributes of the first file."""
        return self.parts[0].attributes

    @property
    def provenance(self) -> str:
        """What shaped the files, as JSON; "{}" where they do not say, or not the same."""
        (first, *others) = {part.provenance for part in self.parts}
        return "{}" if others else first

    @property
    def fingerprint(self) -> str:
        """A hash of what tells this content from another's, without reading all of it."""
        if not self.shards:
            return self.parts[0].fingerprint
        return fingerprint(part.fingerprint.encode() for part in self.parts)

    @property
    def spec_text(self) -> str | None:
        """The spec as JSON, from the files or from beside the shards; None where there is none.

        A `UsageError` if what lies beside the shards is another spec.
        """
        return str(self.attributes["spec"]) if "spec" in self.attributes else self.spec_beside

    @property
    def spec_beside(self) -> str | None:
        """The spec as JSON, from beside the shards; None where they hold it themselves, or nothing lies there.

        A `UsageError` if what lies there is another spec.
        """
        if not self.shards or "spec" in self.attributes or "spec_sha256" not in self.attributes:
            return None
        return spec_beside(self.path, str(self.attributes["spec_sha256"]))

    @property
    def expected(self) -> int:
        """How many samples there are to be in the end, as far as the files say. A file is all of it."""
        if not self.shards:
            return len(self.numbers)
        return max(int(self.attributes.get("pairs", 0)), self.shards[-1].last)

    def check_whole(self) -> None:
        """Refuse a folder that lacks shards, or whose shards were not made together."""
        if missing := list(gaps(self.shards, self.expected)) if self.shards else []:
            raise UsageError(f"{self.path}: {gaps_text(missing)}: want the shards of all {self.expected} pairs")
        first = self.parts[0]
        for part in self.parts[1:]:
            if part.provenance != first.provenance:
                raise UsageError(f"{first.path} and {part.path} differ in provenance: want shards of one dataset")

    @cached_property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """`start`, `translation` and `pair`, if the files hold them."""
        found = ((name, self.column(name)) for name in ("start", "translation", "pair"))
        return {name: values for name, values in found if values is not None}

    def column(self, name: str) -> np.ndarray | None:
        """A dataset with the samples along axis 0, such as `start`; None where a file does not hold it.

        A shard holds notes only if one of its pairs has one: where other shards do, its notes are "".
        """
        found = [part.file.get(name) for part in self.parts]
        there = [
            isinstance(item, h5py.Dataset) and item.shape[:1] == part.main.shape[:1]
            for item, part in zip(found, self.parts, strict=True)
        ]
        if not (any(there) if name == NOTES else all(there)):
            return None
        return np.concatenate(
            [
                item[:] if is_there else np.full(len(part.main), "", object)
                for item, is_there, part in zip(found, there, self.parts, strict=True)
            ]
        )

    @cached_property
    def _readers(self) -> dict[int, SampleReader]:
        """Of each file from which a sample was read: to find its chunks takes time, and memory."""
        return {}

    @cached_property
    def _first(self) -> np.ndarray:
        """The place of the first sample of each file."""
        return np.cumsum([0, *(len(part.main) for part in self.parts[:-1])])

    def read(self, sample: int, empty: Empty | None = None) -> np.ndarray:
        """One sample, (2, X, Y) float32; in any thread. empty: makes the array that it is read into."""
        part = int(np.searchsorted(self._first, sample, side="right")) - 1
        reader = self._readers.get(part)
        if reader is None:  # where several threads make one, they are alike
            reader = self._readers[part] = SampleReader(self.parts[part].main)
        return reader(sample - int(self._first[part]), empty)

    def close(self) -> None:
        """Close the files."""
        for part in self.parts:
            part.file.close()


def files_of(path: PathLike) -> list[Path]:
    """The dataset file of this name, or the shards in the folder of this name, in order."""
    return [shard for _, shard in shards_in(Path(path))] if Path(path).is_dir() else [Path(path)]


def open_finished(path: PathLike) -> Collection:
    """Open a finished dataset file or a folder of shards; anything else is a `UsageError`."""
    return _folder(Path(path)) if Path(path).is_dir() else _finished(Path(path))


def open_collection(path: PathLike) -> Collection:
    """Open a dataset file or a folder of shards; anything else is a `UsageError`.

    If the file is not there, but is being made under its hidden name, what is done of it is opened.
    """
    path = Path(path)
    if path.is_dir():
        return open_finished(path)
    hidden = path if ".partial." in path.name else partial_path(path)
    if hidden.exists() and (hidden == path or not path.exists()):
        return _unfinished(path, hidden)
    return open_finished(path)


def _finished(path: Path) -> Collection:
    data = open_dataset(path)
    count = len(data.main)
    return Collection(path, (data,), np.arange(count), np.ones(count, bool))


def _folder(folder: Path) -> Collection:
    there = shards_in(folder)
    if not there:
        raise UsageError(f"{folder}: no shards in it: want a folder of FIRST_LAST.h5 files, or one file")
    _allow_open(len(there))
    shards = tuple(shard for shard, _ in there)
    with ExitStack() as stack:
        parts: list[Dataset] = []
        for shard, path in there:
            part = open_dataset(path)
            stack.callback(part.file.close)
            _check_fits(part, shard.count, parts[0] if parts else part)
            parts.append(part)
        numbers = np.concatenate([np.arange(shard.first, shard.last) for shard in shards])
        if len(np.unique(numbers)) < len(numbers):
            raise UsageError(f"{folder}: some shards hold the same pairs: want each pair once")
        stack.pop_all()
    return Collection(folder, tuple(parts), numbers, np.ones(len(numbers), bool), shards)


def _allow_open(files: int) -> None:
    """Raise this process's limit of open files, which may be 1024, as far as the system lets it for so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) + files + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _check_fits(part: Dataset, count: int, first: Dataset) -> None:
    if len(part.main) != count:
        raise UsageError(f"{part.path}: it holds {len(part.main)} pairs, but its name says {count}")
    if (part.main.shape[1:], part.mip) != (first.main.shape[1:], first.mip):
        raise UsageError(f"{part.path} and {first.path} differ in shape or MIP: want shards of one dataset")


def _unfinished(path: Path, hidden: Path) -> Collection:
    def opened() -> Collection:
        if path.exists() and not hidden.exists():  # finished just now
            return _finished(path)
        data = open_dataset(hidden, is_written=True)
        try:
            entries = data.file["checksum"][:]
            return Collection(path, (data,), np.arange(len(entries)), (entries[:, : data.chunk_roles] != 0).all(axis=1))
        except BaseException:
            data.file.close()
            raise

    return _patiently(opened, hidden)


def _patiently(open_it: Callable[[], Collection], hidden: Path) -> Collection:
    """Open a file that another process may be flushing just now: what is read is then torn for a moment."""
    for pause in [_PAUSE_S] * _ATTEMPTS:
        try:
            return open_it()
        except (UsageError, OSError, RuntimeError, KeyError, ValueError) as error:
            last = error
            time.sleep(pause)
    raise UsageError(f"{hidden}: unfinished, and cannot be read now: try again later ({last})")
