"""Images and fields as HDF5's shuffle and gzip filters store them, made in workers.

h5py holds one lock for the whole process, so that its own filters run one chunk at a time. Workers make the stored
bytes instead, and the process that writes the file only has to put them in (H5Dwrite_chunk, HDF5 Reference Manual; the
filters are H5Z_FILTER_SHUFFLE and H5Z_FILTER_DEFLATE of the HDF5 File Format Specification, IV.A.2.l).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from isal import isal_zlib

DEFLATE_LEVEL = 1
WITHOUT_SHUFFLE = 1  # HDF5's filter mask: the first filter of `main` is shuffle, the second gzip


@dataclass(frozen=True)
class Chunk:
    """An encoded image or field. data: (n,) uint8. crc32: of its values, as float32, little-endian, C order.

    skipped: HDF5's filter mask, whose bits name the filters that this chunk has not been through.
    """

    data: np.ndarray
    crc32: int
    skipped: int = 0

    @cached_property
    def stored_crc32(self) -> int:
        """The CRC-32 of `data`. It is taken once, where the chunk is made, and goes with the chunk when it is sent."""
        return isal_zlib.crc32(self.data)


def encode(values: np.ndarray) -> Chunk:
    """Values as HDF5's shuffle and gzip filters store them: byte k of every number, for k = 0..3, then deflated.

    ISA-L deflates several times faster than zlib. Still most of the time goes there, so the low bytes of interpolated
    images, which are noise, are stored as they are: deflate has blocks for that. A warped image of 1024 x 1024 then
    takes 8 % more space, and zlib inflates it in 13 instead of 33 ms.
    """
    values = np.ascontiguousarray(values, "<f4")
    shuffled = np.ascontiguousarray(values.reshape(-1).view(np.uint8).reshape(-1, 4).T)
    return _chunk(_zlib_stream(shuffled), values)


def _chunk(stored: bytes, values: np.ndarray, skipped: int = 0) -> Chunk:
    chunk = Chunk(np.frombuffer(stored, np.uint8), isal_zlib.crc32(values), skipped)
    _ = chunk.stored_crc32  # here, since workers encode: the process that writes has the least time
    return chunk


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
    return _chunk(isal_zlib.compress(values, DEFLATE_LEVEL), values, WITHOUT_SHUFFLE)
