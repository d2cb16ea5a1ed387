"""What travels between the process that writes a dataset and its workers, as plain data.

Samples repeat: with offsets -1 -2 -3 and permuted pairs, 12 images are 4 distinct boxes. A task is therefore one
distinct box, with all the slots of the dataset where it goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ..datasets.chunks import Chunk
from ..datasets.facts import BoxFacts

LONGEST_RUN = 16  # distinct boxes given to a worker at a time


@dataclass(frozen=True)
class Slot:
    """Where a box goes in a dataset: which pair, and as which of its two boxes."""

    pair: int
    role: int


@dataclass(frozen=True)
class BoxTask:
    """A distinct box to be cut: its start (x, y, z) in MIP-0 voxels, and the slots where it goes."""

    start: tuple[int, int, int]
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class BoxResult:
    """A box that was cut: its image as a source and as a target, its residual field, and its facts.

    None stands for what none of its slots wants. retries: readings that had to be tried again for it.
    """

    source: Chunk | None
    target: Chunk | None
    residual: Chunk | None
    facts: BoxFacts
    retries: int


def box_tasks(starts: np.ndarray, done: np.ndarray) -> list[BoxTask]:
    """The distinct boxes that have slots not yet done, neighbours together. starts: (N, 2, 3); done: (N, 2)."""
    slots: dict[tuple[int, int, int], list[Slot]] = {}
    for pair, role in np.argwhere(~done).tolist():
        x, y, z = starts[pair, role].tolist()
        slots.setdefault((x, y, z), []).append(Slot(pair, role))
    return [BoxTask(start, tuple(slots[start])) for start in sorted(slots)]


def runs_of(tasks: Sequence[BoxTask], workers: int) -> list[list[BoxTask]]:
    """The tasks in runs: boxes over one another share chunks that are several sections deep."""
    longest = max(1, min(LONGEST_RUN, len(tasks) // (4 * workers)))
    columns = [list(column) for _, column in groupby(tasks, key=lambda task: task.start[:2])]
    return [column[first : first + longest] for column in columns for first in range(0, len(column), longest)]


def repeats(starts: np.ndarray) -> int:
    """How many pairs repeat an earlier one. starts: (N, 2, 3)."""
    return len(starts) - len(np.unique(starts.reshape(len(starts), 6), axis=0))
