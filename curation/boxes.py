"""MIP arithmetic: where a box lies at each level, and how starts are snapped.

Starts are in MIP-0 voxels, sizes in pixels at a MIP. Level m halves x and y m times; z is never halved, so one
pixel at MIP m spans 2^m MIP-0 voxels in x and in y. All numbers here are whole, so nothing is ever rounded.
"""

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from .errors import UsageError


@dataclass(frozen=True, slots=True)
class Box:
    """A window of section `z`: `x_size` x `y_size` pixels at MIP `mip`, from (`x_start`, `y_start`) on."""

    x_start: int
    y_start: int
    z: int
    x_size: int
    y_size: int
    mip: int

    @property
    def shape(self) -> tuple[int, int]:
        """(X, Y) pixels."""
        return self.x_size, self.y_size

    def shifted(self, x: int, y: int) -> "Box":
        """The box moved by (x, y) MIP-0 voxels."""
        return replace(self, x_start=self.x_start + x, y_start=self.y_start + y)

    def outside(self, start: tuple[int, int], stop: tuple[int, int], mip: int) -> float:
        """The fraction of the box that lies outside the voxels [start, stop), (x, y) at `mip`."""
        inside = 1
        for own, size, low, high in zip((self.x_start, self.y_start), self.shape, start, stop, strict=True):
            inside *= max(0, min(own + (size << self.mip), high << mip) - max(own, low << mip))
        return 1 - inside / ((self.x_size << self.mip) * (self.y_size << self.mip))

    def window(self, src_mip: int) -> "Window":
        """The voxels at `src_mip` that cover the box, and where in them it lies."""
        x_first, x_last, x_crop = _cover(self.x_start, self.x_size, self.mip, src_mip)
        y_first, y_last, y_crop = _cover(self.y_start, self.y_size, self.mip, src_mip)
        return Window((x_first, y_first), (x_last, y_last), self.z, (x_crop, y_crop))


@dataclass(frozen=True, slots=True)
class Window:
    """Voxels [start, stop) of section `z` at the level that is read, in that level's own (x, y).

    `crop` is where the box starts in the window, in pixels at the box's level, once the window has been brought
    there: 0 unless the window is coarser than the box and had to be taken larger to cover it.
    """

    start: tuple[int, int]
    stop: tuple[int, int]
    z: int
    crop: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """(X, Y) voxels."""
        return self.stop[0] - self.start[0], self.stop[1] - self.start[1]


def _cover(start: int, size: int, mip: int, src_mip: int) -> tuple[int, int, int]:
    """First and last + 1 voxel at `src_mip` covering `size` pixels at `mip` from `start`, and the crop."""
    if start % (1 << min(mip, src_mip)):
        raise UsageError(
            f"start {start} lies between the voxels of MIP {min(mip, src_mip)}: want a multiple of "
            f"{1 << min(mip, src_mip)}"
        )
    first = start >> src_mip
    last = -(-(start + (size << mip)) >> src_mip)
    return first, last, (start - (first << src_mip)) >> mip


Whole = TypeVar("Whole", int, np.ndarray)


def snap(value: Whole, mip: int) -> Whole:
    """`value` moved down to a multiple of 2^mip, below zero too."""
    return value >> mip << mip
