"""Box jobs: pairs of boxes, and the files that they are cut into, described as plain data and run by one function.

make_dataset and download_image only describe their jobs. A job over a range of its pairs is a job again (`of_shard`):
the unit of work that may be done elsewhere, with the same boxes cut in the same way.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from .. import runner
from ..datasets.chunks import Chunk
from ..datasets.dataset import open_dataset
from ..datasets.facts import SOURCE
from ..datasets.layout import Layout
from ..datasets.partial import is_finished, partial_path
from ..datasets.shards import Shard
from ..datasets.writer import Writer
from ..errors import UsageError, WorkError
from ..files import locked
from .box_tasks import BoxResult, BoxTask, Slot, box_tasks, repeats, runs_of
from .box_work import BoxWork
from .report import Plan, Report, free_bytes, report_of

if TYPE_CHECKING:
    from ..volumes.box_reader import BoxReader

COMMIT_BYTES = 64 * 2**20  # written, or ...
COMMIT_S = 5.0  # ... time passed, between two commits: what a crash can lose


@dataclass(frozen=True)
class OutputFile:
    """A dataset file to be made."""

    path: Path
    layout: Layout

    def of_shard(self, shard: Shard) -> "OutputFile":
        """The file of a range of its pairs: it lies in a folder named as the whole file is."""
        attributes = {
            **self.layout.attributes,
            "pairs": self.layout.main[0],
            "first": shard.first,
            "last": shard.last - 1,
        }
        layout = replace(self.layout.of_samples(np.arange(shard.first, shard.last)), attributes=attributes)
        return OutputFile(self.path.with_suffix("") / shard.name, layout)


@dataclass(frozen=True)
class BoxJob:
    """Pairs of boxes to be cut, and the files that they go to.

    work: how a box is cut. starts: (N, 2, 3) MIP-0 voxels. images, residuals: the image file, and the field file if
    the spec has a field. min_valid: pairs of which either image has a smaller fraction of valid pixels are left out.
    """

    work: BoxWork
    starts: np.ndarray
    images: OutputFile
    residuals: OutputFile | None = None
    min_valid: float | None = None

    def files(self) -> list[OutputFile]:
        """The files that the job makes."""
        return [self.images] if self.residuals is None else [self.images, self.residuals]

    def of_shard(self, shard: Shard) -> "BoxJob":
        """The same job over a range of its pairs: a unit of work."""
        residuals = None if self.residuals is None else self.residuals.of_shard(shard)
        starts = self.starts[shard.first : shard.last]
        return replace(self, starts=starts, images=self.images.of_shard(shard), residuals=residuals)

    def tasks(self) -> list[BoxTask]:
        """All its distinct boxes."""
        return box_tasks(self.starts, np.zeros(self.starts.shape[:2], bool))


def warm_up(parallel: int) -> None:
    """Begin to load what workers need, while this process goes on."""
    if parallel > 1:
        runner.warm_up("cloudvolume", "h5py", "isal", "msgspec")


def plan_box_jobs(jobs: Sequence[BoxJob], overwrite: bool) -> Plan:
    """What running the jobs would do; whatever would keep them from starting is a `UsageError`."""
    _check_unfinished(jobs, _finished(jobs, overwrite))
    readers = [job.work.checked_reader(job.starts) for job in jobs]
    paths = [file.path for job in jobs for file in job.files()]
    size = sum(file.layout.raw_bytes for job in jobs for file in job.files())
    return plan_of(tuple(map(str, paths)), jobs, readers, size, free_bytes(paths[0].parent))


def plan_of(
    outputs: tuple[str, ...], jobs: Sequence[BoxJob], readers: Sequence["BoxReader"], size: int, free: int | None
) -> Plan:
    """The plan of jobs with their readers. size: of the output without compression, in bytes."""
    chunks = set()
    boxes = leaving = 0
    for job, reader in zip(jobs, readers, strict=True):
        for task in job.tasks():
            windows = [(volume, window) for _, volume, window in reader.windows(task.start)]
            chunks |= {(volume.path, volume.mip, at) for volume, window in windows for at in volume.chunks(window)}
            boxes += 1
            leaving += any(volume.overlap(window) < 1 for volume, window in windows)
    pairs = sum(len(job.starts) for job in jobs)
    return Plan(outputs, pairs, boxes, sum(repeats(job.starts) for job in jobs), len(chunks), leaving, size, free)


def run_box_jobs(jobs: Sequence[BoxJob], parallel: int, overwrite: bool) -> list[Report]:
    """Make the files of all jobs that are not finished; a report of each job, finished or made."""
    with ExitStack() as stack:
        for job in jobs:
            stack.enter_context(locked(job.images.path))
        finished = _finished(jobs, overwrite)
        for path in finished:  # a run that was killed right after it finished leaves its partial file
            partial_path(path).unlink(missing_ok=True)
        _check_unfinished(jobs, finished)
        warm_up(parallel)
        for job in jobs:
            job.work.checked_reader(job.starts)
        return [_run(job, finished, parallel) for job in jobs]


def _finished(jobs: Sequence[BoxJob], overwrite: bool) -> set[Path]:
    """The files that are finished; a `UsageError` if something else made or began one of them."""
    files = [file for job in jobs for file in job.files()]
    return {file.path for file in files if is_finished(file.path, file.layout.provenance, overwrite)}


def _check_unfinished(jobs: Sequence[BoxJob], finished: set[Path]) -> None:
    """Refuse jobs of which nothing is left to do."""
    if all(file.path in finished for job in jobs for file in job.files()):
        raise UsageError(f"{jobs[0].images.path} is there already, finished: --overwrite replaces it")


def _run(job: BoxJob, finished: set[Path], parallel: int) -> Report:
    paths = [file.path for file in job.files()]
    if finished.issuperset(paths):
        return report_of(job.images.path, paths, job.starts.size // 3)
    with ExitStack() as stack:
        images, residuals = (
            stack.enter_context(Writer(file.path, file.layout)) if file and file.path not in finished else None
            for file in (job.images, job.residuals)
        )
        files = BoxFiles(len(job.starts), images, residuals)
        done = files.done()
        retries = cut_boxes(job.work, box_tasks(job.starts, done), parallel, files.put)
        keep = _kept(job, images)
        for writer in files.writers():
            writer.finish(keep)
    return report_of(job.images.path, paths, int(done.sum()), retries)


def _kept(job: BoxJob, images: Writer | None) -> np.ndarray:
    """(N,) bool: the pairs that go into the files. An image file finished before the field file has decided it."""
    if images is None:
        data = open_dataset(job.images.path)
        with data.file:
            return np.isin(np.arange(len(job.starts)), data.file["pair"][:])
    if job.min_valid is None:
        return np.ones(len(job.starts), bool)
    keep = (images.facts["valid"] >= job.min_valid).all(axis=1)
    if not keep.any():
        least = f"{job.min_valid:g}"
        raise WorkError(f"no pair has a valid area of {least} in both images; the same with a lower --min_valid?")
    return np.asarray(keep)


def cut_boxes(work: BoxWork, tasks: Sequence[BoxTask], workers: int, put: Callable[[BoxTask, BoxResult], None]) -> int:
    """Have all boxes cut, and `put` each where it goes; how many readings had to be tried again."""
    retries = 0
    runs = runs_of(tasks, workers)
    numbered = [task for run in runs for task in run]
    with (
        tqdm(total=len(tasks), desc="boxes", unit="box") as bar,
        closing(runner.run(work, runs, workers, _Waiting(bar))) as results,
    ):
        for number, result in results:
            put(numbered[number], result)
            retries += result.retries
            bar.update()
    return retries


class _Waiting:
    """Shows on a bar since when workers wait for a store: the first of them, where several do."""

    def __init__(self, bar: "tqdm[Any]") -> None:
        self._bar = bar
        self._since: dict[int, float] = {}

    def __call__(self, worker: int, since: float | None) -> None:
        self._since.pop(worker, None)
        if since is not None:
            self._since[worker] = since
        first = min(self._since.values(), default=None)
        text = (
            "" if first is None else f"waiting for the store since {time.strftime('%H:%M:%S', time.localtime(first))}"
        )
        self._bar.set_postfix_str(text)


@dataclass
class BoxFiles:
    """The files of a job that are not finished yet: boxes are put into them, and committed now and then."""

    pairs: int
    images: Writer | None
    residuals: Writer | None
    _uncommitted: int = field(default=0, init=False)
    _committed_at: float = field(default_factory=time.monotonic, init=False)

    def done(self) -> np.ndarray:
        """(N, 2) bool: the boxes that need not be cut again."""
        done = np.ones((self.pairs, 2), bool)
        for writer in self.writers():
            done &= writer.done
        return done

    def put(self, task: BoxTask, result: BoxResult) -> None:
        """Put a box into all its slots that do not have it yet."""
        for slot in task.slots:
            is_source = slot.role == SOURCE
            if self.images is not None and not self.images.done[slot.pair, slot.role]:
                self._put(self.images, slot, result.source if is_source else result.target, result)
            if self.residuals is not None and not self.residuals.done[slot.pair, slot.role]:
                self._put(self.residuals, slot, result.residual if is_source else None, result)
        if self._uncommitted >= COMMIT_BYTES or time.monotonic() - self._committed_at >= COMMIT_S:
            self._commit()

    def _put(self, writer: Writer, slot: Slot, chunk: Chunk | None, result: BoxResult) -> None:
        writer.put(slot.pair, slot.role, chunk, result.facts.by_name())
        self._uncommitted += len(chunk.data) if chunk else 0

    def _commit(self) -> None:
        for writer in self.writers():
            writer.commit()
        self._uncommitted = 0
        self._committed_at = time.monotonic()

    def writers(self) -> list[Writer]:
        """The writers that there are, the image file's first."""
        return [writer for writer in (self.images, self.residuals) if writer is not None]
