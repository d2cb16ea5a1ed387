"""Pairing: from annotations to pairs of box starts.

A point is a box's start, or with `anchor` "center" its middle, and so are an ellipsoid's centre and a line's ends. A
line is a pair: its first end the source, its second the target. A bounding box is tiled by boxes, in each section that
it spans.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..boxes import snap
from ..errors import UsageError
from ..spec import FARTHEST
from .model import Annotations, Shape

BLOCK = 16384  # annotations made into pairs at a time
MOST_PAIRS = 2 * 10**7


@dataclass(frozen=True)
class Picking:
    """How places become pairs. offsets: sections from source to target. size, stride: (x, y) MIP-0 voxels."""

    offsets: tuple[int, ...]
    permute: bool
    anchor: str
    max_mip: int
    size: tuple[int, int]
    stride: tuple[int, int]

    def steps(self) -> list[tuple[int, int]]:
        """The sections of source and target that each place stands for, relative to its own."""
        steps = [(0, offset) for offset in self.offsets]
        return [step for forth in steps for step in (forth, forth[::-1])] if self.permute else steps


def check_offsets(offsets: tuple[int, ...]) -> None:
    """Refuse offsets that make a pair of a section with itself, or lead nowhere."""
    if 0 in offsets:
        raise UsageError("offset 0 pairs a section with itself: want offsets other than 0")
    farthest = max(offsets, key=abs, default=0)
    if abs(farthest) > FARTHEST:
        raise UsageError(f"offset {farthest} leads beyond any volume")


def pair_blocks(shapes: np.ndarray, ends: np.ndarray, picking: Picking) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of annotations, block by block, in the annotations' order.

    Each block is the pairs' starts, (N, 2, 3) int64, and for each pair the index of its annotation, (N,).
    shapes: (P,) of `Shape`. ends: (P, 2, 3) MIP-0 voxels. x and y are snapped down to multiples of 2^max_mip.
    Repeated pairs stay in.
    """
    if not picking.offsets and (shapes != Shape.LINE).any():
        raise UsageError("no offsets: want at least one, such as --offsets -1 -2")
    made = 0
    for first in range(0, len(shapes), BLOCK):
        pairs, annotation_index = _pairs(shapes[first : first + BLOCK], ends[first : first + BLOCK], picking)
        made += len(pairs)
        _check_number(made)
        if np.abs(pairs).max(initial=0) > FARTHEST:
            raise UsageError("points and offsets lead beyond any volume")
        same = np.flatnonzero((pairs[:, 0] == pairs[:, 1]).all(axis=1))
        if same.size:  # offsets are never 0: it is a line's
            name, box = f"annotation {first + annotation_index[same[0]]}", pairs[same[0], 0].tolist()
            raise UsageError(f"{name}: both ends of the line lie in the box {box}: want a line to another section")
        yield pairs, annotation_index + first


def _check_number(pairs: int) -> None:
    if pairs > MOST_PAIRS:
        raise UsageError(f"these annotations make more than {MOST_PAIRS:,} pairs: want fewer, or a larger --stride")


def _pairs(shapes: np.ndarray, ends: np.ndarray, picking: Picking) -> tuple[np.ndarray, np.ndarray]:
    lines = np.flatnonzero(shapes == Shape.LINE)
    places, annotation_index = _places(shapes, ends, picking)
    pairs = pair_starts(places, picking)
    annotation_index = annotation_index.repeat(len(picking.steps()))
    if lines.size:
        drawn = _starts(ends[lines].reshape(-1, 3), picking).reshape(-1, 2, 3)
        drawn[..., :2] = snap(drawn[..., :2], picking.max_mip)
        pairs, annotation_index = np.concatenate([pairs, drawn]), np.concatenate([annotation_index, lines])
        order = np.argsort(annotation_index, kind="stable")
        pairs, annotation_index = pairs[order], annotation_index[order]
    return pairs, annotation_index


def pair_starts(places: np.ndarray, picking: Picking) -> np.ndarray:
    """The pairs of box starts, (S, 3) int64, with the boxes in other sections: (S * steps, 2, 3) int64.

    For each place in order, for each offset in order: source at section z and target at z + offset; with `permute`
    followed by the same two sections the other way round.
    """
    steps = picking.steps()
    starts = np.repeat(places[:, None, None, :], 2, axis=2).repeat(len(steps), axis=1)
    starts[..., :2] = snap(starts[..., :2], picking.max_mip)
    if steps:
        starts[..., 2] += np.array(steps)
    return starts.reshape(-1, 2, 3)


def _places(shapes: np.ndarray, ends: np.ndarray, picking: Picking) -> tuple[np.ndarray, np.ndarray]:
    """The box starts of all but the lines, (S, 3) int64, and the index of each one's annotation, (S,), in order."""
    single = np.flatnonzero((shapes == Shape.POINT) | (shapes == Shape.ELLIPSOID))
    places, annotation_index, made = [_starts(ends[single, 0], picking)], [single], 0
    for index in np.flatnonzero(shapes == Shape.BOX).tolist():
        tiles = _tiles(ends[index, 0], ends[index, 1], picking)
        made += len(tiles) * len(picking.steps())
        _check_number(made)  # here too: a block of boxes may hold more than memory does
        places.append(tiles)
        annotation_index.append(np.full(len(tiles), index))
    if len(places) == 1:
        return places[0], single
    order = np.argsort(np.concatenate(annotation_index), kind="stable")
    return np.concatenate(places)[order], np.concatenate(annotation_index)[order]


def _starts(places: np.ndarray, picking: Picking) -> np.ndarray:
    """Box starts, (S, 3) int64, of places, (S, 3) voxels: the places themselves, or half a box before them."""
    starts = np.floor(places).astype(np.int64)
    if picking.anchor == "center":
        starts[:, :2] -= np.array(picking.size) // 2
    return np.asarray(starts)


def _tiles(low: np.ndarray, high: np.ndarray, picking: Picking) -> np.ndarray:
    """Box starts, (S, 3) int64, that tile a bounding box: as many as fit in a row, at least one; by z, then y, x."""
    first = np.floor(low).astype(np.int64)
    last = np.maximum(np.ceil(high).astype(np.int64) - 1, first)  # of the voxels that it touches
    room = np.floor(high).astype(np.int64)[:2] - first[:2] - picking.size
    counts = np.maximum(room // np.array(picking.stride) + 1, 1)
    sections = int(last[2] - first[2]) + 1
    if math.prod(counts.tolist()) * sections > MOST_PAIRS:
        raise UsageError(
            f"a bounding box from {first.tolist()} to {last.tolist()} holds more than {MOST_PAIRS:,} boxes"
        )
    z, y, x = np.indices((sections, counts[1], counts[0])).reshape(3, -1)
    return np.asarray(np.stack([x * picking.stride[0], y * picking.stride[1], z], axis=1) + first)


def counted(annotations: Annotations) -> str:
    """What there is, such as `12 points and 3 lines`."""
    names = {Shape.POINT: "point", Shape.LINE: "line", Shape.BOX: "bounding box", Shape.ELLIPSOID: "ellipsoid"}
    counts = {name: int((annotations.shapes == shape).sum()) for shape, name in names.items()}
    parts = [f"{count} {name}{_plural(name, count)}" for name, count in counts.items() if count]
    return " and ".join([*([", ".join(parts[:-1])] if parts[1:] else []), *parts[-1:]])


def _plural(name: str, count: int) -> str:
    return "" if count == 1 else "es" if name.endswith("x") else "s"
