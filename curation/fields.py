"""Displacement fields: changing level, pulling images through them, and rounding them.

Conventions, said once:
- Arrays are x first: an image is (X, Y), a field (2, X, Y). Everything is float32.
- Component 0 of a vector is displacement along the LAST axis (y), component 1 along the first (x).
- The pull: warped[x, y] = image[x + f[1, x, y], y + f[0, x, y]], bilinear, 0 outside the image.
- Units are pixels at the field's level, or MIP-0 voxels where it says so.
- A vector with a component that is not finite is no vector: it pulls 0.

The pull, also called backward warp, is the convention of https://github.com/seung-lab/torchfields for a tensor of
height X and width Y.
"""

from typing import Literal

import numpy as np

from .errors import UsageError

Decimals = int | Literal["binary"] | None
"""What fields are rounded to: a number of decimals, multiples of 1/256 pixel, or nothing."""

BINARY: Literal["binary"] = "binary"

_BINARY_STEPS = 256  # a pixel

_ROWS = 64  # rows warped at once: their temporaries fit a core's cache, which halves the time


def to_level(
    array: np.ndarray, src_mip: int, dst_mip: int, shape: tuple[int, int], crop: tuple[int, int]
) -> np.ndarray:
    """An image or a MIP-0 field, (..., X, Y), brought from `src_mip` to `dst_mip`, and cut to `shape` from `crop` on.

    Finer: bilinear with align_corners=False, edges repeated. Coarser: area average.
    """
    array = np.asarray(array, np.float32)
    if src_mip > dst_mip:
        array = upsample(array, 1 << (src_mip - dst_mip))
    elif src_mip < dst_mip:
        array = average(array, 1 << (dst_mip - src_mip))
    return array[..., crop[0] : crop[0] + shape[0], crop[1] : crop[1] + shape[1]]


def image_to_level(
    image: np.ndarray, src_mip: int, dst_mip: int, shape: tuple[int, int], crop: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """As `to_level`, of an image (X, Y) with black pixels: the image, and where it is black, (X, Y) bool.

    Black is what is exactly 0, as volumes mark what is no tissue, or no finite number, at the level that is read. It
    takes no part in either change of level. Coarser: a pixel is the mean of those of its block that are not black, and
    black if all are. Finer: a pixel is black where the pixel that contains it is, else interpolated over the neighbours
    that are not black, weights renormalised. What a black pixel holds means nothing.
    """
    black = ~(np.isfinite(image) & (image != 0)) if image.dtype.kind == "f" else image == 0
    if src_mip == dst_mip or not black.any():
        resampled = to_level(image, src_mip, dst_mip, shape, crop)
        return resampled, to_level(black, src_mip, dst_mip, shape, crop) > 0
    used = np.asarray(~black, np.float32)
    values = np.where(black, np.float32(0), image)
    weights = to_level(used, src_mip, dst_mip, shape, crop)
    black_there = weights == 0
    if src_mip > dst_mip:
        factor = 1 << (src_mip - dst_mip)
        repeated = black.repeat(factor, axis=0).repeat(factor, axis=1)
        black_there = repeated[crop[0] : crop[0] + shape[0], crop[1] : crop[1] + shape[1]]
    resampled = to_level(values, src_mip, dst_mip, shape, crop)
    # Where nothing is black the weights are exactly 1: sums of powers of 2.
    return np.divide(resampled, weights, out=np.zeros_like(resampled), where=~black_there), black_there


def upsample(array: np.ndarray, factor: int) -> np.ndarray:
    """(..., X, Y) to (..., X * factor, Y * factor), bilinear, align_corners=False; `factor` is a power of 2.

    Output pixel i lies at (i + 0.5) / factor - 0.5 among the input's, the nearest edge pixel beyond them: what
    torch.nn.functional.interpolate does with mode="bilinear".
    """
    if factor == 1:
        return array
    # Along y first, while there are few rows; then along x, where whole rows are written at once.
    along_y = _upsample_rows(array.swapaxes(-1, -2), factor).swapaxes(-1, -2)
    return _upsample_rows(np.ascontiguousarray(along_y), factor)


def _upsample_rows(array: np.ndarray, factor: int) -> np.ndarray:
    """(..., X, Y) to (..., X * factor, Y)."""
    before = np.concatenate([array[..., :1, :], array[..., :-1, :]], axis=-2)
    after = np.concatenate([array[..., 1:, :], array[..., -1:, :]], axis=-2)
    *rest, x_size, y_size = array.shape
    finer = np.empty((*rest, x_size, factor, y_size), np.float32)
    for phase in range(factor):
        offset = np.float32((phase + 0.5) / factor - 0.5)
        neighbour, weight = (before, -offset) if offset < 0 else (after, offset)
        np.multiply(array, 1 - weight, out=finer[..., phase, :])
        with np.errstate(invalid="ignore"):  # infinities of both signs beside each other: NaN, as it should be
            finer[..., phase, :] += weight * neighbour
    return finer.reshape(*rest, x_size * factor, y_size)


def average(array: np.ndarray, factor: int) -> np.ndarray:
    """(..., X, Y) to (..., X / factor, Y / factor): the mean of each block."""
    blocks = _blocks(array, factor)
    return np.asarray(blocks.mean(axis=(-3, -1), dtype=np.float32))


def any_of(mask: np.ndarray, factor: int) -> np.ndarray:
    """(X, Y) bool to (X / factor, Y / factor): true where any pixel of the block is."""
    return np.asarray(np.logical_or.reduce(_blocks(mask, factor), axis=(-3, -1)))


def _blocks(array: np.ndarray, factor: int) -> np.ndarray:
    *rest, x_size, y_size = array.shape
    return array.reshape(*rest, x_size // factor, factor, y_size // factor, factor)


def mean_finite_vector(field: np.ndarray) -> np.ndarray | None:
    """The mean of the vectors whose two components are both finite, (2,) float64; None if there are none."""
    with np.errstate(invalid="ignore"):  # infinities of both signs
        total = field.sum(axis=(1, 2), dtype=np.float64)  # no sum of float32 overflows float64
    if np.isfinite(total).all():
        return np.asarray(total / field[0].size)
    finite = np.isfinite(field).all(axis=0)
    if not finite.any():
        return None
    return np.asarray(field[:, finite].mean(axis=1, dtype=np.float64))


def warp(image: np.ndarray, field: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Pull an image (X, Y) through a field (2, X, Y) of pixels: (X, Y), 0 where a vector is not finite.

    valid: (X, Y) bool, if given: a pixel is 0, too, if one that it would be interpolated from is not valid, or lies
    outside the image. A pixel of weight 0 does not count: a field of whole pixels loses nothing but what it pulls from.
    """
    x_size, y_size = image.shape
    # A border of zeros, one pixel before and two behind, makes "0 outside" an ordinary lookup: positions are
    # clipped to [-1, size], where even the farther neighbour of the last lies in the border.
    framed = np.zeros((x_size + 3, y_size + 3), np.float32)
    framed[1:-2, 1:-2] = image
    usable = None if valid is None else _usable(valid)
    y_pixels = np.arange(y_size, dtype=np.float32)
    warped = np.empty((x_size, y_size), np.float32)
    for first in range(0, x_size, _ROWS):
        rows = slice(first, min(first + _ROWS, x_size))
        x = field[1, rows] + np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
        y = field[0, rows] + y_pixels
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.all():
            x[~finite] = y[~finite] = -1
        np.clip(x, -1, x_size, out=x)
        np.clip(y, -1, y_size, out=y)
        warped[rows] = _bilinear(framed, usable, x, y)
    return warped


def _usable(valid: np.ndarray) -> np.ndarray:
    """(4, X + 3, Y + 3) bool: whether all pixels are valid that a position at or after each one is interpolated from.

    Framed as `warp` does. The four are for positions between pixels; that are whole in y; in x; and in both.
    """
    framed = np.zeros((valid.shape[0] + 3, valid.shape[1] + 3), bool)
    framed[1:-2, 1:-2] = valid
    along_x, along_y = framed.copy(), framed.copy()
    along_x[:-1] &= framed[1:]
    along_y[:, :-1] &= framed[:, 1:]
    between = along_x.copy()
    between[:, :-1] &= along_x[:, 1:]
    return np.stack([between, along_x, along_y, framed])


def _bilinear(framed: np.ndarray, usable: np.ndarray | None, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Values of an image, framed as `warp` does, at positions (x, y) among its own pixels; 0 where not usable."""
    x_low, y_low = np.floor(x), np.floor(y)
    x_weight, y_weight = x - x_low, y - y_low
    stride = framed.shape[1]
    index = (x_low.astype(np.intp) + 1) * stride + (y_low.astype(np.intp) + 1)
    used = None if usable is None else _used(usable, index, x_weight == 0, y_weight == 0)
    pixels = framed.ravel()
    low = pixels.take(index)
    low += (pixels.take(index + 1) - low) * y_weight
    index += stride
    high = pixels.take(index)
    high += (pixels.take(index + 1) - high) * y_weight
    high -= low
    high *= x_weight
    low += high
    if used is not None:
        low *= used
    return np.asarray(low)


def _used(usable: np.ndarray, index: np.ndarray, whole_x: np.ndarray, whole_y: np.ndarray) -> np.ndarray:
    """Which positions are interpolated from valid pixels only, (X, Y) bool, by the index of the pixel at each."""
    used = usable[0].ravel().take(index)
    whole = np.nonzero(~used & (whole_x | whole_y))
    if whole[0].size:
        used[whole] = usable.reshape(4, -1)[2 * whole_x[whole] + whole_y[whole], index[whole]]
    return np.asarray(used)


def rescale(field: np.ndarray, src_mip: int, dst_mip: int, crop: str) -> np.ndarray:
    """A field (2, X, Y) in pixels at `src_mip`, at the finer `dst_mip`, in its pixels, cut to (X, Y) again.

    crop: see `crop_start`. Only what is kept is interpolated; equal levels change nothing.
    """
    if src_mip == dst_mip:
        return np.asarray(field, np.float32)
    factor = 1 << (src_mip - dst_mip)
    x_slice, x_crop = _kept(field.shape[1], factor, crop_start(field.shape[1], src_mip, dst_mip, crop))
    y_slice, y_crop = _kept(field.shape[2], factor, crop_start(field.shape[2], src_mip, dst_mip, crop))
    finer = upsample(np.asarray(field[:, x_slice, y_slice], np.float32), factor) * np.float32(factor)
    return finer[:, x_crop : x_crop + field.shape[1], y_crop : y_crop + field.shape[2]]


def crop_start(size: int, src_mip: int, dst_mip: int, crop: str) -> int:
    """The pixel at `dst_mip` of a box of `size` pixels at `src_mip` at which the box of `size` pixels there begins.

    crop: "start" for boxes that share their start; "center" for boxes around one centre, each of which begins
    size * 2^mip // 2 MIP-0 voxels before it; a `UsageError` where that is half a pixel.
    """
    if crop == "start":
        return 0
    pixels, rest = divmod((size << src_mip) // 2 - (size << dst_mip) // 2, 1 << dst_mip)
    if rest:
        raise UsageError(
            f"--crop center: {size} pixels around a centre begin half a pixel off those of MIP {src_mip}, "
            f"at MIP {dst_mip}: want an even number, or --dst_mip 0, or --crop start"
        )
    return pixels


def _kept(size: int, factor: int, first_fine: int) -> tuple[slice, int]:
    """Of `size` coarse pixels those that the kept fine ones are interpolated from, and the crop after that."""
    first = max(0, first_fine // factor - 1)
    last = min(size, -(-(first_fine + size) // factor) + 1)
    return slice(first, last), first_fine - first * factor


def rounded(field: np.ndarray, decimals: Decimals) -> np.ndarray:
    """The field (2, X, Y) rounded for storing, by half a step at most; NaN and infinities stay what they are.

    float32 holds every multiple of 1/256 exactly, as far as it has any between whole numbers. The last bits of such
    numbers are 0, which deflates well; a number of decimals has no such bits.
    """
    if decimals is None:
        return field
    return _to_steps(field, float(_BINARY_STEPS) if decimals == BINARY else 10.0**decimals)


def rounded_image(image: np.ndarray, step: float | None) -> np.ndarray:
    """The image (X, Y) rounded to multiples of `step`, a power of two; `step` None: as it is.

    A pixel that is not 0 does not become 0, which means black: it becomes `step`, or minus that.
    """
    if step is None:
        return image
    result = _to_steps(image, 1 / step)
    lost = (result == 0) & (image != 0)
    result[lost] = np.copysign(np.float32(step), image[lost])
    return result


def _to_steps(array: np.ndarray, steps: float) -> np.ndarray:
    """(..., X, Y) rounded to so many steps a unit."""
    result = np.empty(array.shape, np.float32)
    for first in range(0, array.shape[-2], _ROWS):
        rows = np.s_[..., first : first + _ROWS, :]
        # In float64: float32 times 100 is off by a part of a step that grows with the value.
        result[rows] = np.rint(array[rows] * np.float64(steps)) / steps
    return result
