"""The coordinate spaces in which Neuroglancer keeps annotations: which of their dimensions are x, y, z, and how wide.

Spaces and transforms are those of https://github.com/google/neuroglancer: src/coordinate_transform.ts. A space is JSON
as in {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]}. A transform has the space of its output,
and may have one of its input and a matrix between them. The matrix takes lengths to lengths: only its last column, the
translation, counts in voxels of the output.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import UsageError
from ..spec import FARTHEST

AXES = ("x", "y", "z")
Resolution = tuple[float, float, float]

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
    """How to get x, y, z from coordinates: `coordinates @ linear.T + offset`, in voxels of `resolution` nm.

    linear: (3, R) float64. offset: (3,) float64. resolution: None: not known.
    """

    linear: np.ndarray
    offset: np.ndarray
    resolution: Resolution | None

    @property
    def rank(self) -> int:
        """The number of coordinates."""
        return int(self.linear.shape[1])

    def to_xyz(self, coordinates: np.ndarray) -> np.ndarray:
        """(..., R) coordinates as (..., 3) float64: x, y, z."""
        with np.errstate(over="ignore", invalid="ignore"):  # those that lie nowhere are named later
            return np.asarray(coordinates @ self.linear.T + self.offset)


def plain_space(resolution: Resolution | None) -> Space:
    """Coordinates that are x, y, z."""
    return Space(np.eye(3), np.zeros(3), resolution)


def space_of(dimensions: Any) -> Space:
    """The space of coordinates in `dimensions`, as JSON; `ValueError` if they are not in x, y, z."""
    axes = _axes(dimensions)
    return Space(np.eye(len(dimensions))[axes], np.zeros(3), _resolution(dimensions, axes))


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
        return Space(np.eye(len(output))[axes], np.zeros(3), _resolution(source, axes))
    return _through(_numbers(matrix, len(output))[axes], list(source.values()), _resolution(output, axes))


def _through(rows: np.ndarray, source: Sequence[Any], resolution: Resolution) -> Space:
    """The space before the matrix whose `rows`, (3, R + 1), give x, y, z."""
    linear = rows[:, :-1].copy()
    with np.errstate(over="ignore"):
        for column in np.flatnonzero(linear.any(axis=0)).tolist():
            linear[:, column] *= width_nm(source[column])
        linear /= np.array(resolution)[:, None]
    return Space(linear, rows[:, -1], resolution)


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
    # 8e-9 * 1e9 is 8.000000000000002: what no microscope resolves is noise.
    width = float(f"{scale * factor:.12g}")
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


# From one resolution to another


def in_voxels(ends: np.ndarray, units: Resolution, voxels: Resolution) -> np.ndarray:
    """Ends in units of `units` nm, (P, 2, 3), in voxels of `voxels` nm; not floored yet.

    Widths carry noise (8e-9 m are 8.000000000000002 nm), and a coordinate that falls short of a whole voxel by as
    little would be floored to another: ratios are taken for the simple fraction that they nearly are.
    """
    above, below = np.array([_ratio(unit, voxel) for unit, voxel in zip(units, voxels, strict=True)]).T
    if (above == below).all():
        return ends
    moved = ends * above / below
    if np.abs(moved).max(initial=0) > FARTHEST:
        raise UsageError(f"points of {_nm(units)} nm lie beyond any volume of {_nm(voxels)} nm: are these their units?")
    return np.asarray(moved)


def _nm(widths: Resolution) -> str:
    return " x ".join(f"{width:g}" for width in widths)


def _ratio(unit: float, voxel: float) -> tuple[float, float]:
    """Numerator and denominator of the simple fraction that unit / voxel nearly is, if it is."""
    if not 1 / FARTHEST < unit / voxel < FARTHEST:
        raise UsageError(f"points of {unit:g} nm in a volume of {voxel:g} nm: want units less far apart")
    simple = Fraction(unit / voxel).limit_denominator(10_000)
    is_simple = abs(float(simple) * voxel / unit - 1) < 1e-6
    return (float(simple.numerator), float(simple.denominator)) if is_simple else (unit / voxel, 1.0)
