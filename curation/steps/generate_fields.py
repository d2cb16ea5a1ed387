"""Running one aligner module over a dataset, in shards.

A shard is a range of pairs and the file that holds their fields. Workers, one for each GPU or several on the CPU, take
shards from a common queue. A shard appears when it is whole, so the shards that are there are the work that is done.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .. import fields, runner
from ..aligners.pyramid import Module, check_params, content_hash, find_module
from ..aligners.tiles import Tiling
from ..datasets.collection import files_of
from ..datasets.dataset import open_dataset
from ..datasets.facts import QUALITY_FACTS
from ..datasets.probe import check_undamaged
from ..datasets.shards import Shard
from ..errors import UsageError, WorkError, numbered
from ..files import check_destination, locked, make_folder
from ..progress import progress
from ..provenance import Provenance, provenance
from .devices import FLOAT32, Workers, cores_each, expected_workers, find_workers
from .field_inputs import FieldInputs, Matched
from .field_shards import LOCKED, FoundShards, find_shards, has_spec, move_aside, put_spec
from .field_work import Failure, FieldWork, GenerateFieldsOptions, tried
from .kept_fields import KeptFields, kept_fields
from .pair_quality import QualityTable
from .report import free_bytes, size_text, table


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


def generate_fields(options: GenerateFieldsOptions) -> Generated | FieldsPlan:
    """Write the shards that are not there yet of one stage's fields over an image file, or a folder of its shards.

    Where all are there nothing is touched. With `dry_run` only say what would be done.
    """
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
    made_of = _provenance(options, module, inputs)
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
    aside = [*there.aside, *move_aside(there.folder, there.others)]
    kept = 0
    if shards:
        work = FieldWork(options, module, made_of, kept_fields(aside, made_of), workers)
        kept = _run(work, shards, inputs.pairs, resumed)
    for path in aside:
        path.unlink()
    return _generated(options, inputs, [*there.shards, *shards], resumed, kept if aside else None, done=not shards)


def _run(work: FieldWork, shards: list[Shard], pairs: int, resumed: int) -> int:
    """Make shards; how many of their fields were kept."""
    failures = _Failures(work.options, pairs)
    kept = 0
    with progress(pairs, "pairs", "pair", done=resumed) as bar:
        for number, done in runner.run(work, [[shard] for shard in shards], len(work.workers.devices), failures.hear):
            kept += done.kept
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
