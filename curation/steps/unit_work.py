"""Doing units of work in a worker process, whatever jobs they are of."""

import os
import socket
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..datasets.shard_store import ShardStore, shard_store
from ..datasets.shards import JOB_FILE, Shard
from ..errors import UsageError, WorkError
from ..runner import Work
from .devices import Workers
from .shard_job import OtherJobError, ShardJob, forget_failure, found_job, message_of, note_failure
from .units import Unit, UnitFailure

LONGEST_TRACE = 8000  # characters of a traceback that travel with a unit: a message of SQS has 256 KiB
LONGEST_MESSAGE = 2000  # characters of what an error says, which may list all weights of a module


@dataclass(frozen=True)
class UnitResult:
    """What came of a unit; failure is None if its shard is there. is_final: nobody can do it, now or later."""

    failure: UnitFailure | None = None
    is_final: bool = False


@dataclass(frozen=True)
class _JobWork:
    """What makes the shards of a job, and the folders where they go; job: `ShardJob.origin`."""

    folder: str
    job: str
    work: Work[Shard, Any]
    stores: Sequence[ShardStore]

    def is_of(self, unit: Unit) -> bool:
        return (self.folder, self.job) == (unit.folder, unit.job)

    def has(self, shard: Shard) -> bool:
        """Whether the shard is there already: another worker may have had the unit too."""
        return all(store.has(shard.name) for store in self.stores)


class UnitWork:
    """What a worker does with units: the work of the job that each is of. It keeps that of the last one."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._last: _JobWork | None = None

    def __call__(self, worker: int, units: Iterator[tuple[int, Unit]]) -> Iterator[tuple[int, UnitResult]]:
        first = next(units, None)
        while first is not None:
            stream = _OneJob(first, units)
            yield from self._of_one_job(worker, stream)
            first = stream.other or next(units, None)  # a failure may have ended the stream sooner

    def _of_one_job(self, worker: int, stream: "_OneJob") -> Iterator[tuple[int, UnitResult]]:
        """Do units of one job. If several are in hand when something fails, each is done again alone, to see which."""
        try:
            job = self._job(stream.first)
            for number, result in job.work(worker, stream.shards(job)):
                unit = stream.in_hand.pop(number)
                yield number, _result(job.stores[0], unit, result.message, result.trace)
                yield from stream.found_there()
            yield from stream.found_there()
        except OtherJobError as error:  # the folder is another job's, so no word is left there
            self._last = None
            yield from stream.found_there()
            for number in list(stream.in_hand):
                yield number, UnitResult(failure_of(message_of(error), ""), is_final=True)
        except Exception as error:
            yield from stream.found_there()
            in_hand = dict(stream.in_hand)
            if len(in_hand) > 1:
                for number, unit in in_hand.items():
                    yield from self._of_one_job(worker, _OneJob((number, unit), iter(())))
                return
            for number, unit in in_hand.items():
                store = shard_store(unit.folder)
                yield number, _result(store, unit, message_of(error), traceback.format_exc())

    def _job(self, unit: Unit) -> _JobWork:
        """The work of a unit's job, as `job.json` in its folder describes it."""
        if self._last is not None and self._last.is_of(unit):
            return self._last
        store = shard_store(unit.folder)
        job = found_job(store)
        if job is None:
            raise UsageError(f"{unit.folder}: no {JOB_FILE} there; does this machine see the folder?")
        if (job.step, job.origin) != (unit.step, unit.job):
            raise OtherJobError(f"{unit.folder}: belongs to another job than the unit")
        self._last = None  # which may hold a module in the memory of a GPU
        self._last = _JobWork(unit.folder, unit.job, *self._work(unit.folder, job))
        for each in self._last.stores:
            each.tidy()  # a worker that was killed may have been this one's predecessor
        return self._last

    def _work(self, folder: str, job: ShardJob) -> tuple[Work[Shard, Any], Sequence[ShardStore]]:
        if job.step == "make_dataset":
            from .make_dataset import shard_work

            boxes = shard_work(folder, job)
            return boxes, boxes.stores()
        from .generate_fields import shard_work as field_shard_work

        return field_shard_work(folder, job, self._workers), [shard_store(folder)]


class _OneJob:
    """The units of a stream that are of the first one's job. other: the one that ended them.

    in_hand: the units, by their numbers, that were taken and not answered yet.
    """

    def __init__(self, first: tuple[int, Unit], units: Iterator[tuple[int, Unit]]) -> None:
        self.first = first[1]
        self.other: tuple[int, Unit] | None = None
        self.in_hand = {first[0]: first[1]}
        self._next: tuple[int, Unit] | None = first
        self._units = units
        self._there: list[int] = []

    def shards(self, job: _JobWork) -> Iterator[tuple[int, Shard]]:
        """The shards that are to be made."""
        while self._next is not None:
            number, unit = self._next
            self.in_hand[number] = unit
            if job.has(unit.shard):
                self._there.append(number)
            else:
                yield number, unit.shard
            self._next = next(self._units, None)
            if self._next is not None and not job.is_of(self._next[1]):
                self.other, self._next = self._next, None

    def found_there(self) -> Iterator[tuple[int, UnitResult]]:
        """The units whose shards need not be made."""
        while self._there:
            number = self._there.pop()
            del self.in_hand[number]
            yield number, UnitResult()


def _result(store: ShardStore, unit: Unit, message: str, trace: str) -> UnitResult:
    """Leave word beside the shards of a failure, or take it back; that may fail itself, if the folder is at fault."""
    if not message:
        forget_failure(store, unit.shard)
        return UnitResult()
    with suppress(UsageError, WorkError, OSError):
        note_failure(store, unit.shard, message, trace)
    return UnitResult(failure_of(message, trace))


def failure_of(message: str, trace: str) -> UnitFailure:
    """A failure, as it travels with a unit."""
    return UnitFailure(
        message[:LONGEST_MESSAGE], trace[-LONGEST_TRACE:], f"process {os.getpid()} on {socket.gethostname()}"
    )
