"""Precomputed annotation layers, at any path that CloudFiles reads: a cloud's, a server's, or a local folder.

The format is described at https://github.com/google/neuroglancer, src/datasource/precomputed/annotations.md ("info JSON
file format", "Spatial index", "Annotation id index"), its files of many entries in sharded.md beside it.
The layer's `info` says which dimensions the coordinates have, and what its annotations are: all of one type, each a
record of float32 coordinates followed by properties. The names of types, hashes and encodings are read in any case, as
the viewer reads them: its specification had types in upper case at first. Annotations are read from the spatial
index, which any store can be asked for cell by cell, else from the index by id. CloudVolume 12.15 opens such layers
too, but fails for all types except points, and takes only the finest level of the spatial index, though each
annotation is in one level only.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, product
from math import prod
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from ..errors import UsageError, WorkError
from ..spec import Note
from .coordinate_spaces import space_of
from .model import SHAPES, Annotations, Shape, gathered, shown

MOST_OBJECTS = 2**18  # of one index: more take too long to ask for one by one
_AT_ONCE = 2**12

_PROPERTY_BYTES = {"uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "rgb": 3, "rgba": 4}
_PROPERTY_BYTES |= {"uint32": 4, "int32": 4, "float32": 4}

_Encoding = Annotated[str, msgspec.Meta(pattern=r"(?ai)^(raw|gzip)\Z")]
_T = TypeVar("_T")
_Found = tuple[np.ndarray, np.ndarray]  # ids (N,) uint64, and coordinates (N, R) or (N, 2 * R) float32


class _Sharding(msgspec.Struct, tag_field="@type", tag="neuroglancer_uint64_sharded_v1"):
    """How an index's entries are gathered in files; named as in the layer's info."""

    preshift_bits: Annotated[int, msgspec.Meta(ge=0, le=64)]
    hash: Annotated[str, msgspec.Meta(pattern=r"(?ai)^(identity|murmurhash3_x86_128)\Z")]
    minishard_bits: Annotated[int, msgspec.Meta(ge=0, le=32)]
    shard_bits: Annotated[int, msgspec.Meta(ge=0, le=64)]
    minishard_index_encoding: _Encoding = "raw"
    data_encoding: _Encoding = "raw"

    def __post_init__(self) -> None:
        self.hash = self.hash.lower()
        self.minishard_index_encoding = self.minishard_index_encoding.lower()
        self.data_encoding = self.data_encoding.lower()

    def names(self) -> list[str]:
        """The names that its files may have."""
        digits = -(-self.shard_bits // 4)
        return [f"{number:0{digits}x}.shard" for number in range(1 << self.shard_bits)]


class _Index(msgspec.Struct):
    """An index, or a level of one, in the folder `key`."""

    key: str
    sharding: _Sharding | None = None


class _Level(_Index, kw_only=True):
    grid_shape: list[Annotated[int, msgspec.Meta(ge=1)]]

    def objects(self) -> int:
        """How many objects it may be kept in."""
        return prod(self.grid_shape) if self.sharding is None else 1 << self.sharding.shard_bits

    def names(self) -> list[str]:
        """The names that its objects may have."""
        if self.sharding is not None:
            return self.sharding.names()
        return ["_".join(map(str, cell)) for cell in product(*map(range, self.grid_shape))]


class _Property(msgspec.Struct):
    type: str


class _Info(msgspec.Struct):
    """What is needed of a layer's info."""

    dimensions: dict[str, Any]
    annotation_type: str
    kind: str = msgspec.field(name="@type")
    properties: list[_Property] = []
    by_id: _Index | None = None
    spatial: list[_Level] = []

    def __post_init__(self) -> None:
        self.annotation_type = self.annotation_type.lower()

    def coordinates(self) -> int:
        """How many coordinates an annotation has."""
        return len(self.dimensions) * (1 if self.annotation_type == "point" else 2)

    def record_bytes(self) -> int:
        """How long an annotation's record is; `ValueError` for a property of a type that the format does not have."""
        unknown = [each.type for each in self.properties if each.type not in _PROPERTY_BYTES]
        if unknown:
            raise ValueError(f"info: a property of type {unknown[0]!r}, which the format does not have")
        properties = sum(_PROPERTY_BYTES[each.type] for each in self.properties)
        return 4 * self.coordinates() + -(-properties // 4) * 4


def read_annotation_layer(path: str) -> Annotations:
    """The annotations of the layer at `path`, in the order of their ids.

    `UsageError` if no layer of annotations can be read there, `WorkError` if the store cannot be asked.
    """
    try:
        store = _Store(path)
        info = _info(store)
        space = space_of(info.dimensions)
        ids, numbers = _all(store, info)
        if not ids.size:
            raise ValueError("the layer holds no annotations")
        ends = numbers.reshape(len(ids), -1, space.rank).astype(np.float64)
        shape = SHAPES[info.annotation_type]
        if shape != Shape.LINE and shape != Shape.BOX:
            ends = ends[:, [0, 0]]  # an ellipsoid's radii follow its centre
        notes = {index: Note(id=str(id)) for index, id in enumerate(ids.tolist())}
        shapes = np.full(len(ids), shape, np.uint8)
        return gathered(path, shapes, ends, space, notes, lambda index: f"id {ids[index]}")
    except ValueError as error:
        raise UsageError(f"{shown(path)}: {error}") from None


def _info(store: "_Store") -> _Info:
    content = store.get(["info"])["info"]
    if content is None:
        raise ValueError(f"{store.what}, and no annotation layer: it has no info file")
    try:
        info = msgspec.json.decode(content, type=_Info)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"info: not an annotation layer's: {shown(str(error))}") from None
    if info.kind != "neuroglancer_annotations_v1":
        raise ValueError(f"info: @type is {info.kind!r}, not an annotation layer's")
    if info.annotation_type not in SHAPES:
        raise ValueError(f"a layer of {shown(info.annotation_type)}s: want one of {', '.join(SHAPES)}")
    if any(len(level.grid_shape) != len(info.dimensions) for level in info.spatial):
        raise ValueError("info: a grid_shape of another rank than the dimensions")
    return info


def _all(store: "_Store", info: _Info) -> _Found:
    """All annotations, once each, in the order of their ids."""
    found = list(_spatial(store, info) if _reads_spatial_index(info) else _by_id(store, info))
    if not found:
        return np.empty(0, np.uint64), np.empty((0, info.coordinates()), np.float32)
    ids, numbers = (np.concatenate(parts) for parts in zip(*found, strict=True))
    ids, first = np.unique(ids, return_index=True)  # one that reaches into several cells is in each
    return ids, numbers[first]


def _reads_spatial_index(info: _Info) -> bool:
    """Whether the spatial index is to be read."""
    objects = sum(level.objects() for level in info.spatial)
    if info.by_id is None and objects > MOST_OBJECTS:
        raise ValueError(f"a spatial index of {objects} cells, too many to read, and no index by id")
    return 0 < objects <= MOST_OBJECTS or info.by_id is None


def _spatial(store: "_Store", info: _Info) -> Iterator[_Found]:
    record = info.record_bytes()
    for level in info.spatial:
        for name, content in store.entries(level, level.names()):
            yield _decoded(name, content, info.coordinates(), record)


def _decoded(name: str, content: bytes, coordinates: int, record: int) -> _Found:
    """The annotations of a cell: their number, their records, their ids."""
    count = int.from_bytes(content[:8], "little")
    if len(content) != 8 + count * (record + 8):
        raise ValueError(
            f"{name}: damaged: {len(content)} bytes, but {count} annotations take {8 + count * (record + 8)}"
        )
    records = np.frombuffer(content, np.uint8, count * record, 8).reshape(count, record)
    numbers = np.ascontiguousarray(records[:, : 4 * coordinates]).view("<f4")
    return np.frombuffer(content, "<u8", count, 8 + count * record), numbers


def _by_id(store: "_Store", info: _Info) -> Iterator[_Found]:
    if info.by_id is None:
        return
    names = store.names(info.by_id.key) if info.by_id.sharding is None else _few(info.by_id.sharding).names()
    for name, content in store.entries(info.by_id, names):
        id = name.rpartition("/")[2]
        if len(content) < info.record_bytes() or not (id.isdecimal() and int(id) < 2**64):
            raise ValueError(f"{shown(name)}: damaged, or not an annotation")
        yield np.array([int(id)], np.uint64), np.frombuffer(content, "<f4", info.coordinates())[None]


def _few(sharding: _Sharding) -> _Sharding:
    if 1 << sharding.shard_bits > MOST_OBJECTS:
        raise ValueError(f"an index by id in 2^{sharding.shard_bits} files, too many to read")
    return sharding


class _Store:
    """A layer's folder; `ValueError` if there is none such, `WorkError` if it cannot be asked."""

    def __init__(self, path: str) -> None:
        # Imported when a layer is read: these take a second, which tables and states do not need.
        from cloudfiles import CloudFiles
        from cloudfiles.paths import extract

        from ..stores import install

        install()
        self._path = path
        self.what = "nothing there" if "://" in path else "Is a directory"
        place = path.removeprefix("precomputed://") if "://" in path else f"file://{os.path.abspath(path)}"
        try:
            # CloudFiles takes what it does not know for a local path, and other formats' paths for this one's.
            known = extract(place)
            if known.format != "precomputed":
                raise ValueError(f"{known.format} is another format")
            self._is_local = known.protocol in ("file", "mem")
            self._files = CloudFiles(place, progress=False)
        except Exception:  # whatever the clients say of a path, over several lines
            raise ValueError("no path of a layer: want one such as precomputed://gs://bucket/layer") from None

    def get(self, names: Iterable[str]) -> dict[str, bytes | None]:
        """The objects' contents; None for those that are not there."""
        wanted = list(names)
        answers = self._ask(lambda: self._files.get(wanted))
        return {answer["path"]: answer["content"] for answer in answers}

    def names(self, folder: str) -> list[str]:
        """The names of a folder's objects."""
        prefix = f"{folder}/"
        return sorted(
            name.removeprefix(prefix) for name in self._ask(lambda: list(self._files.list(prefix, flat=True)))
        )

    def entries(self, index: _Index, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """The entries of an index that is kept in those objects of `names` that are there."""
        for some in _batches(names):
            for name, content in self.get(f"{index.key}/{name}" for name in some).items():
                if content is None:
                    continue
                if index.sharding is None:
                    yield name, content
                else:
                    yield from _unsharded(name, content, index.sharding)

    def _ask(self, question: Callable[[], _T]) -> _T:
        from ..stores import ATTEMPTS, CHECK_FOR_S, Patience, reason

        try:
            return Patience(CHECK_FOR_S, attempts=1 if self._is_local else ATTEMPTS).ask(question)
        except Exception as error:
            raise WorkError(f"{shown(self._path)}: {reason(error)}") from error


def _unsharded(name: str, content: bytes, sharding: _Sharding) -> Iterator[tuple[str, bytes]]:
    """A shard's entries, by the shard's name and their key."""
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification, ShardReader

    spec = ShardingSpecification.from_dict(msgspec.to_builtins(sharding))
    try:
        entries = ShardReader(None, None, spec).disassemble_shard(content)
    except Exception as error:  # whatever a decoder says of damaged bytes
        raise ValueError(f"{name}: damaged: {type(error).__name__}: {error}") from None
    yield from ((f"{name}/{key}", entry) for key, entry in entries.items())


def _batches(names: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(names)
    while batch := list(islice(rest, _AT_ONCE)):
        yield batch
