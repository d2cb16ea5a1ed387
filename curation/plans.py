"""What is to be done, as plain data, before anything is read.

Samples repeat: with offsets -1 -2 -3 and permuted pairs, 12 images are 4 distinct boxes. So the plan is a list of
distinct boxes, each with the places in the dataset where it goes.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

LONGEST_RUN = 16  # distinct boxes given to a worker at a time

SOURCE, TARGET = 0, 1
ROLES = ("source", "target")


@dataclass(frozen=True)
class Place:
    """Where a box goes: which pair, and as which of its two."""

    pair: int
    role: int


@dataclass(frozen=True)
class CutBox:
    """A distinct box: its start (x, y, z) in MIP-0 voxels, and where it goes."""

    start: tuple[int, int, int]
    places: tuple[Place, ...]


def distinct_boxes(starts: np.ndarray, done: np.ndarray) -> list[CutBox]:
    """The distinct boxes that have places not yet done, neighbours together. starts: (N, 2, 3); done: (N, 2)."""
    places: dict[tuple[int, int, int], list[Place]] = {}
    for pair, role in np.argwhere(~done).tolist():
        x, y, z = starts[pair, role].tolist()
        places.setdefault((x, y, z), []).append(Place(pair, role))
    return [CutBox(start, tuple(places[start])) for start in sorted(places)]


def runs_of(boxes: Sequence[CutBox], workers: int) -> list[list[CutBox]]:
    """The boxes in runs: those over one another share chunks that are several sections deep."""
    longest = max(1, min(LONGEST_RUN, len(boxes) // (4 * workers)))
    columns = [list(column) for _, column in groupby(boxes, key=lambda box: box.start[:2])]
    return [column[first : first + longest] for column in columns for first in range(0, len(column), longest)]


@dataclass(frozen=True)
class Plan:
    """What a command would do, for --dry_run. output_bytes is what the output takes without compression."""

    outputs: tuple[str, ...]
    pairs: int
    boxes: int
    repeated_pairs: int
    chunks: int
    leaving: int  # distinct boxes that lie partly outside a volume
    output_bytes: int
    free_bytes: int | None

    def __str__(self) -> str:
        free = "" if self.free_bytes is None else f"; {gib(self.free_bytes)} are free there"
        if self.free_bytes is not None and self.free_bytes < self.output_bytes:
            free += ", which may not be enough"
        lines = [
            ("output", ", ".join(self.outputs)),
            ("pairs", str(self.pairs) + (f", {self.repeated_pairs} of them repeated" if self.repeated_pairs else "")),
            ("distinct boxes", f"{self.boxes}, {self.leaving} of them partly outside a volume"),
            ("chunks to read", f"{self.chunks}, before the shifts that fields ask for"),
            ("output size", f"up to {gib(self.output_bytes)}{free}"),
        ]
        return "\n".join(f"{name:<16} {value}" for name, value in lines)


def repeats(starts: np.ndarray) -> int:
    """How many pairs repeat an earlier one. starts: (N, 2, 3)."""
    return len(starts) - len(np.unique(starts.reshape(len(starts), 6), axis=0))


def free_bytes(path: str | Path) -> int | None:
    """Free disk in a folder; None where that cannot be told."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def gib(count: int) -> str:
    """A number of bytes, for people."""
    return f"{count / 2**30:.2f} GiB"
