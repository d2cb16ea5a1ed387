"""Running an aligner over images that are larger than its device's memory: in tiles that overlap, and are blended.

Arrays are x first: an image is (X, Y), a field (2, X, Y), whose component 0 is along y and component 1 along x.

`overlap` pixels of a tile count for nothing beside each edge at which the image goes on. So whatever counts was made by
a module that saw `overlap` pixels around it, or all there are, and a module whose reach is not longer makes the field
that it makes of the whole image. Two tiles share these two rims and a band between them, in which the one gives way to
the other smoothly: this hides what a module with a longer reach makes of the edges.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Model = Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray]
"""Source and target, (X, Y) float32, and a prior, (2, X, Y), or None, to a field, (2, X, Y) float32."""

Window = tuple[slice, slice]

_STEP = 64  # tiles begin at multiples of this, or of a smaller power of 2: a network that halves sees the same blocks


@dataclass(frozen=True)
class Tiling:
    """How images are divided: tiles of `size` x `size` pixels; size > 2 * overlap >= 0."""

    size: int
    overlap: int

    @property
    def band(self) -> int:
        """The least pixels, along an axis, over which two neighbours are blended."""
        return min(self.overlap, (self.size - 2 * self.overlap) // 4)

    def covers(self, shape: tuple[int, int]) -> bool:
        """Whether one tile holds a whole image, (X, Y)."""
        return max(shape) <= self.size

    def count(self, shape: tuple[int, int]) -> int:
        """How many tiles an image, (X, Y), has."""
        return math.prod(len(spans(length, self)) for length in shape)


@dataclass(frozen=True)
class Span:
    """A tile along one axis: the pixels [start, stop), and the weight of each, (stop - start,) float64."""

    start: int
    stop: int
    weights: np.ndarray

    @property
    def counting(self) -> slice:
        """Of the tile's pixels, those with a weight."""
        counting = np.flatnonzero(self.weights)
        return slice(int(counting[0]), int(counting[-1]) + 1)


def spans(length: int, tiling: Tiling) -> list[Span]:
    """The tiles along an axis of so many pixels, all of one size; the weights of a pixel are 1 in all.

    The last tile is moved inwards so that it ends with the axis. A tile is no longer than the axis.
    """
    size = min(tiling.size, length)
    step = tiling.size - 2 * tiling.overlap - tiling.band
    step -= step % min(_STEP, 1 << max(0, (step // 4).bit_length() - 1))
    starts = [*range(0, length - size, step), length - size]
    total = np.zeros(length)
    weights = []
    for start in starts:
        weights.append(_weights(start, size, length, tiling))
        total[start : start + size] += weights[-1]
    return [
        Span(start, start + size, weight / total[start : start + size])
        for start, weight in zip(starts, weights, strict=True)
    ]


def _weights(start: int, size: int, length: int, tiling: Tiling) -> np.ndarray:
    """Of one tile's pixels: 0 in the rim beside a cut edge, then half a cosine up to 1 over the band."""
    places = np.arange(size)
    # The pixels of the tile beyond each, towards the edge that is nearer among those at which the image goes on.
    beyond = np.full(size, size + tiling.overlap)
    if start > 0:
        beyond = np.minimum(beyond, places)
    if start + size < length:
        beyond = np.minimum(beyond, size - 1 - places)
    part = np.clip((beyond - tiling.overlap + 1) / (tiling.band + 1), 0, 1)
    return np.asarray((1 - np.cos(np.pi * part)) / 2)


def in_tiles(
    model: Model, source: np.ndarray, target: np.ndarray, prior: np.ndarray | None, tiling: Tiling
) -> np.ndarray:
    """The field of a whole pair, (2, X, Y) float32, that a model makes tile by tile, each in arrays of its own.

    An image that one tile covers is given to the model as it is. Where a prior is longer than half the overlap, on
    average over a tile, the source's tile is taken from where it points, and the prior is that much shorter: the tissue
    is in the tile then. Of a tile whose source or target is all 0 the field is the prior, or 0.
    """
    if tiling.covers(target.shape):
        return model(source, target, prior)
    field = np.zeros((2, *target.shape), np.float32)
    for x_span in spans(target.shape[0], tiling):
        for y_span in spans(target.shape[1], tiling):
            window = slice(x_span.start, x_span.stop), slice(y_span.start, y_span.stop)
            made = _made(model, source, target, prior, window, tiling)
            x_part, y_part = x_span.counting, y_span.counting
            weights = np.outer(x_span.weights[x_part], y_span.weights[y_part]).astype(np.float32)
            with np.errstate(invalid="ignore"):  # infinities of both signs
                field[:, _moved(x_part, x_span.start), _moved(y_part, y_span.start)] += (
                    made[:, x_part, y_part] * weights
                )
    return field


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _made(
    model: Model,
    source: np.ndarray,
    target: np.ndarray,
    prior: np.ndarray | None,
    window: Window,
    tiling: Tiling,
) -> np.ndarray:
    """The field of one tile, (2, x, y)."""
    tile = target[window].copy()
    own = None if prior is None else prior[:, window[0], window[1]].copy()
    shift = np.zeros(2, np.int64) if own is None else _shift(own, tiling.overlap)
    cut = _cut(source, window, shift)
    if not (cut.any() and tile.any()):
        return np.zeros((2, *tile.shape), np.float32) if own is None else own
    if own is None or not shift.any():
        return model(cut, tile, own)
    moved = shift.astype(np.float32)[:, None, None]
    return model(cut, tile, own - moved) + moved


def _shift(prior: np.ndarray, overlap: int) -> np.ndarray:
    """By how many pixels a source's tile is taken from elsewhere, (2,) int64 along y and x; 0 for what is short."""
    finite = np.isfinite(prior).all(axis=0)
    if not finite.any():
        return np.zeros(2, np.int64)
    mean = prior[:, finite].mean(axis=1, dtype=np.float64)
    # Farther than that the tile is empty anyway, and the largest of float32 are no numbers of pixels.
    mean = np.clip(mean, -_FARTHEST, _FARTHEST)
    return np.where(np.abs(mean) > overlap / 2, np.rint(mean), 0).astype(np.int64)


_FARTHEST = 2**30


def _cut(image: np.ndarray, window: Window, shift: np.ndarray) -> np.ndarray:
    """A window of an image, moved by a vector, (2,) along y and x: a copy, with 0 outside the image."""
    made = np.zeros([part.stop - part.start for part in window], np.float32)
    inside, found = zip(*_overlaps(window, shift[::-1].tolist(), image.shape), strict=True)
    made[inside] = image[found]
    return made


def _overlaps(window: Window, shift: list[int], shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Along each axis, the pixels of a moved window that lie inside the image: their places in it, and in the image."""
    for part, by, length in zip(window, shift, shape, strict=True):
        first = min(max(part.start + by, 0), length)
        last = max(min(part.stop + by, length), first)
        inside = min(max(first - part.start - by, 0), part.stop - part.start)
        yield slice(inside, inside + last - first), slice(first, last)
