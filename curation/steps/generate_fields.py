"""Running one aligner module over a dataset, in shards.

A shard is a range of pairs and the file that holds their fields. Workers, one for each GPU or several on the CPU, take
shards from a common queue. A shard appears when it is whole, so the shards that are there are the work that is done.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .. import fields, runner
from ..aligners.pyramid import Module, content_hash, find_module
from ..datasets.dataset import Dataset, open_dataset
from ..datasets.probe import check_undamaged
from ..datasets.shards import Shard, missing_shards, shard_named
from ..errors import UsageError, WorkError
from ..files import check_destination, locked, make_folder
from ..provenance import Provenance, differences, provenance
from .field_work import FieldWork, GenerateFieldsOptions, open_inputs
from .report import free_bytes, size_text, table


@dataclass(frozen=True)
class Generated:
    """What the shards hold, for the summary. resumed: pairs that were found done, which are all if `done` says so."""

    folder: str
    pairs: int
    resumed: int
    done: bool
    not_run: int
    with_nonfinite: int

    def __str__(self) -> str:
        found = "done already" if self.done else f"{self.resumed} of them found done"
        lines = [
            ("output", self.folder),
            ("pairs", f"{self.pairs}, {found}"),
            ("not run", f"{self.not_run}, an image being all 0"),
            ("not finite", f"{self.with_nonfinite} fields with such vectors"),
        ]
        return table(lines)


@dataclass(frozen=True)
class FieldsPlan:
    """What generate_fields would do, for --dry_run."""

    module: Module
    devices: tuple[str, ...]
    pairs: int
    shards: tuple[Shard, ...]
    output_bytes: int
    free_bytes: int | None

    def __str__(self) -> str:
        left = sum(shard.count for shard in self.shards)
        free = "" if self.free_bytes is None else f"; {size_text(self.free_bytes)} are free there"
        lines = [
            ("module", str(self.module.folder)),
            ("workers", ", ".join(self.devices)),
            ("pairs", f"{self.pairs}, {self.pairs - left} of them found done"),
            ("shards to make", str(len(self.shards))),
            ("output size", f"up to {size_text(self.output_bytes)}{free}"),
        ]
        return table(lines)


def generate_fields(options: GenerateFieldsOptions) -> Generated | FieldsPlan:
    """Write the shards that are not there yet of one stage's fields over an image file.

    Where all are there nothing is touched. With `dry_run` only say what would be done.
    """
    if options.src_mip < options.dst_mip:
        raise UsageError(f"src_mip {options.src_mip} is finer than dst_mip {options.dst_mip}: want src_mip >= dst_mip")
    check_destination(options.temp_dir)
    module = find_module(options.pyramid_path, options.stage, options.src_mip, options.checkpoint_name)
    check_undamaged(options.image_path, *filter(None, [options.prev_field_path]))
    images, prior = open_inputs(options)
    for size in images.main.shape[2:]:
        fields.crop_start(size, options.src_mip, options.dst_mip, options.crop)  # told before anything runs
    made_of = _provenance(options, module, images, prior)
    folder = Path(options.temp_dir)
    pairs = images.main.shape[0]
    there = find_shards(folder)
    if there.are_all(pairs, made_of) and (options.dry_run or there.is_tidy):
        return _generated(options, there.shards, pairs, resumed=pairs, done=True)
    if options.dry_run:
        there.check(made_of)
        shards = missing_shards(there.shards, pairs)
        size = 8 * sum(shard.count for shard in shards) * int(np.prod(images.main.shape[2:]))
        devices = tuple(_devices(options))
        return FieldsPlan(
            module,
            devices,
            pairs,
            tuple(shards),
            size,
            free_bytes(folder if folder.exists() else folder.absolute().parent),
        )
    make_folder(folder)
    with locked(folder / LOCKED):
        there = find_shards(folder)  # again: another run may have ended just now
        there.check(made_of)
        return _generate(options, module, made_of, there, pairs)


LOCKED = "shards"  # what the lock in the folder is a lock of


def _generate(
    options: GenerateFieldsOptions, module: Module, made_of: Provenance, there: "FoundShards", pairs: int
) -> Generated:
    for path in there.partials:
        path.unlink(missing_ok=True)
    shards = missing_shards(there.shards, pairs)
    resumed = sum(shard.count for shard in there.shards)
    if shards:
        _run(options, module, made_of, shards, pairs, resumed)
    return _generated(options, [*there.shards, *shards], pairs, resumed, done=not shards)


def _run(
    options: GenerateFieldsOptions,
    module: Module,
    made_of: Provenance,
    shards: list[Shard],
    pairs: int,
    resumed: int,
) -> None:
    if options.cpu_workers != 1:
        runner.warm_up("torch", "h5py", "isal")
    devices = _devices(options)
    threads = max(1, (os.cpu_count() or 1) // len(devices)) if devices[0] == "cpu" else None
    work = FieldWork(options, module, tuple(devices), made_of, threads)
    failures: list[str] = []
    with tqdm(total=pairs, initial=resumed, desc="pairs", unit="pair") as bar:
        for number, done in runner.run(work, [[shard] for shard in shards], len(devices)):
            failures += done.failures
            bar.update(shards[number].count)
    if failures:
        raise WorkError(f"{len(failures)} of {pairs} pairs failed; the first: {failures[0]}")


def _generated(
    options: GenerateFieldsOptions, shards: Sequence[Shard], pairs: int, resumed: int, done: bool
) -> Generated:
    """What shards that hold all pairs say of them."""
    not_run = with_nonfinite = 0
    for shard in shards:
        with open_dataset(Path(options.temp_dir) / shard.name).file as file:
            not_run += int(file["not_run"][:].sum())
            with_nonfinite += int((file["nonfinite"][:] > 0).sum())
    return Generated(options.temp_dir, pairs, resumed, done, not_run, with_nonfinite)


def _devices(options: GenerateFieldsOptions) -> list[str]:
    """A device a worker: those asked for, else every GPU, else the CPU."""
    import torch  # not sooner: it takes a second, and what is amiss is told before

    if options.gpu is not None:
        there = torch.cuda.device_count()
        if not torch.cuda.is_available() or max(options.gpu) >= there:
            raise UsageError(
                f"--gpu {','.join(map(str, options.gpu))}: CUDA sees {there} GPUs here; "
                "leave --gpu out to run on those, or on the CPU with --cpu_workers N"
            )
        return [f"cuda:{index}" for index in options.gpu]
    if options.cpu_workers is None and torch.cuda.is_available():
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu"] * (options.cpu_workers or os.cpu_count() or 1)


def _provenance(options: GenerateFieldsOptions, module: Module, images: Dataset, prior: Dataset | None) -> Provenance:
    """What shapes a field: shards of other inputs or arguments must not be mixed with these."""
    return provenance(
        images=images.fingerprint,
        previous_fields=prior.fingerprint if prior else None,
        module=content_hash(module),
        checkpoint_name=options.checkpoint_name,
        model_params=dict(options.model_params),
        src_mip=options.src_mip,
        dst_mip=options.dst_mip,
        crop=options.crop,
        field_decimals=options.decimals,
    )


@dataclass(frozen=True)
class FoundShards:
    """What is in a folder of shards.

    origins: the provenance of each shard. partials: of workers that were killed, if none is at work. has_lock: a run is
    at work, or was killed.
    """

    folder: Path
    origins: Mapping[Shard, Provenance]
    partials: tuple[Path, ...] = ()
    has_lock: bool = False

    @property
    def shards(self) -> list[Shard]:
        """All shards, in order."""
        return sorted(self.origins, key=lambda shard: shard.first)

    def are_all(self, pairs: int, made_of: Provenance) -> bool:
        """Whether all pairs are there, and nothing of another origin is."""
        return not missing_shards(self.shards, pairs) and all(found == made_of for found in self.origins.values())

    @property
    def is_tidy(self) -> bool:
        """Whether no run is at work, and none was killed and left something to be removed."""
        return not self.partials and not self.has_lock

    def check(self, made_of: Provenance) -> None:
        """Refuse shards that something else made."""
        for shard in self.shards:
            if self.origins[shard] != made_of:
                changed = differences(made_of, self.origins[shard])
                path = self.folder / shard.name
                raise UsageError(f"{path}: made with another {changed}; take another --temp_dir, or delete it")


def find_shards(folder: Path) -> FoundShards:
    """What is in a folder, which need not be there; a shard that is damaged is a `UsageError`."""
    if not folder.exists():
        return FoundShards(folder, {})
    there = {path: shard for path in folder.iterdir() if (shard := shard_named(path.name))}
    check_undamaged(*there)
    origins = {}
    for path, shard in there.items():
        dataset = open_dataset(path)
        origins[shard] = json.loads(dataset.provenance)
        dataset.file.close()
    partials = tuple(folder.glob(".[0-9]*_[0-9]*.[0-9]*.partial.h5"))
    return FoundShards(folder, origins, partials, has_lock=(folder / f".{LOCKED}.lock").exists())
