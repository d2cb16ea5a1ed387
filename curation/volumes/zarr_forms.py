"""The forms of zarr and n5 layers that are read right; every other is refused, by the property that is another.

CloudVolume 12.15 takes much for granted of these formats, and gives scrambled or black voxels where it is mistaken.
What follows is therefore a list of what it may meet, each judged against TensorStore in tests/test_zarr_forms.py.
Where an answer depends on CloudVolume alone, the comment says on what.

zarr v2   https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html, "Arrays", "Metadata"
zarr v3   https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html, "Array metadata"
OME       https://ngff.openmicroscopy.org/0.4/ (zarr v2) and /0.5/ (zarr v3), "multiscales" metadata
n5        https://github.com/saalfeldlab/n5#file-system-specification

Sizes and voxels of levels are taken from here, where CloudVolume reckons them from MIP 0 and whole factors.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Json = dict[str, Any]
Get = Callable[[str], Json | None]  # a layer's metadata by their file's name, or None

_SIZES = ("8", "16", "32", "64")
_NUMBERS = {f"{kind}{size}" for kind in ("int", "uint") for size in _SIZES} | {"float32", "float64"}
_ZARR2_NUMBERS = {np.dtype(order + np.dtype(name).str[1:]).str for name in _NUMBERS for order in "<>"}
_NM = {"angstrom": 0.1, "nanometer": 1.0, "micrometer": 1e3, "millimeter": 1e6, "meter": 1e9}  # OME, "axes" metadata


class FormError(ValueError):
    """A layer is of a form that is not known to be read right."""


class NoMetadataError(Exception):
    """There is no layer: its metadata are not there."""


@dataclass(frozen=True)
class Level:
    """size: voxels, and resolution: nm per voxel, in x, y, z."""

    size: tuple[int, ...]
    resolution: tuple[float, ...]


def levels_of(format: str, get: Get) -> list[Level]:
    """The levels of a layer of `format`, MIP 0 first; `FormError` if it is not read right, or is none."""
    try:
        return _READERS[format](get)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, FormError):
            raise
        raise FormError(f"its metadata are not as {format} has them ({type(error).__name__}: {error})") from None


def _want(what: str, found: Any, *wanted: Any) -> None:
    """Refuse what is none of what is wanted."""
    if not any(type(found) is type(each) and found == each for each in wanted):
        texts = [json.dumps(each) for each in wanted]
        raise FormError(f"{what} is {json.dumps(found)}: want {' or '.join(texts)}")


def _metadata(get: Get, name: str) -> Json:
    found = get(name)
    if found is None:
        raise NoMetadataError(name)
    return found


# zarr v2


def _zarr2(get: Get) -> list[Level]:
    attributes = get(".zattrs")
    if attributes is None and get(".zarray") is None:
        raise NoMetadataError(".zattrs")
    multiscale = _multiscale(attributes or {})
    axes = _axes(multiscale, "zyx", "czyx", "tczyx")
    datasets = multiscale["datasets"]
    arrays = []
    for mip, dataset in enumerate(datasets):
        # OME, "multiscales": any path. CloudVolume takes a layer for a group if 0 is an array, and paths for MIPs.
        _want(f"the path of level {mip}", dataset["path"], str(mip))
        arrays.append(_metadata(get, f"{mip}/.zarray"))
        _check_zarr2_array(f"level {mip}", arrays[mip], axes)
    # CloudVolume has the first array twice in its list, so that each level is read as the one before it is stored.
    _check_alike(arrays, "chunks", "dtype", "compressor")
    channels = (attributes or {}).get("omero", {}).get("channels", [{"active": True}])
    _want("the number of omero's channels that are active", sum(each["active"] for each in channels), 1)
    return _levels(multiscale, axes, [array["shape"] for array in arrays])


def _check_zarr2_array(name: str, array: Json, axes: str) -> None:
    _want(f"zarr_format of {name}", array["zarr_format"], 2)
    # CloudVolume turns the names of chunks round for "F", which only turns what is in them.
    _want(f"order of {name}", array["order"], "C")
    _want(f"dtype of {name}", array["dtype"], *sorted(_ZARR2_NUMBERS))
    # CloudVolume wants a compressor, and decodes neither bz2 nor zlib nor lz4; TensorStore cannot judge lzma.
    _want(f"compressor of {name}", (array["compressor"] or {}).get("id"), "blosc", "gzip", "zstd")
    # CloudVolume does not undo filters.
    _want(f"filters of {name}", array["filters"], None, [])
    _check_fill(name, array["fill_value"], None)
    # With "." CloudVolume joins the level's path to the chunk's by "." as well, and finds none.
    _want(f"dimension_separator of {name}", array.get("dimension_separator", "."), "/")
    _check_single(name, axes, array["shape"], array["chunks"])


# zarr v3


def _zarr3(get: Get) -> list[Level]:
    root = _metadata(get, "zarr.json")
    _want("zarr_format", root["zarr_format"], 3)
    ome = root.get("attributes", {}).get("ome", {})
    multiscale = _multiscale(ome)
    _want("the version of its OME metadata", ome.get("version"), "0.5")
    # CloudVolume reads chunks of other axes with x and z the other way round, or not at all.
    axes = _axes(multiscale, "zyx")
    arrays = []
    for mip, dataset in enumerate(multiscale["datasets"]):
        # OME, "multiscales": any path. CloudVolume finds chunks by numbers alone.
        path = dataset["path"]
        if not (isinstance(path, str) and path.isdecimal()):
            raise FormError(f"the path of level {mip} is {json.dumps(path)}: want a number")
        arrays.append(_metadata(get, f"{path}/zarr.json"))
        _check_zarr3_array(f"level {mip}", arrays[mip])
    # CloudVolume cuts every level into chunks of the first one's shape, and decodes its numbers.
    _check_alike(arrays, "chunk_grid", "data_type")
    return _levels(multiscale, axes, [array["shape"] for array in arrays])


def _check_zarr3_array(name: str, array: Json) -> None:
    _want(f"zarr_format of {name}", array["zarr_format"], 3)
    _want(f"data_type of {name}", array["data_type"], *sorted(_NUMBERS))
    # "Chunk grids": regular is the only one of the core specification.
    _want(f"chunk_grid of {name}", array["chunk_grid"]["name"], "regular")
    _check_key_encoding(name, array["chunk_key_encoding"])
    _check_codecs(name, array["codecs"], np.dtype(array["data_type"]).itemsize)
    _check_fill(name, array["fill_value"])
    # "Storage transformers": CloudVolume knows none.
    _want(f"storage_transformers of {name}", array.get("storage_transformers", []), [])
    # CloudVolume takes a chunk's shape by these names where they are there.
    _want(f"dimension_names of {name}", array.get("dimension_names", ["z", "y", "x"]), ["z", "y", "x"])


def _check_key_encoding(name: str, encoding: Json) -> None:
    """ "Chunk key encoding": the keys of chunks.

    CloudVolume writes "c/0.0.0" for "default" with ".", which is "c.0.0.0", and takes "/" for the default of "v2".
    """
    _want(f"chunk_key_encoding of {name}", encoding["name"], "default", "v2")
    separator = encoding.get("configuration", {}).get("separator")
    if encoding["name"] == "default":
        _want(f"the separator in chunk_key_encoding of {name}", separator, "/", None)
    else:
        _want(f"the separator in chunk_key_encoding of {name}", separator, "/", ".")


def _check_codecs(name: str, codecs: Sequence[Json], itemsize: int) -> None:
    """ "Codecs": CloudVolume takes what "bytes" gives for little-endian, and undoes "transpose" the wrong way."""
    first, *others = codecs
    _want(f"the first codec of {name}", first["name"], "bytes")
    if itemsize > 1:
        _want(f"endian of {name}", first.get("configuration", {}).get("endian"), "little")
    for codec in others:
        _want(f"a codec of {name}", codec["name"], "blosc", "crc32c", "gzip", "zstd")


# What both versions of zarr have in common


def _multiscale(attributes: Json) -> Json:
    """The layer's pyramid. An array without OME metadata has no size of voxels."""
    multiscales = attributes.get("multiscales")
    if not multiscales or not multiscales[0].get("datasets"):
        raise FormError("it has no OME multiscales metadata, which give the size of its voxels")
    found: Json = multiscales[0]
    return found


def _axes(multiscale: Json, *wanted: str) -> str:
    """The names of the axes, slowest first. OME, "axes": names, types and units."""
    axes = multiscale["axes"]
    names = "".join(axis["name"] if isinstance(axis, dict) else str(axis) for axis in axes)
    _want("the order of its axes", names, *wanted)
    types = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
    for axis in axes:
        _want(f"the type of axis {axis['name']}", axis["type"], types[axis["name"]])
        if axis["type"] == "space":
            _want(f"the unit of axis {axis['name']}", axis.get("unit", "nanometer"), *_NM)
    return names


def _check_single(name: str, axes: str, shape: Sequence[int], chunks: Sequence[int]) -> None:
    """CloudVolume takes as many channels for a chunk's as omero lists, and the first for all where it lists none."""
    for axis, size, chunk in zip(axes, shape, chunks, strict=True):
        if axis in "tc":
            _want(f"the size of axis {axis} of {name}", size, 1)
            _want(f"the chunk size of axis {axis} of {name}", chunk, 1)


def _check_fill(name: str, value: Any, *more: Any) -> None:
    """v2 "fill_value", v3 "Fill value": what a chunk is that is not there, which is black here."""
    _want(f"fill_value of {name}", value, 0, 0.0, *more)


def _check_alike(arrays: Sequence[Json], *names: str) -> None:
    for name in names:
        for mip, array in enumerate(arrays):
            if array[name] != arrays[0][name]:
                found, wanted = json.dumps(array[name]), json.dumps(arrays[0][name])
                raise FormError(f"{name} of level {mip} is {found}: want {wanted}, as of level 0")


def _levels(multiscale: Json, axes: str, shapes: Sequence[Sequence[int]]) -> list[Level]:
    """The levels. OME, "coordinateTransformations": a scale, then perhaps a translation, in the axes' order."""
    places = [axes.index(axis) for axis in "xyz"]
    units = [_NM[multiscale["axes"][place].get("unit", "nanometer")] for place in places]
    for transformation in multiscale.get("coordinateTransformations") or []:  # on top of each level's own
        kind = transformation["type"]
        _want("a coordinateTransformation of all levels", kind, "scale", "translation")
        values = [float(transformation[kind][place]) for place in places]
        _want(f"the {kind} of all levels in x, y, z", values, [1.0] * 3 if kind == "scale" else [0.0] * 3)
    levels: list[Level] = []
    first: list[float] = []
    for mip, (dataset, shape) in enumerate(zip(multiscale["datasets"], shapes, strict=True)):
        transformations = dataset["coordinateTransformations"]
        kinds = [each["type"] for each in transformations]
        _want(f"the coordinateTransformations of level {mip}", kinds, ["scale"], ["scale", "translation"])
        scale = [float(transformations[0]["scale"][place]) for place in places]
        first = first or scale
        if len(kinds) == 2:
            translation = [float(transformations[1]["translation"][place]) for place in places]
            _check_translation(f"level {mip}", translation, scale, first)
        size = tuple(int(shape[place]) for place in places)
        levels.append(Level(size, tuple(nm * step for nm, step in zip(units, scale, strict=True))))
    return levels


def _check_translation(name: str, translation: Sequence[float], scale: Sequence[float], first: Sequence[float]) -> None:
    """Refuse a place that CloudVolume does not give a level.

    None is nothing. Half the difference between its voxels and those of the first level is none either, where places
    are those of voxels' centres: the corners of all levels are then one.
    """
    halves = (np.array(scale) - first) / 2
    if not any(np.allclose(translation, none, rtol=0, atol=1e-3 * min(first)) for none in (0, halves)):
        or_half = f", or {halves.tolist()}, to the same corner" if halves.any() else ""
        raise FormError(f"the translation of {name} is {list(translation)} in x, y, z: want none{or_half}")


# n5

_N5_COMPRESSIONS = ("blosc", "bzip2", "gzip", "raw", "xz", "zstd")


def _n5(get: Get) -> list[Level]:
    root = _metadata(get, "attributes.json")
    resolution = [float(size) for size in _n5_resolution(root)]
    _want("axes", root.get("axes", ["x", "y", "z"]), ["x", "y", "z"])
    count = len(root["scales"] if "scales" in root else root["downsamplingFactors"])
    arrays = [_metadata(get, f"s{mip}/attributes.json") for mip in range(count)]
    levels: list[Level] = []
    for mip, array in enumerate(arrays):
        name = f"level {mip}"
        _check_n5_array(name, array)
        factors = [1, 1, 1] if mip == 0 else _n5_factors(name, mip, root, array)
        sizes = [size * factor for size, factor in zip(resolution, factors, strict=True)]
        _check_n5_place(name, {**root, **array}, sizes, resolution)
        levels.append(Level(tuple(array["dimensions"]), tuple(sizes)))
    _check_alike(arrays, "dataType")  # CloudVolume reads every level as the first
    return levels


def _n5_resolution(root: Json) -> Sequence[float]:
    """Not in the specification, but what viewers write: nm per voxel, of which CloudVolume ignores the unit."""
    found = root.get("pixelResolution")
    if found is None:
        units = root.get("units", ["nm"] * 3)
        _want("units", units, ["nm"] * 3)
        resolution: Sequence[float] = root["resolution"]
        return resolution
    _want("the unit of pixelResolution", found.get("unit", "nm"), "nm", "nanometer")
    dimensions: Sequence[float] = found["dimensions"]
    return dimensions


def _n5_factors(name: str, mip: int, root: Json, array: Json) -> Sequence[float]:
    if "downsamplingFactors" not in array and "downsamplingFactors" not in root:
        raise FormError(f"{name} has no downsamplingFactors")
    factors: Sequence[float] = array.get("downsamplingFactors") or root["downsamplingFactors"][mip]
    return factors


def _check_n5_array(name: str, array: Json) -> None:
    """ "File-system specification": a dataset's mandatory attributes."""
    # CloudVolume asks for the blocks of three dimensions alone.
    _want(f"the number of dimensions of {name}", len(array["dimensions"]), 3)
    _want(f"dataType of {name}", array["dataType"], *sorted(_NUMBERS))
    compression = array.get("compression", {})
    # CloudVolume decodes no lz4.
    _want(f"compression of {name}", compression.get("type", "raw"), *_N5_COMPRESSIONS)
    # "useZlib": a stream of zlib's, which CloudVolume takes for one of gzip's.
    _want(f"useZlib of {name}", compression.get("useZlib", False), False)


def _check_n5_place(name: str, attributes: Mapping[str, Any], sizes: list[float], first: list[float]) -> None:
    """Not in the specification: Paintera's `offset`, and `transform`, whose axes are listed slowest first."""
    translation = attributes.get("offset", [0, 0, 0])
    _check_translation(name, [float(each) for each in translation], sizes, first)
    transform = attributes.get("transform")
    if transform is not None:
        _want(f"the axes of the transform of {name}", transform.get("axes"), ["z", "y", "x"])
        _want(f"the scale of the transform of {name}", [*map(float, transform["scale"])], sizes[::-1])
        _check_translation(name, [float(each) for each in reversed(transform["translate"])], sizes, first)


_READERS: dict[str, Callable[[Get], list[Level]]] = {"zarr2": _zarr2, "zarr3": _zarr3, "n5": _n5}
