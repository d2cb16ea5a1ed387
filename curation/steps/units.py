"""Units of work that go through a queue: what stands in one, and filling a queue with them.

A unit names a range of pairs, and the folder of shards in which it is missing. `job.json` in that folder says the rest.
It holds options and paths, no code; the worker makes what its own version of the toolkit makes of them, and refuses a
job whose shards that would not be.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ..datasets.shards import Shard
from ..progress import progress
from ..queues import UnitQueue
from .report import table
from .shard_job import ShardJob


class UnitFailure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a unit failed once. worker: on which machine, and in which process."""

    message: str
    trace: str
    worker: str


class Unit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A range of pairs, [first, last), that is to be a shard of a folder. job: `ShardJob.origin` of its job."""

    step: Literal["make_dataset", "generate_fields"]
    folder: str
    job: str
    first: int
    last: int
    failures: tuple[UnitFailure, ...] = ()

    @property
    def shard(self) -> Shard:
        """The shard that is to be made."""
        return Shard(self.first, self.last)

    def __str__(self) -> str:
        return f"pairs {self.first} to {self.last - 1} of {self.folder}"


@dataclass(frozen=True)
class Queued:
    """What was put into a queue, for the summary."""

    url: str
    units: int
    pairs: int
    folder: str

    def __str__(self) -> str:
        lines = [
            ("queue", self.url),
            ("units", f"{self.units}, of {self.pairs} pairs" if self.units else "none: all shards are there"),
            ("output", self.folder),
        ]
        return table(lines)


def fill_queue(url: str, job: ShardJob, folder: str, shards: Sequence[Shard]) -> Queued:
    """Put shards that are to be made into a queue. folder: as workers will find it."""
    path = folder.removeprefix("file://")
    folder = path if "://" in path else os.path.abspath(path)
    queue = UnitQueue(url)
    units = (Unit(job.step, folder, job.origin, shard.first, shard.last) for shard in shards)  # type: ignore[arg-type]
    with progress(len(shards), "units", "unit") as bar:

        def counted() -> Iterator[dict[str, Any]]:
            for unit in units:
                yield msgspec.to_builtins(unit)
                bar.update()

        queue.insert(counted())
    return Queued(url, len(shards), sum(shard.count for shard in shards), folder)
