"""The plain loop: how such scripts are usually written, for the benchmark to compare with.

    python benchmarks/plain_loop.py dataset SPEC.json OUT_FOLDER
    python benchmarks/plain_loop.py concat SHARD_FOLDER OUT.h5
    python benchmarks/plain_loop.py spec TEMPLATE.json POINTS.csv OUT.json

One pair at a time: CloudVolume cutouts of each image, mask, reference and field, normalised, warped by torch, stored by
h5py with LZF, and scaleoffset for fields. It does for good input what the toolkit does, and checks nothing.
"""

import ast
import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Box = dict[str, int]
SHARD = re.compile(r"(\d+)_(\d+)\.h5")


def dataset(spec_path: str, out: str) -> None:
    from cloudvolume import CloudVolume

    spec = json.loads(Path(spec_path).read_text())
    shape = (len(spec["pairs"]), 2, spec["x_size"], spec["y_size"])
    volumes: dict[tuple[str, int], Any] = {}

    def cutout(path: str, mip: int, box: Box, size: tuple[int, int], size_mip: int) -> np.ndarray:
        if (path, mip) not in volumes:
            volumes[path, mip] = CloudVolume(path, mip=mip, bounded=False, fill_missing=True, progress=False)
        x, y, z = box["x_start"] >> mip, box["y_start"] >> mip, box["z_start"]
        x_size, y_size = ((length << size_mip) >> mip for length in size)
        return np.asarray(volumes[path, mip][x : x + x_size, y : y + y_size, z])[:, :, 0]

    with h5py.File(f"{out}/images.h5", "w") as images, h5py.File(f"{out}/fields.h5", "w") as fields:
        chunks = (1, 1, *shape[2:])
        image_main = images.create_dataset("main", shape, "f4", chunks=chunks, compression="lzf")
        field_main = fields.create_dataset("main", shape, "f4", chunks=chunks, compression="lzf", scaleoffset=2)
        for index, pair in enumerate(spec["pairs"]):
            image_main[index, 0], field_main[index] = sample(spec, pair["src"], cutout)
            target, field = sample(spec, pair["tgt"], cutout)
            image_main[index, 1] = warp(target, field)


def sample(spec: dict[str, Any], box: Box, cutout: Any) -> tuple[np.ndarray, np.ndarray]:
    """A normalised image (X, Y) and its residual field (2, X, Y)."""
    size, mip = (spec["x_size"], spec["y_size"]), spec["dst_mip"]
    layer, reference = spec["field"], spec["field"]["reference"]
    at = (reference["x_size"], reference["y_size"])
    vectors = cutout(reference["path"], reference["src_mip"], box, at, reference["dst_mip"])
    step = 2 ** reference["src_mip"]
    mean = upsample(vectors, reference["src_mip"] - reference["dst_mip"]).mean((1, 2))
    shift = np.floor(mean / step).astype(int) * step
    vectors = upsample(cutout(layer["path"], layer["src_mip"], box, size, mip), layer["src_mip"] - mip)
    field = (vectors - shift[:, None, None].astype(np.float32)) / 2**mip
    box = {**box, "x_start": box["x_start"] + int(shift[1]), "y_start": box["y_start"] + int(shift[0])}
    layer, reference = spec["image"], spec["image"]["reference"]
    image = cutout(layer["path"], layer["src_mip"], box, size, mip)[..., 0].astype(np.float32)
    at = (reference["x_size"], reference["y_size"])
    values = cutout(reference["path"], reference["src_mip"], box, at, reference["dst_mip"])[..., 0].astype(np.float32)
    masked = mask(spec, box, size, mip, cutout)
    usable = values[(values != 0) & ~mask(spec, box, at, reference["dst_mip"], cutout)]
    black = image == 0
    image = (image - usable.mean()) / usable.std(ddof=1)
    image[masked | black] = 0
    return image, field


def mask(spec: dict[str, Any], box: Box, size: tuple[int, int], mip: int, cutout: Any) -> np.ndarray:
    masked = np.zeros(size, bool)
    for layer in spec["masks"]:
        values = cutout(layer["path"], layer["src_mip"], box, size, mip)[..., 0] >= layer["threshold"]
        factor = 2 ** (layer["src_mip"] - mip)
        masked |= values.repeat(factor, 0).repeat(factor, 1)
    return masked


def upsample(vectors: np.ndarray, levels: int) -> np.ndarray:
    import torch

    field = torch.from_numpy(np.ascontiguousarray(np.moveaxis(vectors, -1, 0)))[None]
    return torch.nn.functional.interpolate(field, scale_factor=2**levels, mode="bilinear", align_corners=False)[
        0
    ].numpy()


def warp(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    import torch

    x_size, y_size = image.shape
    y = (np.arange(y_size, dtype=np.float32) + field[0]) * 2 + 1
    x = (np.arange(x_size, dtype=np.float32)[:, None] + field[1]) * 2 + 1
    grid = torch.from_numpy(np.stack([y / y_size - 1, x / x_size - 1], -1))[None]
    source = torch.from_numpy(image)[None, None]
    return torch.nn.functional.grid_sample(source, grid, mode="bilinear", align_corners=False)[0, 0].numpy()


def concat(folder: str, out: str) -> None:
    ranges = sorted(
        tuple(map(int, match.groups())) for path in Path(folder).iterdir() if (match := SHARD.match(path.name))
    )
    with h5py.File(out, "w") as file:
        main = None
        for first, last in ranges:
            with h5py.File(f"{folder}/{first}_{last}.h5") as shard:
                shape = shard["main"].shape
                if main is None:
                    main = file.create_dataset(
                        "main",
                        (ranges[-1][1], *shape[1:]),
                        "f4",
                        chunks=(1, 1, *shape[2:]),
                        compression="lzf",
                        scaleoffset=2,
                    )
                for index in range(last - first):
                    main[first + index] = shard["main"][index]


def spec(template: str, points: str, out: str) -> None:
    made = json.loads(Path(template).read_text())
    step = 2 ** made["max_mip"]
    with open(points, newline="") as file:
        for row in csv.DictReader(file):
            x, y, z = ast.literal_eval(row["Coordinate 1"])
            for offset in (-1, -2, -3):
                src, tgt = (
                    {"x_start": x // step * step, "y_start": y // step * step, "z_start": section}
                    for section in (z, z + offset)
                )
                made["pairs"] += [{"src": src, "tgt": tgt}, {"src": tgt, "tgt": src}]
    with open(out, "w") as file:
        json.dump(made, file, indent=4)


if __name__ == "__main__":
    works: dict[str, Callable[..., None]] = {"dataset": dataset, "concat": concat, "spec": spec}
    works[sys.argv[1]](*sys.argv[2:])
