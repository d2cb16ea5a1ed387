"""How good a pair and its field are, as numbers: how alike the images are, and how sound the field is.

Arrays are (X, Y) images and (2, X, Y) fields in pixels, as in `fields`. A pixel that is exactly 0, or not finite, is
invalid: it is black or masked, and counts nowhere. A vector that is not finite counts nowhere either. A number that
nothing is left to tell of is NaN. docs/spec-and-files.md, "Quality", says how to read the numbers.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from . import fields
from .samples import RESOLVED

WINDOW = 32  # pixels, the size and the stride of the windows of the chunked Pearson correlation
LEAST_VALID = 0.5  # of a window's pixels must be valid in both images
LOW = 5  # percent: which percentile of the windows is called low

_ROWS = 64  # rows of a field that are looked at at once: their temporaries fit a core's cache


@dataclass(frozen=True)
class PairQuality:
    """The numbers of one pair; any of them may be NaN.

    correlation_*: Pearson's, over all pixels that are valid in both images. cpc_median_*, cpc_low_*: the median and the
    5th percentile of `correlation_map`. before: of the source as it is; after: of the source pulled through the field.
    displacement_median, displacement_max: of the lengths of field - prior, pixels. folded: the share of pixels at which
    x + f(x) does not keep its orientation. roughness: root mean square of the field's second differences, pixels per
    pixel².
    """

    correlation_before: float = math.nan
    correlation_after: float = math.nan
    cpc_median_before: float = math.nan
    cpc_low_before: float = math.nan
    cpc_median_after: float = math.nan
    cpc_low_after: float = math.nan
    displacement_median: float = math.nan
    displacement_max: float = math.nan
    folded: float = math.nan
    roughness: float = math.nan


def measure(
    source: np.ndarray, target: np.ndarray, field: np.ndarray | None, prior: np.ndarray | None = None
) -> PairQuality:
    """The numbers of a source and a target, (X, Y), and the field (2, X, Y) that is to warp the one onto the other.

    field: None where there is none, so that only the numbers before it are known. prior: (2, X, Y), what the field
    began as; None stands for 0.
    """
    before = Likeness.of(source, target)
    if field is None:
        return numbers(before)
    return numbers(before, Likeness.of(pulled(source, field), target), field, prior)


def numbers(
    before: "Likeness",
    after: "Likeness | None" = None,
    field: np.ndarray | None = None,
    prior: np.ndarray | None = None,
) -> PairQuality:
    """What `measure` gives, of likenesses that are known already; after and field: None where there is no field."""
    found = PairQuality(before.correlation, cpc_median_before=before.median, cpc_low_before=before.low)
    if after is None or field is None:
        return found
    displacement_median, displacement_max = _displacement(field, prior)
    folded, roughness = soundness(field)
    return replace(
        found,
        correlation_after=after.correlation,
        cpc_median_after=after.median,
        cpc_low_after=after.low,
        displacement_median=displacement_median,
        displacement_max=displacement_max,
        folded=folded,
        roughness=roughness,
    )


def pulled(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    """The image (X, Y) pulled through a field (2, X, Y), float32: 0 where it would be made of an invalid pixel."""
    image = _finite(image)
    return fields.warp(image, field, image != 0)


def correlation_map(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The chunked Pearson correlation of two images (X, Y): (X // 32, Y // 32) float32, one for each window.

    Windows of 32 x 32 pixels lie side by side from pixel 0 on; what is left at the end of an axis is left out. Along an
    axis of fewer pixels there is one window, of what is there. A window in which fewer than half of the pixels are
    valid in both images, or in which an image does not vary, is NaN.
    """
    return Likeness.of(source, target).windows


def _finite(image: np.ndarray) -> np.ndarray:
    """The image with 0 for what is not finite."""
    finite = np.isfinite(image)
    return image if finite.all() else np.where(finite, image, 0)


# Likeness


@dataclass(frozen=True)
class Likeness:
    """How alike two images are. correlation: of all their pixels. windows: (nx, ny), see `correlation_map`."""

    correlation: float
    windows: np.ndarray

    @classmethod
    def of(cls, source: np.ndarray, target: np.ndarray) -> "Likeness":
        """The likeness of two images (X, Y)."""
        moments = _Moments.of(source, target)
        return cls(_or_nan(moments.overall()), moments.by_window())

    @property
    def median(self) -> float:
        """The median of the windows."""
        return self._percentile(50)

    @property
    def low(self) -> float:
        """The 5th percentile of the windows."""
        return self._percentile(LOW)

    def _percentile(self, percent: float) -> float:
        known = self.windows[~np.isnan(self.windows)]
        return float(np.percentile(known, percent)) if known.size else math.nan


@dataclass(frozen=True)
class _Moments:
    """What correlations are computed from, of the pixels that are valid in both images.

    sums: (6, nx, ny) float64 of the windows, those that are cut off by the end of the image included: how many pixels
    there are, and the sums of s, t, s², t² and s t, by which source and target differ from the origins. shape: of the
    images.
    """

    sums: np.ndarray
    origins: tuple[float, float]
    shape: tuple[int, int]

    @classmethod
    def of(cls, source: np.ndarray, target: np.ndarray) -> "_Moments":
        source, target = _finite(source), _finite(target)
        x_size, y_size = source.shape
        both = (source != 0) & (target != 0)
        # Sums of squares about 0 would lose the small variations of large values.
        origins = tuple(_mean(image, both) for image in (source, target))
        columns = np.arange(0, y_size, WINDOW)
        sums = []
        for first in range(0, x_size, WINDOW):
            rows = slice(first, first + WINDOW)
            used = both[rows]
            s, t = (image[rows] - np.float64(origin) for image, origin in zip((source, target), origins, strict=True))
            s *= used
            t *= used
            squares = [np.einsum("xy,xy->y", *factors) for factors in ((s, s), (t, t), (s, t))]
            along_y = [used.sum(axis=0, dtype=np.float64), s.sum(axis=0), t.sum(axis=0), *squares]
            sums.append(np.add.reduceat(np.stack(along_y), columns, axis=1))
        return cls(np.stack(sums, axis=1), (origins[0], origins[1]), (x_size, y_size))

    def overall(self) -> float:
        """The correlation of all pixels."""
        return float(self._correlation(self.sums.sum(axis=(1, 2), keepdims=True))[0, 0])

    def by_window(self) -> np.ndarray:
        """See `correlation_map`."""
        (nx, x_size), (ny, y_size) = ((max(1, size // WINDOW), min(size, WINDOW)) for size in self.shape)
        sums = self.sums[:, :nx, :ny]
        found = self._correlation(sums).astype(np.float32)
        found[sums[0] < LEAST_VALID * x_size * y_size] = np.nan
        return found

    def _correlation(self, sums: np.ndarray) -> np.ndarray:
        """Pearson's, (nx, ny), of sums (6, nx, ny); NaN where an image does not vary as far as float32 resolves it."""
        count = np.maximum(sums[0], 1)
        means = sums[1:3] / count
        variances = sums[3:5] / count - means**2
        largest = np.stack([mean**2 + (mean + at) ** 2 for mean, at in zip(means, self.origins, strict=True)])
        varies = (variances > RESOLVED**2 * largest).all(axis=0) & (sums[0] > 1)
        covariance = sums[5] / count - means[0] * means[1]
        deviations = np.sqrt(np.where(varies, variances, 1)).prod(axis=0)
        return np.where(varies, np.clip(covariance / deviations, -1, 1), np.nan)


def _mean(image: np.ndarray, used: np.ndarray) -> float:
    return float(image.mean(dtype=np.float64, where=used)) if used.any() else 0.0


def _or_nan(value: float) -> float:
    """The value, or the one NaN whose bits do not depend on how it came about."""
    return math.nan if math.isnan(value) else value


# Soundness


def _displacement(field: np.ndarray, prior: np.ndarray | None) -> tuple[float, float]:
    """The median and the largest length of what a field differs from its prior."""
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.hypot(*(field if prior is None else field - prior))
    finite = np.isfinite(lengths)
    lengths = lengths.ravel() if finite.all() else lengths[finite]
    if not lengths.size:
        return math.nan, math.nan
    return float(np.median(lengths)), float(lengths.max())


def soundness(field: np.ndarray) -> tuple[float, float]:
    """The share of folded pixels, and the roughness.

    A pixel is folded where the determinant of the Jacobian matrix of x + f(x) is not positive, by forward differences:
    the pixel, the next one in x and the next one in y do not lie about each other as they did.
    """
    folds = cells = bends = 0
    squares = 0.0
    _, x_size, _ = field.shape
    with np.errstate(invalid="ignore", over="ignore"):
        for first in range(0, x_size, _ROWS):
            rows = _vectors(field[:, first : first + _ROWS + 2])
            own = rows[:, :_ROWS]  # of the other two rows the differences along y are the next strip's
            along_x = np.diff(rows, axis=1)
            along_y = np.diff(own, axis=2)
            found, counted = _folds(along_x[:, : own.shape[1]], along_y)
            folds, cells = folds + found, cells + counted
            for bend in (np.diff(along_x, axis=1), np.diff(along_y, axis=2)):
                total, counted = _squares(bend)
                squares, bends = squares + total, bends + counted
    return folds / cells if cells else math.nan, math.sqrt(squares / bends) if bends else math.nan


def folded_pixels(field: np.ndarray) -> np.ndarray:
    """(X, Y) bool: which pixels of a field (2, X, Y) are folded, see `soundness`; none in the last row and column."""
    rows = _vectors(field)
    with np.errstate(invalid="ignore", over="ignore"):
        determinant = _determinant(np.diff(rows, axis=1), np.diff(rows, axis=2))
    folded = np.zeros(field.shape[1:], bool)
    folded[: determinant.shape[0], : determinant.shape[1]] = determinant <= 0
    return folded


def _vectors(field: np.ndarray) -> np.ndarray:
    """The field with NaN in both components where a vector is not finite."""
    finite = np.isfinite(field)
    return field if finite.all() else np.where(finite.all(axis=0), field, np.float32(np.nan))


def _folds(along_x: np.ndarray, along_y: np.ndarray) -> tuple[int, int]:
    """How many pixels are folded, and of how many that can be told; differences, (2, X, Y) and (2, X, Y - 1)."""
    determinant = _determinant(along_x, along_y)
    known = int(np.count_nonzero(~np.isnan(determinant)))
    return int(np.count_nonzero(determinant <= 0)), known


def _determinant(along_x: np.ndarray, along_y: np.ndarray) -> np.ndarray:
    """Of the Jacobian matrix of x + f(x), (X - 1, Y - 1), by differences of f along x and along y."""
    along_x, along_y = along_x[:, :, :-1], along_y[:, : along_x.shape[1]]
    return np.asarray((1 + along_x[1]) * (1 + along_y[0]) - along_x[0] * along_y[1])


def _squares(bend: np.ndarray) -> tuple[float, int]:
    """The sum of the squared lengths of vectors (2, X, Y), and of how many."""
    squares = np.einsum("cxy,cxy->xy", bend, bend)
    finite = np.isfinite(squares)
    return float(squares.sum(dtype=np.float64, where=finite)), int(np.count_nonzero(finite))
