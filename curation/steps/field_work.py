"""What a worker does with its shards of fields: run its module on each pair, encode the fields, write the shard.

While its module runs, a worker reads the next pairs, encodes the last fields and writes the last shards, each in
threads of its own (`devices.Threads`). So a device waits for none of that, if the worker has cores enough.
"""

import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from ..datasets.collection import Collection
from ..datasets.facts import PairFacts, stacked
from ..datasets.layout import Layout
from ..datasets.shard_store import LocalStore
from ..datasets.shards import LONGEST_SHARD, Shard
from ..datasets.stored import Empty
from ..datasets.writer import write_whole
from ..errors import UsageError, WorkError
from ..fields import BINARY, Decimals
from ..provenance import Provenance
from .devices import FLOAT32, Workers, pinned_on
from .field_inputs import Checksums, FieldInputs, PairInputs, open_inputs
from .kept_fields import KeptFields, KeptReader, key_of
from .pair_quality import facts_of
from .shard_job import check_still_of

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
    task: which part of the shards is to be made, as `array_task` takes it. queue: where the shards that are missing are
    queued instead of being made. status: whether only to say how far the shards are.
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
    decimals: Decimals = BINARY
    missing_prior: str = "stop"
    failed: str = "stop"
    max_failures: int = 10
    debug: bool = False
    update: bool = False
    dry_run: bool = False
    task: str | None = None
    queue: str | None = None
    status: bool = False

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
    """What came of a shard. kept: how many of its fields were. message, trace: why it was not written, "" if it was."""

    kept: int
    message: str = ""
    trace: str = ""


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
    black: bool = False
    kept: tuple[Chunk, PairFacts] | None = None


@dataclass
class _PendingShard:
    """A shard whose pairs are being done: the fields of those that are, with their facts, which may be under way."""

    shard: Shard
    fields: list[Future[tuple[Chunk, PairFacts]]] = field(default_factory=list)
    checksums: list[Checksums] = field(default_factory=list)
    kept: int = 0
    failure: Failure | None = None


@dataclass(frozen=True)
class FieldWork:
    """What a worker does: its module on its device, over the shards it is given.

    kept: fields that need not be made. origin: `ShardJob.origin` of the job that has the folder; "" for a run that
    holds the folder's lock instead.
    """

    options: GenerateFieldsOptions
    module: Module
    provenance: Provenance
    kept: KeptFields
    workers: Workers
    origin: str = ""

    def __call__(self, number: int, shards: Iterator[tuple[int, Shard]]) -> Iterator[tuple[int, ShardResult]]:
        inputs = self.options.open_inputs()
        kept = KeptReader(self.kept)
        folder = Path(self.options.temp_dir).absolute()  # a module that is loaded late changes the working directory
        aligner = LateAligner(self, number)
        if not self.kept.places:
            aligner.load()  # now, so that what is amiss with it is told before a shard is written
        empty = pinned_on(self.workers.devices[number])

        def read(unit: tuple[int, Shard, int]) -> _ReadPair:
            return _read(inputs, kept, unit[-1], empty)

        pairs = ((place, shard, pair) for place, shard in shards for pair in shard.pairs)
        threads = self.workers.threads
        written: deque[tuple[int, int, Future[ShardResult]]] = deque()
        with _Encoding(threads.encoding) as encoding, ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
            for (place, shard, pair), found in runner.ahead(read, pairs, depth=threads.reading):
                if pair == shard.first:
                    pending = _PendingShard(shard)
                self._pair(pending, pair, found, aligner, encoding)
                if pair == shard.last - 1:
                    written.append((place, shard.count, writer.submit(self._finished, pending, inputs.images, folder)))
                while written and (written[0][-1].done() or sum(count for _, count, _ in written) > _UNWRITTEN):
                    finished, _, done = written.popleft()
                    yield finished, done.result()
            for finished, _, done in written:
                yield finished, done.result()

    def _pair(
        self,
        pending: _PendingShard,
        pair: int,
        found: _ReadPair,
        aligner: "LateAligner",
        encoding: "_Encoding",
    ) -> None:
        pending.checksums.append(found.checksums)
        if found.kept is not None:
            pending.kept += 1
            pending.fields.append(_known(found.kept))
        elif found.inputs is not None:
            made, failure = found.inputs.prior_or_zeros, None
            if not found.black:
                made, failure = self._made(pair, found.inputs, aligner)
            pending.failure = pending.failure or failure
            failed = failure is not None
            pending.fields.append(encoding.submit(self._encoded, found.inputs, made, found.black, failed))

    def _made(self, pair: int, given: PairInputs, aligner: "LateAligner") -> tuple[np.ndarray, Failure | None]:
        """The module's field of a pair, or what stands in for it; and why the module has failed, if it has."""
        model = aligner.load()
        try:
            return self.field_of(given, model), None
        except WorkError as error:
            failure = Failure.of(pair, given, error, self)
        if failure.memory:  # by now nothing holds the error, and with it what the module had allocated
            give_back()
        runner.say(failure)
        if self.options.failed == "nan":
            return np.full(given.images.shape, np.nan, np.float32), failure
        return given.prior_or_zeros, failure

    def field_of(self, inputs: PairInputs, model: "Aligner") -> np.ndarray:
        """The field that a module makes of a pair, whole or in tiles; `WorkError` if it fails."""
        source, target = inputs.images
        tiling = self.options.tiling
        if tiling is None:
            return np.asarray(model(source, target, inputs.prior))
        return in_tiles(model, source, target, inputs.prior, tiling)

    def _encoded(self, given: PairInputs, made: np.ndarray, black: bool, failed: bool) -> tuple[Chunk, PairFacts]:
        options = self.options
        finer = fields.rescale(made, options.src_mip, options.dst_mip, options.crop)
        chunk = encode(fields.rounded(finer, options.decimals))
        return chunk, facts_of(given, made, black, failed)

    def _finished(self, pending: _PendingShard, images: Collection, folder: Path) -> ShardResult:
        """Write a shard, once its fields are encoded."""
        done = [each.result() for each in pending.fields]
        if pending.failure is not None and self.options.failed == "stop":
            return ShardResult(pending.kept, pending.failure.text, pending.failure.trace)
        layout = self._layout(pending, [facts for _, facts in done], images)
        if self.origin:
            check_still_of(LocalStore(str(folder)), self.origin)
        write_whole(folder / pending.shard.name, layout, [chunk for chunk, _ in done])
        return ShardResult(pending.kept)

    def _layout(self, pending: _PendingShard, facts: Sequence[PairFacts], images: Collection) -> Layout:
        options, shard = self.options, pending.shard
        known = {name: values[shard.first : shard.last] for name, values in images.arrays.items()}
        made_from = {"input_crc32": np.array(pending.checksums, "<u4")}
        inherited = [name for name in ("spec", "spec_sha256", "anchor") if name in images.attributes]
        attributes = {
            **{name: images.attributes[name] for name in inherited},
            "mip": options.dst_mip,
            "decimals": "none" if options.decimals is None else options.decimals,
            "pairs": images.shape[0],
            "first": shard.first,
            "last": shard.last - 1,
        }
        if pending.failure is not None:
            attributes["failed"] = options.failed
        shape = (shard.count, *images.shape[1:])
        return Layout(shape, 1, {**known, **stacked(facts), **made_from}, (), self.provenance, attributes)


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


def _read(inputs: FieldInputs, kept: KeptReader, pair: int, empty: Empty | None) -> _ReadPair:
    """Read a pair: its inputs only if they must be known, or its field made."""
    checksums = inputs.known_checksums(pair)
    read = None
    if checksums is None:
        read = inputs.read(pair, empty)
        checksums = read.checksums()
    found = kept.find(key_of(checksums, inputs.images, pair))
    if found is not None:
        return _ReadPair(checksums, None, kept=found)
    read = read or inputs.read(pair, empty)
    return _ReadPair(checksums, read, read.black)


_UNWRITTEN = 2 * LONGEST_SHARD  # pairs whose fields are made but not on the disk, which are waited for beyond that


def _known(kept: tuple[Chunk, PairFacts]) -> Future[tuple[Chunk, PairFacts]]:
    done: Future[tuple[Chunk, PairFacts]] = Future()
    done.set_result(kept)
    return done


class _Encoding:
    """Threads that encode fields. Whoever submits one waits while as many as there are threads, and one, wait."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        self._room = threading.Semaphore(threads + 1)

    def __enter__(self) -> "_Encoding":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def submit(
        self, encode: Callable[..., tuple[Chunk, PairFacts]], *arguments: Any
    ) -> Future[tuple[Chunk, PairFacts]]:
        """Encode one, in its turn."""
        self._room.acquire()
        submitted = self._pool.submit(encode, *arguments)
        submitted.add_done_callback(lambda _: self._room.release())
        return submitted


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
