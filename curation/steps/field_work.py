"""What a worker does with its shards of fields: run its module on each pair, encode the fields, write the shard.

A worker reads the next pair, encodes the last field and writes the last shard while its module runs.
"""

import sys
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from .. import fields, runner
from ..aligners.memory import OutOfMemoryError, give_back
from ..aligners.pyramid import Module
from ..aligners.tiles import Tiling, in_tiles
from ..datasets.chunks import Chunk, encode
from ..datasets.dataset import Dataset
from ..datasets.facts import PairFacts, stacked
from ..datasets.layout import Layout
from ..datasets.shards import Shard
from ..datasets.writer import write_whole
from ..errors import UsageError, WorkError
from ..provenance import Provenance
from .devices import FLOAT32, Workers
from .field_inputs import Checksums, FieldInputs, PairInputs, open_inputs
from .kept_fields import KeptFields, KeptReader, key_of

if TYPE_CHECKING:
    from ..aligners.aligner import Aligner


@dataclass(frozen=True)
class GenerateFieldsOptions:
    """generate_fields's arguments.

    missing_prior: "stop" or "zero", what is done of pairs whose start no previous field has. failed: "stop",
    "nan" or "prior", what the field of a pair is on which the aligner fails. max_failures: after so many the run stops.
    debug: whether to show the traceback of a failure. precision: the number type that the module computes in, as far as
    it can ("float32", "bfloat16" or "float16"). tile: the side of the tiles, in pixels, that larger images are run in.
    overlap: how many pixels of a tile count for nothing beside each edge that is cut; an 8th of the tile, if None.
    """

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
    precision: str = FLOAT32
    tile: int | None = None
    overlap: int | None = None
    model_params: Mapping[str, Any] = field(default_factory=dict)
    crop: str = "start"
    decimals: int | None = 2
    missing_prior: str = "stop"
    failed: str = "stop"
    max_failures: int = 10
    debug: bool = False
    update: bool = False
    dry_run: bool = False

    @property
    def tiling(self) -> Tiling | None:
        """How large images are divided; None where they are run whole."""
        if self.tile is None:
            if self.overlap is not None:
                raise UsageError("--overlap is of tiles: want --tile SIZE with it")
            return None
        overlap = self.tile // _OVERLAPS if self.overlap is None else self.overlap
        if self.tile <= 2 * overlap:
            raise UsageError(
                f"--tile {self.tile} leaves no pixel that is {overlap} from all edges, as --overlap says: "
                f"want a tile of more than {2 * overlap} pixels, or a smaller overlap"
            )
        return Tiling(self.tile, overlap)

    def open_inputs(self) -> FieldInputs:
        """The image file and the previous fields, which must belong together."""
        return open_inputs(self.image_path, self.prev_field_path, self.src_mip, self.missing_prior)


_OVERLAPS = 8  # the tile is so many times its overlap, unless one is given


@dataclass(frozen=True)
class ShardResult:
    """What came of a shard. kept: how many of its fields were."""

    kept: int


@dataclass(frozen=True)
class Failure:
    """A pair on which the aligner failed, as a worker says it at once.

    trace: the traceback, as text. memory: whether memory has run out.
    """

    pair: int
    text: str
    trace: str
    memory: bool

    @classmethod
    def of(cls, pair: int, inputs: PairInputs, error: WorkError, work: "FieldWork") -> "Failure":
        """A failure that is being handled."""
        _, x_size, y_size = inputs.images.shape
        text = " ".join(str(error).split())
        memory = isinstance(error, OutOfMemoryError)
        if memory:
            text = f"{text}; to need less memory, give {_remedies(work, max(x_size, y_size))}"
        return cls(pair, f"pair {pair}, {x_size} x {y_size} pixels: {text}", traceback.format_exc(), memory)


def _remedies(work: "FieldWork", side: int) -> str:
    """What makes a module need less memory, for images whose longer side is so many pixels."""
    options, on_cpu = work.options, "cpu" in work.workers.devices
    tile = min(side, options.tile or side) // 2
    remedies = [f"--tile {max(1, tile)}, which runs a pair in parts"]
    if not on_cpu and options.precision == FLOAT32:
        remedies.append("--precision bfloat16")
    if on_cpu and len(work.workers.devices) > 1:
        remedies.append("fewer --cpu_workers")
    return " or ".join(remedies)


@dataclass(frozen=True)
class _ReadPair:
    """A pair as it was read: either its inputs, or the field that was made from the same inputs, and its facts."""

    checksums: Checksums
    inputs: PairInputs | None
    kept: tuple[Chunk, PairFacts] | None = None


@dataclass
class _PendingShard:
    """A shard whose pairs are being done: what is known of those that are, and their chunks, which may be under way."""

    shard: Shard
    chunks: list[Future[Chunk]] = field(default_factory=list)
    facts: list[PairFacts] = field(default_factory=list)
    checksums: list[Checksums] = field(default_factory=list)
    kept: int = 0
    failed: bool = False


@dataclass(frozen=True)
class FieldWork:
    """What a worker does: its module on its device, over the shards it is given.

    kept: fields that need not be made.
    """

    options: GenerateFieldsOptions
    module: Module
    provenance: Provenance
    kept: KeptFields
    workers: Workers

    def __call__(self, number: int, shards: Iterator[tuple[int, Shard]]) -> Iterator[tuple[int, ShardResult]]:
        inputs = self.options.open_inputs()
        kept = KeptReader(self.kept)
        aligner = LateAligner(self, number)
        if not self.kept.places:
            aligner.load()  # now, so that what is amiss with it is told before a shard is written

        def read(unit: tuple[int, Shard, int]) -> _ReadPair:
            return _read(inputs, kept, unit[-1])

        pairs = ((place, shard, pair) for place, shard in shards for pair in shard.pairs)
        written: deque[tuple[int, Future[ShardResult]]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="encode") as encoder:
            for (place, shard, pair), found in runner.ahead(read, pairs, depth=1):
                if pair == shard.first:
                    pending = _PendingShard(shard)
                self._pair(pending, pair, found, aligner, encoder)
                if pair == shard.last - 1:
                    written.append((place, encoder.submit(self._finished, pending, inputs.images)))
                while written and (written[0][1].done() or len(written) > 1):
                    finished, done = written.popleft()
                    yield finished, done.result()
            for finished, done in written:
                yield finished, done.result()

    def _pair(
        self,
        pending: _PendingShard,
        pair: int,
        found: _ReadPair,
        aligner: "LateAligner",
        encoder: ThreadPoolExecutor,
    ) -> None:
        pending.checksums.append(found.checksums)
        if found.kept is not None:
            chunk, facts = found.kept
            pending.kept += 1
            pending.facts.append(facts)
            pending.chunks.append(encoder.submit(lambda: chunk))
        elif found.inputs is not None:
            self._made(pending, pair, found.inputs, aligner, encoder)

    def _made(
        self,
        pending: _PendingShard,
        pair: int,
        inputs: PairInputs,
        aligner: "LateAligner",
        encoder: ThreadPoolExecutor,
    ) -> None:
        black = inputs.black
        model = None if black else aligner.load()
        failure = None
        made = inputs.prior_or_zeros
        if model is not None:
            made = made.copy()  # the module may write to the prior before it fails
            try:
                made = self.field_of(inputs, model)
            except WorkError as error:
                failure = Failure.of(pair, inputs, error, self)
        if failure is not None:
            if failure.memory:  # by now nothing holds the error, and with it what the module had allocated
                give_back()
            pending.failed = True
            runner.say(failure)
            if self.options.failed == "nan":
                made = np.full_like(made, np.nan)
        nonfinite = int((~np.isfinite(made)).any(axis=0).sum())
        pending.facts.append(PairFacts(not_run=black, failed=failure is not None, nonfinite=nonfinite))
        pending.chunks.append(encoder.submit(self._encoded, made))

    def field_of(self, inputs: PairInputs, model: "Aligner") -> np.ndarray:
        """The field that a module makes of a pair, whole or in tiles; `WorkError` if it fails."""
        source, target = inputs.images
        tiling = self.options.tiling
        if tiling is None:
            return np.asarray(model(source, target, inputs.prior))
        return in_tiles(model, source, target, inputs.prior, tiling)

    def _encoded(self, found: np.ndarray) -> Chunk:
        options = self.options
        finer = fields.rescale(found, options.src_mip, options.dst_mip, options.crop)
        return encode(fields.rounded(finer, options.decimals))

    def _finished(self, pending: _PendingShard, images: Dataset) -> ShardResult:
        """Write a shard whose chunks were encoded by the thread that runs this, before it."""
        if not pending.failed or self.options.failed != "stop":
            layout = self._layout(pending, images)
            path = Path(self.options.temp_dir) / pending.shard.name
            write_whole(path, layout, [chunk.result() for chunk in pending.chunks])
        return ShardResult(pending.kept)

    def _layout(self, pending: _PendingShard, images: Dataset) -> Layout:
        options, shard = self.options, pending.shard
        known = {name: values[shard.first : shard.last] for name, values in images.arrays.items()}
        made_from = {"input_crc32": np.array(pending.checksums, "<u4")}
        inherited = [name for name in ("spec", "spec_sha256", "anchor") if name in images.attributes]
        attributes = {
            **{name: images.attributes[name] for name in inherited},
            "mip": options.dst_mip,
            "decimals": "none" if options.decimals is None else options.decimals,
            "pairs": images.main.shape[0],
            "first": shard.first,
            "last": shard.last - 1,
        }
        if pending.failed:
            attributes["failed"] = options.failed
        shape = (shard.count, *images.main.shape[1:])
        return Layout(shape, 1, {**known, **stacked(pending.facts), **made_from}, (), self.provenance, attributes)


def tried(work: FieldWork, shards: Sequence[Shard]) -> int | None:
    """Run the module on the first pair that is not black, in this process and on the first device.

    Returns the pair, or None if all are black. Errors are those of a run: of the module, or of this pair.
    """
    inputs = work.options.open_inputs()
    for pair in (pair for shard in shards for pair in shard.pairs):
        read = inputs.read(pair)
        if not read.black:
            model = LateAligner(work, 0).load()
            try:
                work.field_of(read, model)
            except WorkError as error:
                raise WorkError(Failure.of(pair, read, error, work).text) from error
            return pair
    return None


def _read(inputs: FieldInputs, kept: KeptReader, pair: int) -> _ReadPair:
    """Read a pair: its inputs only if they must be known, or its field made."""
    checksums = inputs.known_checksums(pair)
    read = None
    if checksums is None:
        read = inputs.read(pair)
        checksums = read.checksums()
    found = kept.find(key_of(checksums, inputs.images, pair))
    if found is not None:
        return _ReadPair(checksums, None, found)
    return _ReadPair(checksums, read or inputs.read(pair))


class LateAligner:
    """A worker's aligner, which is loaded when it is first wanted: fields that are kept want none."""

    def __init__(self, work: FieldWork, number: int) -> None:
        self._work = work
        self._device = work.workers.devices[number]
        self._aligner: Aligner | None = None

    def load(self) -> "Aligner":
        """The aligner."""
        if self._aligner is None:
            from ..aligners.aligner import Aligner, limit_threads

            limit_threads(self._work.workers.cores)
            options = self._work.options
            try:
                self._aligner = Aligner(
                    self._work.module, options.checkpoint_name, options.model_params, self._device, options.precision
                )
            except WorkError:
                if options.debug and parent_process() is not None:  # whose process is told of the error's text only
                    tqdm.write(traceback.format_exc(), file=sys.stderr)
                raise
        return self._aligner
