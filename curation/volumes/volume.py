"""CloudVolume: opening layers, and cutting windows of one section out of them.

A layer is read chunk by chunk, each in one call, into a cache of decoded chunks: a chunk is then decoded once for
all boxes and sections that it holds, many can be under way over a slow link, and each that the store does not
have is seen. CloudVolume itself always runs with parallel=1 (its own workers start an interpreter a cutout).

A chunk that the store truly does not have is black, and is told; every other failure is retried or raised (`stores`).
"""

import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from cloudfiles import CloudFiles
from cloudfiles.cloudfiles import INTERFACES
from cloudvolume import Bbox, CloudVolume
from cloudvolume.datasource.n5.metadata import N5Metadata
from cloudvolume.exceptions import EmptyVolumeException, InfoError
from cloudvolume.paths import strict_extract

from ..boxes import Window
from ..errors import UsageError, WorkError
from ..stores import CHECK_FOR_S, CONNECTIONS, Patience, install, is_from_store, reason
from . import encodings
from .zarr_forms import FormError, Level, NoMetadataError, levels_of

CACHE_BYTES = 256 * 2**20
PROBES = 64  # chunks that are asked for all over a volume, to see whether any is there

install()
encodings.install()

_ZARR_FORMATS = ("zarr", "zarr2", "zarr3", "n5")
_TripleInt = tuple[int, int, int]
ChunkKey = tuple[str, int, _TripleInt]  # the layer's path, the MIP, the chunk's start


@dataclass(frozen=True)
class Cutout:
    """A window's voxels.

    values: (C, X, Y), as stored; 0 where the volume ends and where chunks are missing.
    missing: the chunks that the store does not have.
    """

    values: np.ndarray
    missing: tuple[ChunkKey, ...]


class Volume:
    """One level of one layer, in that level's own voxels."""

    def __init__(self, volumes: "Volumes", layer: CloudVolume, path: str, mip: int) -> None:
        self._volumes = volumes
        self._layer = layer
        self.path = path
        self.mip = mip
        bounds = layer.mip_bounds(mip)
        self.start: _TripleInt = _ints(bounds.minpt)
        self.stop: _TripleInt = _ints(bounds.maxpt)
        self.chunk: _TripleInt = _ints(layer.mip_chunk_size(mip))
        self.dtype = np.dtype(layer.dtype).newbyteorder("=")
        self.channels = int(layer.num_channels)
        self.resolution: tuple[float, ...] = tuple(float(size) for size in layer.mip_resolution(mip))

    def __str__(self) -> str:
        return f"{self.path} at MIP {self.mip}"

    @property
    def is_local(self) -> bool:
        """Whether chunks come from this machine's disk or memory, where waiting for several at once gains nothing."""
        return str(self._layer.meta.path.protocol) in ("file", "mem")

    def bounds_text(self) -> str:
        """The volume's bounds, for messages."""
        spans = (f"{axis} {low}..{high}" for axis, low, high in zip("xyz", self.start, self.stop, strict=True))
        return f"{self} spans {', '.join(spans)} in voxels of that MIP"

    def overlap(self, window: Window) -> float:
        """The fraction of the window that lies inside the volume."""
        if not self.start[2] <= window.z < self.stop[2]:
            return 0.0
        (x_low, x_high), (y_low, y_high) = self._inside(window)
        inside = max(0, x_high - x_low) * max(0, y_high - y_low)
        return inside / math.prod(window.shape)

    def chunks(self, window: Window) -> Iterator[_TripleInt]:
        """The starts of the chunks that hold the part of the window inside the volume."""
        spans = [*self._inside(window), (window.z, window.z + 1)]
        grids = (
            range(low - (low - origin) % size, high, size)
            for (low, high), origin, size in zip(spans, self.start, self.chunk, strict=True)
        )
        yield from product(*grids)

    def read(self, window: Window) -> Cutout:
        """The window's voxels; `WorkError` if it is wholly outside, or a chunk cannot be read."""
        if self.overlap(window) == 0:
            raise WorkError(f"a box is wholly outside its volume: {window_text(window)}; {self.bounds_text()}")
        values = np.zeros((self.channels, *window.shape), self.dtype)
        missing = []
        wanted = [(start, self._volumes.fetch(self, start)) for start in self.chunks(window)]
        for start, fetched in wanted:
            chunk = fetched.result()
            if chunk is None:
                missing.append((self.path, self.mip, start))
            else:
                _paste(chunk, start, values, window)
        return Cutout(values, tuple(missing))

    def download(self, start: _TripleInt) -> np.ndarray | None:
        """The chunk at `start`, (X, Y, Z, C), or None if the store does not have it. One attempt."""
        stop = tuple(min(low + size, end) for low, size, end in zip(start, self.chunk, self.stop, strict=True))
        try:
            chunk = np.asarray(self._layer.download(Bbox(start, stop), mip=self.mip))
        except EmptyVolumeException:
            return None
        # n5 is big-endian (https://github.com/saalfeldlab/n5, "File-system specification"), but CloudVolume 12.15
        # reads it as little-endian (cloudvolume/datasource/n5/image.py).
        return chunk.byteswap() if isinstance(self._layer.meta, N5Metadata) else chunk

    def holds_any(self, places: Iterable[_TripleInt]) -> bool:
        """Whether a chunk is there, of those at some places, in MIP-0 voxels, and of some all over the volume."""
        probes = [window for place in places if self.overlap(window := self._voxel(place))]
        chunks = dict.fromkeys(start for window in probes for start in self.chunks(window))
        starts = [*chunks, *self._spread()]
        return self._is_there(starts[0]) or any(self._volumes.map(self._is_there, starts[1:]))

    def levels(self) -> "Iterator[Volume]":
        """The layer's levels that can be read."""
        for mip in self._layer.available_mips:
            with suppress(UsageError):
                yield self._volumes.open(self.path, mip)

    def _voxel(self, place: _TripleInt) -> Window:
        x, y, z = place[0] >> self.mip, place[1] >> self.mip, place[2]
        return Window((x, y), (x + 1, y + 1), z, crop=(0, 0))

    def _spread(self) -> Iterator[_TripleInt]:
        """The starts of some chunks all over the volume."""
        sizes = [stop - start for start, stop in zip(self.start, self.stop, strict=True)]
        grid = [-(-size // step) for size, step in zip(sizes, self.chunk, strict=True)]
        count = math.prod(grid)
        for index in range(0, count, -(-count // PROBES)):
            places = np.unravel_index(index, grid)
            x, y, z = (
                start + int(place) * step for start, place, step in zip(self.start, places, self.chunk, strict=True)
            )
            yield x, y, z

    def _is_there(self, start: _TripleInt) -> bool:
        try:
            return self.download(start) is not None
        except Exception:  # something is; who reads it will be told what is wrong with it
            return True

    def _inside(self, window: Window) -> list[tuple[int, int]]:
        return [
            (max(low, first), min(high, last))
            for low, high, first, last in zip(window.start, window.stop, self.start, self.stop, strict=False)
        ]


class NoLayerError(UsageError, EmptyVolumeException):  # type: ignore[misc]
    """There is no layer at a path. An `EmptyVolumeException` too, so that it is not asked for again."""


class Volumes:
    """The layers that one process has open, with the decoded chunks they share and the threads that fetch them."""

    def __init__(
        self,
        cache_bytes: int = CACHE_BYTES,
        missing: str = "black",
        retry_for: float = CHECK_FOR_S,
        on_wait: Callable[[float | None], None] = lambda since: None,
        sleep: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """missing: "black" or "fail", what reading a chunk does that the store does not have.

        retry_for: seconds for which each chunk is asked for while the store is away; on_wait: see `Patience`.
        """
        self.retries = 0
        self._missing = missing
        self._layers: dict[str, CloudVolume] = {}
        self._cache = _ChunkCache(cache_bytes)
        self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="chunk")
        self._patience = Patience(retry_for, sleep=sleep, clock=clock, on_retry=self._count_retry, on_wait=on_wait)

    def open(self, path: str, mip: int) -> Volume:
        """A layer at one level; `UsageError` if there is none such to be read, `WorkError` if it cannot be asked."""
        if path not in self._layers:
            self._layers[path] = self._open_layer(path)
        layer = self._layers[path]
        if mip not in layer.available_mips:
            have = ", ".join(str(level) for level in layer.available_mips)
            raise UsageError(f"{path} has no MIP {mip}: it has {have}")
        volume = Volume(self, layer, path, mip)
        _check_level(volume, layer.mip_resolution(0))
        if layer.meta.path.format in ("precomputed", "graphene"):
            encodings.check_encoding(volume, layer.meta.encoding(mip), volume.dtype.name)
        return volume

    def open_layers(self, paths: Iterable[str]) -> None:
        """Open several layers at once: each takes a few requests, one after the other."""
        wanted = list(dict.fromkeys(paths))
        with ThreadPoolExecutor(len(wanted)) as pool:
            self._layers.update(zip(wanted, pool.map(self._open_layer, wanted), strict=True))

    def take_retries(self) -> int:
        """How many readings had to be tried again since this was last asked."""
        taken, self.retries = self.retries, 0
        return taken

    def close(self) -> None:
        """Wait for no store any more: chunks that are still to come are errors."""
        self._patience.end()

    def fetch(self, volume: Volume, start: _TripleInt) -> "Future[np.ndarray | None]":
        """The decoded chunk at `start`, or None where the store does not have it, once it is there."""

        def load() -> np.ndarray | None:
            try:
                chunk = self._patience.ask(partial(volume.download, start))
                if chunk is None and self._missing == "fail":
                    raise FileNotFoundError("the store does not have it")
                return chunk
            except Exception as error:
                raise WorkError(f"{volume}: chunk at {start}: {reason(error)}") from error

        submit = _run_here if volume.is_local else self._pool.submit
        return self._cache.get((volume.path, volume.mip, start), load, submit)

    def map(self, function: Callable[[_TripleInt], bool], starts: Iterable[_TripleInt]) -> Iterator[bool]:
        """What a function gives for each of some chunks, as many at once as are fetched."""
        return self._pool.map(function, starts)

    def _open_layer(self, path: str) -> CloudVolume:
        try:
            return self._patience.ask(partial(open_layer, path))
        except (UsageError, WorkError):
            raise
        except Exception as error:
            raise WorkError(f"{path}: {reason(error)}") from error

    def _count_retry(self) -> None:
        self.retries += 1


def open_layer(path: str) -> CloudVolume:
    """The layer at a path; `NoLayerError` if there is none that can be read. One attempt."""
    _check_protocol(path)
    try:
        levels = _zarr_levels(path)
        layer = CloudVolume(path, bounded=False, fill_missing=False, progress=False, parallel=1, cache=False)
        if levels:
            _correct(layer, levels)
        return layer
    except InfoError:
        raise NoLayerError(f"{path}: no CloudVolume layer there (no info file)") from None
    except NoMetadataError as error:
        raise NoLayerError(f"{path}: no CloudVolume layer there (no {error})") from None
    except FormError as error:
        raise NoLayerError(f"{path}: not a layer that is read right: {error}") from None
    except Exception as error:
        if is_from_store(error):
            raise
        raise NoLayerError(f"{path}: not a CloudVolume layer ({type(error).__name__}: {error})") from None


def _check_protocol(path: str) -> None:
    """Refuse a protocol that is unknown: CloudVolume would look for a folder of that name on this machine."""
    *protocols, _ = _PROTOCOLS.match(path)[0].split("://")  # type: ignore[index]
    for protocol in protocols:
        if protocol not in _FORMATS and protocol.rpartition("+")[2] not in INTERFACES:
            known = ", ".join(name for name in INTERFACES if name != "mem")
            raise NoLayerError(f"{path}: {protocol}:// is no protocol that is known: want one of {known}")


_PROTOCOLS = re.compile(r"(?:[\w+-]+://)*")
_FORMATS = ("precomputed", "graphene", *_ZARR_FORMATS)


def _zarr_levels(path: str) -> list[Level]:
    """The levels of a layer of zarr or n5, of a form that is read right; none of any other format."""
    format = strict_extract(path).format
    if format not in _ZARR_FORMATS:
        return []
    files = CloudFiles(path, progress=False)
    if format == "zarr":  # as CloudVolume tells
        format = "zarr3" if files.exists("zarr.json") else "zarr2"
    return levels_of(format, files.get_json)


def _correct(layer: CloudVolume, levels: list[Level]) -> None:
    """Say of each level what its own metadata say, where CloudVolume reckons from MIP 0 and whole factors."""
    scales = layer.meta.info["scales"]
    if len(scales) != len(levels):
        raise FormError(f"of its {len(levels)} levels some have voxels of one size, by the nearest whole factor")
    for scale, level in zip(scales, levels, strict=True):
        scale.update(size=list(level.size), resolution=list(level.resolution))
    for array in getattr(layer.meta, "zarrays", ()):
        if array["fill_value"] is None:  # of which CloudVolume cannot fill what it then overwrites
            array["fill_value"] = 0


class _ChunkCache:
    """Chunks by key, the least recently used dropped beyond a number of bytes; one asked for twice is loaded once."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._bytes = 0
        self._chunks: OrderedDict[Any, Future[np.ndarray | None]] = OrderedDict()
        self._lock = threading.RLock()

    def get(
        self,
        key: Any,
        load: Callable[[], np.ndarray | None],
        submit: Callable[[Callable[[], np.ndarray | None]], "Future[np.ndarray | None]"],
    ) -> "Future[np.ndarray | None]":
        with self._lock:
            found = self._chunks.get(key)
            if found is not None:
                self._chunks.move_to_end(key)
                return found
            future = self._chunks[key] = submit(load)
        future.add_done_callback(lambda done: self._account(key, done))
        return future

    def _account(self, key: Any, done: "Future[np.ndarray | None]") -> None:
        with self._lock:
            if done.exception() is not None:
                self._chunks.pop(key, None)  # the next to ask tries again
                return
            self._bytes += _size(done)
            while self._bytes > self._capacity and len(self._chunks) > 1:
                oldest = next(iter(self._chunks))
                if not self._chunks[oldest].done():
                    break
                self._bytes -= _size(self._chunks.pop(oldest))


def _size(done: "Future[np.ndarray | None]") -> int:
    chunk = done.result()
    return 0 if chunk is None else chunk.nbytes


def _run_here(load: Callable[[], np.ndarray | None]) -> "Future[np.ndarray | None]":
    future: Future[np.ndarray | None] = Future()
    try:
        future.set_result(load())
    except Exception as error:
        future.set_exception(error)
    return future


def _paste(chunk: np.ndarray, start: _TripleInt, values: np.ndarray, window: Window) -> None:
    """Copy what a chunk, (X, Y, Z, C) from `start` on, holds of the window into `values`, (C, X, Y)."""
    theirs, ours = [], []
    for low, size, first, last in zip(start, chunk.shape, window.start, window.stop, strict=False):
        begin, end = max(low, first), min(low + size, last)
        theirs.append(slice(begin - low, end - low))
        ours.append(slice(begin - first, end - first))
    values[:, ours[0], ours[1]] = np.moveaxis(chunk[theirs[0], theirs[1], window.z - start[2]], -1, 0)


def _ints(numbers: Any) -> _TripleInt:
    x, y, z = (int(number) for number in numbers)
    return x, y, z


def window_text(window: Window) -> str:
    """A window, for messages."""
    (x_low, y_low), (x_high, y_high) = window.start, window.stop
    return f"x {x_low}..{x_high}, y {y_low}..{y_high}, z {window.z}"


# Voxels of one size: info files give it rounded, so sizes count as equal to a thousandth.


def _check_level(volume: Volume, mip0: Any) -> None:
    """Refuse a level that is not MIP 0, with voxels of such a size, halved in x and y for each MIP, and in z never."""
    expected = [float(size) * grown for size, grown in zip(mip0, (2**volume.mip, 2**volume.mip, 1), strict=True)]
    if not np.allclose(volume.resolution, expected, rtol=1e-3):
        raise UsageError(
            f"{volume} has voxels of {_nm(volume.resolution)} nm, and MIP 0 of {_nm(mip0)} nm: "
            f"want {_nm(expected)} nm: x and y halved at each MIP, z never"
        )


def check_scales(volumes: list[Volume]) -> None:
    """Refuse volumes whose voxels are not the same size: their starts would mean different places."""
    bases = [(volume, *_mip0_resolution(volume)) for volume in volumes]
    first, *expected = bases[0]
    for volume, *found in bases:
        if not np.allclose(found, expected, rtol=1e-3):
            raise UsageError(
                f"{volume} has voxels of {_nm(found)} nm at MIP 0, but {first} of {_nm(expected)} nm: "
                "want volumes of one resolution"
            )


def _mip0_resolution(volume: Volume) -> tuple[float, float, float]:
    x, y, z = volume.resolution
    return x / 2**volume.mip, y / 2**volume.mip, z


def _nm(sizes: Iterable[float]) -> str:
    return " x ".join(f"{size:g}" for size in sizes)
