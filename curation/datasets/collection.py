"""Pairs of one dataset file, or of all shards in a folder, read as one; also of a file that is still being written."""

import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import UsageError
from ..files import PathLike
from ..provenance import fingerprint
from .dataset import Dataset, open_dataset
from .opened import MOST_OPEN, OpenFiles, stamp_of
from .partial import partial_path
from .seal import reading
from .shards import Shard, gaps, gaps_text, shards_in, spec_beside
from .stored import Empty

NOTES = "note"  # the dataset of an image file that is there only if a pair has a note

_ATTEMPTS = 5  # to open a file while its writer may be flushing it
_PAUSE_S = 0.5
_OTHER_FILES = 100  # that a process has open beside those of a folder


@dataclass(frozen=True)
class Collection:
    """Samples in one or several files, one after the other.

    path: what was opened, a file or a folder. paths: the files. shape: (N, 2, X, Y). mip: of the pixels; None where the
    files do not say. kind: "image" or "field"; None where older files do not tell. attributes: of the first file.
    provenances: of each file, as JSON. arrays: `start`, `translation` and `pair`, if the files hold them. numbers: (N,)
    int64, the place of each sample in the whole dataset; a folder may lack shards. done: (N,) bool, which samples are
    there; all are, unless a file is still being written. shards: those that the files are, where a folder was opened.
    """

    path: Path
    paths: tuple[Path, ...]
    shape: tuple[int, int, int, int]
    mip: int | None
    kind: str | None
    attributes: Mapping[str, Any]
    provenances: tuple[str, ...]
    arrays: Mapping[str, np.ndarray]
    numbers: np.ndarray
    done: np.ndarray
    shards: tuple[Shard, ...]
    files: OpenFiles

    @property
    def provenance(self) -> str:
        """What shaped the files, as JSON; "{}" where they do not say, or not the same."""
        (first, *others) = set(self.provenances)
        return "{}" if others else first

    def fingerprints(self) -> Iterator[str]:
        """A hash for each file that tells its content from another's, without reading all of it."""
        for path in self.paths:
            data = open_dataset(path, is_written=".partial." in path.name)
            with data.file:
                yield data.fingerprint

    @property
    def fingerprint(self) -> str:
        """That of the file, or a hash of those of the shards."""
        of_files = list(self.fingerprints())
        return fingerprint(each.encode() for each in of_files) if self.shards else of_files[0]

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
        first = self.provenances[0]
        for path, made_of in zip(self.paths, self.provenances, strict=True):
            if made_of != first:
                raise UsageError(f"{self.paths[0]} and {path} differ in provenance: want shards of one dataset")

    def column(self, name: str) -> np.ndarray | None:
        """A dataset with the samples along axis 0, such as `crc32`; None where a file does not hold it."""
        return self.columns([name]).get(name)

    def columns(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """The datasets of some names that have the samples along axis 0, if all files hold them.

        A shard holds notes only if one of its pairs has one: where other shards do, its notes are "".
        """
        found: dict[str, list[np.ndarray | None]] = {name: [] for name in names}
        for place, count in enumerate(self._counts):
            with self.files.using(place) as used:
                for name, values in found.items():
                    with reading(name):
                        item = used.file.get(name)
                        is_there = isinstance(item, h5py.Dataset) and item.shape[:1] == (count,)
                        values.append(item[:] if is_there else None)
            gone = [name for name, values in found.items() if values[-1] is None and name != NOTES]
            for name in gone:
                del found[name]
        return {
            name: np.concatenate(
                [
                    np.full(count, "", object) if part is None else part
                    for part, count in zip(values, self._counts, strict=True)
                ]
            )
            for name, values in found.items()
            if any(part is not None for part in values)
        }

    @property
    def _counts(self) -> list[int]:
        """How many samples each file has."""
        return [shard.count for shard in self.shards] or [len(self.numbers)]

    @cached_property
    def _first(self) -> np.ndarray:
        """The place of the first sample of each file."""
        return np.cumsum([0, *self._counts[:-1]])

    def read(self, sample: int, empty: Empty | None = None) -> np.ndarray:
        """One sample, (2, X, Y) float32; in any thread. empty: makes the array that it is read into."""
        place = int(np.searchsorted(self._first, sample, side="right")) - 1
        with self.files.using(place) as used:
            return used.read(sample - int(self._first[place]), empty)

    def close(self) -> None:
        """Close the files."""
        self.files.close()


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
    return _of_file(path, data, np.ones(len(data.main), bool))


def _of_file(path: Path, data: Dataset, done: np.ndarray) -> Collection:
    """A collection of one file, which stays open. path: of the finished file."""
    samples, two, x_size, y_size = data.main.shape
    return Collection(
        path=path,
        paths=(data.path,),
        shape=(samples, two, x_size, y_size),
        mip=data.mip,
        kind=data.kind,
        attributes=data.attributes,
        provenances=(data.provenance,),
        arrays={name: values for name, values in data.arrays.items() if values.shape[:1] == (samples,)},
        numbers=np.arange(samples),
        done=done,
        shards=(),
        files=OpenFiles.of_one(data.path, data.main),
    )


def _folder(folder: Path) -> Collection:
    """A collection of the shards in a folder: each is looked at, and closed again until it is read."""
    there = shards_in(folder)
    if not there:
        raise UsageError(f"{folder}: no shards in it: want a folder of FIRST_LAST.h5 files, or one file")
    _allow_open(min(len(there), MOST_OPEN))
    first: Collection | None = None
    mains, provenances, arrays = [], [], []
    for shard, path in there:
        stamp = stamp_of(path)
        with closing(_finished(path)) as part:
            first = first or part
            _check_fits(part, shard.count, first)
            with part.files.using(0) as used:
                mains.append((path, stamp, used.main.name))
        # Those that are alike are kept once: of many shards, the rest would take room.
        provenances.append(first.provenance if part.provenance == first.provenance else part.provenance)
        arrays.append(part.arrays)
    numbers = np.concatenate([np.arange(shard.first, shard.last) for shard, _ in there])
    if first is None or len(np.unique(numbers)) < len(numbers):
        raise UsageError(f"{folder}: some shards hold the same pairs: want each pair once")
    names = [name for name in first.arrays if all(name in each for each in arrays)]
    return replace(
        first,
        path=folder,
        paths=tuple(path for _, path in there),
        shape=(len(numbers), *first.shape[1:]),
        provenances=tuple(provenances),
        arrays={name: np.concatenate([each[name] for each in arrays]) for name in names},
        numbers=numbers,
        done=np.ones(len(numbers), bool),
        shards=tuple(shard for shard, _ in there),
        files=OpenFiles(mains),
    )


def _allow_open(files: int) -> None:
    """Raise this process's limit of open files, which may be 1024, as far as the system lets it for so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) + files + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _check_fits(part: Collection, count: int, first: Collection) -> None:
    if part.shape[0] != count:
        raise UsageError(f"{part.path}: it holds {part.shape[0]} pairs, but its name says {count}")
    if (part.shape[1:], part.mip) != (first.shape[1:], first.mip):
        raise UsageError(f"{part.path} and {first.path} differ in shape or MIP: want shards of one dataset")


def _unfinished(path: Path, hidden: Path) -> Collection:
    def opened() -> Collection:
        if path.exists() and not hidden.exists():  # finished just now
            return _finished(path)
        data = open_dataset(hidden, is_written=True)
        try:
            entries = data.file["checksum"][:]
            return _of_file(path, data, (entries[:, : data.chunk_roles] != 0).all(axis=1))
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
