"""What the chunks of precomputed layers are encoded in, and whether a chunk is damaged as far as that can be told.

https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md, "Chunk encoding"

raw                      its length is checked by the decoder; it has no checksum
jpeg                     the decoder refuses one that is cut short; it has no checksum
png                      is checked here: the decoder gives what it has of one that is torn
compressed_segmentation  is checked here: the decoder reads beyond its end, whatever lies there; it has no checksum
jxl                      the decoder, which is not among the requirements, refuses one that is torn

The decoders of compresso, crackle, fpzip, kempressed and zfpc give voxels of their own making for a chunk that is
torn, or end the process, so that layers of these are refused.
"""

import zlib
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from cloudvolume import Bbox, chunks
from cloudvolume.datasource.precomputed.image import rx

from ..errors import UsageError
from ..stores import DamagedError

# The numbers that are read in each encoding; None: all. The decoder of PNG gives those of 16 bits as bytes.
ENCODINGS: dict[str, tuple[str, ...] | None] = {
    "raw": None,
    "jpeg": ("uint8",),
    "png": ("uint8",),
    "compressed_segmentation": ("uint32", "uint64"),
    "jxl": ("uint8",),
}


def check_encoding(volume: object, encoding: str, numbers: str) -> None:
    """Refuse a level of a precomputed layer, `volume`, whose numbers are in an encoding in which they are not read."""
    if encoding not in ENCODINGS:
        raise UsageError(f"{volume} is encoded as {encoding}: want one of {', '.join(ENCODINGS)}")
    wanted = ENCODINGS[encoding]
    if wanted is not None and numbers not in wanted:
        raise UsageError(f"{volume} is {numbers} encoded as {encoding}: want {' or '.join(wanted)}, or raw")
    if encoding in chunks.NEEDS_INSTALL:
        package = chunks.NEEDS_INSTALL[encoding]
        raise UsageError(f"{volume} is encoded as {encoding}, for which a decoder is missing: pip install {package}")


def install() -> None:
    """Have CloudVolume look at each chunk before it decodes it; more than once is the same as once."""
    rx._decode_helper = _decode_checked


_decode = rx._decode_helper


def _decode_checked(
    function: Any, meta: Any, bbox: Any, content: Any, fill_missing: Any, mip: int, *more: Any, **options: Any
) -> Any:
    check = _CHECKS.get(meta.encoding(mip))
    if check is not None and content is not None:
        shape = [*Bbox.create(bbox).size3().tolist(), meta.num_channels]
        check(content, shape, np.dtype(meta.dtype), meta.compressed_segmentation_block_size(mip) or (8, 8, 8))
    return _decode(function, meta, bbox, content, fill_missing, mip, *more, **options)


# PNG: https://www.w3.org/TR/png-3/

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"  # 5.2


def check_png(content: bytes, *_: object) -> None:
    """`DamagedError` for a PNG that is not whole: 5.3, its chunks, each with a checksum, the last of them IEND."""
    if content[:8] != _PNG_SIGNATURE:
        raise DamagedError("it is no PNG")
    at, kind = 8, b""
    while kind != b"IEND":
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        kind = content[at + 4 : at + 8]
        checksum = content[end : end + 4]
        if len(checksum) < 4 or zlib.crc32(content[at + 4 : end]) != int.from_bytes(checksum, "big"):
            raise DamagedError(f"it is no whole PNG: wrong from byte {at} on")
        at = end + 4
    if at != len(content):
        raise DamagedError(f"it is no PNG alone: {len(content) - at} bytes follow it")


# compressed_segmentation, in words of 4 bytes:
# https://github.com/google/neuroglancer/blob/master/src/sliceview/compressed_segmentation/README.md


def check_compressed_segmentation(
    content: bytes, shape: Sequence[int], dtype: np.dtype[Any], block_size: Sequence[int]
) -> None:
    """`DamagedError` if a place that it refers to lies beyond its end. shape: (X, Y, Z, C) of the chunk."""
    if len(content) % 4:
        raise DamagedError(f"it is no compressed_segmentation: {len(content)} bytes are no whole words")
    words = np.frombuffer(content, "<u4")
    # "Multi-channel format": where each channel begins, after these places themselves.
    begins = _places(words, np.array([0]), shape[3])[0]
    _check_places(words, begins, begins, shape[3])
    for begin in begins.tolist():
        _check_channel(words[begin:], shape, dtype.itemsize // 4, block_size)


def _check_channel(words: np.ndarray, shape: Sequence[int], entry: int, block_size: Sequence[int]) -> None:
    """Of a channel's words. entry: the words of an entry of a table.

    "Single-channel format": a header of 2 words a block, of which the first holds, in 24 bits, where its table begins
    and, in 8, the bits of an index into it, and the second where its indices begin.
    """
    blocks = prod(-(-size // block) for size, block in zip(shape, block_size, strict=False))
    headers = _places(words, np.array([0]), 2 * blocks)[0]
    tables, widths, indices = headers[0::2] & 0xFFFFFF, headers[0::2] >> 24, headers[1::2]
    for bits in np.unique(widths).tolist():
        if bits not in (0, 1, 2, 4, 8, 16, 32):
            raise DamagedError(f"it is no compressed_segmentation: indices of {bits} bits")
        alike = widths == bits
        largest = np.zeros(alike.sum(), np.int64)
        if bits:
            packed = _places(words, indices[alike], -(-bits * prod(block_size) // 32), 2 * blocks)
            for shift in range(0, 32, bits):
                largest = np.maximum(largest, (packed >> shift & (1 << bits) - 1).max(axis=1))
        _check_places(words, tables[alike], tables[alike] + (largest + 1) * entry, 2 * blocks)


def _places(words: np.ndarray, begins: np.ndarray, count: int, first: int = 0) -> np.ndarray:
    """(N, count): as many words from each place on, none of which is before `first`."""
    begins = begins.astype(np.int64)
    _check_places(words, begins, begins + count, first)
    return words[begins[:, None] + np.arange(count)]


def _check_places(words: np.ndarray, begins: np.ndarray, ends: np.ndarray, first: int) -> None:
    if (begins < first).any() or (ends > len(words)).any():
        found = f"words {begins.min()} to {ends.max()}"
        raise DamagedError(f"it is no whole compressed_segmentation: it refers to {found}, of {first} to {len(words)}")


_CHECKS: dict[str, Callable[[bytes, Sequence[int], np.dtype[Any], Sequence[int]], None]] = {
    "png": check_png,
    "compressed_segmentation": check_compressed_segmentation,
}
