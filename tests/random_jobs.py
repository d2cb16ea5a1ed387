"""Random small jobs for make_dataset.py and download_image.py, each from one integer: its volumes, spec and options.

The volumes lie in a folder as precomputed layers, written by CloudVolume or TensorStore, and are given as plain arrays
besides, for a judge that reads no files. The same seed gives the same job.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
from cloudvolume import CloudVolume
from numpy.typing import NDArray
from one_sample import Volume

Json = dict[str, Any]
Triple = tuple[int, int, int]
Random = np.random.Generator

COARSEST = 4  # the MIP that every layer ends with
WANTED = (0, 0, 1, 1, 2, 2, 3)  # MIPs that results are wanted at, the likelier ones twice
READ = (0, 0, 1, 1, 2, 2, 3, 4)  # MIPs that are read
COMPRESSIONS = ("gzip", "gzip", "br", "zstd", None)


@dataclass(frozen=True)
class Job:
    """A job that was made. volumes: the levels that hold voxels, by path and MIP. spec: in the present form.

    written: the spec as a file holds it, which may be of an older form. decimals: of stored fields.
    """

    seed: int
    volumes: dict[tuple[str, int], Volume]
    spec: Json
    written: Json
    decimals: int | str | None

    def starts(self) -> list[tuple[Triple, Triple]]:
        """Each pair's source and target starts, (x, y, z) in MIP-0 voxels."""
        return [(_start_of(pair["src"]), _start_of(pair["tgt"])) for pair in self.spec["pairs"]]

    def arguments(self, spec: Path, out: Path) -> list[object]:
        """make_dataset.py's."""
        decimals = "none" if self.decimals is None else self.decimals
        return ["--spec_path", spec, "--dst_path", out, "--parallel", 1, "--field_decimals", decimals]

    def name(self) -> str:
        """What the image file is called."""
        x, y, z = self.starts()[0][0]
        return f"x{x}_y{y}_z{z}_MIP{self.spec['dst_mip']}.h5"


@dataclass(frozen=True)
class Stretch:
    """A job for download_image.py.

    levels: (MIP, size) of each file. x, y: its start in MIP-0 voxels. z: its first section and the one after its last.
    """

    seed: int
    volumes: dict[tuple[str, int], Volume]
    path: str
    defects: str | None
    mask_val: float
    levels: list[tuple[int, int]]
    x: int
    y: int
    z: tuple[int, int]

    def arguments(self, out: Path) -> list[object]:
        """download_image.py's."""
        mips, sizes = zip(*self.levels, strict=True)
        defects = ["--cv_path_defects", self.defects, "--mask_val", self.mask_val] if self.defects else []
        where = ["--z_start", self.z[0], "--z_end", self.z[1], "--x_offset", self.x, "--y_offset", self.y]
        paths = ["--cv_path", self.path, "--dst_folder", out, "--parallel", 1]
        return [*paths, *where, "--mips", *mips, "--patch_sizes", *sizes, *defects]


@dataclass
class _World:
    """Where a job's volumes and boxes lie, and what has been made of them.

    low, size: the region of the boxes, which the volumes roughly fill, (x, y, z) in MIP-0 voxels.
    far: how far from it images and masks lie, (x, y) in MIP-0 voxels: the field leads there.
    """

    random: Random
    folder: Path
    low: Triple
    size: Triple
    far: tuple[int, int] = (0, 0)
    volumes: dict[tuple[str, int], Volume] = field(default_factory=dict)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.random.random() < probability)

    def pick(self, values: Sequence[Any]) -> Any:
        """One of the values."""
        return values[int(self.random.integers(len(values)))]

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return int(self.random.integers(low, high + 1))


# make_dataset.py


def make_job(seed: int, folder: Path) -> Job:
    """The job of a seed, its volumes in a folder that is there."""
    random = np.random.default_rng(seed)
    levels = _levels(random)
    extent = [size << levels["dst_mip"] for size in (levels["x_size"], levels["y_size"])]
    world = _world(random, folder, extent)
    if "field" in levels and world.chance(0.08):
        world.far = world.between(-3000, 3000), world.between(-3000, 3000)
    spec = {**levels, "image": dict(levels["image"]), "pairs": _pairs(world, levels)}
    _place(world, spec)
    written = spec if world.chance(0.6) else _older(spec, world)
    decimals = world.pick([None, None, 2, "binary", "binary", 0, 4])
    return Job(seed, world.volumes, spec, written, decimals)


def _levels(random: Random) -> Json:
    """A spec without paths and pairs, of levels that can be read and line up: those refused are drawn again."""
    while True:
        spec = _drawn_levels(random)
        if levels_fit(spec):
            return spec


def _drawn_levels(random: Random) -> Json:
    def one_of(values: Sequence[int]) -> int:
        return int(random.choice(values))

    dst_mip = one_of(WANTED)
    longest = (24, 20, 14, 9)[dst_mip]
    spec: Json = {
        "dst_mip": dst_mip,
        "max_mip": dst_mip + one_of((0, 0, 1, 2)),
        "x_size": int(random.integers(1, longest + 1)),
        "y_size": int(random.integers(1, longest + 1)),
        "image": {"src_mip": one_of(READ)},
    }
    if random.random() < 0.6:
        spec["image"]["reference"] = _drawn_reference(random)
    if random.random() < 0.65:
        spec["field"] = {"src_mip": one_of(READ)}
        if random.random() < 0.6:
            spec["field"]["reference"] = _drawn_reference(random)
    count = one_of((0, 1, 1, 2, 3))
    if count or random.random() < 0.5:
        spec["masks"] = [{"src_mip": one_of(READ)} for _ in range(count)]
    return spec


def _drawn_reference(random: Random) -> Json:
    dst_mip = int(random.choice(WANTED))
    longest = (24, 20, 14, 9)[dst_mip]
    x_size, y_size = (int(size) for size in random.integers(1, longest + 1, 2))
    return {"src_mip": int(random.choice(READ)), "dst_mip": dst_mip, "x_size": x_size, "y_size": y_size}


def levels_fit(spec: Json) -> bool:
    """Whether everything can be read in whole pixels, and no field is read finer than it is wanted.

    Boxes start at multiples of 2^max_mip; those of images and masks are shifted by multiples of 2^(src_mip of the
    field's reference) besides. A step must be whole pixels at the finer of the levels that are read and wanted.
    """
    dst_mip, step = spec["dst_mip"], spec["max_mip"]
    own = {"dst_mip": dst_mip}
    if "field" in spec:
        field, reference = spec["field"], spec["field"].get("reference", {**own, "src_mip": spec["field"]["src_mip"]})
        if field["src_mip"] < dst_mip or reference["src_mip"] < reference["dst_mip"]:
            return False
        if reference["dst_mip"] > step:
            return False
        step = min(step, reference["src_mip"])
    wanted = [(spec["image"]["src_mip"], dst_mip)]
    reference = spec["image"].get("reference", {**own, "src_mip": spec["image"]["src_mip"]})
    wanted.append((reference["src_mip"], reference["dst_mip"]))
    for mask in spec.get("masks", []):
        wanted += [(mask["src_mip"], dst_mip), (mask["src_mip"], reference["dst_mip"])]
    return dst_mip <= spec["max_mip"] and all(min(levels) <= step for levels in wanted)


def _world(random: Random, folder: Path, extent: Sequence[int]) -> _World:
    """A region a few boxes wide. extent: (x, y) of a box in MIP-0 voxels."""
    x, y = (int(span * random.uniform(1.2, 2.5) + random.integers(20, 60)) for span in extent)
    low_x, low_y, low_z = (int(low) for low in random.integers([-400, -400, -6], [400, 400, 6]))
    return _World(random, folder, (low_x, low_y, low_z), (x, y, int(random.integers(3, 7))))


def _pairs(world: _World, spec: Json) -> list[Json]:
    """One to four pairs, of boxes that come up several times; most lie within the region, some leave it."""
    step = 1 << spec["max_mip"]
    extent = [size << spec["dst_mip"] for size in (spec["x_size"], spec["y_size"])]
    places = []
    for _ in range(world.between(1, 3)):
        place = []
        for low, size, span in zip(world.low, world.size, extent, strict=False):
            beyond = span // 2 if world.chance(0.2) else 0
            first, last = low - beyond, max(low, low + size - span) + beyond
            place.append(world.between(first, last) // step * step)
        places.append(place)
    pairs = []
    for _ in range(world.between(1, 4)):
        x, y = world.pick(places)
        z = world.low[2] + world.between(0, world.size[2] - 1)
        others = [other for other in range(world.low[2], world.low[2] + world.size[2]) if other != z]
        there_x, there_y = world.pick(places) if world.chance(0.2) else (x, y)
        pairs.append({"src": _start(x, y, z), "tgt": _start(there_x, there_y, world.pick(others))})
    return pairs


def _start(x: int, y: int, z: int) -> Json:
    return {"x_start": x, "y_start": y, "z_start": z}


def _start_of(box: Json) -> Triple:
    return box["x_start"], box["y_start"], box["z_start"]


def _older(spec: Json, world: _World) -> Json:
    """The spec with its pairs as lists, its boxes marked by their centres, or some of them so."""
    half_x, half_y = (size * 2 ** spec["dst_mip"] // 2 for size in (spec["x_size"], spec["y_size"]))
    how = world.pick(["all", "all", "lists", "centres", "mixed"])

    def box(start: Json) -> Json:
        if how == "lists" or (how == "mixed" and world.chance(0.5)):
            return start
        return {"x": start["x_start"] + half_x, "y": start["y_start"] + half_y, "z": start["z_start"]}

    def pair(both: Json) -> Any:
        src, tgt = box(both["src"]), box(both["tgt"])
        is_list = how in ("all", "lists") or (how == "mixed" and world.chance(0.5))
        return [src, tgt] if is_list else {"src": src, "tgt": tgt}

    return {**spec, "pairs": [pair(both) for both in spec["pairs"]]}


def _place(world: _World, spec: Json) -> None:
    """Make the volumes, and put their paths into the spec."""
    kind = world.pick(["uint8", "uint8", "uint8", "int8", "uint16", "int16", "float32", "float32"])
    image = _layer(world, "image", kind)
    _read(world, spec["image"], image)
    if "reference" in spec["image"]:
        other = _layer(world, "reference", kind) if world.chance(0.3) else image
        _read(world, spec["image"]["reference"], other)
    if "field" in spec:
        layer = _layer(world, "field", "vectors")
        _read(world, spec["field"], layer)
        if "reference" in spec["field"]:
            other = _layer(world, "coarse_field", "vectors") if world.chance(0.3) else layer
            _read(world, spec["field"]["reference"], other)
    layers: list[_Layer] = []
    for number, mask in enumerate(spec.get("masks", [])):
        if not layers or world.chance(0.7):
            layers.append(_layer(world, f"mask {number}", world.pick(["uint8", "uint32", "labels", "float32"]), True))
        layer = world.pick(layers)
        _read(world, mask, layer)
        mask["threshold"] = world.pick(layer.thresholds)


# download_image.py


def make_stretch(seed: int, folder: Path) -> Stretch:
    """The stretch of a seed, its volumes in a folder that is there."""
    random = np.random.default_rng([seed, 1])
    mips = [int(mip) for mip in random.permutation(4)[: int(random.integers(1, 4))]]
    levels = [(mip, int(random.integers(1, (24, 20, 14, 9)[mip]))) for mip in mips]
    longest = max(size << mip for mip, size in levels)
    world = _world(random, folder, (longest, longest))
    step = 1 << max(mips)
    x, y = (
        world.between(low - longest // 4, low + size // 2) // step * step
        for low, size in zip(world.low[:2], world.size[:2], strict=True)
    )
    low, high = world.low[2], world.low[2] + world.size[2]
    first = world.between(low + 1, high - 1)
    image = _layer(world, "image", world.pick(["uint8", "int8", "uint16", "int16", "float32"]))
    defects = _layer(world, "defects", world.pick(["uint8", "labels", "float32"]), True) if world.chance(0.6) else None
    for mip in mips:
        _read(world, {"src_mip": mip}, image)
        if defects is not None:
            _read(world, {"src_mip": mip}, defects)
    return Stretch(
        seed,
        world.volumes,
        image.path,
        None if defects is None else defects.path,
        world.pick(defects.thresholds) if defects is not None else 0,
        levels,
        x,
        y,
        (first, world.between(first + 1, high)),
    )


# Layers


@dataclass(frozen=True)
class _Layer:
    """A layer whose levels have no voxels yet. sizes, offsets: (x, y, z) of each level, in its own voxels."""

    path: str
    folder: Path
    kind: str
    is_mask: bool
    writer: str
    sizes: list[Triple]
    offsets: list[Triple]
    chunks: list[Triple]

    @property
    def data_type(self) -> str:
        return {"vectors": "float32", "labels": "uint32"}.get(self.kind, self.kind)

    @property
    def thresholds(self) -> list[float]:
        """Thresholds that mask some of what such a mask holds."""
        return [1, 0.5, 2, 3.5]


def _layer(world: _World, name: str, kind: str, is_mask: bool = False) -> _Layer:
    """The info of a new layer, of about the region of the job, of MIPs 0 to COARSEST."""
    low, size = [], []
    for axis in range(3):
        slack = 25 if axis < 2 else 0
        first = world.low[axis] - world.between(-slack // 3, slack)
        low.append(first if axis == 2 or kind == "vectors" else first + world.far[axis])
        size.append(world.low[axis] + world.size[axis] + world.between(-slack // 3, slack) - first)
    if world.chance(0.1):  # deeper than the others, or not so deep
        low[2] -= 1
        size[2] += world.between(0, 2)
    sizes, offsets, chunks = [], [], []
    chunk = (world.between(9, 40), world.between(9, 40), world.between(1, 4))
    for mip in range(COARSEST + 1):
        offsets.append((low[0] >> mip, low[1] >> mip, low[2]))
        sizes.append((-(-size[0] >> mip), -(-size[1] >> mip), size[2]))
        finest = 2 if mip == 0 else 1  # fewer files where there are many voxels
        chunks.append((chunk[0] * finest, chunk[1] * finest, chunk[2]))
        if world.chance(0.1):
            chunk = (world.between(9, 40), world.between(9, 40), world.between(1, 4))
    writer = world.pick(["cloudvolume"] * 4 + ["tensorstore"] * 4 + ["sharded"])
    encoding = "compressed_segmentation" if kind == "labels" else "raw"
    scales = [
        {
            "key": f"mip {mip}" if world.chance(0.1) else f"{mip}",
            "encoding": encoding,
            **({"compressed_segmentation_block_size": [8, 8, 8]} if kind == "labels" else {}),
            **({"sharding": _sharding(world)} if writer == "sharded" else {}),
            "resolution": [4 << mip, 4 << mip, 40],
            "size": sizes[mip],
            "voxel_offset": offsets[mip],
            "chunk_sizes": [chunks[mip]],
        }
        for mip in range(COARSEST + 1)
    ]
    folder = world.folder / name
    folder.mkdir(parents=True)
    layer = _Layer(f"file://{folder}", folder, kind, is_mask, writer, sizes, offsets, chunks)
    info = {
        "@type": "neuroglancer_multiscale_volume",
        "type": "segmentation" if kind == "labels" else "image",
        "data_type": layer.data_type,
        "num_channels": 2 if kind == "vectors" else 1,
        "scales": scales,
    }
    (folder / "info").write_text(json.dumps(info))
    return layer


def _sharding(world: _World) -> Json:
    return {
        "@type": "neuroglancer_uint64_sharded_v1",
        "preshift_bits": world.between(0, 2),
        "hash": world.pick(["identity", "murmurhash3_x86_128"]),
        "minishard_bits": world.between(0, 2),
        "shard_bits": world.between(0, 2),
        "minishard_index_encoding": world.pick(["raw", "gzip"]),
        "data_encoding": world.pick(["raw", "gzip"]),
    }


def _read(world: _World, place: Json, layer: _Layer) -> None:
    """Put a layer's path into a place of the spec, and give the level that is read there its voxels."""
    place["path"] = layer.path
    mip = place["src_mip"]
    if (layer.path, mip) in world.volumes:
        return
    size, offset, chunk = layer.sizes[mip], layer.offsets[mip], layer.chunks[mip]
    if layer.kind == "vectors":
        voxels = _vectors(world, size)
    elif layer.is_mask:
        voxels = _mask(world, size, layer.data_type)
    else:
        voxels = _grey(world, size, layer.data_type)
    if not voxels.any():
        voxels[0, 0, 0] = 1  # a volume without a chunk is a fault of its own
    missing = _missing(world, voxels, offset, chunk)
    volume = Volume(voxels, offset, chunk, frozenset(missing))
    for start in missing:
        voxels[_part(volume, start)] = 0
    # TensorStore stores no chunk that is all 0, so that such a chunk is missing too; CloudVolume stores it.
    if layer.writer != "cloudvolume":
        black = {start for start in _chunk_starts(voxels, offset, chunk) if not voxels[_part(volume, start)].any()}
        volume = Volume(voxels, offset, chunk, frozenset(black))
    _write(world, layer, mip, volume)
    world.volumes[layer.path, mip] = volume


def _write(world: _World, layer: _Layer, mip: int, volume: Volume) -> None:
    if layer.writer == "cloudvolume":
        compress = world.pick(COMPRESSIONS)
        level = CloudVolume(layer.path, mip=mip, progress=False, compress=compress or False)
        level[:, :, :] = volume.voxels
        key = json.loads((layer.folder / "info").read_text())["scales"][mip]["key"]
        for file in (layer.folder / key).iterdir():
            if tuple(int(low) for low in re.findall(r"(?:^|_)(-?\d+)", file.name)) in volume.missing:
                file.unlink()
    else:
        kvstore = {"driver": "file", "path": str(layer.folder)}
        spec = {"driver": "neuroglancer_precomputed", "kvstore": kvstore, "scale_index": mip}
        store = tensorstore.open(spec).result()
        store[tensorstore.d[:].translate_to[0]].write(volume.voxels).result()


def _chunk_starts(voxels: NDArray[Any], offset: Triple, chunk: Triple) -> list[Triple]:
    grids = (range(low, low + size, step) for low, size, step in zip(offset, voxels.shape[:3], chunk, strict=True))
    return [(x, y, z) for x, y, z in product(*grids)]


def _part(volume: Volume, start: Triple) -> tuple[slice, ...]:
    """Where in a volume's voxels a chunk lies."""
    lows = (low - first for low, first in zip(start, volume.offset, strict=True))
    return tuple(slice(low, low + size) for low, size in zip(lows, volume.chunk, strict=True))


def _missing(world: _World, voxels: NDArray[Any], offset: Triple, chunk: Triple) -> set[Triple]:
    """The chunks that the store will not have: mostly none, never all that a box may want."""
    starts = _chunk_starts(voxels, offset, chunk)
    if len(starts) < 6 or not world.chance(0.3):
        return set()
    count = world.between(1, max(1, len(starts) // 8))
    return {starts[int(index)] for index in world.random.permutation(len(starts))[:count]}


# Voxels, (X, Y, Z, C)


def _grey(world: _World, size: Triple, data_type: str) -> NDArray[Any]:
    """Grey values with black folds, spots and sections; sections that are constant; floats that are not finite."""
    random, shape = world.random, (*size, 1)
    if data_type == "float32":
        scale = world.pick([1.0, 0.01, 200.0, 30000.0])
        middle = world.pick([0.0, 1.0, 3.0])
        voxels: NDArray[Any] = ((random.normal(size=shape) + middle) * scale).astype(np.float32)
        if world.chance(0.15):  # values that cancel when they are averaged
            voxels = (random.choice([-1.0, 1.0, 2.0], shape) * scale).astype(np.float32)
    else:
        bounds = np.iinfo(data_type)
        low, high = world.pick([(bounds.min, bounds.max), (1, 100), (bounds.max - 3, bounds.max)])
        voxels = random.integers(low, high, shape, dtype=np.int64, endpoint=True).astype(data_type)
    flat = world.pick([0.06, 0.06, 0.06, 0.5])
    for z in range(size[2]):
        if world.chance(flat):
            voxels[:, :, z] = world.pick([0.1, 1.7, 117.3] if data_type == "float32" else [117, 1, 3])
    if world.chance(0.65):
        _blacken(world, voxels)
    if data_type == "float32" and world.chance(0.3):
        for value in (np.nan, np.inf, -np.inf):
            voxels[random.random(shape) < world.pick([0, 0.002, 0.02])] = value
    return voxels


def _blacken(world: _World, voxels: NDArray[Any]) -> None:
    """Put folds, rectangles, single pixels and whole sections of black into grey values."""
    x_size, y_size, z_size, _ = voxels.shape
    if world.chance(0.5):  # a fold: a band across every section
        x, y = np.meshgrid(np.arange(x_size), np.arange(y_size), indexing="ij")
        angle = world.random.uniform(0, np.pi)
        across = (x - x_size / 2) * np.cos(angle) + (y - y_size / 2) * np.sin(angle)
        for z in range(z_size):
            middle, half_width = world.random.normal(0, x_size / 4), world.random.uniform(0.5, 8)
            voxels[np.abs(across - middle) < half_width, z] = 0
    for _ in range(world.between(0, 4)):
        left, top, z = (world.between(0, size - 1) for size in (x_size, y_size, z_size))
        width, height = world.between(1, x_size // 3 + 1), world.between(1, y_size // 3 + 1)
        voxels[left : left + width, top : top + height, z] = 0
    if world.chance(0.4):
        voxels[world.random.random(voxels.shape) < world.pick([0.01, 0.1, 0.5])] = 0
    if world.chance(0.2):
        voxels[:, :, world.between(0, z_size - 1)] = 0


def _mask(world: _World, size: Triple, data_type: str) -> NDArray[Any]:
    """Values 0 to 5: a few blobs or noise, or nothing, or a whole section masked."""
    voxels = np.zeros((*size, 1), data_type)
    for _ in range(world.between(0, 5)):
        x, y, z = (world.between(0, length - 1) for length in size)
        part = slice(x, x + world.between(1, size[0] // 2 + 1)), slice(y, y + world.between(1, size[1] // 2 + 1)), z
        voxels[part] = world.between(1, 5)
    if world.chance(0.3):
        noisy = world.random.random(voxels.shape) < world.pick([0.002, 0.05])
        voxels[noisy] = world.random.integers(1, 6, int(noisy.sum()))
    if world.chance(0.08):
        voxels[:, :, world.between(0, size[2] - 1)] = 4
    return voxels


def _vectors(world: _World, size: Triple) -> NDArray[Any]:
    """Displacements in MIP-0 voxels, smooth and noisy, with vectors that are not finite, some sections all of them."""
    random = world.random
    reach = min(world.size[:2]) / 5
    voxels = np.empty((*size, 2), np.float32)
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij")
    constant = world.chance(0.1)
    for z in range(size[2]):
        for component in range(2):
            if constant:
                voxels[:, :, z, component] = world.pick([0, 8, -16, -0.5, 3.75])
                continue
            wave = random.uniform(0, reach / 4) * np.sin(random.uniform(0, 0.5) * x + random.uniform(0, 0.5) * y)
            noise = random.normal(0, random.choice([0, 0.5, 4]), size[:2])
            voxels[:, :, z, component] = random.uniform(-reach, reach) + wave + noise
    voxels += np.array(world.far[::-1], np.float32)  # component 0 is along y
    if world.chance(0.03):
        voxels += np.float32(random.choice([-3000, 3000]))
    if world.chance(0.4):
        for value in (np.nan, np.inf, -np.inf):
            voxels[random.random(voxels.shape) < random.choice([0, 0.01, 0.1])] = value
    for z in range(size[2]):
        if world.chance(0.08):
            voxels[:, :, z, world.pick([0, 1, slice(None)])] = np.nan
    return voxels
