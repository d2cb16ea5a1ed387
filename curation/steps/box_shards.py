"""Cutting a spec's pairs into shards: each worker makes whole shards by itself, on any number of machines.

In one file, one process writes what all workers cut. Here nothing is shared: a worker takes a range of pairs, cuts its
boxes, and writes its files, an image shard and a field shard. So nothing but the store limits how many workers there
may be. The files of a shard do not depend on who makes it, or on when, byte for byte.
"""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import parent_process

import numpy as np

from .. import runner
from ..array_task import ArrayTask
from ..datasets.partial import own_partial_path
from ..datasets.shard_store import ShardStore, shard_store
from ..datasets.shards import JOB_FILE, SPEC_FILE, Shard
from ..datasets.writer import Writer
from ..errors import WorkError
from ..progress import progress, silence
from ..spec import Spec
from .box_job import BoxFiles, BoxJob, OutputFile, Waiting, measured_numbers, warm_up
from .box_tasks import box_tasks
from .box_work import Cut
from .shard_job import (
    OtherJobError,
    ShardJob,
    ShardsMade,
    ShardStatus,
    check_claim,
    check_still_of,
    claim,
    failures_text,
    forget_failure,
    message_of,
    note_failure,
    status_of,
)


@dataclass(frozen=True)
class BoxShardResult:
    """What came of a shard. message, trace: why it could not be made, "" if it was made."""

    retries: int = 0
    message: str = ""
    trace: str = ""


@dataclass(frozen=True)
class BoxShardWork:
    """What a worker does: it makes shards of a job's files.

    folders: where they go, one for each file of the job. origin: `ShardJob.origin` of the job that has the folders.
    """

    job: BoxJob
    folders: tuple[str, ...]
    origin: str

    def stores(self) -> list[ShardStore]:
        """The folders, the images' first."""
        return list(map(shard_store, self.folders))

    def __call__(self, worker: int, shards: Iterator[tuple[int, Shard]]) -> Iterator[tuple[int, BoxShardResult]]:
        if parent_process() is not None:
            silence()  # the bar is the parent's
        stores = self.stores()
        with self.job.work.opened() as cut:
            for number, shard in shards:
                yield number, self._tried(shard, stores, cut)

    def _tried(self, shard: Shard, stores: Sequence[ShardStore], cut: Cut) -> BoxShardResult:
        """Make a shard. A failure is told in the result, and beside the shards: the others are made all the same."""
        try:
            retries = self._make(shard, stores, cut)
        except OtherJobError:
            raise
        except Exception as error:
            message, trace = message_of(error), traceback.format_exc()
            note_failure(stores[0], shard, message, trace)
            return BoxShardResult(message=message, trace=trace)
        forget_failure(stores[0], shard)
        return BoxShardResult(retries)

    def _make(self, shard: Shard, stores: Sequence[ShardStore], cut: Cut) -> int:
        """Write the files of a shard. Return how many readings had to be tried again."""
        part = self.job.of_shard(shard)
        with ExitStack() as stack:
            made = zip(stores, part.files(), strict=True)
            writers = [stack.enter_context(_writer(store, file, shard)) for store, file in made]
            images, residuals = [*writers, None][:2]
            files = BoxFiles(images, residuals, resumable=False)
            tasks = box_tasks(part.starts, np.zeros(part.starts.shape[:2], bool))
            retries = 0
            for number, result in cut(enumerate(tasks)):
                files.put(tasks[number], result)
                retries += result.retries
            every = np.ones(len(part.starts), bool)
            numbers = measured_numbers(part, images, residuals, every, 1, {})
            check_still_of(stores[0], self.origin)
            for writer in writers:
                writer.finish(pair_facts=numbers)
        return retries


@contextmanager
def _writer(store: ShardStore, file: OutputFile, shard: Shard) -> Iterator[Writer]:
    """Writes a shard's file, which goes into the folder when the block ends."""
    with store.place(shard.name) as target:
        partial = own_partial_path(target)
        try:
            with Writer(target, file.layout, partial) as writer:
                yield writer
        finally:
            partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class ShardedBoxes:
    """A job whose files are made in shards. spec: with all its pairs."""

    work: BoxShardWork
    job: ShardJob
    spec: Spec

    def status(self) -> ShardStatus:
        """How far it is."""
        return status_of(self.work.stores(), self.job)

    def missing(self, task: ArrayTask | None = None) -> list[Shard]:
        """The shards that are left to be made, of a task of an array or of all."""
        names = [set(store.names()) for store in self.work.stores()]
        return [
            shard
            for shard in self.job.of_task(self.job.missing([]), task)
            if any(shard.name not in each for each in names)
        ]

    def needless(self, shards: Sequence[Shard]) -> np.ndarray:
        """(N, 2) bool: the boxes that are in none of some shards."""
        mask = np.ones(self.work.job.starts.shape[:2], bool)
        for shard in shards:
            mask[shard.first : shard.last] = False
        return mask

    def check(self, shards: Sequence[Shard]) -> None:
        """See that some shards can be made; a `UsageError` if not."""
        self.work.job.work.checked_reader(self.work.job.starts, self.needless(shards))

    def begin(self, shards: Sequence[Shard]) -> None:
        """See that some shards can be made, and leave word in the folders of what they are to hold."""
        self.check(shards)
        for store in self.work.stores():
            store.begin()
            check_claim(store, self.job)  # again: another job may have begun there while the volumes were looked at
            if not (store.has(JOB_FILE) and store.has(SPEC_FILE)):
                store.put_text(SPEC_FILE, self.spec.text())  # before the claim, which lets others read it
            claim(store, self.job)
            store.tidy()


def run_shards(boxes: ShardedBoxes, parallel: int, task: ArrayTask | None = None) -> ShardsMade:
    """Make the shards that are not there, all of them or those of a task of an array, in this machine's processes.

    A shard that fails keeps no other from being made; if one did, a `WorkError` says so at the end.
    """
    shards = boxes.missing(task)
    failed, retries = [], 0
    if shards:
        warm_up(parallel)
        boxes.begin(shards)
        with (
            progress(sum(shard.count for shard in shards), "pairs", "pair") as bar,
            closing(runner.run(boxes.work, [[shard] for shard in shards], parallel, Waiting(bar))) as results,
        ):
            for number, result in results:
                retries += result.retries
                if result.message:
                    failed.append((shards[number], result.message))
                bar.update(shards[number].count)
    if failed:
        raise WorkError(failures_text(failed))
    return ShardsMade(len(shards), retries, boxes.status())


def without_spec(job: BoxJob) -> BoxJob:
    """The job without the spec's text in its files' layouts: workers are given the job, and shards do not hold it."""

    def lighter(file: OutputFile) -> OutputFile:
        kept = {name: value for name, value in file.layout.attributes.items() if name != "spec"}
        return replace(file, layout=replace(file.layout, attributes=kept))

    residuals = None if job.residuals is None else lighter(job.residuals)
    return replace(job, images=lighter(job.images), residuals=residuals)
