#!/usr/bin/env python3
"""Compare fields with the true ones of a sample volume that make_sample_volume.py built.

    python examples/compare_fields.py sample field_1.h5 field_2.h5

prints a line for each field file: its size, its pairs, and how far its vectors are from the true ones, in pixels
at the file's MIP: the median, and the distance below which 90 % of them are. The last column says which part of
the pixels was compared: none is compared that lies near a border or a fold.

Conventions. Arrays have x first. A field (2, X, Y): component 0 displaces along y, component 1 along x.
`start` and `translation` are (x, y, ...) in MIP-0 voxels.

Where the true field comes from. The image of section z shows content_z(X + d_z(X)) at X, all in MIP-0
voxels. The target was pulled by its own prior p_t, so at X it shows the content at

    W = X + p_t(X) + d_t(X + p_t(X)).

The source shows the same content at the Y with Y + d_s(Y) = W, and pixel x of the source box lies at
X + T_s, T_s its translation. Hence the field that pulls the source onto the target is

    f = (Y - X - T_s) / 2^m.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from make_sample_volume import FIELD_MIP, TRUTH_MIP, Array, centres, sample
from numpy.typing import NDArray

MARGIN = 16  # pixels at the file's MIP: nearer to a border or a fold nothing is compared
FIXED_POINT_STEPS = 40


HEADER = f"{'file':<36}     MiB  pairs  pixels     MIP  median (px)  90 % below  compared"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume_folder", type=Path, help="what make_sample_volume.py made")
    parser.add_argument("field", type=Path, nargs="+", help="field files (HDF5)")
    args = parser.parse_args(argv)
    try:
        lines = []
        for path in args.field:
            fields = read_fields(path)
            lines.append(line(path, fields, field_errors(args.volume_folder, fields)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join([HEADER, *lines]))
    return 0


@dataclass(frozen=True)
class Fields:
    """A field file: main (N, 2, X, Y) in pixels at `mip`, start (N, 2, 3), translation (N, 2, 2)."""

    main: Array
    start: NDArray[np.int64]
    translation: NDArray[np.int64]
    mip: int


def read_fields(path: Path) -> Fields:
    """The field file at `path`, or ValueError if it lacks what a comparison needs."""
    with h5py.File(path, "r") as file:
        if "mean" in file:
            raise ValueError(f"{path}: this is an image file; want a field file, such as field_1.h5")
        missing = [name for name in ("main", "start", "translation") if name not in file]
        if missing or "mip" not in file.attrs:
            raise ValueError(f"{path}: no {', '.join(missing) or 'attribute mip'}; is it a field file?")
        main, start, translation = (file[name][()] for name in ("main", "start", "translation"))
        fields = Fields(main.astype(np.float32), start, translation, int(file.attrs["mip"]))
    n = len(fields.main)
    if fields.main.ndim != 4 or fields.main.shape[1] != 2:
        raise ValueError(f"{path}: main is {fields.main.shape}; fields are (N, 2, X, Y)")
    if fields.start.shape != (n, 2, 3) or fields.translation.shape != (n, 2, 2):
        raise ValueError(
            f"{path}: start is {fields.start.shape}, translation {fields.translation.shape}; "
            f"{n} fields need {(n, 2, 3)} and {(n, 2, 2)}"
        )
    return fields


@dataclass(frozen=True)
class SectionTruth:
    """What is known of a section: truth and prior (2, n, n) in MIP-0 voxels, bad (X, Y) bool at MIP 0."""

    truth: Array
    prior: Array
    bad: NDArray[np.bool_]


def field_errors(volume_folder: Path, fields: Fields, margin: int = MARGIN) -> Array:
    """Distance of every vector from the true one, (N, X, Y) in pixels at the file's MIP.

    NaN where there is no comparing: within `margin` pixels of the box's border or of a fold in either
    section, or where the true counterpart lies outside the section or its box. A vector that is not finite is
    off by inf.
    """
    section = section_reader(volume_folder)
    errors = np.full((len(fields.main), *fields.main.shape[2:]), np.nan, dtype=np.float32)
    for pair, (source, target) in enumerate(fields.start):
        true, known = true_field(
            section(int(source[2])), section(int(target[2])), target[:2], fields.translation[pair, 0],
            fields.main.shape[2:], fields.mip, margin,
        )  # fmt: skip
        distance = np.linalg.norm(fields.main[pair] - true, axis=0)
        distance = np.where(np.isfinite(distance), distance, np.inf)
        errors[pair] = np.where(known, distance, np.nan)
    return errors


def section_reader(volume_folder: Path) -> Callable[[int], SectionTruth]:
    """A function that reads section z of the volume, each section once."""
    from cloudvolume import CloudVolume  # slow to import: --help and a usage error should not wait for it

    folder = volume_folder.resolve()
    if not (folder / "truth" / "info").exists():
        raise ValueError(f"{volume_folder}: no layer 'truth' in it; build it with make_sample_volume.py")
    layers = {
        name: CloudVolume(f"file://{folder / name}", mip=mip, progress=False)
        for name, mip in (("truth", TRUTH_MIP), ("field", FIELD_MIP), ("mask", 0))
    }
    sections: dict[int, SectionTruth] = {}

    def read(name: str, z: int) -> NDArray[np.generic]:
        return np.moveaxis(np.asarray(layers[name][:, :, z])[:, :, 0], -1, 0)

    def section(z: int) -> SectionTruth:
        if not 0 <= z < layers["truth"].shape[2]:
            raise ValueError(f"section {z} is not in {volume_folder}, which has {layers['truth'].shape[2]}")
        if z not in sections:
            truth, prior = read("truth", z).astype(np.float32), read("field", z).astype(np.float32)
            sections[z] = SectionTruth(truth, prior, read("mask", z)[0] > 0)
        return sections[z]

    return section


def true_field(
    source: SectionTruth,
    target: SectionTruth,
    start: NDArray[np.int64],
    translation: NDArray[np.int64],
    size: tuple[int, ...],
    mip: int,
    margin: int,
) -> tuple[Array, NDArray[np.bool_]]:
    """The true field (2, X, Y) in pixels at `mip`, and where it can be compared (X, Y).

    start: (x, y) of the pair's box; translation: (x, y) of the source's; both MIP-0 voxels. The derivation is
    at the head of this module.
    """
    x = (start[0] + centres(size[0], mip))[:, None] + np.zeros((1, size[1]), dtype=np.float32)
    y = (start[1] + centres(size[1], mip))[None, :] + np.zeros((size[0], 1), dtype=np.float32)

    prior = sample(target.prior, x, y, FIELD_MIP)
    target_x, target_y = x + prior[1], y + prior[0]
    shown = sample(target.truth, target_x, target_y, TRUTH_MIP)
    want_x, want_y = target_x + shown[1], target_y + shown[0]

    source_x, source_y = want_x, want_y
    for _ in range(FIXED_POINT_STEPS):  # Y = W - d_s(Y) is a contraction: |grad d| stays well below 1
        back = sample(source.truth, source_x, source_y, TRUTH_MIP)
        source_x, source_y = want_x - back[1], want_y - back[0]

    shift_x, shift_y = translation.astype(np.float32)
    true = (np.stack([source_y - y - shift_y, source_x - x - shift_x]) / 2**mip).astype(np.float32)
    bad: NDArray[np.bool_] = lookup(target.bad, target_x, target_y) | lookup(source.bad, source_x, source_y)
    known = ~dilate(bad, margin) & inner(size, margin) & stays_inside(true)
    return true, known


def lookup(bad: NDArray[np.bool_], x: Array, y: Array) -> NDArray[np.bool_]:
    """Whether the MIP-0 voxels at x, y (X, Y) are bad; outside the section all are."""
    i, j = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
    inside = (i >= 0) & (i < bad.shape[0]) & (j >= 0) & (j < bad.shape[1])
    found = bad[i.clip(0, bad.shape[0] - 1), j.clip(0, bad.shape[1] - 1)]
    return np.where(inside, found, True)


def dilate(bad: NDArray[np.bool_], margin: int) -> NDArray[np.bool_]:
    """Everything within `margin` pixels of a bad one in x and in y: a square window, one axis at a time."""
    for axis in (0, 1):
        padded = np.pad(bad, [(margin, margin) if a == axis else (0, 0) for a in (0, 1)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * margin + 1, axis=axis)
        bad = np.any(windows, axis=-1)
    return bad


def inner(size: tuple[int, ...], margin: int) -> NDArray[np.bool_]:
    """All but a frame of `margin` pixels."""
    inside = np.zeros(size, dtype=bool)
    inside[margin : size[0] - margin, margin : size[1] - margin] = True
    return inside


def stays_inside(field: Array) -> NDArray[np.bool_]:
    """Where a field (2, X, Y) points to a pixel of the box."""
    x = np.arange(field.shape[1])[:, None] + field[1]
    y = np.arange(field.shape[2])[None, :] + field[0]
    return np.asarray((x >= 0) & (x <= field.shape[1] - 1) & (y >= 0) & (y <= field.shape[2] - 1))


def line(path: Path, fields: Fields, errors: Array) -> str:
    """A file's line of the table: what it is, and the errors of the pixels that can be compared."""
    known = errors[~np.isnan(errors)]
    middle, high = np.quantile(known, [0.5, 0.9]) if known.size else (np.nan, np.nan)
    what = f"{path.stat().st_size / 2**20:7.1f}  {len(fields.main):5d}  {fields.main.shape[2]} x {fields.main.shape[3]}"
    return f"{path.name:<36} {what:<26}  {fields.mip:3d}  {middle:11.2f}  {high:10.2f}  {known.size / errors.size:8.0%}"


if __name__ == "__main__":
    sys.exit(main())
