"""What a worker does with its shards of fields: run its module on each pair, encode the fields, write the shard.

A worker reads the next pair, encodes the last field and writes the last shard while its module runs.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import fields, runner
from ..aligners.pyramid import Module
from ..datasets.chunks import Chunk, encode
from ..datasets.dataset import Dataset, open_dataset
from ..datasets.facts import PairFacts, stacked
from ..datasets.layout import Layout
from ..datasets.shards import Shard
from ..datasets.writer import write_whole
from ..errors import UsageError, WorkError
from ..provenance import Provenance

if TYPE_CHECKING:
    from ..aligners.aligner import Aligner


@dataclass(frozen=True)
class GenerateFieldsOptions:
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
class ShardResult:
    """What came of a shard: how pairs of it failed; it is written if none has."""

    failures: tuple[str, ...] = ()


def open_inputs(options: GenerateFieldsOptions) -> tuple[Dataset, Dataset | None]:
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


@dataclass
class _PendingShard:
    """A shard whose pairs are being run: what is known of those that were, and their chunks, which may be under way."""

    shard: Shard
    chunks: list[Future[Chunk]] = field(default_factory=list)
    facts: list[PairFacts] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FieldWork:
    """What a worker does: its module on its device, over the shards it is given."""

    options: GenerateFieldsOptions
    module: Module
    devices: tuple[str, ...]
    provenance: Provenance
    threads: int | None

    def __call__(self, number: int, shards: Iterator[tuple[int, Shard]]) -> Iterator[tuple[int, ShardResult]]:
        import torch

        from ..aligners.aligner import Aligner

        if self.threads:
            torch.set_num_threads(self.threads)
        images, prior = open_inputs(self.options)
        aligner = Aligner(self.module, self.options.checkpoint_name, self.options.model_params, self.devices[number])

        def read(unit: tuple[int, Shard, int]) -> tuple[np.ndarray, np.ndarray | None]:
            *_, pair = unit
            before = None if prior is None else prior.main[pair].astype(np.float32)
            return images.main[pair].astype(np.float32), before

        pairs = ((place, shard, pair) for place, shard in shards for pair in shard.pairs)
        written: deque[tuple[int, Future[ShardResult]]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="encode") as encoder:
            for (place, shard, pair), (both, before) in runner.ahead(read, pairs, depth=1):
                if pair == shard.first:
                    pending = _PendingShard(shard)
                self._pair(pending, pair, both, before, aligner, encoder)
                if pair == shard.last - 1:
                    written.append((place, encoder.submit(self._finished, pending, images)))
                while written and (written[0][1].done() or len(written) > 1):
                    finished, done = written.popleft()
                    yield finished, done.result()
            for finished, done in written:
                yield finished, done.result()

    def _pair(
        self,
        pending: _PendingShard,
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
            pending.failures.append(f"pair {pair}, {both.shape[1]} x {both.shape[2]} pixels: {error}")
            return
        nonfinite = int((~np.isfinite(found)).any(axis=0).sum())
        pending.facts.append(PairFacts(not_run=black, nonfinite=nonfinite))
        pending.chunks.append(encoder.submit(self._encoded, found))

    def _encoded(self, found: np.ndarray) -> Chunk:
        options = self.options
        finer = fields.rescale(found, options.src_mip, options.dst_mip, options.crop)
        return encode(fields.rounded(finer, options.decimals))

    def _finished(self, pending: _PendingShard, images: Dataset) -> ShardResult:
        """Write a shard whose chunks were encoded by the thread that runs this, before it; one with failures is not."""
        facts = pending.facts
        if not pending.failures:
            layout = self._layout(pending.shard, facts, images)
            path = Path(self.options.temp_dir) / pending.shard.name
            write_whole(path, layout, [chunk.result() for chunk in pending.chunks])
        return ShardResult(tuple(pending.failures))

    def _layout(self, shard: Shard, facts: list[PairFacts], images: Dataset) -> Layout:
        options = self.options
        known = {name: values[shard.first : shard.last] for name, values in images.arrays.items()}
        inherited = [name for name in ("spec", "spec_sha256", "anchor") if name in images.attributes]
        attributes = {
            **{name: images.attributes[name] for name in inherited},
            "mip": options.dst_mip,
            "decimals": "none" if options.decimals is None else options.decimals,
            "pairs": images.main.shape[0],
            "first": shard.first,
            "last": shard.last - 1,
        }
        shape = (shard.count, *images.main.shape[1:])
        return Layout(shape, 1, {**known, **stacked(facts)}, (), self.provenance, attributes)


def _prior_or_zeros(prior: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros((2, *shape), np.float32) if prior is None else prior
