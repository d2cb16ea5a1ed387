"""Annotations made in Neuroglancer, read from whatever holds them: a CSV, a viewer state, a link, or a layer.

What a source is, its content tells, not its name. Coordinates are in x, y, z order and in the source's own voxels,
which are `resolution` nm wide; they are neither rounded nor floored here, and a voxel holds the coordinates from its
number up to the next.
"""

import enum
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .errors import UsageError
from .spec import FARTHEST, Note


class Shape(enum.IntEnum):
    """What an annotation marks."""

    POINT = 0
    LINE = 1
    BOX = 2
    ELLIPSOID = 3


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


def read_annotations(source: str, layer: str | None = None) -> Annotations:
    """All annotations of `source`: a file's path, a Neuroglancer link, or a precomputed annotation layer's path.

    layer: which of a viewer state's layers is meant, where several hold annotations. Whatever is wrong is a
    `UsageError` of one line that begins with the source's name; a store that cannot be asked is a `WorkError`.
    """
    # Each kind's module takes the types from here.
    from . import annotation_layers, tables, viewer

    if viewer.is_link(source) and not os.path.exists(source):
        return viewer.read_link(source, layer)
    if "://" in source or os.path.isdir(source):
        _refuse_layer(source, layer)
        return annotation_layers.read_annotation_layer(source)
    if _holds_state(source):
        return viewer.read_state(source, layer)
    _refuse_layer(source, layer)
    return tables.read_table(source)


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


def _refuse_layer(source: str, layer: str | None) -> None:
    if layer is not None:
        raise UsageError(f"{shown(source)}: only a viewer state has layers to choose from: leave out {layer!r}")


_STATE = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:[{\[]|\S*#!|https?://\S*json_url=|middleauth\+)")


def _holds_state(path: str) -> bool:
    """Whether a file holds a viewer state, or a link to one, and not a table."""
    try:
        with open(path, "rb") as file:
            return _STATE.match(file.read(4096)) is not None
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown(path)}: {getattr(error, 'strerror', None) or error}") from None
