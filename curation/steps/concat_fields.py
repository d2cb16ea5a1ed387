"""Joining shards of fields into one file: every pair exactly once, the stored bytes as they are."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..datasets.chunks import Chunk, encode
from ..datasets.dataset import Dataset, open_dataset
from ..datasets.facts import BOX_FACTS, PAIR_FACTS, SOURCE, TARGET
from ..datasets.layout import Layout
from ..datasets.partial import is_finished, of_another_origin, partial_path
from ..datasets.probe import check_undamaged
from ..datasets.seal import SEAL
from ..datasets.shards import Shard, shard_named
from ..datasets.writer import Writer
from ..errors import UsageError, WorkError
from ..files import Existing, check_destination, check_name, lock_path, locked, make_folder
from ..progress import progress
from ..provenance import provenance
from .pair_quality import QualityTable
from .report import table

COMMIT_BYTES = 16 * 2**20  # copied between two commits

# What a shard says of itself alone; the rest of its attributes are the joined file's too.
_OF_A_SHARD = ("first", "last", "pairs", "failed", "toolkit_version", "provenance", "identity", SEAL)


@dataclass(frozen=True)
class Joined:
    """What was joined, for the summary."""

    path: str
    pairs: int
    shards: int
    resumed: int
    strays: tuple[str, ...]
    quality: QualityTable | None
    done_already: bool = False

    def __str__(self) -> str:
        text = (
            f"{self.path}: {'done already: ' if self.done_already else ''}{self.pairs} pairs from {self.shards} shards"
        )
        if self.resumed and not self.done_already:
            text += f", {self.resumed} pairs found done"
        if self.strays:
            text += f"; not shards, left alone: {', '.join(self.strays)}"
        return "\n".join([text, *([table(self.quality.lines())] if self.quality else [])])


@dataclass(frozen=True)
class ReadShard:
    """What was read of a shard, whose pairs are [first, last); its fields are read when they are copied.

    No shard stays open: large datasets have more of them than a process may have files open.
    alike: what must be the same in all shards, by name. arrays: what it holds of each of its pairs, but fields.
    """

    path: Path
    first: int
    last: int
    alike: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any]
    fingerprint: str


def concat_fields(temp_dir: str, dst_path: str, existing: Existing = Existing.REFUSED) -> Joined:
    """Join the shards in a folder into one field file.

    A file that was joined from the same shards is not touched.
    """
    target = Path(dst_path)
    check_name(dst_path)
    if not target.exists():
        check_destination(target.parent)
    paths, strays = _find(Path(temp_dir))
    with ExitStack() as stack:
        check_undamaged(*(path for path, _ in paths))
        shards = [_read(path, shard) for path, shard in paths]
        shards.sort(key=lambda shard: (shard.first, shard.last))
        check_alike(shards)
        pairs = check_cover(shards)
        layout = _layout(shards, pairs)
        quality = QualityTable.of_parts(shard.arrays for shard in shards)
        left = partial_path(target).exists() or lock_path(target).exists()  # of a run that was killed, or is at work
        if is_finished(target, layout.provenance, existing) and not left:
            return Joined(dst_path, pairs, len(shards), pairs, strays, quality, done_already=True)
        check_destination(target.parent)
        make_folder(target.parent)
        stack.enter_context(locked(target))
        if is_finished(target, layout.provenance, existing):
            partial_path(target).unlink(missing_ok=True)  # of a run that was killed before it deleted the file
            return Joined(dst_path, pairs, len(shards), pairs, strays, quality, done_already=True)
        if of_another_origin(partial_path(target), layout.provenance):
            partial_path(target).unlink(missing_ok=True)
        writer = stack.enter_context(Writer(target, layout))
        resumed = int(np.logical_and.reduce(writer.done, axis=1).sum())
        _copy(shards, writer)
        writer.finish(pair_facts={name: _joined(shards, name) for name in layout.pair_facts})
    return Joined(dst_path, pairs, len(shards), resumed, strays, quality)


def _find(folder: Path) -> tuple[list[tuple[Path, Shard]], tuple[str, ...]]:
    """The shards in a folder, and the names of the other files there."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; want the --temp_dir of generate_fields.py")
    files = [(path, shard_named(path.name)) for path in sorted(folder.iterdir()) if path.is_file()]
    shards = [(path, shard) for path, shard in files if shard is not None]
    if not shards:
        raise UsageError(f"{folder}: no shards there: want files such as 0_16.h5, from generate_fields.py")
    return shards, tuple(path.name for path, shard in files if shard is None and not path.name.startswith("."))


def _read(path: Path, shard: Shard) -> ReadShard:
    data = open_dataset(path)
    with data.file:
        if data.main.shape[0] != shard.count:
            raise UsageError(f"{path}: holds {data.main.shape[0]} pairs, but its name says {shard.count}")
        if data.main.dtype != np.float32:
            raise UsageError(f"{path}: holds {data.main.dtype}: want float32")
        alike = {
            "shape": data.main.shape[1:],
            **{name: data.attributes.get(name) for name in ("mip", "pairs", "decimals", "spec_sha256")},
            "provenance": data.provenance,
            "datasets": sorted(data.file),
        }
        names = [name for name in data.file if name != "crc32" and _is_known(data.file[name], data.main)]
        arrays = {name: data.file[name][:] for name in names}
        return ReadShard(path, shard.first, shard.last, alike, arrays, data.attributes, data.fingerprint)


def check_alike(shards: list[ReadShard]) -> None:
    """Refuse shards of different shape or origin, by both names."""
    first = shards[0]
    for shard in shards[1:]:
        for name, ours in first.alike.items():
            if ours != shard.alike[name]:
                raise UsageError(f"{first.path} and {shard.path} differ in {name}: {ours} and {shard.alike[name]}")


def check_cover(shards: list[ReadShard]) -> int:
    """The number of pairs, if the shards, in order, hold each exactly once. Older shards do not say how many."""
    pairs = int(shards[0].attributes.get("pairs", shards[-1].last))
    end = 0
    for before, shard in zip([None, *shards], shards, strict=False):
        if shard.first > end:
            raise UsageError(f"pairs {end} to {shard.first - 1} are missing: no shard before {shard.path} holds them")
        if shard.first < end and before is not None:
            last = min(end, shard.last) - 1
            raise UsageError(f"pairs {shard.first} to {last} are there twice: in {before.path} and {shard.path}")
        end = shard.last
    if end < pairs:
        raise UsageError(f"pairs {end} to {pairs - 1} are missing: no shard after {shards[-1].path} holds them")
    if end > pairs:
        raise UsageError(f"{shards[-1].path} ends at pair {end - 1}, but there are {pairs} pairs in all")
    return pairs


def _layout(shards: list[ReadShard], pairs: int) -> Layout:
    first = shards[0]
    names = [name for name in first.arrays if all(name in shard.arrays for shard in shards)]
    arrays = {name: _joined(shards, name) for name in names if name not in BOX_FACTS and name not in PAIR_FACTS}
    attributes = {name: value for name, value in first.attributes.items() if name not in _OF_A_SHARD}
    made_of = provenance(
        shards=[[shard.path.name, shard.fingerprint] for shard in shards], origin=first.alike["provenance"]
    )
    facts, pair_facts = (tuple(name for name in names if name in known) for known in (BOX_FACTS, PAIR_FACTS))
    return Layout((pairs, *first.alike["shape"]), 1, arrays, facts, made_of, attributes, pair_facts)


def _joined(shards: list[ReadShard], name: str) -> np.ndarray:
    return np.concatenate([shard.arrays[name] for shard in shards])


def _is_known(dataset: Any, main: h5py.Dataset) -> bool:
    """Whether a shard's dataset holds something of each of its pairs."""
    return isinstance(dataset, h5py.Dataset) and dataset.name != main.name and dataset.shape[:1] == main.shape[:1]


def _copy(shards: list[ReadShard], writer: Writer) -> None:
    done = np.logical_and.reduce(writer.done, axis=1)
    uncommitted = 0
    with progress(len(done), "pairs", "pair", done=int(done.sum())) as bar:
        for shard in shards:
            left = [pair for pair in range(shard.first, shard.last) if not done[pair]]
            for pair, chunk in zip(left, _chunks(shard, left, writer.layout), strict=True):
                sample = pair - shard.first
                facts = {name: shard.arrays[name] for name in writer.layout.facts}
                writer.put(pair, SOURCE, chunk, _of(facts, sample, SOURCE))
                writer.put(pair, TARGET, None, _of(facts, sample, TARGET))
                bar.update()
                uncommitted += chunk.data.nbytes
                if uncommitted >= COMMIT_BYTES:
                    writer.commit()
                    uncommitted = 0


def _chunks(shard: ReadShard, pairs: list[int], layout: Layout) -> Iterator[Chunk]:
    """The stored fields of some of a shard's pairs."""
    if not pairs:
        return
    data = open_dataset(shard.path)
    with data.file:
        if data.fingerprint != shard.fingerprint:
            raise WorkError(f"{shard.path}: changed while shards were joined; the same command joins what is there now")
        stored_alike = _is_stored_as(data.main, layout)
        for pair in pairs:
            yield _chunk(data, pair - shard.first, stored_alike)


def _of(facts: Mapping[str, np.ndarray], sample: int, role: int) -> dict[str, Any]:
    return {name: values[sample, role] for name, values in facts.items()}


def _is_stored_as(main: h5py.Dataset, layout: Layout) -> bool:
    """Whether a shard's chunks can be copied as they are stored."""
    ours = (layout.chunk, "gzip", True, False)
    return (main.chunks, main.compression, main.shuffle, main.scaleoffset is not None) == ours


def _chunk(data: Dataset, sample: int, stored_alike: bool) -> Chunk:
    crc32: Mapping[str, Any] = data.file
    if stored_alike and "crc32" in crc32:
        skipped, stored = data.main.id.read_direct_chunk((sample, 0, 0, 0))
        return Chunk(np.frombuffer(stored, np.uint8), int(crc32["crc32"][sample, 0]), skipped)
    return encode(data.main[sample])
