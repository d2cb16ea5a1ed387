"""README's "One sample", written down literally, pixel by pixel in float64: slow, and a judge of the fast way."""

import math

import numpy as np


def voxel(volume: np.ndarray, x: int, y: int, z: int, offset: tuple[int, int, int]) -> np.ndarray:
    """A volume's value, (C,), in its own voxel coordinates; 0 outside."""
    place = (x - offset[0], y - offset[1], z - offset[2])
    if all(0 <= index < size for index, size in zip(place, volume.shape, strict=False)):
        return volume[place].astype(np.float64)
    return np.zeros(volume.shape[3])


def cutout(
    volume: np.ndarray, start: tuple[int, int, int], size: tuple[int, int], offset: tuple[int, int, int]
) -> np.ndarray:
    """(C, X, Y) from a volume (X, Y, Z, C)."""
    x, y, z = start
    rows = [[voxel(volume, x + i, y + j, z, offset) for j in range(size[1])] for i in range(size[0])]
    return np.moveaxis(np.array(rows), -1, 0)


def bilinear(image: np.ndarray, x: float, y: float) -> float:
    """image at (x, y), 0 outside; image: (X, Y)."""
    x_low, y_low = math.floor(x), math.floor(y)
    total = 0.0
    for i, x_weight in ((x_low, 1 - (x - x_low)), (x_low + 1, x - x_low)):
        for j, y_weight in ((y_low, 1 - (y - y_low)), (y_low + 1, y - y_low)):
            if 0 <= i < image.shape[0] and 0 <= j < image.shape[1] and x_weight * y_weight:
                total += x_weight * y_weight * image[i, j]
    return total


def finer(image: np.ndarray, factor: int) -> np.ndarray:
    """Bilinear upsampling of (X, Y), align_corners=False, edges repeated."""
    result = np.empty((image.shape[0] * factor, image.shape[1] * factor))
    for i in range(result.shape[0]):
        for j in range(result.shape[1]):
            x = min(max((i + 0.5) / factor - 0.5, 0), image.shape[0] - 1)
            y = min(max((j + 0.5) / factor - 0.5, 0), image.shape[1] - 1)
            result[i, j] = bilinear(image, x, y)
    return result


def pulled(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    """warped[x, y] = image[x + f[1, x, y], y + f[0, x, y]]."""
    result = np.zeros(image.shape)
    for x in range(image.shape[0]):
        for y in range(image.shape[1]):
            dy, dx = field[:, x, y]
            if math.isfinite(dx) and math.isfinite(dy):
                result[x, y] = bilinear(image, x + dx, y + dy)
    return result
