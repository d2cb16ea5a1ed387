"""What an annotation made in Neuroglancer is, whatever it was read from.

A voxel holds the coordinates from its number up to the next. They are neither rounded nor floored here, and what they
are floored to later is exact: they are kept as the source has them, with the space that they lie in.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError
from ..spec import FARTHEST, Note
from .coordinate_spaces import Resolution, Space, in_nm


class Shape(enum.IntEnum):
    """What an annotation marks."""

    POINT = 0
    LINE = 1
    BOX = 2
    ELLIPSOID = 3


# By the names that viewer states and annotation layers have for them.
SHAPES = {
    "point": Shape.POINT,
    "line": Shape.LINE,
    "axis_aligned_bounding_box": Shape.BOX,
    "ellipsoid": Shape.ELLIPSOID,
}


@dataclass(frozen=True)
class Annotations:
    """Annotations of one source, in its order.

    shapes: (P,) uint8, of `Shape`. coordinates: (P, 2, R) float64, in `space`: a point or an ellipsoid's centre (both
    ends alike), a line's ends, a box's opposite corners. notes: by index, only those that say something. origin: what
    they were read from, for messages. may_say_units: whether sources of this kind say their units, as a rule.
    """

    shapes: np.ndarray
    coordinates: np.ndarray
    space: Space
    notes: Mapping[int, Note]
    origin: str
    may_say_units: bool = True

    @property
    def resolution(self) -> Resolution | None:
        """The nm per unit of `ends`; None: not known."""
        return self.space.resolution

    @property
    def ends(self) -> np.ndarray:
        """(P, 2, 3) float64: x, y, z in units of `resolution`, of a box the lower corner first."""
        return self._ends(self.space)

    def in_voxels(self, voxels: Resolution) -> np.ndarray:
        """The ends in voxels of `voxels` nm; they are in such already where their own resolution is not known."""
        ends = self._ends(self.space.in_voxels(voxels))
        if self.resolution is not None and np.abs(ends).max(initial=0) > FARTHEST:
            units, size = in_nm(self.resolution), in_nm(voxels)
            raise UsageError(f"points of {units} lie beyond any volume of {size}: are these their units?")
        return ends

    def _ends(self, space: Space) -> np.ndarray:
        ends = space.to_xyz(self.coordinates)
        boxes = self.shapes == Shape.BOX
        ends[boxes] = np.sort(ends[boxes], axis=1)
        return ends


def gathered(
    origin: str,
    shapes: np.ndarray,
    coordinates: np.ndarray,
    space: Space,
    notes: Mapping[int, Note],
    name: Callable[[int], str],
) -> Annotations:
    """The annotations; `UsageError` by `name` of the index of one that lies nowhere."""
    annotations = Annotations(shapes, coordinates, space, notes, origin)
    ends = annotations.ends
    nowhere = np.flatnonzero(~(np.abs(ends) <= FARTHEST).all(axis=(1, 2)))  # NaN is not <= either
    if nowhere.size:
        place = ends[nowhere[0]].tolist()
        raise UsageError(f"{name(int(nowhere[0]))}: {place} is not finite, or beyond any volume")
    return annotations


def shown(text: str) -> str:
    """Text of someone else's as it may stand in a message of one line."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 200 else f"{text[:200]}..."
