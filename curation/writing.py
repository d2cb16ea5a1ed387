"""Writing a dataset file so that it is finished or not there, and a crash loses little.

Work goes to `.NAME.partial.h5` beside the target, in this order: chunks and facts are written and flushed, then their
entries in `checksum`, then those are flushed. An entry is a checksum of the stored chunk and the facts, so what a
crash tore or a disk damaged is seen when the work resumes, and is done again. The finished file is checked, flushed to
the disk and renamed. `checksum` stays in it, for verify_dataset.py.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from isal import isal_zlib

from . import __version__
from .datasets import DEFLATE_LEVEL, FACTS, Chunk, Layout, open_dataset
from .errors import UsageError, WorkError
from .files import Draining, PathLike, differences, publish
from .probing import is_walkable

_WRITTEN = 1 << 32  # set in an entry of `checksum`, whose low half is a CRC-32
Buffer = bytes | np.ndarray
_ROOM = 64 * 2**20


def partial_path(target: PathLike) -> Path:
    """Where a file is while it is unfinished."""
    target = Path(target)
    return target.with_name(f".{target.name.removesuffix('.h5')}.partial.h5")


class Writer:
    """One dataset file in the making; `finish` puts it in its place.

    A context manager: whatever ends it early, what was put until then is committed if it can be.
    """

    def __init__(self, target: PathLike, layout: Layout) -> None:
        self.target = Path(target)
        self.layout = layout
        self._partial = partial_path(target)
        with _failing(self._partial), _quiet_hdf5():
            self._file = _resumed(self._partial, layout) or _created(self._partial, layout)
            self._entries = self._file["checksum"][:]
            self._crc32 = self._file["crc32"][:]
            self.facts = {name: self._file[name][:] for name in layout.facts}
            self._draining = Draining(self._partial)
        self._touched: set[int] = set()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the file as it is, to be resumed. An error on the way here is not hidden by another one."""
        with closing(self._draining):
            if self._file:
                with _quiet_hdf5() if kind else nullcontext():
                    self._leave(suppress(WorkError) if kind else nullcontext())

    def _leave(self, errors: AbstractContextManager[None]) -> None:
        try:
            with errors:
                self.commit()
        finally:
            with suppress(OSError, RuntimeError):  # after a failed write HDF5 may not close in order either
                self._file.close()

    @property
    def done(self) -> np.ndarray:
        """(N, 2) bool: the samples' boxes that are put."""
        return self._entries != 0

    def put(self, sample: int, role: int, chunk: Chunk | None, facts: Mapping[str, Any] | None = None) -> None:
        """Store what a box of a sample gives to this file: its chunk, if it has one, and what is known of it."""
        if chunk is not None:
            with _failing(self._partial):
                self._file["main"].id.write_direct_chunk((sample, role, 0, 0), chunk.data, chunk.skipped)
            self._crc32[sample, role] = chunk.crc32
        for name in self.layout.facts:
            self.facts[name][sample, role] = facts[name] if facts else 0
        row = _row(self.facts, self._crc32, sample, role)
        self._entries[sample, role] = _entry(chunk.data, chunk.skipped, row) if chunk else _entry(b"", 0, row)
        self._touched.add(sample)

    def commit(self) -> None:
        """Make all that was put so far survive a crash of this process."""
        if not self._touched:
            return
        rows = slice(min(self._touched), max(self._touched) + 1)
        with _failing(self._partial):
            for name, values in [*self.facts.items(), ("crc32", self._crc32)]:
                self._file[name][rows] = values[rows]
            self._file.flush()
            self._file["checksum"][rows] = self._entries[rows]
            self._file.flush()
            self._draining.start()
        self._touched.clear()

    def finish(self, keep: np.ndarray | None = None) -> None:
        """Check the whole file, and move it into its place: all samples, or those of `keep`, (N,) bool."""
        self.commit()
        with _failing(self._partial):
            self._draining.wait()
        if not self.done.all():
            raise WorkError(f"{self._partial}: {np.sum(~self.done)} of {self.done.size} boxes are missing")
        with _failing(self._partial):
            stored = self._file["main"].id.get_num_chunks()
            wanted = len(self._entries) * self.layout.chunk_roles
            if stored != wanted:
                raise WorkError(f"{self._partial}: holds {stored} chunks of {wanted}")
            if keep is None or keep.all():
                self._file.flush()
                self._file.close()
                self._check_reads_back()
                publish(self._partial, self.target)
            else:
                self._finish_some(keep)

    def _check_reads_back(self) -> None:
        """A file that was damaged where HDF5 keeps its books can look whole until it is closed."""
        with h5py.File(self._partial, "r") as file:
            alike = _has_form(file, self.layout) and _is_as_begun(file, self.layout)
            if not (alike and np.array_equal(file["checksum"][:], self._entries) and _is_sound(file, self._entries)):
                raise WorkError(f"{self._partial}: damaged, as it reads back; the same command makes it again")

    def _finish_some(self, keep: np.ndarray) -> None:
        """A file cannot drop samples from its middle, so those kept are copied, as they are stored, to a new one."""
        kept = np.flatnonzero(keep)
        layout = replace(
            self.layout,
            main=(len(kept), *self.layout.main[1:]),
            arrays={name: values[kept] for name, values in self.layout.arrays.items()},
        )
        copy = self._partial.with_name(self._partial.name.replace(".partial.", ".kept.partial."))
        with _created(copy, layout) as file:
            _copy(self._file, file, layout, kept, self._entries[kept])
            file.create_dataset("left_out", data=np.flatnonzero(~keep))
        self._file.close()
        publish(copy, self.target)
        self._partial.unlink()


@contextmanager
def _quiet_hdf5() -> Iterator[None]:
    """After a failed write each of h5py's objects tells of it again as it goes, past all handlers: not to the user."""
    hooks = sys.excepthook, sys.unraisablehook
    sys.excepthook, sys.unraisablehook = lambda *error: None, lambda error: None
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = hooks


def _row(facts: Mapping[str, np.ndarray], crc32: np.ndarray, sample: int, role: int) -> bytes:
    """What is known of a box, as bytes. crc32: (N, 1) in a field file, where the target has none."""
    known = [values[sample, role] for _, values in sorted(facts.items())]
    return b"".join(np.asarray(value).tobytes() for value in [*known, crc32[sample, role : role + 1]])


def _entry(stored: Buffer, skipped: int, row: bytes) -> int:
    """What `checksum` says of a box: its stored chunk, its filter mask and its facts are those with this CRC-32."""
    return _WRITTEN | isal_zlib.crc32(row + skipped.to_bytes(4, "little"), isal_zlib.crc32(stored))


@contextmanager
def _failing(path: Path) -> Iterator[None]:
    """Name the file in what HDF5 and the file system raise."""
    try:
        yield
    except (UsageError, WorkError):
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise WorkError(f"{path}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """HDF5 buries the system's reason in its own words: `... (errno = 28, error message = '...', ...`."""
    text = str(error)
    found = re.search(r"error message = '([^']*)'", text)
    return found[1] if found else getattr(error, "strerror", None) or text


def _created(partial: Path, layout: Layout) -> h5py.File:
    # The default libver: a file written with "latest" cannot be opened after its writer was killed.
    file = h5py.File(partial, "w")
    _begin(file, layout)
    file.flush()
    return file


def _begin(file: h5py.File, layout: Layout) -> None:
    samples = layout.main[0]
    _create_main(file, layout)
    for name, values in layout.arrays.items():
        file.create_dataset(name, data=values, dtype=h5py.string_dtype() if values.dtype == object else None)
    for name in layout.facts:
        dtype, shape = FACTS[name]
        file.create_dataset(name, (samples, 2, *shape), dtype)
    file.create_dataset("crc32", (samples, layout.chunk_roles), "<u4")
    file.create_dataset("checksum", (samples, 2), "<u8")
    _set_attributes(file, layout)


def _create_main(file: h5py.File, layout: Layout) -> None:
    file.create_dataset(
        "main",
        layout.main,
        "<f4",
        chunks=layout.chunk,
        shuffle=True,
        compression="gzip",
        compression_opts=DEFLATE_LEVEL,
    )


def _set_attributes(file: h5py.File, layout: Layout) -> None:
    for name, value in layout.attributes.items():
        file.attrs[name] = value
    file.attrs["toolkit_version"] = __version__
    file.attrs["identity"] = json.dumps(layout.identity, sort_keys=True)


def _resumed(partial: Path, layout: Layout) -> h5py.File | None:
    """The partial file, opened to go on with what in it is intact; None if there is none, or nothing is."""
    if not partial.exists():
        return None
    try:
        if not _is_walkable_with_room(partial):
            return None
        file = h5py.File(partial, "r+")
        _check_identity(partial, file, layout.identity)
        if not _has_form(file, layout):
            return None
        entries = file["checksum"][:]
        intact = intact_boxes(file)
        good = (intact == (entries != 0)).all() and _is_as_begun(file, layout) and _is_sound(file, entries)
    except (UsageError, BlockingIOError, PermissionError):  # not damaged, but in use: made anew, it would be emptied
        raise
    except Exception:  # whatever HDF5 and h5py say of what damage has made of it
        return None
    return file if good else _salvaged(partial, file, layout, entries * intact)


def _is_walkable_with_room(partial: Path) -> bool:
    """Whether it can be opened and walked through, if need be with room at its end.

    A crash amid a flush can leave a file that ends before where its header says: with room there it opens, and what is
    not intact in it is seen.
    """
    if is_walkable(partial):
        return True
    os.truncate(partial, partial.stat().st_size + _ROOM)
    return is_walkable(partial)


def _check_identity(path: Path, file: h5py.File, identity: Mapping[str, Any]) -> None:
    """Refuse a file that something else shaped, and say what."""
    found = json.loads(str(file.attrs["identity"]))
    if identity != found:
        file.close()
        raise UsageError(f"{path}: begun with another {differences(identity, found)}; give the same, or delete it")


def _has_form(file: h5py.File, layout: Layout) -> bool:
    """Whether it holds the datasets that a new file has, in their form."""
    with h5py.File("new", "w", driver="core", backing_store=False) as new:
        _begin(new, layout)
        return _form(new) == _form(file)


def _form(file: h5py.File) -> dict[str, Any]:
    return {name: (file[name].dtype, file[name].shape, file[name].chunks, _filters(file[name])) for name in file}


def _filters(data: h5py.Dataset) -> list[Any]:
    properties = data.id.get_create_plist()
    return [properties.get_filter(index) for index in range(properties.get_nfilters())]


def _is_as_begun(file: h5py.File, layout: Layout) -> bool:
    """Whether what was known from the beginning is there."""
    with h5py.File("new", "w", driver="core", backing_store=False) as new:
        _set_attributes(new, layout)
        attributes = [{name: str(value) for name, value in each.attrs.items()} for each in (new, file)]
    known = all(np.array_equal(_values(file[name]), values) for name, values in layout.arrays.items())
    return known and attributes[0] == attributes[1]


def _values(data: h5py.Dataset) -> np.ndarray:
    return data.asstr()[:] if h5py.check_string_dtype(data.dtype) else data[:]


def _is_sound(file: h5py.File, entries: np.ndarray) -> bool:
    """Whether the index of chunks can be walked, and those in it read that are not in `entries` yet.

    After a crash amid a flush it may hold chunks beyond where the file ends by its header: these cannot be replaced.
    """
    main = file["main"].id
    places: list[tuple[int, ...]] = []
    with suppress(OSError, RuntimeError, IndexError):
        main.chunk_iter(lambda chunk: places.append(chunk.chunk_offset))
        for sample, role, *rest in places:
            if not entries[sample, role]:
                main.read_direct_chunk((sample, role, *rest))
        return True
    return False


def intact_boxes(file: h5py.File) -> np.ndarray:
    """(N, 2) bool: the boxes whose chunk and facts are stored as `checksum` says."""
    entries = file["checksum"][:]
    crc32 = file["crc32"][:]
    facts = {name: file[name][:] for name in FACTS if name in file}
    intact = np.zeros(entries.shape, bool)
    for sample, role in np.argwhere(entries).tolist():
        with suppress(OSError, RuntimeError, KeyError):
            skipped, stored = 0, b""
            if role < crc32.shape[1]:
                skipped, stored = file["main"].id.read_direct_chunk((sample, role, 0, 0))
            entry = _entry(stored, skipped, _row(facts, crc32, sample, role))
            intact[sample, role] = entry == entries[sample, role]
    return intact


def _salvaged(partial: Path, damaged: h5py.File, layout: Layout, entries: np.ndarray) -> h5py.File:
    """A new partial file with what is intact in a damaged one, in its place."""
    salvage = partial.with_name(partial.name.replace(".partial.", ".salvage.partial."))
    with _created(salvage, layout) as file:
        _copy(damaged, file, layout, np.arange(len(entries)), entries)
    with suppress(OSError, RuntimeError):
        damaged.close()
    os.replace(salvage, partial)
    return h5py.File(partial, "r+")


def _copy(src: h5py.File, dst: h5py.File, layout: Layout, samples: np.ndarray, entries: np.ndarray) -> None:
    """Copy `samples`, (M,), as they are stored, to a new file of as many: their boxes that have `entries`, (M, 2)."""
    for place, role in np.argwhere(entries[:, : layout.chunk_roles]).tolist():
        skipped, stored = src["main"].id.read_direct_chunk((samples[place], role, 0, 0))
        dst["main"].id.write_direct_chunk((place, role, 0, 0), stored, skipped)
    for name in (*layout.facts, "crc32"):
        values = src[name][:][samples]
        values[entries[:, : values.shape[1]] == 0] = 0
        dst[name][...] = values
    dst["checksum"][...] = entries


def write_whole(target: PathLike, layout: Layout, chunks: Sequence[Chunk]) -> None:
    """Write a small field file, a shard, at once: `chunks` in the samples' order. It appears whole or not at all."""
    target = Path(target)
    # Named for this process: one left behind by a dead run may be at work on the same shard still.
    partial = target.with_name(f".{target.stem}.{os.getpid()}.partial.h5")
    try:
        with _failing(target), _quiet_hdf5(), h5py.File(partial, "w") as file:
            _create_main(file, layout)
            for sample, chunk in enumerate(chunks):
                file["main"].id.write_direct_chunk((sample, 0, 0, 0), chunk.data, chunk.skipped)
            crc32 = np.array([[chunk.crc32] for chunk in chunks], "<u4")
            for name, values in {**layout.arrays, "crc32": crc32}.items():
                file.create_dataset(name, data=values)
            _set_attributes(file, layout)
        with _failing(target):
            publish(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _check_partial(partial: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a partial file that something else shaped; what is wrong with one otherwise shows when it is resumed."""
    try:
        if not partial.exists() or not is_walkable(partial):
            return
        with h5py.File(partial, "r") as file:
            _check_identity(partial, file, identity)
    except UsageError:
        raise
    except Exception:
        return


def is_finished(target: PathLike, identity: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether a file is there that the same run finished; one that something else made or began is a `UsageError`."""
    target = Path(target)
    if overwrite or not target.exists():
        _check_partial(partial_path(target), identity)
        return False
    data = open_dataset(target)
    with data.file:
        if str(data.attributes.get("identity")) != json.dumps(dict(identity), sort_keys=True):
            raise UsageError(f"{target} is there already, of another origin: take another name, or --overwrite")
    return True
