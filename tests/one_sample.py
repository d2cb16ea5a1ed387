"""One sample, written down from the contract: slow, obvious, and a judge of the fast way. It imports none of the code.

Arrays are x first: an image is (X, Y), a field (2, X, Y), a volume's level (X, Y, Z, C). A vector's component 0 is
displacement along y, component 1 along x. All arithmetic is float64, where the toolkit's is float32.

Where the contract is silent, this is how it is read here:
- A field or an image is brought to another level from the voxels that cover the box, and from no others: beyond them
  the pixels of the window's edge are repeated.
- An image pixel that is no finite number is taken for black, at the level that is read.
- A field has no black: vectors (0, 0) are vectors, and beyond the volume and in missing chunks there are such.
- A single usable pixel has no variance.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Json = dict[str, Any]

# A deviation that is less than this part of the largest magnitude is none.
LEAST_DEVIATION = 1e-6


class WhollyOutsideError(Exception):
    """A box lies wholly outside a volume that is read there. `before_reading`: it shows before any voxel is read."""

    def __init__(self, path: str, before_reading: bool) -> None:
        super().__init__(path)
        self.before_reading = before_reading


class UndecidedError(Exception):
    """The answer hangs on less than float32 resolves, so that no answer is wrong."""


@dataclass(frozen=True)
class Volume:
    """One level of one volume.

    voxels: (X, Y, Z, C), 0 in the chunks that the store does not have.
    offset: the first voxel, chunk: the size of a chunk; (x, y, z) in voxels of this level.
    missing: the starts of the chunks that the store does not have, (x, y, z) in voxels of this level.
    """

    voxels: NDArray[Any]
    offset: tuple[int, int, int]
    chunk: tuple[int, int, int]
    missing: frozenset[tuple[int, int, int]] = frozenset()

    def bounds(self, axis: int) -> tuple[int, int]:
        """Its first voxel along an axis, and the voxel after its last."""
        return self.offset[axis], self.offset[axis] + self.voxels.shape[axis]


# By the volume's path and the level's MIP.
Volumes = Mapping[tuple[str, int], Volume]


@dataclass(frozen=True)
class Box:
    """A window of section `z`: starts x and y are MIP-0 voxels, the sizes pixels at MIP `mip`."""

    x: int
    y: int
    z: int
    x_size: int
    y_size: int
    mip: int

    def x_pixel(self, index: int) -> tuple[int, int]:
        """The span of a pixel in x, in MIP-0 voxels."""
        return self.x + (index << self.mip), self.x + (index + 1 << self.mip)

    def y_pixel(self, index: int) -> tuple[int, int]:
        """The span of a pixel in y, in MIP-0 voxels."""
        return self.y + (index << self.mip), self.y + (index + 1 << self.mip)

    def shifted(self, x: int, y: int) -> "Box":
        """The box moved by MIP-0 voxels."""
        return Box(self.x + x, self.y + y, self.z, self.x_size, self.y_size, self.mip)


def covering(low: int, high: int, mip: int) -> tuple[int, int]:
    """The first voxel at MIP `mip` that lies in a span of MIP-0 voxels, and the voxel after the last."""
    return math.floor(low / 2**mip), math.ceil(high / 2**mip)


@dataclass(frozen=True)
class Window:
    """The voxels at MIP `mip` that cover a box. values: (C, X, Y). x_first, y_first: where they start, in voxels."""

    values: Floats
    x_first: int
    y_first: int
    mip: int

    def pixels(self, box: Box) -> Iterator[tuple[int, int, tuple[slice, slice]]]:
        """The indices (i, j) of every pixel of the box, and the part of the window that the pixel covers or lies in."""
        for i in range(box.x_size):
            x_low, x_high = covering(*box.x_pixel(i), self.mip)
            for j in range(box.y_size):
                y_low, y_high = covering(*box.y_pixel(j), self.mip)
                yield (
                    i,
                    j,
                    (
                        slice(x_low - self.x_first, x_high - self.x_first),
                        slice(y_low - self.y_first, y_high - self.y_first),
                    ),
                )

    def position(self, box: Box, i: int, j: int) -> tuple[float, float]:
        """Where the middle of a pixel of the box lies among the window's voxels: 0 is the middle of the first."""
        x, y = sum(box.x_pixel(i)) / 2, sum(box.y_pixel(j)) / 2
        return x / 2**self.mip - 0.5 - self.x_first, y / 2**self.mip - 0.5 - self.y_first


@dataclass
class Reading:
    """Reads windows for one sample, and remembers which chunks were missing: path, MIP and start of each."""

    volumes: Volumes
    missing: set[tuple[str, int, tuple[int, int, int]]] = field(default_factory=set)

    def window(self, path: str, mip: int, box: Box, before_reading: bool) -> Window:
        """The voxels of a volume that cover a box; 0 where the volume ends."""
        volume = self.volumes[path, mip]
        x_first, x_stop = covering(box.x, box.x + (box.x_size << box.mip), mip)
        y_first, y_stop = covering(box.y, box.y + (box.y_size << box.mip), mip)
        x = np.arange(x_first, x_stop) - volume.offset[0]
        y = np.arange(y_first, y_stop) - volume.offset[1]
        z = box.z - volume.offset[2]
        x_size, y_size, z_size, channels = volume.voxels.shape
        inside_x, inside_y = (x >= 0) & (x < x_size), (y >= 0) & (y < y_size)
        if not (inside_x.any() and inside_y.any() and 0 <= z < z_size):
            raise WhollyOutsideError(path, before_reading)
        values = np.zeros((channels, len(x), len(y)))
        found = volume.voxels[np.ix_(x[inside_x], y[inside_y], [z], range(channels))]
        values[np.ix_(range(channels), inside_x, inside_y)] = np.moveaxis(found[:, :, 0], -1, 0)
        for start in volume.missing:
            spans = zip((x_first, y_first, box.z), (x_stop, y_stop, box.z + 1), strict=True)
            if all(
                low < min(start[axis] + volume.chunk[axis], volume.bounds(axis)[1]) and start[axis] < high
                for axis, (low, high) in enumerate(spans)
            ):
                self.missing.add((path, mip, start))
        return Window(values, x_first, y_first, mip)


# Rule 5: changing level


def neighbours(position: float, size: int) -> list[tuple[int, float]]:
    """The pixels, of `size` in a row, that linear interpolation takes, and their weights; the edges are repeated."""
    low = math.floor(position)
    weighted = [(low, 1 - (position - low)), (low + 1, position - low)]
    return [(min(max(index, 0), size - 1), weight) for index, weight in weighted if weight > 0]


def interpolated(values: Floats, used: Bools, x: float, y: float) -> Floats:
    """(C,): values, (C, X, Y), between the pixels that are used, (X, Y); the weights of those add up to 1."""
    total, weights = np.zeros(len(values)), 0.0
    for i, x_weight in neighbours(x, values.shape[1]):
        for j, y_weight in neighbours(y, values.shape[2]):
            if used[i, j]:
                total += x_weight * y_weight * values[:, i, j]
                weights += x_weight * y_weight
    return total / weights


def at_level(window: Window, used: Bools, box: Box) -> tuple[Floats, Bools]:
    """A window at the level and in the size of the box: values, (C, X, Y), and whether there is one, (X, Y).

    used: (X, Y) of the window; what is not used takes no part.
    """
    values = np.zeros((len(window.values), box.x_size, box.y_size))
    has_value = np.zeros((box.x_size, box.y_size), bool)
    for i, j, (x_part, y_part) in window.pixels(box):
        block, used_of_block = window.values[:, x_part, y_part], used[x_part, y_part]
        if not used_of_block.any():
            continue
        has_value[i, j] = True
        if window.mip <= box.mip:  # coarser, or the same level: the mean of what the pixel covers
            values[:, i, j] = block[:, used_of_block].mean(axis=1)
        else:  # finer: bilinear
            values[:, i, j] = interpolated(window.values, used, *window.position(box, i, j))
    return values, has_value


def image_over(reading: Reading, path: str, mip: int, box: Box, before_reading: bool) -> tuple[Floats, Bools]:
    """An image, (X, Y), as stored in the volume, at the level of the box; and where it is not black."""
    window = reading.window(path, mip, box, before_reading)
    grey = window.values[0]
    values, has_value = at_level(window, (grey != 0) & np.isfinite(grey), box)
    return values[0], has_value


def field_over(reading: Reading, path: str, mip: int, box: Box) -> Floats:
    """A field, (2, X, Y), in MIP-0 voxels, at the level of the box."""
    window = reading.window(path, mip, box, before_reading=True)
    with np.errstate(invalid="ignore"):  # infinite vectors that meet
        vectors, _ = at_level(window, np.ones(window.values.shape[1:], bool), box)
    return vectors


# Rule 4: the mask


def masked_over(reading: Reading, masks: Sequence[Json], box: Box, before_reading: bool) -> Bools:
    """(X, Y): where a pixel of the box covers, or lies in, a pixel of any mask that is at its threshold or above."""
    masked = np.zeros((box.x_size, box.y_size), bool)
    for mask in masks:
        window = reading.window(mask["path"], mask["src_mip"], box, before_reading)
        for i, j, (x_part, y_part) in window.pixels(box):
            masked[i, j] |= bool((window.values[0, x_part, y_part] >= mask["threshold"]).any())
    return masked


# Rules 1 to 3, and 6


@dataclass(frozen=True)
class Sample:
    """Everything that is stored of one box.

    image: (X, Y), normalised. warped: (X, Y), pulled by its own field, or `image` where there is no field.
    is_valid: (X, Y), where a pixel is neither black nor masked; `valid` is the fraction of those.
    residual: (2, X, Y), pixels at dst_mip, or None. translation: (x, y), MIP-0 voxels.
    largest: the largest magnitude that the image or its reference has, before it is normalised.
    displaced: the largest finite magnitude of the field, MIP-0 voxels.
    """

    image: Floats
    warped: Floats
    is_valid: Bools
    residual: Floats | None
    translation: tuple[int, int]
    mean: float
    std: float
    valid: float
    masked: float
    outside: float
    missing_chunks: int
    zero_variance: bool
    no_vector: bool
    largest: float
    displaced: float

    def stored(self, role: int) -> Floats:
        """(X, Y): what the image file holds of it as a source, 0, or as a target, 1."""
        return (self.image, self.warped)[role]


def sample(spec: Json, volumes: Volumes, start: tuple[int, int, int]) -> Sample:
    """One sample of a spec in its present form. start: of its box, as in the spec (x, y, z)."""
    reading = Reading(volumes)
    size = {"x_size": spec["x_size"], "y_size": spec["y_size"], "dst_mip": spec["dst_mip"]}
    box = Box(*start, spec["x_size"], spec["y_size"], spec["dst_mip"])
    masks = spec.get("masks", [])

    # 1. Translation, and 2. field.
    translation, no_vector, residual, displaced = (0, 0), False, None, 0.0
    if "field" in spec:
        own = {"path": spec["field"]["path"], "src_mip": spec["field"]["src_mip"], **size}
        reference = spec["field"].get("reference", own)
        at_reference = reference_box(reference, box)
        vectors = field_over(reading, reference["path"], reference["src_mip"], at_reference)
        found = floored_mean(vectors, reference["src_mip"])
        translation, no_vector = found or (0, 0), found is None
        vectors = field_over(reading, spec["field"]["path"], spec["field"]["src_mip"], box)
        displaced = float(np.abs(vectors[np.isfinite(vectors)]).max(initial=0))
        residual = (vectors - np.array([translation[1], translation[0]])[:, None, None]) / 2 ** spec["dst_mip"]

    # 3. Image, and 4. mask, at the shifted box.
    box = box.shifted(*translation)
    known = "field" not in spec
    image, has_value = image_over(reading, spec["image"]["path"], spec["image"]["src_mip"], box, known)
    masked = masked_over(reading, masks, box, known)
    own = {"path": spec["image"]["path"], "src_mip": spec["image"]["src_mip"], **size}
    reference = spec["image"].get("reference", own)
    at_reference = reference_box(reference, box)
    grey, counts = image_over(reading, reference["path"], reference["src_mip"], at_reference, known)
    counts = counts & ~masked_over(reading, masks, at_reference, known)
    mean, std, zero_variance = statistics(grey[counts])
    is_valid = has_value & ~masked
    normalised = np.where(is_valid, (image - mean) / std, 0.0)

    # 6. The pair: what a source stores, and what a target stores.
    return Sample(
        image=normalised,
        warped=normalised if residual is None else pulled(normalised, residual),
        is_valid=is_valid,
        residual=residual,
        translation=translation,
        mean=mean,
        std=std,
        valid=float(is_valid.mean()),
        masked=float(masked.mean()),
        outside=outside(volumes[spec["image"]["path"], spec["image"]["src_mip"]], spec["image"]["src_mip"], box),
        missing_chunks=len(reading.missing),
        zero_variance=zero_variance,
        no_vector=no_vector,
        largest=float(max(np.abs(image).max(), np.abs(grey).max())),
        displaced=displaced,
    )


def reference_box(reference: Json, box: Box) -> Box:
    """The reference's box: of its own size and level, at the start of the sample's box."""
    return Box(box.x, box.y, box.z, reference["x_size"], reference["y_size"], reference["dst_mip"])


def floored_mean(vectors: Floats, mip: int) -> tuple[int, int] | None:
    """(x, y): the mean of the vectors, (2, X, Y), that are finite, floored to multiples of 2^mip; None without one."""
    finite = np.isfinite(vectors).all(axis=0)
    if not finite.any():
        return None
    y, x = (float(component[finite].mean()) / 2**mip for component in vectors)
    resolved = 1e-6 * float(np.abs(vectors[:, finite]).max()) / 2**mip
    for steps in (x, y):
        if 0 < abs(steps - round(steps)) < resolved:
            raise UndecidedError(f"the mean vector is {steps} times 2^{mip}")
    return math.floor(x) << mip, math.floor(y) << mip


def statistics(values: Floats) -> tuple[float, float, bool]:
    """Mean and unbiased deviation of the usable pixels, (K,), and whether there is no variance to normalise with."""
    if not values.size:
        return 0.0, 1.0, True
    mean, largest = float(values.mean()), float(np.abs(values).max())
    deviation = float(values.std(ddof=1)) if values.size > 1 else 0.0
    if 0.1 < deviation / (LEAST_DEVIATION * largest) < 10:
        raise UndecidedError(f"a deviation of {deviation} where values reach {largest}")
    return (mean, 1.0, True) if deviation < LEAST_DEVIATION * largest else (mean, deviation, False)


def outside(volume: Volume, mip: int, box: Box) -> float:
    """The fraction of the box's area that lies outside the volume, whose level `mip` is read."""
    inside, area = 1, 1
    for axis, (low, size) in enumerate([(box.x, box.x_size << box.mip), (box.y, box.y_size << box.mip)]):
        first, last = (bound << mip for bound in volume.bounds(axis))
        inside *= max(0, min(low + size, last) - max(low, first))
        area *= size
    return 1 - inside / area


def pulled(image: Floats, displacement: Floats) -> Floats:
    """warped[x, y] = image[x + f[1, x, y], y + f[0, x, y]]: bilinear, 0 outside, 0 where a vector is not finite.

    image: (X, Y); displacement: (2, X, Y) in pixels.
    """
    x_size, y_size = image.shape
    warped = np.zeros(image.shape)
    for x in range(x_size):
        for y in range(y_size):
            along_y, along_x = displacement[:, x, y]
            if math.isfinite(along_y) and math.isfinite(along_x):
                warped[x, y] = value_at(image, x + along_x, y + along_y)
    return warped


def value_at(image: Floats, x: float, y: float) -> float:
    """An image's value between its pixels, bilinear; there are zeros all around it."""
    x_low, y_low = math.floor(x), math.floor(y)
    total = 0.0
    for i, x_weight in ((x_low, 1 - (x - x_low)), (x_low + 1, x - x_low)):
        for j, y_weight in ((y_low, 1 - (y - y_low)), (y_low + 1, y - y_low)):
            if 0 <= i < image.shape[0] and 0 <= j < image.shape[1]:
                total += x_weight * y_weight * image[i, j]
    return total


# The other scripts


@dataclass(frozen=True)
class Section:
    """What download_image stores of one section. image: (X, Y), as stored in the volume, but for defects."""

    image: Floats
    valid: float
    masked: float
    outside: float
    missing_chunks: int


def section(volumes: Volumes, path: str, box: Box, defects: str | None = None, mask_val: float = 0) -> Section:
    """A box as the volume has it at the box's own level, 0 where the volume of defects is at least `mask_val`."""
    reading = Reading(volumes)
    image = reading.window(path, box.mip, box, before_reading=True).values[0]
    masked = np.zeros(image.shape, bool)
    if defects is not None:
        masked = reading.window(defects, box.mip, box, before_reading=True).values[0] >= mask_val
    return Section(
        image=np.where(masked, 0.0, image),
        valid=float((np.isfinite(image) & (image != 0) & ~masked).mean()),
        masked=float(masked.mean()),
        outside=outside(volumes[path, box.mip], box.mip, box),
        missing_chunks=len(reading.missing),
    )


def brought_finer(pixels: Floats, src_mip: int, dst_mip: int, crop: str) -> Floats | None:
    """A field, (2, X, Y) in pixels at `src_mip`, in pixels at the finer `dst_mip`, cut to (X, Y) pixels there.

    Coarse and fine boxes share their start, or with crop "center" the voxel that older specs mark them by: a box starts
    at centre - size * 2^mip // 2. None: there is no whole pixel for the cut to start at.
    """
    _, x_size, y_size = pixels.shape
    if crop == "center":
        starts = [(size * 2**src_mip // 2 - size * 2**dst_mip // 2) for size in (x_size, y_size)]
    else:
        starts = [0, 0]
    if any(start % 2**dst_mip for start in starts):
        return None
    coarse = Window(pixels * 2**src_mip, 0, 0, src_mip)
    fine = Box(starts[0], starts[1], 0, x_size, y_size, dst_mip)
    with np.errstate(invalid="ignore"):
        voxels, _ = at_level(coarse, np.ones((x_size, y_size), bool), fine)
    pixels_there: Floats = voxels / 2**dst_mip
    return pixels_there
