"""Running one aligner module over a dataset, in shards.

A shard is a range of pairs and the file that holds their fields. Workers, one for each GPU or several on the CPU, take
shards from a common queue. A shard appears when it is whole, so the shards that are there are the work that is done.
"""

import json
import os
from contextlib import nullcontext
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
from ..files import check_folder, locked
from ..provenance import Provenance, differences, provenance
from .field_work import FieldWork, GenerateFieldsOptions, open_inputs
from .report import free_bytes, size_text, table


@dataclass
class Generated:
    """What came of all shards, for the summary."""

    folder: str
    pairs: int
    resumed: int
    not_run: int = 0
    with_nonfinite: int = 0

    def __str__(self) -> str:
        lines = [
            ("output", self.folder),
            ("pairs", f"{self.pairs}, {self.resumed} of them found done"),
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
    """Write the shards that are not there yet of one stage's fields over an image file."""
    if options.src_mip < options.dst_mip:
        raise UsageError(f"src_mip {options.src_mip} is finer than dst_mip {options.dst_mip}: want src_mip >= dst_mip")
    check_folder(options.temp_dir)
    module = find_module(options.pyramid_path, options.stage, options.src_mip, options.checkpoint_name)
    check_undamaged(options.image_path, *filter(None, [options.prev_field_path]))
    images, prior = open_inputs(options)
    for size in images.main.shape[2:]:
        fields.crop_start(size, options.src_mip, options.dst_mip, options.crop)  # told before anything runs
    if options.cpu_workers != 1 and not options.dry_run:
        runner.warm_up("torch", "h5py", "isal")
    devices = _devices(options)
    made_of = _provenance(options, module, images, prior)
    folder = Path(options.temp_dir)
    with nullcontext() if options.dry_run else locked(folder / "shards"):
        there = existing_shards(folder, made_of)
        pairs = images.main.shape[0]
        shards = missing_shards(there, pairs)
        if options.dry_run:
            size = 8 * sum(shard.count for shard in shards) * int(np.prod(images.main.shape[2:]))
            return FieldsPlan(module, tuple(devices), pairs, tuple(shards), size, free_bytes(folder))
        return _generate(options, module, devices, made_of, there, shards, pairs)


def _generate(
    options: GenerateFieldsOptions,
    module: Module,
    devices: list[str],
    made_of: Provenance,
    there: list[Shard],
    shards: list[Shard],
    pairs: int,
) -> Generated:
    for path in Path(options.temp_dir).glob(".[0-9]*_[0-9]*.[0-9]*.partial.h5"):
        path.unlink(missing_ok=True)  # of workers that were killed
    made = Generated(options.temp_dir, pairs, resumed=sum(shard.count for shard in there))
    threads = max(1, (os.cpu_count() or 1) // len(devices)) if devices[0] == "cpu" else None
    work = FieldWork(options, module, tuple(devices), made_of, threads)
    failures: list[str] = []
    with tqdm(total=pairs, initial=made.resumed, desc="pairs", unit="pair") as bar:
        for number, done in runner.run(work, [[shard] for shard in shards], len(devices)):
            made.not_run += done.not_run
            made.with_nonfinite += done.with_nonfinite
            failures += done.failures
            bar.update(shards[number].last - shards[number].first)
    if failures:
        raise WorkError(f"{len(failures)} of {pairs} pairs failed; the first: {failures[0]}")
    return made


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


def existing_shards(folder: Path, made_of: Provenance) -> list[Shard]:
    """The shards in a folder; one that something else made is a `UsageError`."""
    there = {path: shard for path in folder.iterdir() if (shard := shard_named(path.name))}
    check_undamaged(*there)
    for path in there:
        dataset = open_dataset(path)
        found = json.loads(dataset.provenance)
        dataset.file.close()
        if made_of != found:
            changed = differences(made_of, found)
            raise UsageError(f"{path}: made with another {changed}; take another --temp_dir, or delete it")
    return sorted(there.values(), key=lambda shard: shard.first)
