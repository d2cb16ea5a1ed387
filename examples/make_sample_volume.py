#!/usr/bin/env python3
"""Build a small synthetic EM volume to try the toolkit on, with its answer known.

    python examples/make_sample_volume.py sample
    python examples/make_sample_volume.py sample --size 1024 --sections 4 --seed 7

The folder then holds CloudVolume precomputed layers, 4 x 4 x 40 nm a voxel:

| layer   | holds                                                                 | written at  |
| ------- | --------------------------------------------------------------------- | ----------- |
| `image` | uint8: 1..255 tissue, 0 black (the fold)                              | MIP 0 to 4  |
| `mask`  | uint8: 255 over the fold, else 0                                      | MIP 0 to 4  |
| `truth` | float32, 2 channels: the displacement d that each section was made by | `TRUTH_MIP` |
| `field` | float32, 2 channels: the prior p, a rough inverse of d, such as an    | `FIELD_MIP` |
|         | earlier aligner leaves                                                |             |

and beside them `points.csv` (a Neuroglancer export) and the spec templates `coarse.json` and `fine.json`.

Conventions. Arrays have x first: (X, Y). A field (2, X, Y) is in MIP-0 voxels; component 0 displaces along y,
component 1 along x. Pixel i of MIP m has its centre at (i + 0.5) * 2^m. Between stored pixels both fields are
bilinear (`align_corners=False`), and that interpolant is what the images were made with, so `truth` is exact:

    image_z(X) = content_z(X + d_z(X))          image_z(X + p_z(X)) = content_z(X), nearly
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

MAX_MIP = 4
TRUTH_MIP = 3
FIELD_MIP = 4
COARSE_MIP = 3
FINE_MIP = 2
RESOLUTION = (4, 4, 40)
CHUNK = (256, 256, 1)

CONTENT_MIP = 1  # tissue is drawn at this level: walls are 8 voxels thick, and it takes a quarter of the time
PRIOR_BLOCK = 256  # voxels: the prior knows the inverse only as means over blocks of this size
COARSE_SHARE = 0.75  # of the section's width is covered by the coarse box
MASK_THRESHOLD = 128

# Where the boxes of points.csv start, as shares of what the coarse box leaves free, and which section they
# lie in, counted from the last.
POINTS = ((0.30, 0.35, 0), (0.65, 0.45, 1), (0.40, 0.70, 2), (0.70, 0.70, 3))
CSV_COLUMNS = (
    "Coordinate 1", "Coordinate 2", "Ellipsoid Dimensions", "Tags", "Description",
    "Segment IDs", "Parent ID", "Type", "ID",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build a small synthetic EM volume with a known answer.")
    parser.add_argument("out_folder", type=Path, help="folder to create the layers in")
    parser.add_argument("--size", type=int, default=2048, help="MIP-0 voxels a side (default: 2048)")
    parser.add_argument("--sections", type=int, default=6, help="number of sections (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same volume (default: 0)")
    args = parser.parse_args(argv)
    try:
        make_sample_volume(args.out_folder, args.size, args.sections, args.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out_folder}: {args.sections} sections of {args.size} x {args.size} voxels")
    return 0


def make_sample_volume(folder: Path, size: int = 2048, sections: int = 6, seed: int = 0) -> None:
    """Write the layers, the points and the templates into `folder`, which is made if it is missing."""
    if size < 512 or size % PRIOR_BLOCK:
        raise ValueError(f"size is {size}; it must be a multiple of {PRIOR_BLOCK}, at least 512")
    if sections < 3:
        raise ValueError(f"sections is {sections}; offsets of two sections need at least 3")
    folder = folder.resolve()
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; take a new folder, or remove what is in it")
    folder.mkdir(parents=True, exist_ok=True)
    layers = {
        "image": Layer(folder / "image", size, sections, "uint8", channels=1),
        "mask": Layer(folder / "mask", size, sections, "uint8", channels=1),
        "truth": Layer(folder / "truth", size, sections, "float32", channels=2),
        "field": Layer(folder / "field", size, sections, "float32", channels=2),
    }
    tissue = Tissue(size, seed)
    for z in range(sections):
        section = make_section(tissue, z, fold=z == fold_section(sections))
        for mip, image in enumerate(pyramid(section.image, mean_2x2)):
            layers["image"].write(mip, z, image[None])
        for mip, mask in enumerate(pyramid(section.mask, max_2x2)):
            layers["mask"].write(mip, z, mask[None])
        layers["truth"].write(TRUTH_MIP, z, section.truth)
        layers["field"].write(FIELD_MIP, z, section.prior)
    write_points(folder / "points.csv", size, sections)
    for name, mip in (("coarse", COARSE_MIP), ("fine", FINE_MIP)):
        text = json.dumps(spec_template(folder, size, mip), indent=4)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def fold_section(sections: int) -> int:
    """The z of the one section that has a fold."""
    return sections // 2


# --- a section


@dataclass(frozen=True)
class Section:
    """One section: image and mask (X, Y) uint8 at MIP 0, truth (2, x, y) at TRUTH_MIP, prior at FIELD_MIP."""

    image: Bytes
    mask: Bytes
    truth: Array
    prior: Array


def make_section(tissue: Tissue, z: int, fold: bool) -> Section:
    """Cut section `z` from the tissue, displaced by its own smooth field."""
    size = tissue.size
    rng = np.random.default_rng((tissue.seed, 1, z))
    truth = displacement(rng, size)
    prior = rough_inverse(rng, truth, size)

    n = size >> CONTENT_MIP
    axis = centres(n, CONTENT_MIP)
    displaced = resize(truth, n)
    grey = tissue.draw(axis[:, None] + displaced[1], axis[None, :] + displaced[0], z)
    grey = resize((grey + structured_noise(rng, n))[None], size)[0]
    grey += 9 * rng.standard_normal((size, size), dtype=np.float32)  # the detector's noise, a voxel at a time
    image = np.clip(np.rint(grey), 1, 255).astype(np.uint8)

    band = fold_band(rng, size) if fold else np.zeros((size, size), dtype=bool)
    image[band] = 0
    return Section(image, np.where(band, np.uint8(255), np.uint8(0)), truth, prior)


def displacement(rng: np.random.Generator, size: int) -> Array:
    """A section's own displacement (2, n, n) at TRUTH_MIP, in voxels: one shift, plus a smooth part."""
    axis = centres(size >> TRUTH_MIP, TRUTH_MIP)
    x, y = axis[:, None], axis[None, :]
    shift = rng.uniform(-48, 48, size=2).astype(np.float32)
    smooth = [waves(rng, x, y, (700, 1800), 24) + waves(rng, x, y, (400, 700), 5) for _ in range(2)]
    return np.stack(smooth) + shift[:, None, None]


def rough_inverse(rng: np.random.Generator, truth: Array, size: int) -> Array:
    """The prior (2, n, n) at FIELD_MIP: the inverse of `truth` as block means, plus an error of its own."""
    n = size >> FIELD_MIP
    axis = centres(n, FIELD_MIP)
    inverse = np.zeros((2, n, n), dtype=np.float32)
    for _ in range(20):  # p(X) = -d(X + p(X)) is a contraction: |grad d| stays well below 1
        inverse = -sample(truth, axis[:, None] + inverse[1], axis[None, :] + inverse[0], TRUTH_MIP)
    blocks = size // PRIOR_BLOCK
    means = inverse.reshape(2, blocks, n // blocks, blocks, n // blocks).mean(axis=(2, 4))
    while means.shape[1] < n:  # bilinear doubling, again and again, tends to a smooth quadratic B-spline
        means = resize(means, 2 * means.shape[1])
    error = [waves(rng, axis[:, None], axis[None, :], (500, 1200), 9) for _ in range(2)]
    return np.asarray(means + np.stack(error))


def fold_band(rng: np.random.Generator, size: int) -> NDArray[np.bool_]:
    """A curved band across the section, (X, Y): True inside the fold, about 40 voxels wide."""
    y = centres(size, 0)
    middle = 0.5 * size + 0.15 * (y - size / 2) + waves(rng, y, 0 * y, (600, 1200), 0.03 * size)
    half_width = 20 + waves(rng, y, 0 * y, (200, 500), 5)
    return np.abs(centres(size, 0)[:, None] - middle[None, :]) < half_width[None, :]


def structured_noise(rng: np.random.Generator, n: int) -> Array:
    """What differs from section to section (n, n) at CONTENT_MIP: fresh noise at 1, 2, 4 and 8 pixels.

    White noise alone would vanish by averaging in the coarser MIPs, and with it the difficulty.
    """
    total = np.zeros((n, n), dtype=np.float32)
    for step, strength in ((1, 14), (2, 18), (4, 24), (8, 24)):
        grains = rng.standard_normal((1, n // step, n // step), dtype=np.float32)
        total += strength * resize(grains, n)[0]
    return total


# --- the tissue


class Tissue:
    """Grey levels of an imagined block of neuropil, defined at every (x, y) in voxels and section z.

    Cells are an additively weighted Voronoi diagram: walls are where the nearest and the second nearest seed
    are equally far (Worley, "A Cellular Texture Basis Function", SIGGRAPH 1996). Seeds walk from section to
    section, organelles swell and shrink: neighbours look alike, but never the same.
    """

    CELL = 60.0  # voxels between cell seeds
    WALK = 1.5  # voxels: rms step of a cell's seed from one section to the next
    ORGANELLE = 84.0
    GRAIN = 26.0

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed

    def draw(self, x: Array, y: Array, z: int) -> Array:
        """Grey levels (X, Y) at the coordinates x, y (X, Y)."""
        rng = np.random.default_rng((self.seed, 2))  # the same waves for every section
        bent_x = x + waves(rng, x, y, (90, 220), 9) + waves(rng, x, y, (300, 600), 22)
        bent_y = y + waves(rng, x, y, (90, 220), 9) + waves(rng, x, y, (300, 600), 22)
        grey = 158 + waves(rng, x, y, (150, 600), 7)

        cells = self.seeds(self.CELL, walk=self.WALK, weight=0.5, z=z, stream=3)
        first, second, shade = cells.nearest_two(bent_x, bent_y)
        grey += 14 * (shade - 0.5)
        grey -= 85 * soft_step(4.0 - (second - first) / 2, 2.0)

        organelles = self.seeds(self.ORGANELLE, walk=2.0, weight=0.0, z=z, stream=4)
        first, _, shade = organelles.nearest_two(bent_x, bent_y)
        radius = 22 * np.cos(2 * np.pi * (shade + z / 14)) - 2  # below 0: not in this section
        inside, rim = soft_step(radius - first, 2.0), soft_step(3 - np.abs(first - radius), 1.5)
        grey -= 38 * inside + 30 * rim * (radius > 0)

        grains = self.seeds(self.GRAIN, walk=0.0, weight=0.0, z=0, stream=5 + z)  # vesicles: one section deep
        first, _, shade = grains.nearest_two(x, y)
        return grey - 55 * soft_step(6 * shade - first, 1.5)

    def seeds(self, spacing: float, walk: float, weight: float, z: int, stream: int) -> Seeds:
        """The seeds as they lie in section z: a random walk from section 0, taken anew each time."""
        margin = 4  # cells: displacements reach out of the section
        n = int(self.size / spacing) + 2 * margin + 1
        rng = np.random.default_rng((self.seed, stream))
        place = rng.uniform(0.1, 0.9, (n, n, 2)).astype(np.float32)
        shade = rng.uniform(size=(n, n)).astype(np.float32)
        for _ in range(z):
            place += walk / spacing * rng.standard_normal((n, n, 2), dtype=np.float32)
            place = 1 - np.abs(1 - np.abs(place))  # reflected at the walls of its square
        return Seeds(spacing, margin, place, weight * shade, shade)


@dataclass(frozen=True)
class Seeds:
    """One seed in each square of a lattice, so that the nearest ones are found among 3 x 3 squares.

    spacing: voxels a square; margin: squares before voxel 0; place (n, n, 2): (x, y) inside its square, 0..1;
    weight (n, n): by how many squares a seed looks nearer than it is; shade (n, n): its own constant, 0..1.
    """

    spacing: float
    margin: int
    place: Array
    weight: Array
    shade: Array

    def nearest_two(self, x: Array, y: Array) -> tuple[Array, Array, Array]:
        """Voxels to the nearest and to the second nearest seed, and the nearest one's shade; all (X, Y)."""
        last = len(self.shade) - 2
        u, v = x / np.float32(self.spacing) + self.margin, y / np.float32(self.spacing) + self.margin
        i, j = np.clip(u.astype(np.intp), 1, last), np.clip(v.astype(np.intp), 1, last)
        first = np.full(u.shape, np.inf, dtype=np.float32)
        second, shade = first.copy(), np.zeros_like(first)
        u, v = u - i, v - j
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                flat = (i + di) * len(self.shade) + (j + dj)
                dx = self.place[..., 0].ravel()[flat] + np.float32(di) - u
                dy = self.place[..., 1].ravel()[flat] + np.float32(dj) - v
                distance = np.sqrt(dx * dx + dy * dy) - self.weight.ravel()[flat]
                second = np.minimum(second, np.maximum(first, distance))
                shade = np.where(distance < first, self.shade.ravel()[flat], shade)
                first = np.minimum(first, distance)
        return first * np.float32(self.spacing), second * np.float32(self.spacing), shade


def soft_step(x: NDArray[np.floating], width: float) -> NDArray[np.floating]:
    """0 for x far below zero, 1 far above, with a ramp of about `width` to either side."""
    return np.asarray(np.clip(0.5 + x / np.float32(2 * width), 0, 1))


def waves(
    rng: np.random.Generator, x: Array, y: Array, wavelengths: tuple[float, float], rms: float, count: int = 7
) -> Array:
    """Smooth noise, defined at any (x, y): `count` plane waves of random direction, phase and length."""
    angle = rng.uniform(0, 2 * np.pi, count)
    length = rng.uniform(*wavelengths, count)
    phase = rng.uniform(0, 2 * np.pi, count)
    kx, ky = 2 * np.pi * np.cos(angle) / length, 2 * np.pi * np.sin(angle) / length
    total = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.float32)
    for a, b, c in zip(kx.astype(np.float32), ky.astype(np.float32), phase.astype(np.float32), strict=True):
        total += np.sin(a * x + b * y + c)
    return total * np.float32(rms * np.sqrt(2 / count))


# --- levels and sampling


def centres(n: int, mip: int) -> Array:
    """MIP-0 coordinates (n,) of the centres of pixels 0 .. n-1 of a MIP."""
    return np.asarray(((np.arange(n) + 0.5) * 2**mip).astype(np.float32))


def sample(field: Array, x: Array, y: Array, mip: int) -> Array:
    """Bilinear values (C, X, Y) of a section's `field` (C, n, n) at `mip`, at MIP-0 coordinates x, y (X, Y).

    The edge pixels' values go on outside, as `align_corners=False` has it.
    """
    u = np.clip(x / 2**mip - 0.5, 0, field.shape[1] - 1)
    v = np.clip(y / 2**mip - 0.5, 0, field.shape[2] - 1)
    i = np.minimum(u.astype(np.intp), field.shape[1] - 2)
    j = np.minimum(v.astype(np.intp), field.shape[2] - 2)
    a, b = (u - i).astype(np.float32), (v - j).astype(np.float32)
    low = field[:, i, j] * (1 - b) + field[:, i, j + 1] * b
    high = field[:, i + 1, j] * (1 - b) + field[:, i + 1, j + 1] * b
    return np.asarray(low * (1 - a) + high * a)


def resize(stack: Array, n: int) -> Array:
    """Bilinear (C, n, n) of a square (C, k, k), `align_corners=False`: what `sample` gives, faster."""
    for axis in (1, 2):
        k = stack.shape[axis]
        position = np.clip((np.arange(n) + 0.5) * (k / n) - 0.5, 0, k - 1)
        low = np.minimum(position.astype(np.intp), k - 2)
        share = (position - low).astype(np.float32).reshape((-1, 1) if axis == 1 else (1, -1))
        stack = np.take(stack, low, axis) * (1 - share) + np.take(stack, low + 1, axis) * share
    return stack


def pyramid(image: Bytes, halve: Callable[[Bytes], Bytes]) -> list[Bytes]:
    """The image (X, Y) at MIP 0 .. MAX_MIP."""
    levels = [image]
    for _ in range(MAX_MIP):
        levels.append(halve(levels[-1]))
    return levels


def mean_2x2(image: Bytes) -> Bytes:
    """Area average of 2 x 2 pixels, rounded half up; 0 only where all four are 0 (tissue is never 0)."""
    blocks = image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2).astype(np.uint16)
    return np.asarray(((blocks.sum(axis=(1, 3)) + 2) // 4).astype(np.uint8))


def max_2x2(mask: Bytes) -> Bytes:
    """A coarse mask pixel is bad if any of its four is."""
    return np.asarray(mask.reshape(mask.shape[0] // 2, 2, mask.shape[1] // 2, 2).max(axis=(1, 3)))


# --- output


class Layer:
    """A new precomputed layer with MIP 0 to MAX_MIP in its info, written section by section."""

    def __init__(self, path: Path, size: int, sections: int, data_type: str, channels: int) -> None:
        from cloudvolume import CloudVolume  # slow to import: --help and a usage error should not wait for it

        info = CloudVolume.create_new_info(
            num_channels=channels, layer_type="image", data_type=data_type, encoding="raw", chunk_size=CHUNK,
            resolution=RESOLUTION, voxel_offset=(0, 0, 0), volume_size=(size, size, sections),
        )  # fmt: skip
        url = f"file://{path}"
        volume = CloudVolume(url, info=info)
        for mip in range(1, MAX_MIP + 1):
            volume.add_scale((2**mip, 2**mip, 1), chunk_size=CHUNK)
        volume.commit_info()
        self._levels = [CloudVolume(url, mip=mip, progress=False) for mip in range(MAX_MIP + 1)]

    def write(self, mip: int, z: int, data: NDArray[np.generic]) -> None:
        """Write section z; `data` is (C, X, Y), the whole section at `mip`."""
        self._levels[mip][:, :, z : z + 1] = np.moveaxis(data, 0, -1)[:, :, None, :]


def write_points(path: Path, size: int, sections: int) -> None:
    """Write where the boxes of the demo start, as Neuroglancer exports point annotations (CRLF)."""
    free = (1 - COARSE_SHARE) * size
    lowest = 2  # offsets -1 and -2 need two sections below
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\r\n")
        rows.writerow(CSV_COLUMNS)
        for x, y, below_last in POINTS:
            z = max(lowest, sections - 1 - below_last)
            rows.writerow([f"({int(x * free)}, {int(y * free)}, {z})", *[""] * 6, "Point", ""])


def spec_template(folder: Path, size: int, dst_mip: int) -> dict[str, object]:
    """The spec, still without pairs, of a dataset at `dst_mip` over the sample volume.

    Both templates have boxes of as many pixels, so the coarse box covers more of the section, and share their
    references, so that a sample gets the same translation and the same normalisation at both levels.
    """
    covered = int(COARSE_SHARE * size)

    def layer(name: str, src_mip: int, reference_mip: int) -> dict[str, object]:
        path, side = f"file://{folder / name}", covered >> reference_mip
        box = {"src_mip": reference_mip, "dst_mip": reference_mip, "x_size": side, "y_size": side}
        return {"path": path, "src_mip": src_mip, "reference": {"path": path, **box}}

    side = covered >> COARSE_MIP
    return {
        "image": layer("image", dst_mip, COARSE_MIP),
        "field": layer("field", FIELD_MIP, FIELD_MIP),
        "masks": [{"path": f"file://{folder / 'mask'}", "src_mip": dst_mip, "threshold": MASK_THRESHOLD}],
        "max_mip": MAX_MIP,
        "dst_mip": dst_mip,
        "x_size": side,
        "y_size": side,
        "pairs": [],
    }


if __name__ == "__main__":
    sys.exit(main())
