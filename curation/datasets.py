"""The dataset files: HDF5 that any h5py reads without plugins.

`main` is (N, 2, X, Y) float32: of an image file axis 1 is source and target, of a field file the two components.
One chunk is one image (1, 1, X, Y) or one field (1, 2, X, Y), through HDF5's own shuffle and gzip filters. Beside it
stand `start`, `crc32` and a dataset for each fact known of a sample (README, "Dataset files").

A file is finished or it is not there. Work goes to `.NAME.partial.h5` beside the target, in this order: chunks and
facts are written and flushed, then the chunks' entries in `written`, then those are flushed. An entry holds the
checksum of the stored chunk, so what a crash tore is seen when the work resumes, and is done again. The finished
file is checked, flushed to the disk and renamed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from isal import isal_zlib

from . import __version__
from .errors import UsageError, WorkError
from .files import PathLike, publish

ROLES = ("source", "target")
DEFLATE_LEVEL = 1

# What is known of each sample's two boxes: (N, 2, *shape) datasets.
FACTS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "translation": ("<i8", (2,)),
    "mean": ("<f4", ()),
    "std": ("<f4", ()),
    "valid": ("<f4", ()),
    "masked": ("<f4", ()),
    "outside": ("<f4", ()),
    "missing_chunks": ("<i4", ()),
    "zero_variance": ("|u1", ()),
    "no_vector": ("|u1", ()),
}

FIELD_FACTS = ("translation", "no_vector")

_WRITTEN = 1 << 32  # set in an entry of `written`, whose low half is the stored chunk's CRC-32


@dataclass(frozen=True)
class Chunk:
    """An encoded image or field. crc32: of its values, as float32, little-endian, C order."""

    data: bytes
    crc32: int


def encode(values: np.ndarray) -> Chunk:
    """Values as HDF5's shuffle and gzip filters store them: byte k of every number, for k = 0..3, then deflated.

    The format is zlib's (RFC 1950), as HDF5's gzip filter wants it; ISA-L makes it several times faster.
    """
    values = np.ascontiguousarray(values, "<f4")
    shuffled = np.ascontiguousarray(values.reshape(-1).view(np.uint8).reshape(-1, 4).T)
    return Chunk(isal_zlib.compress(shuffled, DEFLATE_LEVEL), isal_zlib.crc32(values))


@dataclass(frozen=True)
class Layout:
    """What a file is to hold, decided before it is made.

    main: its shape, (N, 2, X, Y). chunk_roles: chunks a sample, 2 in an image file and 1 in a field file.
    arrays: what is known from the beginning, with the samples along axis 0, such as `start`, (N, 2, 3). facts: the
    names of FACTS that it will hold. identity: what shapes the content, compared on resuming. attributes: the
    file's, beside the toolkit's own.
    """

    main: tuple[int, int, int, int]
    chunk_roles: int
    arrays: Mapping[str, np.ndarray]
    facts: tuple[str, ...]
    identity: Mapping[str, Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chunk(self) -> tuple[int, int, int, int]:
        """The shape of one chunk."""
        return (1, 2 // self.chunk_roles, *self.main[2:])


def partial_path(target: PathLike) -> Path:
    """Where a file is while it is unfinished."""
    target = Path(target)
    return target.with_name(f".{target.name.removesuffix('.h5')}.partial.h5")


class Writer:
    """One dataset file in the making; `finish` puts it in its place."""

    def __init__(self, target: PathLike, layout: Layout) -> None:
        self.target = Path(target)
        self.layout = layout
        self._partial = partial_path(target)
        self._file = _resumed(self._partial, layout) or _created(self._partial, layout)
        self._entries = self._file["written"][:]
        self.facts = {name: self._file[name][:] for name in layout.facts}
        self._crc32 = self._file["crc32"][:]
        self._touched: set[int] = set()

    @property
    def done(self) -> np.ndarray:
        """(N, chunk_roles) bool: the chunks that are written."""
        return self._entries != 0

    def write(self, sample: int, role: int, chunk: Chunk) -> None:
        """Store one chunk; it counts once it is committed."""
        self._file["main"].id.write_direct_chunk((sample, role, 0, 0), chunk.data)
        self._crc32[sample, role] = chunk.crc32
        self._entries[sample, role] = _entry(chunk.data)
        self._touched.add(sample)

    def note(self, sample: int, role: int, facts: Mapping[str, Any]) -> None:
        """Set what is known of one box of a sample."""
        for name in self.layout.facts:
            self.facts[name][sample, role] = facts[name]
        self._touched.add(sample)

    def commit(self) -> None:
        """Make all that was written so far survive a crash of this process."""
        if not self._touched:
            return
        rows = slice(min(self._touched), max(self._touched) + 1)
        for name, values in [*self.facts.items(), ("crc32", self._crc32)]:
            self._file[name][rows] = values[rows]
        self._file.flush()
        self._file["written"][rows] = self._entries[rows]
        self._file.flush()
        self._touched.clear()

    def finish(self) -> None:
        """Check the whole file, and move it into its place."""
        self.commit()
        wanted = self._entries.size
        stored = self._file["main"].id.get_num_chunks()
        if not self.done.all() or stored != wanted:
            raise WorkError(f"{self._partial}: holds {stored} chunks of {wanted}")
        del self._file["written"]
        self._file.close()
        publish(self._partial, self.target)

    def close(self) -> None:
        """Leave the file as it is, to be resumed."""
        if self._file:
            self.commit()
            self._file.close()


def _entry(data: bytes) -> int:
    return _WRITTEN | isal_zlib.crc32(data)


def _created(partial: Path, layout: Layout) -> h5py.File:
    try:
        # The default libver: a file written with "latest" cannot be opened after its writer was killed.
        file = h5py.File(partial, "w")
    except OSError as error:
        raise WorkError(f"{partial}: {error}") from error
    samples = layout.main[0]
    _create_main(file, layout)
    for name, values in layout.arrays.items():
        file.create_dataset(name, data=values)
    for name in layout.facts:
        dtype, shape = FACTS[name]
        file.create_dataset(name, (samples, 2, *shape), dtype)
    file.create_dataset("crc32", (samples, layout.chunk_roles), "<u4")
    file.create_dataset("written", (samples, layout.chunk_roles), "<u8")
    _set_attributes(file, layout)
    file.flush()
    return file


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


def write_whole(target: PathLike, layout: Layout, chunks: Sequence[Chunk]) -> None:
    """Write a small field file, a shard, at once: `chunks` in the samples' order. It appears whole or not at all."""
    target = Path(target)
    partial = partial_path(target)
    try:
        with h5py.File(partial, "w") as file:
            _create_main(file, layout)
            for sample, chunk in enumerate(chunks):
                file["main"].id.write_direct_chunk((sample, 0, 0, 0), chunk.data)
            crc32 = np.array([[chunk.crc32] for chunk in chunks], "<u4")
            for name, values in {**layout.arrays, "crc32": crc32}.items():
                file.create_dataset(name, data=values)
            _set_attributes(file, layout)
        publish(partial, target)
    except OSError as error:
        raise WorkError(f"{target}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _resumed(partial: Path, layout: Layout) -> h5py.File | None:
    """The partial file, opened to go on; None if there is none, or it was damaged beyond use."""
    if not partial.exists():
        return None
    try:
        file = h5py.File(partial, "r+")
        identity = json.loads(file.attrs["identity"])
    except (OSError, KeyError, ValueError):
        return None
    if identity != dict(layout.identity):
        file.close()
        changed = sorted(key for key in {*identity, *layout.identity} if identity.get(key) != layout.identity.get(key))
        raise UsageError(f"{partial}: begun with another {', '.join(changed)}; give the same again, or delete it")
    try:
        entries = file["written"][:]
        entries[~_intact(file["main"], entries)] = 0
        file["written"][...] = entries
    except (OSError, KeyError, ValueError, RuntimeError):
        with suppress(Exception):
            file.close()
        return None
    return file


def _intact(main: h5py.Dataset, entries: np.ndarray) -> np.ndarray:
    """Which chunks are stored as `written` says."""
    intact = np.zeros(entries.shape, bool)
    for sample, role in np.argwhere(entries).tolist():
        with suppress(OSError, RuntimeError, KeyError):
            _, data = main.id.read_direct_chunk((sample, role, 0, 0))
            intact[sample, role] = _entry(data) == entries[sample, role]
    return intact


@dataclass(frozen=True)
class Dataset:
    """A dataset file opened to read, of this toolkit or an older one, which may hold nothing but `main` or `img`.

    main: (N, 2, X, Y). mip: None where the file does not say. arrays: `start` and `translation`, if there.
    identity: what tells its content from another's, without reading all of it.
    """

    path: Path
    file: h5py.File
    main: h5py.Dataset
    mip: int | None
    arrays: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any]

    @property
    def identity(self) -> str:
        digest = hashlib.sha256(repr((self.main.shape, self.main.dtype.str, self.mip)).encode())
        digest.update(str(self.attributes.get("spec_sha256")).encode())
        digest.update(str(self.attributes.get("identity")).encode())
        for name in ("start", "translation", "crc32"):
            if name in self.file:
                digest.update(self.file[name][:].tobytes())
        if "crc32" not in self.file:
            digest.update(str(self.path.stat().st_size).encode())
        return digest.hexdigest()


def open_dataset(path: PathLike) -> Dataset:
    """Open an image or field file; anything else is a `UsageError`."""
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UsageError(f"{path}: not a readable HDF5 file ({error})") from None
    main = next((file[name] for name in ("main", "img") if isinstance(file.get(name), h5py.Dataset)), None)
    if main is None:
        raise UsageError(f"{path}: no dataset main or img in it; it holds {', '.join(file) or 'nothing'}")
    if main.ndim != 4 or main.shape[1] != 2 or main.shape[0] == 0 or main.dtype.kind != "f":
        raise UsageError(f"{path}: {main.name} is {main.dtype} {main.shape}: want float (N, 2, X, Y), N at least 1")
    mip = file.attrs.get("mip")
    arrays = {name: file[name][:] for name in ("start", "translation") if name in file}
    return Dataset(path, file, main, None if mip is None else int(mip), arrays, dict(file.attrs))


def image_name(start: np.ndarray, mip: int) -> str:
    """An image file's name; start: (N, 2, 3)."""
    x, y, z = start[0, 0].tolist()
    return f"x{x}_y{y}_z{z}_MIP{mip}.h5"


def field_name(start: np.ndarray, mip: int, suffix: str | None) -> str:
    """A field file's name; start: (N, 2, 3)."""
    name = f"field_0_{image_name(start, mip)}"
    return name if suffix is None else f"{name.removesuffix('.h5')}_{suffix}.h5"
