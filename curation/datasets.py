"""The dataset files: HDF5 that any h5py reads without plugins.

`main` is (N, 2, X, Y) float32: of an image file axis 1 is source and target, of a field file the two components.
One chunk is one image (1, 1, X, Y) or one field (1, 2, X, Y), through HDF5's own shuffle and gzip filters. Beside it
stand `start`, `crc32` and a dataset for each fact known of a sample (README, "Dataset files").
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from isal import isal_zlib

from .errors import UsageError
from .files import PathLike

ROLES = ("source", "target")
DEFLATE_LEVEL = 1
WITHOUT_SHUFFLE = 1  # HDF5's filter mask: the first filter of `main` is shuffle, the second gzip

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


@dataclass(frozen=True)
class Chunk:
    """An encoded image or field. data: (n,) uint8. crc32: of its values, as float32, little-endian, C order.

    skipped: HDF5's filter mask, whose bits name the filters that this chunk has not been through.
    """

    data: np.ndarray
    crc32: int
    skipped: int = 0


def encode(values: np.ndarray) -> Chunk:
    """Values as HDF5's shuffle and gzip filters store them: byte k of every number, for k = 0..3, then deflated.

    ISA-L deflates several times faster than zlib. Still most of the time goes there, so the low bytes of interpolated
    images, which are noise, are stored as they are: deflate has blocks for that.
    """
    values = np.ascontiguousarray(values, "<f4")
    shuffled = np.ascontiguousarray(values.reshape(-1).view(np.uint8).reshape(-1, 4).T)
    return Chunk(_bytes(_zlib_stream(shuffled)), isal_zlib.crc32(values))


def _bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


def _zlib_stream(planes: np.ndarray) -> bytes:
    """The rows of `planes`, (K, n) uint8, end to end as a zlib stream (RFC 1950) of deflate's blocks (RFC 1951).

    Deflated in one call: ISA-L's stream objects now and then give other bytes for the same input, equally valid, but
    files are to be the same whoever makes them.
    """
    noisy = next((index for index, plane in enumerate(planes) if not _is_noise(plane)), len(planes))
    parts = [b"\x78\x01"]
    noise, rest = planes[:noisy].reshape(-1), planes[noisy:]
    for first in range(0, noise.size, _STORED):
        block = noise[first : first + _STORED]
        parts += [_stored_head(block.size), block.tobytes()]
    parts.append(isal_zlib.compress(rest, DEFLATE_LEVEL, -isal_zlib.MAX_WBITS))
    parts.append(isal_zlib.adler32(planes).to_bytes(4, "big"))
    return b"".join(parts)


_STORED = 0xFFFF  # bytes in a stored block at the most


def _stored_head(size: int) -> bytes:
    """Of a stored block that is not the last: no compression, its length, and that inverted."""
    return b"\x00" + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little")


def _is_noise(plane: np.ndarray) -> bool:
    """Whether deflating would save less than an eighth, as samples spread over it tell."""
    step = max(_SAMPLE, plane.size // _SAMPLES)
    sample = b"".join(plane[first : first + _SAMPLE].data for first in range(0, plane.size, step))
    return len(isal_zlib.compress(sample, DEFLATE_LEVEL)) > len(sample) * 7 // 8


_SAMPLE, _SAMPLES = 4096, 16


def encode_grey(values: np.ndarray) -> Chunk:
    """An image as it was read, of a few hundred grey values: deflated without shuffling, in half the space.

    Its four-byte numbers repeat as wholes, which shuffling would tear apart.
    """
    values = np.ascontiguousarray(values, "<f4")
    return Chunk(_bytes(isal_zlib.compress(values, DEFLATE_LEVEL)), isal_zlib.crc32(values), WITHOUT_SHUFFLE)


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


@dataclass(frozen=True)
class Dataset:
    """A dataset file opened to read, of this toolkit or an older one, which may hold nothing but `main` or `img`.

    main: (N, 2, X, Y). mip: None where the file does not say. arrays: `start`, `translation` and `pair`, if there.
    """

    path: Path
    file: h5py.File
    main: h5py.Dataset
    mip: int | None
    arrays: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any]

    @property
    def kind(self) -> str | None:
        """ "image" or "field"; None where an older file does not tell."""
        if "decimals" in self.attributes:
            return "field"
        return "image" if "mean" in self.file else None

    @property
    def chunk_roles(self) -> int:
        """What this toolkit stores a sample in: 2 images, or 1 field, as `crc32` tells."""
        return int(self.file["crc32"].shape[1]) if "crc32" in self.file else 1

    @property
    def identity(self) -> str:
        """A hash of what tells this content from another's, without reading all of it."""
        digest = hashlib.sha256(repr((self.main.shape, self.main.dtype.str, self.mip)).encode())
        digest.update(str(self.attributes.get("spec_sha256")).encode())
        digest.update(str(self.attributes.get("identity")).encode())
        for name in ("start", "translation", "crc32"):
            if name in self.file:
                digest.update(self.file[name][:].tobytes())
        if "crc32" not in self.file:
            digest.update(str(self.path.stat().st_size).encode())
            for sample in (0, self.main.shape[0] // 2, -1):  # without compression all files of a shape are of a size
                with suppress(OSError):  # of NaN, older tools may have made a chunk that cannot be read
                    digest.update(self.main[sample].tobytes())
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
    arrays = {name: file[name][:] for name in ("start", "translation", "pair") if name in file}
    return Dataset(path, file, main, None if mip is None else int(mip), arrays, dict(file.attrs))


def image_name(start: np.ndarray, mip: int) -> str:
    """An image file's name; start: (N, 2, 3)."""
    x, y, z = start[0, 0].tolist()
    return f"x{x}_y{y}_z{z}_MIP{mip}.h5"


def field_name(start: np.ndarray, mip: int, suffix: str | None) -> str:
    """A field file's name; start: (N, 2, 3)."""
    name = f"field_0_{image_name(start, mip)}"
    return name if suffix is None else f"{name.removesuffix('.h5')}_{suffix}.h5"
