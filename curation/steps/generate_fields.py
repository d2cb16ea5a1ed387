"""Running one aligner module over a dataset, in shards.

A shard is a range of pairs and the file that holds their fields. Workers, one for each GPU or several on the CPU, take
shards from a common queue. A shard appears when it is whole, so the shards that are there are the work that is done.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .. import fields, runner
from ..aligners.pyramid import Module, check_params, content_hash, find_module
from ..aligners.tiles import Tiling
from ..array_task import array_task, local_share
from ..datasets.collection import files_of
from ..datasets.dataset import open_dataset
from ..datasets.facts import QUALITY_FACTS
from ..datasets.probe import check_undamaged
from ..datasets.shard_store import ShardStore, shard_store, stored_shards
from ..datasets.shards import JOB_FILE, Shard, shard_size
from ..errors import UsageError, WorkError, numbered
from ..files import check_destination, locked, make_folder
from ..progress import progress
from ..provenance import Provenance, differences, provenance
from .devices import FLOAT32, Workers, check_precision, cores_each, expected_workers, find_workers
from .field_inputs import FieldInputs, Matched
from .field_shards import LOCKED, FoundShards, find_shards, has_spec, move_aside, put_spec
from .field_work import Failure, FieldWork, GenerateFieldsOptions, tried
from .kept_fields import KeptFields, kept_fields
from .pair_quality import QualityTable
from .report import free_bytes, size_text, table
from .shard_job import (
    ShardJob,
    ShardsMade,
    ShardStatus,
    check_claim,
    claim,
    forget_failure,
    found_job,
    note_failure,
    status_of,
)
from .units import Queued, fill_queue


@dataclass(frozen=True)
class Generated:
    """What the shards hold, for the summary.

    resumed: pairs that were in shards of this origin. kept: fields taken from shards of another origin; None if there
    were none. done: nothing was left to be made.
    """

    folder: str
    matched: Matched
    resumed: int
    kept: int | None
    done: bool
    not_run: int
    with_nonfinite: int
    failed: tuple[int, ...]
    quality: QualityTable | None

    def __str__(self) -> str:
        found = "done already" if self.done else f"{self.resumed} of them found done"
        lines = [
            ("output", self.folder),
            ("pairs", f"{self.matched.pairs}, {found}"),
            *self.matched.lines(),
            *self._update(),
            ("not run", f"{self.not_run}, an image being all 0"),
            ("not finite", f"{self.with_nonfinite} fields with such vectors"),
            *([("failed", f"{len(self.failed)} ({numbered(self.failed)})")] if self.failed else []),
            *(self.quality.lines() if self.quality else []),
        ]
        return table(lines)

    def _update(self) -> Iterator[tuple[str, str]]:
        if self.kept is not None:
            yield "fields", f"{self.kept} kept, {self.matched.pairs - self.resumed - self.kept} made"


@dataclass(frozen=True)
class FieldsPlan:
    """What generate_fields would do, for --dry_run."""

    module: Module
    workers: Workers
    precision: str
    tiling: Tiling | None
    size: tuple[int, int]  # of the images, in pixels
    matched: Matched
    shards: tuple[Shard, ...]
    others: int  # shards of another origin
    output_bytes: int
    free_bytes: int | None
    tried: int | None  # the pair that the module was tried on

    def __str__(self) -> str:
        left = sum(shard.count for shard in self.shards)
        free = "" if self.free_bytes is None else f"; {size_text(self.free_bytes)} are free there"
        replaced = f"; {self.others} of another origin go, once the fields in them that are right were copied"
        replaced = replaced if self.others else ""
        lines = [
            ("module", str(self.module.folder)),
            ("workers", str(self.workers)),
            ("precision", self.precision),
            ("tiles", self._tiles()),
            ("pairs", f"{self.matched.pairs}, {self.matched.pairs - left} of them found done"),
            *self.matched.lines(),
            ("shards to make", str(len(self.shards)) + replaced),
            *([] if self.tried is None else [("tried", f"on pair {self.tried}, without an error")]),
            ("output size", f"up to {size_text(self.output_bytes)}{free}"),
        ]
        return table(lines)

    def _tiles(self) -> str:
        if self.tiling is None or self.tiling.covers(self.size):
            return "none: each pair is run whole"
        width, height = (min(length, self.tiling.size) for length in self.size)
        count = self.tiling.count(self.size)
        times = count * width * height / (self.size[0] * self.size[1])
        return f"{count} a pair, of {width} x {height} pixels: {times:.1f} times the pixels of the pair"


def generate_fields(
    options: GenerateFieldsOptions,
) -> Generated | FieldsPlan | ShardsMade | ShardStatus | Queued:
    """Write the shards that are not there yet of one stage's fields over an image file, or a folder of its shards.

    Where all are there nothing is touched. With `dry_run` only say what would be done. With `task` only a part of the
    shards is written, with `queue` they are queued, and with `status` is said how many there are.
    """
    module, inputs, made_of = _prepared(options)
    if options.status or options.task is not None or options.queue is not None:
        return _a_part(options, module, inputs, made_of)
    folder = Path(options.temp_dir)
    there = find_shards(folder, made_of, options.failed, options.update)
    spec = inputs.images.spec_beside
    if there.are_all(inputs.pairs) and (options.dry_run or (there.is_tidy and has_spec(folder, spec))):
        return _generated(options, inputs, there.shards, done=True)
    if options.dry_run:
        return _plan(options, module, made_of, inputs, there)
    make_folder(folder)
    with locked(folder / LOCKED):
        # Again: another run may have ended just now.
        there = find_shards(folder, made_of, options.failed, options.update)
        return _generate(options, module, made_of, inputs, there)


def _prepared(options: GenerateFieldsOptions) -> tuple[Module, FieldInputs, Provenance]:
    """The module, the open inputs, and what shapes the fields; a `UsageError` if they cannot be used."""
    if options.src_mip < options.dst_mip:
        raise UsageError(f"src_mip {options.src_mip} is finer than dst_mip {options.dst_mip}: want src_mip >= dst_mip")
    if options.prev_field_path is None and options.stage > 0:
        raise UsageError(f"stage {options.stage} refines the previous stage's fields: want --prev_field_path")
    check_destination(options.temp_dir)
    given = [path for path in (options.image_path, options.prev_field_path) if path is not None]
    for path in given:
        if Path(path).resolve() == Path(options.temp_dir).resolve():
            raise UsageError(f"{path} is read, and cannot be the --temp_dir too: want another folder for the shards")
    module = find_module(options.pyramid_path, options.stage, options.src_mip, options.checkpoint_name)
    check_params(module, options.checkpoint_name, options.model_params)
    check_undamaged(*(file for path in given for file in files_of(path)))
    inputs = options.open_inputs()
    for size in inputs.size:
        fields.crop_start(size, options.src_mip, options.dst_mip, options.crop)  # told before anything runs
    return module, inputs, _provenance(options, module, inputs)


# What a worker elsewhere needs to make the same shards; paths are made absolute.
_PATHS = ("pyramid_path", "image_path", "prev_field_path")
_OF_SHARDS = (
    *("stage", "checkpoint_name", "src_mip", "dst_mip", "precision", "tile", "overlap", "model_params", "crop"),
    *("decimals", "missing_prior", "failed"),
)


def _a_part(
    options: GenerateFieldsOptions, module: Module, inputs: FieldInputs, made_of: Provenance
) -> ShardsMade | ShardStatus | Queued:
    """Make a part of the shards, or queue them, or say how far they are. Others may be at work on the folder too."""
    if options.update or options.dry_run:
        raise UsageError(
            "--update and --dry_run are of the whole work: leave them out, or --shard, --queue and --status"
        )
    paths = {name: path and os.path.abspath(path) for name in _PATHS if (path := getattr(options, name)) is not None}
    of_workers = {**paths, **{name: getattr(options, name) for name in _OF_SHARDS}}
    job = ShardJob("generate_fields", inputs.pairs, shard_size(inputs.pairs), of_workers, made_of)
    store = shard_store(options.temp_dir)
    if found_job(store) is None:  # shards of a run without parts are fine, if they are of the same origin
        find_shards(Path(options.temp_dir), made_of, options.failed, update=False).check()
    else:
        check_claim(store, job)
    if options.status:
        return status_of([store], job)
    task = None if options.task is None else array_task(options.task)
    shards = job.of_task(job.missing(stored_shards(store)), task)
    if shards:
        claim(store, job)
        put_spec(Path(options.temp_dir), inputs.images.spec_beside)
        store.tidy()
    if options.queue is not None:
        return fill_queue(options.queue, job, options.temp_dir, shards)
    if shards:
        workers = _workers(options, shards).share(*local_share())
        _run(FieldWork(options, module, made_of, KeptFields(), workers, job.origin), shards, inputs.pairs, 0, store)
    return ShardsMade(len(shards), 0, status_of([store], job))


def shard_work(folder: str, job: ShardJob, workers: Workers) -> FieldWork:
    """What makes the shards of a job that was begun elsewhere. folder: where they go."""
    options = GenerateFieldsOptions(temp_dir=folder, **{"prev_field_path": None, **job.options})
    module, _, made_of = _prepared(options)
    if dict(made_of) != dict(job.provenance):
        differ = differences(made_of, job.provenance)
        raise UsageError(f"{folder}: its shards are made with another {differ} than there is now")
    for device in dict.fromkeys(workers.devices):
        check_precision(device, options.precision)
    return FieldWork(options, module, made_of, KeptFields(), workers, job.origin)


def _plan(
    options: GenerateFieldsOptions, module: Module, made_of: Provenance, inputs: FieldInputs, there: FoundShards
) -> FieldsPlan:
    if not options.update:
        there.check()
    shards = there.missing(inputs.pairs)
    size = 8 * sum(shard.count for shard in shards) * int(np.prod(inputs.size))
    free = free_bytes(there.folder)
    others = len(there.others) + len(there.aside)
    workers = _workers(options, shards)
    work = FieldWork(options, module, made_of, KeptFields(), workers)
    return FieldsPlan(
        module,
        workers,
        options.precision,
        options.tiling,
        inputs.size,
        inputs.matched(),
        tuple(shards),
        others,
        size,
        free,
        tried=tried(work, shards),
    )


def _generate(
    options: GenerateFieldsOptions, module: Module, made_of: Provenance, inputs: FieldInputs, there: FoundShards
) -> Generated:
    """Make what is missing. Shards that were moved aside are used whoever has moved them, and go once all is made."""
    if not options.update:
        there.check()
    for path in there.partials:
        path.unlink(missing_ok=True)
    put_spec(there.folder, inputs.images.spec_beside)
    shards = there.missing(inputs.pairs)
    resumed = sum(shard.count for shard in there.shards)
    if shards:
        if options.cpu_workers != 1:
            threads = cores_each(expected_workers(options.gpu, options.cpu_workers), len(shards))
            runner.warm_up("torch", "h5py", "isal", threads=threads)
        workers = _workers(options, shards)  # so that what is amiss with them is told before anything is moved
    if options.update:
        _end_other_job(shard_store(options.temp_dir), made_of)
    aside = [*there.aside, *move_aside(there.folder, there.others)]
    kept = 0
    if shards:
        work = FieldWork(options, module, made_of, kept_fields(aside, made_of), workers)
        kept = _run(work, shards, inputs.pairs, resumed)
    for path in aside:
        path.unlink()
    return _generated(options, inputs, [*there.shards, *shards], resumed, kept if aside else None, done=not shards)


def _end_other_job(store: ShardStore, made_of: Provenance) -> None:
    """Take the claim of another job away, so that whoever is still at work on it puts no shard among the new ones."""
    found = found_job(store)
    if found is not None and dict(found.provenance) != dict(made_of):
        store.delete(JOB_FILE)


def _run(work: FieldWork, shards: Sequence[Shard], pairs: int, resumed: int, notes: ShardStore | None = None) -> int:
    """Make shards; how many of their fields were kept. notes: where word is left of why a shard could not be made."""
    failures = _Failures(work.options, pairs)
    kept = 0
    with progress(pairs, "pairs", "pair", done=resumed) as bar:
        for number, done in runner.run(work, [[shard] for shard in shards], len(work.workers.devices), failures.hear):
            kept += done.kept
            if notes is not None:
                if done.message:
                    note_failure(notes, shards[number], done.message, done.trace)
                else:
                    forget_failure(notes, shards[number])
            bar.update(shards[number].count)
    if work.options.failed == "stop":
        failures.check()
    return kept


class _Failures:
    """The pairs on which the aligner failed: the first is told at once, and too many end the run."""

    def __init__(self, options: GenerateFieldsOptions, pairs: int) -> None:
        self._options = options
        self._pairs = pairs
        self._texts: dict[int, str] = {}

    def hear(self, worker: int, what: object) -> None:
        """What a worker says."""
        if not isinstance(what, Failure):
            return
        if not self._texts:
            trace = what.trace if self._options.debug else ""
            tqdm.write(f"{trace}{what.text}", file=sys.stderr)
        self._texts[what.pair] = what.text
        if len(self._texts) >= self._options.max_failures:
            self.check("; stopped there, as --max_failures says")

    def check(self, stopped: str = "") -> None:
        """A `WorkError` if a pair has failed."""
        if self._texts:
            pairs = sorted(self._texts)
            raise WorkError(
                f"{len(pairs)} of {self._pairs} pairs failed: {numbered(pairs)}{stopped}; "
                f"the first: {self._texts[pairs[0]]}"
            )


def _generated(
    options: GenerateFieldsOptions,
    inputs: FieldInputs,
    shards: Sequence[Shard],
    resumed: int = 0,
    kept: int | None = None,
    done: bool = False,
) -> Generated:
    """What shards that hold all pairs say of them."""
    not_run = with_nonfinite = 0
    failed: list[int] = []
    numbers = []
    for shard in sorted(shards, key=lambda shard: shard.first):
        with open_dataset(Path(options.temp_dir) / shard.name).file as file:
            not_run += int(file["not_run"][:].sum())
            with_nonfinite += int((file["nonfinite"][:] > 0).sum())
            failed += (shard.first + np.flatnonzero(file["failed"][:])).tolist()
            numbers.append({name: file[name][:] for name in QUALITY_FACTS})
    return Generated(
        options.temp_dir,
        inputs.matched(),
        resumed,
        kept,
        done,
        not_run,
        with_nonfinite,
        tuple(failed),
        QualityTable.of_parts(numbers),
    )


def _workers(options: GenerateFieldsOptions, shards: Sequence[Shard]) -> Workers:
    return find_workers(options.gpu, options.cpu_workers, options.precision, len(shards))


def _provenance(options: GenerateFieldsOptions, module: Module, inputs: FieldInputs) -> Provenance:
    """What shapes a field: shards of other inputs or arguments must not be mixed with these."""
    return provenance(
        images=inputs.images.fingerprint,
        previous_fields=inputs.prior.fingerprint if inputs.prior else None,
        module=content_hash(module),
        checkpoint_name=options.checkpoint_name,
        model_params=dict(options.model_params),
        src_mip=options.src_mip,
        dst_mip=options.dst_mip,
        crop=options.crop,
        field_decimals=options.decimals,
        # Named only where they are given: without them the fields are those of every earlier run.
        **({} if options.precision == FLOAT32 else {"precision": options.precision}),
        **({} if options.tiling is None else {"tile": options.tiling.size, "overlap": options.tiling.overlap}),
    )
