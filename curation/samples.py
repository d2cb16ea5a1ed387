"""One sample, from arrays: its translation, its residual field, its image. docs/spec-and-files.md, "One sample".

Arrays are (X, Y) images, (X, Y) bool masks and (2, X, Y) fields, as in `fields`.
"""

from dataclasses import dataclass

import numpy as np

from . import fields
from .boxes import snap

RESOLVED = 1e-6  # of the largest magnitude: what float32 resolves, less what resampling costs


@dataclass(frozen=True)
class Translation:
    """The shift of a sample's box, in MIP-0 voxels; `found` is False where there was no vector to take it from."""

    x: int
    y: int
    found: bool


@dataclass(frozen=True)
class Sample:
    """A sample's image, (X, Y) float32, and what was done to it.

    mean, std: what it was normalised with. valid, masked: fractions of its pixels that are neither black nor
    masked, and that are masked. flat: there was no variance, or no pixel, to normalise with.
    """

    image: np.ndarray
    mean: float
    std: float
    valid: float
    masked: float
    flat: bool


def translation(reference: np.ndarray, step_mip: int) -> Translation:
    """The mean finite vector of a reference field, (2, X, Y) in MIP-0 voxels, floored to multiples of 2^step_mip."""
    mean = fields.mean_finite_vector(reference)
    if mean is None:
        return Translation(0, 0, found=False)
    y, x = (snap(int(component), step_mip) for component in np.floor(mean))
    return Translation(x, y, found=True)


def residual(field: np.ndarray, shift: Translation, dst_mip: int) -> np.ndarray:
    """What is left of a field (2, X, Y) in MIP-0 voxels once the box is shifted, in pixels at `dst_mip`."""
    vector = np.array([shift.y, shift.x], np.float32)[:, None, None]
    return (field - vector) / np.float32(2**dst_mip)


def normalised(image: np.ndarray, black: np.ndarray, masked: np.ndarray, reference: np.ndarray) -> Sample:
    """The image with its reference's mean and deviation taken out, and 0 where it is masked or black.

    image: (X, Y). black, masked: (X, Y) bool. reference: (P,) its pixels that are neither black nor masked.
    """
    mean, std, flat = _statistics(reference)
    valid = ~(black | masked)
    result = np.where(valid, (image - np.float32(mean)) / np.float32(std), np.float32(0))
    return Sample(result, mean, std, float(valid.mean()), float(masked.mean()), flat)


def as_stored(image: np.ndarray, black: np.ndarray, masked: np.ndarray) -> Sample:
    """The image as it is in the volume, and 0 where it is masked: mean 0, deviation 1."""
    result = np.where(masked, np.float32(0), image)
    valid = ~(black | masked)
    return Sample(result, 0.0, 1.0, float(valid.mean()), float(masked.mean()), flat=False)


def _statistics(values: np.ndarray) -> tuple[float, float, bool]:
    """Mean and unbiased deviation of (P,) values, and whether they had to be made up.

    A deviation that float32 does not resolve at these values is none: what resampling leaves of a constant is noise.
    """
    if not values.size:
        return 0.0, 1.0, True
    mean = np.float32(values.mean(dtype=np.float64))
    std = np.float32(values.std(ddof=1, dtype=np.float64)) if values.size > 1 else np.float32(0)
    resolved = RESOLVED * float(np.abs(values).max())
    return (float(mean), float(std), False) if std > resolved else (float(mean), 1.0, True)


def mask_to_level(
    values: np.ndarray,
    threshold: float,
    src_mip: int,
    dst_mip: int,
    shape: tuple[int, int],
    crop: tuple[int, int],
) -> np.ndarray:
    """Where a mask volume, (X, Y) at `src_mip`, masks pixels at `dst_mip`: coarser repeats, finer masks if any does."""
    masked = values >= threshold
    if src_mip > dst_mip:
        masked = masked.repeat(1 << (src_mip - dst_mip), axis=0).repeat(1 << (src_mip - dst_mip), axis=1)
    elif src_mip < dst_mip:
        masked = fields.any_of(masked, 1 << (dst_mip - src_mip))
    return masked[crop[0] : crop[0] + shape[0], crop[1] : crop[1] + shape[1]]
