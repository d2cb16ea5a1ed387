"""Reading images and fields in several threads at once.

h5py holds one lock for the whole process while HDF5 inflates. Here HDF5 only says where a chunk lies; it is read and
inflated outside of that lock, by ISA-L, which is faster too. What was not stored by this toolkit's filters, or does not
inflate as it should, is left to HDF5 and its errors.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import h5py
import numpy as np
from isal import isal_zlib
from isal.igzip_lib import DECOMP_ZLIB, IgzipDecompressor

from .chunks import WITHOUT_SHUFFLE

Empty = Callable[[tuple[int, ...]], np.ndarray]
"""Makes an array of a shape, float32, of any content."""

_NotInflated: Any = isal_zlib.IsalError


class SampleReader:
    """Reads samples of `main`, (N, 2, X, Y), as float32, in several threads at once. Its file must stay open."""

    def __init__(self, main: h5py.Dataset) -> None:
        self._main = main
        self._roles_in_chunk = _roles_in_chunk(main)
        self._chunks = _chunks(main, self._roles_in_chunk) if self._roles_in_chunk else {}
        self._descriptor = main.file.id.get_vfd_handle() if self._chunks else -1

    def __call__(self, sample: int, empty: Empty | None = None) -> np.ndarray:
        """One sample, (2, X, Y). empty: makes the array that it is read into."""
        values = (empty or _empty)(self._main.shape[1:])
        step = self._roles_in_chunk
        if step and all(self._read(sample, role, values[role : role + step]) for role in range(0, 2, step)):
            return values
        with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite
            values[...] = self._main[sample]
        return values

    def _read(self, sample: int, role: int, values: np.ndarray) -> bool:
        """Read one chunk into contiguous float32; whether that was possible."""
        offset, size, skipped = self._chunks.get((sample, role), _NOWHERE)
        if skipped not in (0, WITHOUT_SHUFFLE):
            return False
        with suppress(OSError, _NotInflated):
            return _inflate(self._descriptor, offset, size, values, skipped == 0)
        return False


_NOWHERE = (0, 0, -1)


def _chunks(main: h5py.Dataset, roles_in_chunk: int) -> dict[tuple[int, int], tuple[int, int, int]]:
    """Where the chunk of a sample and a role lies: its place in the file, its size, and HDF5's filter mask.

    HDF5 looks through all chunks to find one, so it is asked once. Where it cannot tell, there are no chunks.
    """
    found = {}

    def note(chunk: Any) -> None:
        if chunk.byte_offset is not None:
            found[chunk.chunk_offset[:2]] = chunk.byte_offset, chunk.size, chunk.filter_mask

    with suppress(OSError, RuntimeError, ValueError):
        main.id.chunk_iter(note)
        return found
    return {}


def _inflate(descriptor: int, offset: int, size: int, values: np.ndarray, is_shuffled: bool) -> bool:
    """Inflate a stored chunk into contiguous float32; whether it holds just these values, and its checksum is right.

    In blocks that a core's cache holds. Memory for all bytes at once would come anew from the system each time, and go
    back to it, which takes half as long again as to inflate a field of 1024 x 1024 pixels.
    """
    into = values.reshape(-1).view(np.uint8)
    inflater = IgzipDecompressor(flag=DECOMP_ZLIB)
    end, done = offset + size, 0
    while not inflater.eof:
        stored = os.pread(descriptor, min(_READ, end - offset), offset) if inflater.needs_input else b""
        offset += len(stored)
        content = np.frombuffer(inflater.decompress(stored, _BLOCK), np.uint8)
        if done + content.size > into.size or not (stored or content.size):
            return False
        if is_shuffled:
            _place_shuffled(content, done, into)
        else:
            into[done : done + content.size] = content
        done += content.size
    return done == into.size


_READ, _BLOCK = 1 << 18, 1 << 18  # bytes


def _place_shuffled(content: np.ndarray, begin: int, into: np.ndarray) -> None:
    """Put shuffled bytes, which begin at `begin`, to their numbers: byte 0 of all numbers comes first, then byte 1."""
    numbers = into.size // 4
    while content.size:
        byte, number = divmod(begin, numbers)
        part = content[: numbers - number]
        into[byte + 4 * number : byte + 4 * (number + part.size) : 4] = part
        content, begin = content[part.size :], begin + part.size


def _roles_in_chunk(main: h5py.Dataset) -> int:
    """How many of a sample's two arrays lie in a chunk, if its chunks are this toolkit's; else 0."""
    with suppress(OSError, RuntimeError, ValueError, NotImplementedError):
        ours = main.dtype == np.dtype("<f4") == np.dtype(np.float32) and main.file.driver == "sec2"
        if ours and main.file.userblock_size == 0 and _filters(main) == _OURS:
            for roles in (1, 2):
                if main.chunks == (1, roles, *main.shape[2:]):
                    return roles
    return 0


_OURS = [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE]


def _filters(main: h5py.Dataset) -> list[Any]:
    made_by = main.id.get_create_plist()
    return [made_by.get_filter(number)[0] for number in range(made_by.get_nfilters())]


def _empty(shape: tuple[int, ...]) -> np.ndarray:
    return np.empty(shape, np.float32)
