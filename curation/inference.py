"""Running one aligner module over a dataset, in shards.

A shard is a range of pairs and the file that holds their fields. Workers, one a GPU or several on the CPU, take
shards from a common queue; each reads the next pair, encodes the last field and writes the last shard while its module
runs. A shard appears when it is whole, so the shards that are there are the work that is done.
"""

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from . import fields, runner
from .datasets import Chunk, Dataset, Layout, encode, open_dataset
from .errors import UsageError, WorkError
from .files import check_folder, differences, locked
from .plans import free_bytes, gib
from .pyramid import Module, content_hash, find_module
from .shards import Shard, missing_shards, shard_named
from .writing import write_whole

if TYPE_CHECKING:
    from .aligner import Aligner


@dataclass(frozen=True)
class Options:
    """generate_fields's arguments."""

    pyramid_path: str
    image_path: str
    prev_field_path: str | None
    temp_dir: str
    stage: int
    checkpoint_name: str
    src_mip: int
    dst_mip: int
    gpu: tuple[int, ...] | None = None
    cpu_workers: int | None = None
    model_params: Mapping[str, Any] = field(default_factory=dict)
    crop: str = "start"
    decimals: int | None = 2
    dry_run: bool = False


@dataclass(frozen=True)
class Done:
    """What came of a shard: pairs not run because an image is all 0, and fields with vectors that are not finite."""

    not_run: int
    with_nonfinite: int
    failures: tuple[str, ...] = ()


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
        return "\n".join(f"{name:<16} {value}" for name, value in lines)


@dataclass(frozen=True)
class InferencePlan:
    """What generate_fields would do, for --dry_run."""

    module: Module
    devices: tuple[str, ...]
    pairs: int
    shards: tuple[Shard, ...]
    output_bytes: int
    free_bytes: int | None

    def __str__(self) -> str:
        left = sum(shard.last - shard.first for shard in self.shards)
        free = "" if self.free_bytes is None else f"; {gib(self.free_bytes)} are free there"
        lines = [
            ("module", str(self.module.folder)),
            ("workers", ", ".join(self.devices)),
            ("pairs", f"{self.pairs}, {self.pairs - left} of them found done"),
            ("shards to make", str(len(self.shards))),
            ("output size", f"up to {gib(self.output_bytes)}{free}"),
        ]
        return "\n".join(f"{name:<16} {value}" for name, value in lines)


def generate_fields(options: Options) -> Generated | InferencePlan:
    """Write the shards that are not there yet of one stage's fields over an image file."""
    if options.src_mip < options.dst_mip:
        raise UsageError(f"src_mip {options.src_mip} is finer than dst_mip {options.dst_mip}: want src_mip >= dst_mip")
    check_folder(options.temp_dir)
    module = find_module(options.pyramid_path, options.stage, options.src_mip, options.checkpoint_name)
    images, prior = open_inputs(options)
    if options.cpu_workers != 1 and not options.dry_run:
        runner.warm_up("torch", "h5py", "isal")
    devices = _devices(options)
    identity = _identity(options, module, images, prior)
    folder = Path(options.temp_dir)
    with nullcontext() if options.dry_run else locked(folder / "shards"):
        there = existing_shards(folder, identity)
        pairs = images.main.shape[0]
        shards = missing_shards(there, pairs, len(devices))
        if options.dry_run:
            size = 8 * sum(shard.last - shard.first for shard in shards) * int(np.prod(images.main.shape[2:]))
            return InferencePlan(module, tuple(devices), pairs, tuple(shards), size, free_bytes(folder))
        return _generate(options, module, devices, identity, there, shards, pairs)


def _generate(
    options: Options,
    module: Module,
    devices: list[str],
    identity: Mapping[str, Any],
    there: list[Shard],
    shards: list[Shard],
    pairs: int,
) -> Generated:
    for path in Path(options.temp_dir).glob(".[0-9]*_[0-9]*.[0-9]*.partial.h5"):
        path.unlink(missing_ok=True)  # of workers that were killed
    made = Generated(options.temp_dir, pairs, resumed=sum(shard.last - shard.first for shard in there))
    threads = max(1, (os.cpu_count() or 1) // len(devices)) if devices[0] == "cpu" else None
    work = InferenceWork(options, module, tuple(devices), identity, threads)
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


def open_inputs(options: Options) -> tuple[Dataset, Dataset | None]:
    """The image file and the previous fields, which must belong together."""
    images = open_dataset(options.image_path)
    if options.prev_field_path is None:
        if options.stage > 0:
            raise UsageError(f"stage {options.stage} refines the previous stage's fields: want --prev_field_path")
        _check(images, "image", options.src_mip)
        return images, None
    prior = open_dataset(options.prev_field_path)
    _check(images, "image", options.src_mip)
    _check(prior, "field", options.src_mip)
    if images.main.shape != prior.main.shape:
        raise UsageError(
            f"{images.path} is {images.main.shape}, {prior.path} is {prior.main.shape}: want the same shape"
        )
    for name in set(images.arrays) & set(prior.arrays):
        differs = (images.arrays[name] != prior.arrays[name]).reshape(len(images.main), -1).any(axis=1)
        if differs.any():
            pair = int(differs.argmax())
            raise UsageError(
                f"pair {pair}: {name} is {images.arrays[name][pair].tolist()} in {images.path} but "
                f"{prior.arrays[name][pair].tolist()} in {prior.path}: these fields are not of these images"
            )
    return images, prior


def _check(dataset: Dataset, kind: str, src_mip: int) -> None:
    if dataset.kind not in (kind, None):
        raise UsageError(f"{dataset.path}: {dataset.kind} file, where {kind} file is wanted")
    if dataset.mip is not None and dataset.mip != src_mip:
        raise UsageError(f"{dataset.path} is of MIP {dataset.mip}, not src_mip {src_mip}")


def _devices(options: Options) -> list[str]:
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


def _identity(options: Options, module: Module, images: Dataset, prior: Dataset | None) -> dict[str, Any]:
    """What shapes a field: shards of other inputs or arguments must not be mixed with these."""
    return {
        "images": images.identity,
        "previous fields": prior.identity if prior else None,
        "module": content_hash(module),
        "checkpoint_name": options.checkpoint_name,
        "model_params": dict(options.model_params),
        "src_mip": options.src_mip,
        "dst_mip": options.dst_mip,
        "crop": options.crop,
        "field_decimals": options.decimals,
    }


def existing_shards(folder: Path, identity: Mapping[str, Any]) -> list[Shard]:
    """The shards in a folder; one that something else made is a `UsageError`."""
    shards = []
    for path in folder.iterdir():
        shard = shard_named(path.name)
        if shard is None:
            continue
        dataset = open_dataset(path)
        found = json.loads(str(dataset.attributes.get("identity", "{}")))
        dataset.file.close()
        if identity != found:
            changed = differences(identity, found)
            raise UsageError(f"{path}: made with another {changed}; take another --temp_dir, or delete it")
        shards.append(shard)
    return sorted(shards, key=lambda shard: shard.first)


@dataclass
class _ShardInTheMaking:
    """What is known of a shard's pairs so far: chunks may be under way yet."""

    shard: Shard
    chunks: list[Future[Chunk]] = field(default_factory=list)
    not_run: list[bool] = field(default_factory=list)
    nonfinite: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class InferenceWork:
    """What a worker does: its module on its device, over the shards it is given."""

    options: Options
    module: Module
    devices: tuple[str, ...]
    identity: Mapping[str, Any]
    threads: int | None

    def __call__(self, number: int, shards: Iterator[tuple[int, Shard]]) -> Iterator[tuple[int, Done]]:
        import torch

        from .aligner import Aligner

        if self.threads:
            torch.set_num_threads(self.threads)
        images, prior = open_inputs(self.options)
        aligner = Aligner(self.module, self.options.checkpoint_name, self.options.model_params, self.devices[number])

        def read(unit: tuple[int, Shard, int]) -> tuple[np.ndarray, np.ndarray | None]:
            *_, pair = unit
            before = None if prior is None else prior.main[pair].astype(np.float32)
            return images.main[pair].astype(np.float32), before

        pairs = ((place, shard, pair) for place, shard in shards for pair in range(shard.first, shard.last))
        written: deque[tuple[int, Future[Done]]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="encode") as encoder:
            for (place, shard, pair), (both, before) in runner.ahead(read, pairs, depth=1):
                if pair == shard.first:
                    made = _ShardInTheMaking(shard)
                self._pair(made, pair, both, before, aligner, encoder)
                if pair == shard.last - 1:
                    written.append((place, encoder.submit(self._finished, made, images)))
                while written and (written[0][1].done() or len(written) > 1):
                    finished, done = written.popleft()
                    yield finished, done.result()
            for finished, done in written:
                yield finished, done.result()

    def _pair(
        self,
        made: "_ShardInTheMaking",
        pair: int,
        both: np.ndarray,
        before: np.ndarray | None,
        aligner: "Aligner",
        encoder: ThreadPoolExecutor,
    ) -> None:
        try:
            black = not (both[0].any() and both[1].any())
            found = _prior_or_zeros(before, both[0].shape) if black else aligner(both[0], both[1], before)
        except WorkError as error:
            made.failures.append(f"pair {pair}, {both.shape[1]} x {both.shape[2]} pixels: {error}")
            return
        made.not_run.append(black)
        made.nonfinite.append(int((~np.isfinite(found)).any(axis=0).sum()))
        made.chunks.append(encoder.submit(self._encoded, found))

    def _encoded(self, found: np.ndarray) -> Chunk:
        options = self.options
        finer = fields.rescale(found, options.src_mip, options.dst_mip, options.crop)
        return encode(fields.rounded(finer, options.decimals))

    def _finished(self, made: "_ShardInTheMaking", images: Dataset) -> Done:
        """Write a shard whose chunks were encoded by the thread that runs this, before it; one with failures is not."""
        if not made.failures:
            arrays = {"not_run": np.array(made.not_run, "|u1"), "nonfinite": np.array(made.nonfinite, "<i8")}
            self._write(made.shard, images, arrays, [chunk.result() for chunk in made.chunks])
        return Done(sum(made.not_run), sum(count > 0 for count in made.nonfinite), tuple(made.failures))

    def _write(self, shard: Shard, images: Dataset, arrays: Mapping[str, np.ndarray], chunks: list[Chunk]) -> None:
        options = self.options
        known = {name: values[shard.first : shard.last] for name, values in images.arrays.items()}
        attributes = {
            **{
                name: images.attributes[name] for name in ("spec", "spec_sha256", "anchor") if name in images.attributes
            },
            "mip": options.dst_mip,
            "decimals": "none" if options.decimals is None else options.decimals,
            "pairs": images.main.shape[0],
            "first": shard.first,
            "last": shard.last - 1,
        }
        shape = (shard.last - shard.first, *images.main.shape[1:])
        layout = Layout(shape, 1, {**known, **arrays}, (), self.identity, attributes)
        write_whole(Path(options.temp_dir) / shard.name, layout, chunks)


def _prior_or_zeros(prior: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros((2, *shape), np.float32) if prior is None else prior
