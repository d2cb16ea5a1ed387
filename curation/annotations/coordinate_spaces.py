"""The coordinate spaces in which Neuroglancer keeps annotations: which of their dimensions are x, y, z, and how wide.

Spaces and transforms are those of https://github.com/google/neuroglancer: src/coordinate_transform.ts. A space is JSON
as in {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]}. A transform has the space of its output,
and may have one of its input and a matrix between them. The matrix takes lengths to lengths: only its last column, the
translation, counts in voxels of the output.

Between coordinates and voxels all numbers are exact fractions of those that are written: a coordinate that falls short
of a whole voxel by as little as floats are off would be floored to another.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import UsageError
from ..spec import FARTHEST

AXES = ("x", "y", "z")
Resolution = tuple[float, float, float]
Row = tuple[Fraction, ...]

_NM_PER_UNIT = {
    "m": 1e9,
    "cm": 1e7,
    "mm": 1e6,
    "um": 1e3,
    "\u00b5m": 1e3,  # the micro sign
    "\u03bcm": 1e3,  # the Greek letter, which looks the same
    "nm": 1.0,
    "pm": 1e-3,
}


@dataclass(frozen=True)
class Space:
    """How to get x, y, z from coordinates, in voxels of `resolution` nm.

    rows: for x, y and z, what each of the R coordinates is multiplied by, and what is added: R + 1 numbers.
    resolution: None: not known.
    """

    rows: tuple[Row, ...]
    resolution: Resolution | None

    @property
    def rank(self) -> int:
        """The number of coordinates."""
        return len(self.rows[0]) - 1

    def in_voxels(self, voxels: Resolution) -> "Space":
        """The same space in voxels of another size; where its own is not known, it is taken to be that."""
        if self.resolution is None:
            return replace(self, resolution=voxels)
        ratios = [_ratio(unit, voxel) for unit, voxel in zip(self.resolution, voxels, strict=True)]
        rows = (tuple(number * ratio for number in row) for row, ratio in zip(self.rows, ratios, strict=True))
        return Space(tuple(rows), voxels)

    def to_xyz(self, coordinates: np.ndarray) -> np.ndarray:
        """(..., R) coordinates as (..., 3) float64: x, y, z, with the floors and the ceilings of the exact ones."""
        places = coordinates.reshape(-1, self.rank)
        xyz = np.stack([_sums(places, row) for row in self.rows], axis=-1)
        return xyz.reshape(*coordinates.shape[:-1], 3)


def plain_space(resolution: Resolution | None) -> Space:
    """Coordinates that are x, y, z."""
    return Space(_picked(range(3), 3), resolution)


def space_of(dimensions: Any) -> Space:
    """The space of coordinates in `dimensions`, as JSON; `ValueError` if they are not in x, y, z."""
    axes = _axes(dimensions)
    return Space(_picked(axes, len(dimensions)), _resolution(dimensions, axes))


def _picked(axes: Sequence[int], rank: int) -> tuple[Row, ...]:
    """The rows that take x, y, z from where they are among the coordinates."""
    return tuple(tuple(Fraction(index == axis) for index in range(rank + 1)) for axis in axes)


def space_before(transform: Any) -> Space:
    """The space of coordinates that `transform`, as JSON with outputDimensions, places; `ValueError` if unfit."""
    if not isinstance(transform, dict):
        raise ValueError("transform: want an object")
    output: Any = transform.get("outputDimensions")
    source: Any = transform.get("inputDimensions") or output
    axes = _axes(output)
    if not isinstance(source, dict) or len(source) != len(output):
        raise ValueError(f"inputDimensions: want as many as there are outputDimensions, {len(output)}")
    matrix = transform.get("matrix")
    if matrix is None or _is_identity(matrix, len(output)):
        # An input's own name need not be x, y or z: its place tells which output it becomes.
        return Space(_picked(axes, len(output)), _resolution(source, axes))
    return _through(_numbers(matrix, len(output))[axes].tolist(), list(source.values()), _resolution(output, axes))


def _through(matrix: list[list[float]], source: Sequence[Any], resolution: Resolution) -> Space:
    """The space before a matrix, of which `matrix` are the three rows that give x, y, z."""
    used = [index for index in range(len(source)) if any(row[index] for row in matrix)]
    widths = {index: exact(width_nm(source[index])) for index in used}
    rows = []
    for (*factors, shift), output in zip(matrix, map(exact, resolution), strict=True):
        row = (exact(factor) * widths.get(index, 0) / output for index, factor in enumerate(factors))
        rows.append((*row, Fraction(str(shift))))
    return Space(tuple(rows), resolution)


def width_nm(dimension: Any) -> float:
    """A voxel's width in nm along a dimension such as [8e-9, "m"]; `ValueError` if it has none."""
    if not (isinstance(dimension, list) and len(dimension) == 2 and isinstance(dimension[1], str)):
        raise ValueError(f"{dimension!r} is no width: want one such as [8e-9, 'm']")
    scale, unit = dimension
    if unit not in _NM_PER_UNIT:
        raise ValueError(f"{unit!r} is no unit of length: want m, mm, um or nm")
    return _positive(scale, _NM_PER_UNIT[unit])


def resolution_nm(sizes: Any) -> Resolution:
    """A voxel's size in nm from a list of three; `ValueError` if it is not one."""
    if not isinstance(sizes, list) or len(sizes) != 3:
        raise ValueError(f"{sizes!r} is no voxel size: want [x, y, z] in nm")
    x, y, z = (_positive(size, 1.0) for size in sizes)
    return x, y, z


def _positive(scale: Any, factor: float) -> float:
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale <= FARTHEST:
        raise ValueError(f"{scale!r} is no width: want a positive number")
    width = float(exact(scale * factor))
    if width == 0:
        raise ValueError(f"{scale!r} is no width: too small")
    return width


def _axes(dimensions: Any) -> list[int]:
    """Where among the dimensions x, y and z are."""
    if not isinstance(dimensions, dict):
        raise ValueError("dimensions: want an object such as {'x': [8e-9, 'm'], ...}")
    names = list(dimensions)
    for name in names:
        if re.fullmatch(r"[xyz]['^]", name):
            raise ValueError(f"dimension {name!r} is a local or channel one: want x, y, z")
    if not set(AXES) <= set(names):
        raise ValueError(f"dimensions: want x, y, z; found {', '.join(map(repr, names)) or 'none'}")
    return [names.index(axis) for axis in AXES]


def _resolution(dimensions: dict[str, Any], axes: Sequence[int]) -> Resolution:
    widths = list(dimensions.values())
    x, y, z = (width_nm(widths[axis]) for axis in axes)
    return x, y, z


def _numbers(matrix: Any, rank: int) -> np.ndarray:
    """The transform's matrix, (R, R + 1) float64."""
    want = f"matrix: want {rank} rows of {rank + 1} finite numbers"
    try:
        numbers = np.array(matrix, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(want) from None
    if numbers.shape != (rank, rank + 1) or not np.isfinite(numbers).all():
        raise ValueError(want)
    return numbers


def _is_identity(matrix: Any, rank: int) -> bool:
    return np.array_equal(_numbers(matrix, rank), np.eye(rank, rank + 1))


# Exactly


def exact(number: float) -> Fraction:
    """What a width or a factor means: its first twelve digits, or the simple fraction that has the same ones.

    Further digits are noise: 8e-9 m are 8.000000000000002 nm, as floats are multiplied, and a third of 10 nm is meant
    where 3.3333333333333335 is written.
    """
    digits = f"{number:.12g}"
    simple = Fraction(number).limit_denominator(1000)
    return simple if f"{float(simple):.12g}" == digits else Fraction(digits)


def in_nm(widths: Resolution) -> str:
    """A voxel's size for messages, such as `8 x 8 x 40 nm`."""
    return " x ".join(f"{width:.12g}" for width in widths) + " nm"


def _ratio(unit: float, voxel: float) -> Fraction:
    ratio = exact(unit) / exact(voxel) if unit and voxel else 0
    if not Fraction(1, FARTHEST) < ratio < FARTHEST:
        raise UsageError(f"points of {unit:g} nm in a volume of {voxel:g} nm: want units less far apart")
    return Fraction(ratio)


ROUNDING = 1e-13  # a sum of hundreds of products of floats is off by less than that part of all their magnitudes


def _sums(coordinates: np.ndarray, row: Row) -> np.ndarray:
    """What a row makes of (N, R) coordinates: (N,) float64, on the side of each whole number where the exact sum is."""
    used = [index for index, factor in enumerate(row[:-1]) if factor]
    factors, shift, numbers = [row[index] for index in used], row[-1], coordinates[:, used]
    if factors == [1] and not shift:
        return np.asarray(numbers[:, 0])
    with np.errstate(over="ignore", invalid="ignore"):  # those that lie nowhere are named later
        sums = numbers @ np.array([_float(factor) for factor in factors]) + _float(shift)
        sizes = np.abs(numbers) @ np.array([_float(abs(factor)) for factor in factors]) + _float(abs(shift))
        near = np.flatnonzero((np.abs(sums - np.rint(sums)) <= ROUNDING * sizes) & (np.abs(sums) <= FARTHEST))
        floors, is_whole = _floors(numbers[near], factors, shift)
    between = np.clip(sums[near], np.nextafter(floors, np.inf), np.nextafter(floors + 1, -np.inf))
    sums[near] = np.where(is_whole, floors, between)
    return np.asarray(sums)


def _floors(numbers: np.ndarray, factors: Sequence[Fraction], shift: Fraction) -> tuple[np.ndarray, np.ndarray]:
    """The floors of exact sums, (N,) float64, and whether the sums are whole, (N,) bool.

    numbers: (N, U), each taken for the shortest decimal that it is the float of.
    """
    floors, is_whole = np.empty(len(numbers)), np.empty(len(numbers), bool)
    # Nearly all have three decimals at most: sums of whole numbers. Of 15 digits, one decimal belongs to each float.
    thousandths = np.rint(numbers * 1000)
    few = ((thousandths / 1000 == numbers) & (np.abs(thousandths) < 1e15)).all(axis=1)
    unit = math.lcm(*(number.denominator for number in (*factors, shift)))
    steps, start = [int(factor * unit) for factor in factors], int(1000 * shift * unit)
    largest = int(np.abs(thousandths[few]).max(initial=1)) * sum(map(abs, steps)) + abs(start)
    whole = np.int64 if max(largest, 1000 * unit) < 2**63 else object  # object: Python's own, of any size
    sums = thousandths[few].astype(np.int64).astype(whole) @ np.array(steps, whole) + start
    floors[few], is_whole[few] = sums // (1000 * unit), sums % (1000 * unit) == 0
    for index in np.flatnonzero(~few).tolist():
        decimals = [Fraction(str(number)) for number in numbers[index].tolist()]
        place = sum((factor * number for factor, number in zip(factors, decimals, strict=True)), start=shift)
        floors[index], is_whole[index] = math.floor(place), place.denominator == 1
    return floors, is_whole


def _float(number: Fraction) -> float:
    """The float nearest to a number; infinite if all are too small."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf
