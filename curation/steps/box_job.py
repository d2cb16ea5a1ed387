"""Box jobs: pairs of boxes, and the files that they are cut into, described as plain data.

make_dataset and download_image only describe their jobs. `plan_box_jobs` says what jobs would do, and `run_box_jobs`
does it. `BoxJob.of_shard` makes a smaller job out of a range of a job's pairs: that is the unit of work, which can be
done elsewhere, and which cuts the same boxes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import runner
from ..datasets.chunks import Chunk
from ..datasets.dataset import open_dataset
from ..datasets.earlier import NOWHERE, EarlierBoxes
from ..datasets.facts import SOURCE
from ..datasets.layout import Layout
from ..datasets.partial import is_finished, of_another_origin, partial_path
from ..datasets.shards import Shard
from ..datasets.writer import Writer
from ..errors import WorkError
from ..files import Existing, check_destination, lock_path, locked, make_folder
from ..pair_selection import Exclusion, are_listed
from ..progress import progress
from ..spec import parse_spec
from .box_tasks import BoxResult, BoxTask, box_tasks, repeats, runs_of
from .box_work import BoxWork
from .pair_quality import numbers_of_fields
from .report import Plan, Report, free_bytes, report_of

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..volumes.box_reader import BoxReader

# A commit follows once this many bytes were put, or once this much time has passed. A crash loses what was put since.
# Each commit costs processor time, so where boxes come fast it is the time that decides.
COMMIT_BYTES = 256 * 2**20
COMMIT_S = 5.0


@dataclass(frozen=True)
class OutputFile:
    """A dataset file to be made. earlier: the name pattern of files of another first pair, where that names them."""

    path: Path
    layout: Layout
    earlier: str | None = None

    def earlier_paths(self) -> list[Path]:
        """The files of which boxes may be kept: the one that is to be replaced, and those named for another pair."""
        paths = [self.path, *(sorted(self.path.parent.glob(self.earlier)) if self.earlier else [])]
        return [path for path in dict.fromkeys(paths) if path.exists()]

    def of_shard(self, shard: Shard) -> "OutputFile":
        """The file for a range of the pairs. It lies in a folder that has the whole file's name without `.h5`."""
        attributes = {
            **self.layout.attributes,
            "pairs": self.layout.main[0],
            "first": shard.first,
            "last": shard.last - 1,
        }
        attributes.pop("spec", None)  # of all pairs: it would be larger than what a shard holds of them
        layout = replace(self.layout.of_samples(np.arange(shard.first, shard.last)), attributes=attributes)
        return OutputFile(self.path.with_suffix("") / shard.name, layout)


@dataclass(frozen=True)
class BoxJob:
    """Pairs of boxes to be cut, and the files that they go to.

    work: how a box is cut. starts: (N, 2, 3) MIP-0 voxels. images, residuals: the image file, and the field file if
    the spec has a field; the field file holds the numbers of the pairs too, if its layout names them. min_valid: a pair
    is left out if either of its images has a smaller fraction of valid pixels. exclusion: for summaries, what was left
    out before, so that it is not among `starts`.
    """

    work: BoxWork
    starts: np.ndarray
    images: OutputFile
    residuals: OutputFile | None = None
    min_valid: float | None = None
    exclusion: Exclusion | None = None

    def files(self) -> list[OutputFile]:
        """The files that the job makes."""
        return [self.images] if self.residuals is None else [self.images, self.residuals]

    def of_shard(self, shard: Shard) -> "BoxJob":
        """The same job over a range of its pairs: a unit of work."""
        residuals = None if self.residuals is None else self.residuals.of_shard(shard)
        starts = self.starts[shard.first : shard.last]
        return replace(self, starts=starts, images=self.images.of_shard(shard), residuals=residuals)


def warm_up(parallel: int) -> None:
    """Begin to load what workers need, while this process goes on."""
    if parallel > 1:
        runner.warm_up("cloudvolume", "h5py", "isal", "msgspec")


def plan_box_jobs(jobs: Sequence[BoxJob], existing: Existing) -> Plan | list[Report]:
    """What running the jobs would do; whatever would keep them from starting is a `UsageError`.

    If nothing is left to do, what was made is reported, as running them would.
    """
    finished = _finished(jobs, existing)
    if _are_done(jobs, finished):
        return [_report_of_finished(job) for job in jobs]
    _check_destinations(jobs)
    with ExitStack() as stack:
        boxes = [_kept(job, finished, existing, stack) for job in jobs]
        kept = [each.mask(job.starts) & ~each.left_out[:, None] for job, each in zip(jobs, boxes, strict=True)]
    needless = [mask | each.left_out[:, None] for mask, each in zip(kept, boxes, strict=True)]
    readers = [_checked_reader(job, mask) for job, mask in zip(jobs, needless, strict=True)]
    paths = [file.path for job in jobs for file in job.files()]
    size = sum(file.layout.raw_bytes for job in jobs for file in job.files())
    plan = plan_of(tuple(map(str, paths)), jobs, needless, readers, size, free_bytes(paths[0].parent))
    return replace(plan, kept=sum(int(mask.sum()) for mask in kept))


def plan_of(
    outputs: tuple[str, ...],
    jobs: Sequence[BoxJob],
    needless: Sequence[np.ndarray],
    readers: Sequence["BoxReader | None"],
    size: int,
    free: int | None,
) -> Plan:
    """The plan of jobs with their readers, none of whose boxes are kept.

    needless: (N, 2) each, boxes not to be cut. size: of the raw output, bytes.
    """
    chunks = set()
    boxes = leaving = 0
    for job, mask, reader in zip(jobs, needless, readers, strict=True):
        if reader is None:
            continue
        for task in box_tasks(job.starts, mask):
            windows = [(volume, window) for _, volume, window in reader.windows(task.start)]
            chunks |= {(volume.path, volume.mip, at) for volume, window in windows for at in volume.chunks(window)}
            boxes += 1
            leaving += reader.leaves(task.start)
    return Plan(
        outputs=outputs,
        pairs=sum(len(job.starts) for job in jobs),
        boxes=boxes,
        repeated_pairs=sum(repeats(job.starts) for job in jobs),
        chunks=len(chunks),
        leaving=leaving,
        kept=0,
        output_bytes=size,
        free_bytes=free,
        exclusion=jobs[0].exclusion,
    )


def run_box_jobs(jobs: Sequence[BoxJob], parallel: int, existing: Existing) -> list[Report]:
    """Make every file that is not finished yet. Return one report for each job, also for those finished before.

    Nothing is touched if all files are finished.
    """
    if _are_done(jobs, _finished(jobs, existing)) and not _leftovers(jobs):
        return [_report_of_finished(job) for job in jobs]
    _check_destinations(jobs)
    with ExitStack() as stack:
        for job in jobs:
            make_folder(job.images.path.parent)
            stack.enter_context(locked(job.images.path))
        finished = _finished(jobs, existing)
        _discard(jobs, finished)
        if _are_done(jobs, finished):
            return [_report_of_finished(job) for job in jobs]
        warm_up(parallel)
        kept = [_kept(job, finished, existing, stack) for job in jobs]
        for job, boxes in zip(jobs, kept, strict=True):
            _checked_reader(job, boxes.mask(job.starts) | boxes.left_out[:, None])
        return [_run(job, finished, boxes, parallel) for job, boxes in zip(jobs, kept, strict=True)]


def _checked_reader(job: BoxJob, needless: np.ndarray) -> "BoxReader | None":
    """A reader of a job's volumes, seen to be able to read its boxes; None where none is to be cut.

    needless: (N, 2) bool, the boxes not to be cut.
    """
    return None if needless.all() else job.work.checked_reader(job.starts, needless)


def _finished(jobs: Sequence[BoxJob], existing: Existing) -> set[Path]:
    """The files that are finished. Raises `UsageError` if others are there that are to be left as they are."""
    files = [file for job in jobs for file in job.files()]
    return {file.path for file in files if is_finished(file.path, file.layout.provenance, existing)}


def _are_done(jobs: Sequence[BoxJob], finished: set[Path]) -> bool:
    return all(file.path in finished for job in jobs for file in job.files())


def _report_of_finished(job: BoxJob) -> Report:
    paths = [file.path for file in job.files()]
    return report_of(job.images.path, paths, done_already=True, exclusion=job.exclusion)


def _check_destinations(jobs: Sequence[BoxJob]) -> None:
    for folder in {job.images.path.parent for job in jobs}:
        check_destination(folder)


def _leftovers(jobs: Sequence[BoxJob]) -> bool:
    """Whether a run that was killed has left files, or another run is at work."""
    locks = [lock_path(job.images.path) for job in jobs]
    return any(path.exists() for path in (*locks, *(partial_path(file.path) for job in jobs for file in job.files())))


def _discard(jobs: Sequence[BoxJob], finished: set[Path]) -> None:
    """Delete partial files of finished ones, left by a kill amid publishing, and those that were begun otherwise.

    A job's files were begun together: if one of them is of another origin, all are given up.
    """
    for job in jobs:
        files = job.files()
        foreign = any(of_another_origin(partial_path(file.path), file.layout.provenance) for file in files)
        for file in files:
            if foreign or file.path in finished:
                partial_path(file.path).unlink(missing_ok=True)


@dataclass(frozen=True)
class _KeptBoxes:
    """The boxes that a job's unfinished files take from earlier ones, by the files' paths; finished: none is left.

    left_out: (N,) bool, the pairs of which it is known that their valid area is too small: their boxes are not wanted.
    """

    earlier: Mapping[Path, EarlierBoxes]
    finished: bool
    left_out: np.ndarray

    def mask(self, starts: np.ndarray) -> np.ndarray:
        """(N, 2) bool: the boxes that need not be cut, as far as can be told before their bytes are looked at."""
        mask = np.full(starts.shape[:2], self.finished or bool(self.earlier))
        for boxes in self.earlier.values():
            mask &= boxes.places(starts) != NOWHERE
        return mask


def _kept(job: BoxJob, finished: set[Path], existing: Existing, stack: ExitStack) -> _KeptBoxes:
    left = [file for file in job.files() if file.path not in finished]
    earlier = {}
    if existing is Existing.UPDATED:
        roles_alike = job.residuals is None
        for file in left:
            earlier[file.path] = stack.enter_context(EarlierBoxes(file.earlier_paths(), file.layout, roles_alike))
    return _KeptBoxes(earlier, finished=not left, left_out=_known_left_out(job, finished, earlier))


def _known_left_out(job: BoxJob, finished: set[Path], earlier: Mapping[Path, EarlierBoxes]) -> np.ndarray:
    """(N,) bool: the pairs that the finished image file leaves out, or that earlier ones did, with no larger a limit.

    They have no boxes there: without this, an update would cut them, to leave them out again.
    """
    left_out = np.zeros(len(job.starts), bool)
    if job.images.path in finished:
        return ~_pairs_of_finished(job)
    if job.min_valid is not None and job.images.path in earlier:
        for least, spec, places in earlier[job.images.path].left_out():
            if least <= job.min_valid:
                left_out |= are_listed(job.starts, parse_spec(spec.encode()).starts()[places])
    return left_out


def _run(job: BoxJob, finished: set[Path], kept: _KeptBoxes, parallel: int) -> Report:
    paths = [file.path for file in job.files()]
    if finished.issuperset(paths):
        return _report_of_finished(job)
    with ExitStack() as stack:

        def opened(file: OutputFile | None) -> Writer | None:
            if file is None or file.path in finished:
                return None
            return stack.enter_context(Writer(file.path, file.layout))

        images, residuals = opened(job.images), opened(job.residuals)
        files = BoxFiles(images, residuals)
        resumed = files.done(len(job.starts))
        files.keep(kept.earlier, job.starts, kept.left_out)
        done = files.done(len(job.starts))
        needless = done | kept.left_out[:, None]
        retries = cut_boxes(job.work, box_tasks(job.starts, needless), parallel, files.put)
        keep = _pairs_to_keep(job, images, kept.left_out)
        numbers = measured_numbers(job, images, residuals, keep, parallel, kept.earlier)
        for writer in files.writers():
            writer.finish(keep, numbers)
    others = {path for boxes in kept.earlier.values() for path in boxes.paths} - set(paths)
    return report_of(
        job.images.path,
        paths,
        resumed=int(resumed[keep].sum()),
        kept=int(done[keep].sum() - resumed[keep].sum()),
        kept_from=tuple(sorted(map(str, others))),
        retries=retries,
        exclusion=job.exclusion,
    )


def _pairs_of_finished(job: BoxJob) -> np.ndarray:
    """(N,) bool: the pairs that are in the image file, which is finished."""
    data = open_dataset(job.images.path)
    with data.file:
        return np.isin(job.images.layout.arrays["pair"], data.file["pair"][:])


def _pairs_to_keep(job: BoxJob, images: Writer | None, left_out: np.ndarray) -> np.ndarray:
    """(N,) bool: the pairs that go into the files. If the image file is finished already, its pairs are the ones."""
    if images is None or job.min_valid is None:
        return ~left_out
    keep = (images.facts["valid"] >= job.min_valid).all(axis=1) & ~left_out
    if not keep.any():
        least = f"{job.min_valid:g}"
        raise WorkError(f"no pair has a valid area of {least} in both images; the same with a lower --min_valid?")
    return np.asarray(keep)


def measured_numbers(
    job: BoxJob,
    images: Writer | None,
    residuals: Writer | None,
    keep: np.ndarray,
    parallel: int,
    earlier: Mapping[Path, EarlierBoxes],
) -> dict[str, np.ndarray]:
    """The numbers of the pairs that are kept, (N,) by name, if the unfinished field file is to hold them.

    They are measured, or those of earlier files.
    """
    if residuals is None or not residuals.layout.pair_facts:
        return {}
    known, stored = np.zeros(len(keep), bool), dict[str, np.ndarray]()
    if residuals.target in earlier:
        known, stored = earlier[residuals.target].pair_facts(job.starts, residuals.layout.pair_facts)
    left = keep & ~known
    with ExitStack() as stack:
        if images is None:  # finished, and holds only the pairs that are kept
            path, places = job.images.path, np.cumsum(keep) - 1
        else:
            path, places = stack.enter_context(images.readable()), np.arange(len(keep))
        fields = stack.enter_context(residuals.readable())
        numbers = numbers_of_fields(path, fields, places[left].tolist(), len(keep), parallel)
    for name, values in stored.items():
        numbers[name][known] = values
    return numbers


def cut_boxes(work: BoxWork, tasks: Sequence[BoxTask], workers: int, put: Callable[[BoxTask, BoxResult], None]) -> int:
    """Have all boxes cut, and call `put` with each. Return how many readings had to be tried again."""
    if not tasks:
        return 0
    retries = 0
    runs = runs_of(tasks, workers)
    numbered = [task for run in runs for task in run]
    with (
        progress(len(tasks), "boxes cut", "box") as bar,
        closing(runner.run(work, runs, workers, Waiting(bar), work.result_bytes)) as results,
    ):
        for number, result in results:
            put(numbered[number], result)
            retries += result.retries
            bar.update()
    return retries


class Waiting:
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


class BoxFiles:
    """The files of a job that are not finished. A box that was put is committed after COMMIT_BYTES or COMMIT_S.

    resumable: whether another process can go on with them; if not, there is nothing to be committed for.
    """

    def __init__(self, images: Writer | None, residuals: Writer | None, resumable: bool = True) -> None:
        self._images = images
        self._residuals = residuals
        self._resumable = resumable
        self._uncommitted = 0
        self._committed_at = time.monotonic()

    def writers(self) -> list[Writer]:
        """The writers that there are, the image file's first."""
        return [writer for writer in (self._images, self._residuals) if writer is not None]

    def done(self, pairs: int) -> np.ndarray:
        """(N, 2) bool: the boxes that need not be cut again."""
        done = np.ones((pairs, 2), bool)
        for writer in self.writers():
            done &= writer.done
        return done

    def keep(self, earlier: Mapping[Path, EarlierBoxes], starts: np.ndarray, left_out: np.ndarray) -> None:
        """Store all boxes that are in earlier files, and undamaged there, but those of pairs that are left out.

        starts: (N, 2, 3). left_out: (N,) bool.
        """
        for writer in self.writers():
            if writer.target not in earlier:
                continue
            boxes = earlier[writer.target]
            places = np.where(writer.done | left_out[:, None], NOWHERE, boxes.places(starts))
            found = np.argwhere(places != NOWHERE).tolist()
            if not found:
                continue
            with progress(len(found), "images kept", "image") as bar:
                for pair, role in found:
                    if (box := boxes.box(int(places[pair, role]))) is not None:
                        self._put(writer, pair, role, *box)
                    bar.update()
            self._commit()

    def put(self, task: BoxTask, result: BoxResult) -> None:
        """Store a box in each of its slots that is still empty."""
        for slot in task.slots:
            is_source = slot.role == SOURCE
            image = result.source if is_source else result.target
            residual = result.residual if is_source else None
            for writer, chunk in ((self._images, image), (self._residuals, residual)):
                if writer is not None and not writer.has(slot.pair, slot.role):
                    self._put(writer, slot.pair, slot.role, chunk, result.facts.by_name())

    def _put(self, writer: Writer, pair: int, role: int, chunk: Chunk | None, facts: Mapping[str, Any]) -> None:
        writer.put(pair, role, chunk, facts)
        self._uncommitted += 0 if chunk is None else len(chunk.data)
        if not self._resumable:
            return
        if self._uncommitted >= COMMIT_BYTES or time.monotonic() - self._committed_at >= COMMIT_S:
            self._commit()

    def _commit(self) -> None:
        for writer in self.writers():
            writer.commit()
        self._uncommitted = 0
        self._committed_at = time.monotonic()
