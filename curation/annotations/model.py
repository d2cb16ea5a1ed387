"""What an annotation made in Neuroglancer is, whatever it was read from.

Coordinates are in x, y, z order and in the source's own voxels, which are `resolution` nm wide. They are neither
rounded nor floored here, and a voxel holds the coordinates from its number up to the next.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError
from ..spec import FARTHEST, Note


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

    shapes: (P,) uint8, of `Shape`. ends: (P, 2, 3) float64, x, y, z: a point or an ellipsoid's centre (both ends
    alike), a line's ends, a box's corners (the lower first). resolution: nm per unit of x, y, z; None: not known.
    notes: by index, only those that say something. origin: what they were read from, for messages.
    """

    shapes: np.ndarray
    ends: np.ndarray
    resolution: tuple[float, float, float] | None
    notes: Mapping[int, Note]
    origin: str


def gathered(
    origin: str,
    shapes: np.ndarray,
    ends: np.ndarray,
    resolution: tuple[float, float, float] | None,
    notes: Mapping[int, Note],
    name: Callable[[int], str],
) -> Annotations:
    """The annotations, each box's lower corner first; `UsageError` by `name` of the index of one that lies nowhere."""
    nowhere = np.flatnonzero(~(np.abs(ends) <= FARTHEST).all(axis=(1, 2)))  # NaN is not <= either
    if nowhere.size:
        place = ends[nowhere[0]].tolist()
        raise UsageError(f"{name(int(nowhere[0]))}: {place} is not finite, or beyond any volume")
    boxes = shapes == Shape.BOX
    ends[boxes] = np.sort(ends[boxes], axis=1)
    return Annotations(shapes, ends, resolution, notes, origin)


def shown(text: str) -> str:
    """Text of someone else's as it may stand in a message of one line."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 200 else f"{text[:200]}..."
