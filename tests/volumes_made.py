"""Layers for tests, written from numpy arrays (X, Y, Z) or (X, Y, Z, C), which are what must be read back."""

import gzip
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from cloudvolume import CloudVolume

Triple = Sequence[int]


def make_layer(
    folder: Path,
    levels: Mapping[int, np.ndarray],
    resolution: Triple = (4, 4, 40),
    voxel_offset: Triple = (0, 0, 0),
    chunk: Triple = (64, 64, 1),
    compress: str | bool = "gzip",
    factor: Triple = (2, 2, 1),
) -> str:
    """Write a precomputed layer with MIPs 0 to the coarsest in `levels`, and give its cloud path.

    levels: MIP to array; levels between that are not given are in the info, without a chunk. resolution (nm) and
    voxel_offset are those of MIP 0, where the finest level given is taken to be whole: its size times 2^MIP. factor:
    by which voxels grow from one level to the next.
    """
    finest = min(levels)
    x_size, y_size, z_size = levels[finest].shape[:3]
    path = f"file://{folder}"
    info = CloudVolume.create_new_info(
        num_channels=_channels(levels[finest]),
        layer_type="image",
        data_type=levels[finest].dtype.name,
        encoding="raw",
        resolution=list(resolution),
        voxel_offset=list(voxel_offset),
        chunk_size=list(chunk),
        volume_size=[x_size << finest, y_size << finest, z_size],
    )
    layer = CloudVolume(path, info=info, progress=False)
    for mip in range(1, max(levels) + 1):
        layer.add_scale([step**mip for step in factor], chunk_size=list(chunk))
    layer.commit_info()
    for mip, array in levels.items():
        level = CloudVolume(path, mip=mip, progress=False, compress=compress)
        level[:, :, :] = array.reshape(*array.shape[:3], _channels(array))
    return path


def chunk_file(folder: Path, mip: int, start: Triple) -> Path:
    """The file of the chunk that starts at `start`, in voxels of that MIP."""
    scale = json.loads((folder / "info").read_text())["scales"][mip]
    spans = []
    for low, size, first, whole in zip(
        start, scale["chunk_sizes"][0], scale["voxel_offset"], scale["size"], strict=True
    ):
        spans.append(f"{low}-{min(low + size, first + whole)}")
    (found,) = (folder / scale["key"]).glob("_".join(spans) + "*")
    return found


def make_zarr3(folder: Path, array: np.ndarray, chunk: Triple) -> str:
    """Write an array (X, Y, Z) as a zarr v3 layer of one level, by CloudVolume."""
    info = CloudVolume.create_new_info(
        num_channels=1,
        layer_type="image",
        data_type=array.dtype.name,
        encoding="raw",
        resolution=[4, 4, 40],
        voxel_offset=[0, 0, 0],
        chunk_size=list(chunk),
        volume_size=list(array.shape),
    )
    layer = CloudVolume(f"zarr3://file://{folder}", info=info, progress=False)
    layer.commit_info()
    layer[:, :, :] = array[..., None]
    return f"zarr3://file://{folder}"


def make_zarr2(folder: Path, levels: Sequence[np.ndarray], chunk: Triple) -> str:
    """Write arrays (X, Y, Z), MIP 0 first, as a zarr v2 layer with OME metadata: axes z, y, x, in gzip."""
    datasets = []
    for mip, array in enumerate(levels):
        meta = {
            "zarr_format": 2,
            "shape": array.shape[::-1],
            "chunks": chunk[::-1],
            "dtype": array.dtype.str,
            "compressor": {"id": "gzip", "level": 1},
            "fill_value": 0,
            "order": "C",
            "filters": None,
            "dimension_separator": "/",
        }
        _put_json(folder / str(mip) / ".zarray", meta)
        for (x, y, z), part in _blocks(array, chunk):
            whole = np.zeros(chunk, array.dtype)  # zarr's chunks are whole, also at the volume's end
            whole[tuple(map(slice, part.shape))] = part
            _put(folder / str(mip) / str(z) / str(y) / str(x), gzip.compress(whole.tobytes("F")))
        scale = {"type": "scale", "scale": [40, 4 * 2**mip, 4 * 2**mip]}
        datasets.append({"path": str(mip), "coordinateTransformations": [scale]})
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    _put_json(folder / ".zgroup", {"zarr_format": 2})
    _put_json(folder / ".zattrs", {"multiscales": [{"version": "0.4", "axes": axes, "datasets": datasets}]})
    return f"zarr2://file://{folder}"


def make_n5(folder: Path, levels: Sequence[np.ndarray], chunk: Triple, compression: str = "gzip") -> str:
    """Write arrays (X, Y, Z), MIP 0 first, as an n5 layer: big-endian, x fastest, in gzip or raw."""
    factors = [[2**mip, 2**mip, 1] for mip in range(len(levels))]
    resolution = {"unit": "nm", "dimensions": [4, 4, 40]}
    _put_json(folder / "attributes.json", {"n5": "2.5.0", "scales": factors, "pixelResolution": resolution})
    for mip, array in enumerate(levels):
        meta = {
            "dataType": array.dtype.name,
            "compression": {"type": compression},
            "blockSize": chunk,
            "dimensions": array.shape,
            "downsamplingFactors": factors[mip],
        }
        _put_json(folder / f"s{mip}" / "attributes.json", meta)
        for (x, y, z), part in _blocks(array, chunk):
            head = struct.pack(">HHIII", 0, 3, *part.shape)
            body = part.astype(part.dtype.newbyteorder(">")).tobytes("F")
            content = gzip.compress(body) if compression == "gzip" else body
            _put(folder / f"s{mip}" / str(x) / str(y) / str(z), head + content)
    return f"n5://file://{folder}"


def _channels(array: np.ndarray) -> int:
    return array.shape[3] if array.ndim == 4 else 1


def _blocks(array: np.ndarray, chunk: Triple) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    for place in product(*(range(-(-size // step)) for size, step in zip(array.shape, chunk, strict=True))):
        yield place, array[tuple(slice(at * step, (at + 1) * step) for at, step in zip(place, chunk, strict=True))]


def _put_json(path: Path, value: object) -> None:
    _put(path, json.dumps(value).encode())


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
