"""Where a volume lies and how large its voxels are, which is all that picking points wants of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError, WorkError

Resolution = tuple[float, float, float]


@dataclass(frozen=True)
class Extent:
    """A volume at MIP 0: nm per voxel, and its corners in voxels, `stop` excluded; x, y, z."""

    resolution: Resolution
    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    def holds(self, points: np.ndarray) -> np.ndarray:
        """(P,) bool: which points, (P, 3) voxels, lie in it."""
        inside = np.logical_and(points >= np.array(self.start), points < np.array(self.stop))
        return np.asarray(inside.all(axis=1))

    def meets(self, starts: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """(..., 3) bool: along which axes boxes of one section overlap it.

        starts: (..., 3) voxels. size: the boxes' (x, y) size in voxels.
        """
        # The volume is made larger rather than the boxes: of these there may be millions.
        before = np.array(self.start) - (*size, 1)
        return np.logical_and(starts > before, starts < np.array(self.stop))


def read_extent(path: str) -> Extent:
    """The extent of the volume at a cloud path; `UsageError` or `WorkError` if it cannot be read. One attempt."""
    folder = path.removeprefix("precomputed://")
    if not folder.startswith("file://"):
        return _extent(path)
    try:  # without CloudVolume, which takes a second to import
        scale = json.loads((Path(folder.removeprefix("file://")).expanduser() / "info").read_bytes())["scales"][0]
        start = scale.get("voxel_offset", [0, 0, 0])
        return _made(path, scale["resolution"], start, np.add(start, scale["size"]))
    except (OSError, RuntimeError):  # RuntimeError: ~ of nobody
        raise UsageError(f"{path}: no CloudVolume layer there (no info file)") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        return _extent(path)  # which says what is wrong with it


def _extent(path: str) -> Extent:
    from ..stores import reason
    from .volume import open_layer

    try:
        layer = open_layer(path)
        bounds = layer.meta.bounds(0)
        return _made(path, layer.meta.resolution(0), bounds.minpt, bounds.maxpt)
    except (UsageError, WorkError):
        raise
    except Exception as error:
        raise WorkError(f"{path}: {reason(error)}") from error


def _made(path: str, resolution: Any, start: Any, stop: Any) -> Extent:
    try:
        numbers = np.array([list(resolution), list(start), list(stop)], np.float64)
    except (ValueError, TypeError):  # of several lengths, or no numbers
        numbers = np.empty(0)
    if numbers.shape != (3, 3) or not np.isfinite(numbers).all() or (numbers[0] <= 0).any():
        raise UsageError(f"{path}: its info gives no place and voxel size: want 3 numbers each, the size more than 0")
    (x, y, z), *corners = numbers.tolist()
    lows, highs = (tuple(map(int, corner)) for corner in corners)
    return Extent((x, y, z), (lows[0], lows[1], lows[2]), (highs[0], highs[1], highs[2]))
