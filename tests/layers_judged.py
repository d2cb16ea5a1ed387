"""Layers written and read by TensorStore, which shares no code with CloudVolume: what it reads is what is stored.

Arrays are (X, Y, Z) or (X, Y, Z, C), as in `volumes_made`; chunks are x, y, z. What is written beside TensorStore's
own metadata is what its drivers leave to others: the levels of a layer, and the size of their voxels.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

Json = dict[str, Any]
Triple = Sequence[int]


def precomputed(
    folder: Path, array: np.ndarray, encoding: str = "raw", sharding: Json | None = None, chunk: Triple = (4, 4, 2)
) -> str:
    """Write a precomputed layer of one level, and give its cloud path."""
    values = array.reshape(*array.shape[:3], -1)
    scale: Json = {"size": values.shape[:3], "resolution": [4, 4, 40], "chunk_size": chunk, "encoding": encoding}
    if encoding == "compressed_segmentation":
        scale["compressed_segmentation_block_size"] = [4, 4, 2]
    if sharding is not None:
        scale["sharding"] = {"@type": "neuroglancer_uint64_sharded_v1", **sharding}
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": f"file://{folder}",
        "multiscale_metadata": {"data_type": values.dtype.name, "num_channels": values.shape[3], "type": "image"},
        "scale_metadata": scale,
    }
    tensorstore.open(spec, create=True).result().write(values).result()
    return f"precomputed://file://{folder}"


def judged(path: str) -> np.ndarray:
    """What TensorStore reads of a precomputed layer, (X, Y, Z, C)."""
    return _read("neuroglancer_precomputed", path.removeprefix("precomputed://"))


def zarr2(folder: Path, levels: Sequence[np.ndarray], chunk: Triple, axes: str = "zyx", **metadata: Any) -> str:
    """Write a zarr v2 layer with OME 0.4 metadata, MIP 0 first. metadata: an array's, instead of what is usual."""
    for mip, array in enumerate(levels):
        values = _in_order(array, axes)
        usual = {
            "shape": values.shape,
            "chunks": _chunk_in_order(chunk, axes),
            "dtype": values.dtype.str,
            "compressor": {"id": "gzip", "level": 1},
            "fill_value": 0,
            "order": "C",
            "filters": None,
            "dimension_separator": "/",
        }
        _write("zarr", folder / str(mip), values, {**usual, **metadata})
    put_json(folder / ".zgroup", {"zarr_format": 2})
    put_json(folder / ".zattrs", {"multiscales": [{"version": "0.4", **ome(len(levels), axes)}]})
    return f"zarr2://file://{folder}"


def zarr3(folder: Path, levels: Sequence[np.ndarray], chunk: Triple, axes: str = "zyx", **metadata: Any) -> str:
    """Write a zarr v3 layer with OME 0.5 metadata, MIP 0 first. metadata: an array's, instead of what is usual."""
    for mip, array in enumerate(levels):
        values = _in_order(array, axes)
        usual = {
            "shape": values.shape,
            "data_type": values.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": _chunk_in_order(chunk, axes)}},
            "chunk_key_encoding": {"name": "default"},
            "codecs": [LITTLE, {"name": "gzip", "configuration": {"level": 1}}],
            "fill_value": 0,
        }
        _write("zarr3", folder / str(mip), values, {**usual, **metadata})
    attributes = {"ome": {"version": "0.5", "multiscales": [ome(len(levels), axes)]}}
    put_json(folder / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})
    return f"zarr3://file://{folder}"


LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def ome(levels: int, axes: str = "zyx") -> Json:
    """One of OME's multiscales, of voxels of 4 x 4 x 40 nm at MIP 0."""
    types = {"t": "time", "c": "channel"}
    listed = [{"name": axis, "type": types[axis]} if axis in types else _space(axis) for axis in axes]
    datasets = []
    for mip in range(levels):
        sizes = {"x": 4 * 2**mip, "y": 4 * 2**mip, "z": 40}
        scale = {"type": "scale", "scale": [sizes.get(axis, 1) for axis in axes]}
        datasets.append({"path": str(mip), "coordinateTransformations": [scale]})
    return {"axes": listed, "datasets": datasets}


def n5(folder: Path, levels: Sequence[np.ndarray], chunk: Triple, **metadata: Any) -> str:
    """Write an n5 layer, MIP 0 first. metadata: a dataset's, instead of what is usual."""
    factors = [[2**mip, 2**mip, 1] for mip in range(len(levels))]
    resolution = {"unit": "nm", "dimensions": [4, 4, 40]}
    put_json(folder / "attributes.json", {"n5": "2.5.0", "downsamplingFactors": factors, "pixelResolution": resolution})
    for mip, array in enumerate(levels):
        usual = {
            "dimensions": array.shape,
            "blockSize": [*chunk, *array.shape[3:]],
            "dataType": array.dtype.name,
            "compression": {"type": "gzip", "level": 1},
        }
        _write("n5", folder / f"s{mip}", array, {**usual, **metadata})
    return f"n5://file://{folder}"


def level_of(path: str, mip: int, axes: str = "zyx") -> np.ndarray:
    """What TensorStore reads of a level of a zarr or n5 layer, (X, Y, Z)."""
    format, _, folder = path.partition("://")
    if format == "n5":
        return _read("n5", f"{folder}/s{mip}")
    values = _read({"zarr2": "zarr", "zarr3": "zarr3"}[format], f"{folder}/{mip}")
    return values.transpose([axes.index(axis) for axis in "xyztc" if axis in axes]).reshape(-1, *_shape(values, axes))


def put_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def changed_json(path: Path, *keys: str | int, to: Any) -> None:
    """Change one value in a file of JSON."""
    whole = json.loads(path.read_text())
    place = whole
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    put_json(path, whole)


def _space(axis: str) -> Json:
    return {"name": axis, "type": "space", "unit": "nanometer"}


def _in_order(array: np.ndarray, axes: str) -> np.ndarray:
    """The array with its axes as they are stored, where c and t are 1."""
    there = "xyzct"[: array.ndim]
    array = array.reshape(*array.shape, *(1 for axis in axes if axis not in there))
    there += "".join(axis for axis in axes if axis not in there)
    return array.transpose([there.index(axis) for axis in axes])


def _chunk_in_order(chunk: Triple, axes: str) -> list[int]:
    sizes = dict(zip("xyz", chunk, strict=False))
    return [sizes.get(axis, 1) for axis in axes]


def _shape(values: np.ndarray, axes: str) -> tuple[int, ...]:
    return tuple(values.shape[axes.index(axis)] for axis in "yz")


def _write(driver: str, folder: Path, values: np.ndarray, metadata: Json) -> None:
    spec = {"driver": driver, "kvstore": f"file://{folder}", "metadata": metadata}
    tensorstore.open(spec, create=True).result().write(values).result()


def _read(driver: str, kvstore: str) -> np.ndarray:
    return np.asarray(tensorstore.open({"driver": driver, "kvstore": kvstore}).result().read().result())
