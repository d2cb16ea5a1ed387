"""Joining shards of fields into one file: every pair exactly once, the stored bytes as they are."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from ..datasets.chunks import Chunk, encode
from ..datasets.dataset import Dataset, open_dataset
from ..datasets.facts import BOX_FACTS, SOURCE, TARGET
from ..datasets.layout import Layout
from ..datasets.probe import check_undamaged
from ..datasets.seal import SEAL
from ..datasets.shards import Shard, shard_named
from ..datasets.writer import Writer
from ..errors import UsageError
from ..files import check_folder, check_new, locked
from ..provenance import provenance

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

    def __str__(self) -> str:
        text = f"{self.path}: {self.pairs} pairs from {self.shards} shards"
        if self.resumed:
            text += f", {self.resumed} pairs found done"
        if self.strays:
            text += f"; not shards, left alone: {', '.join(self.strays)}"
        return text


@dataclass(frozen=True)
class OpenShard:
    """A shard opened to be read: its pairs are [first, last)."""

    first: int
    last: int
    data: Dataset

    @property
    def path(self) -> Path:
        return self.data.path


def concat_fields(temp_dir: str, dst_path: str, overwrite: bool = False) -> Joined:
    """Join the shards in a folder into one field file."""
    check_folder(Path(dst_path).parent)
    paths, strays = _find(Path(temp_dir))
    with ExitStack() as stack:
        stack.enter_context(locked(dst_path))
        check_new(dst_path, overwrite)
        check_undamaged(*(path for path, _ in paths))
        shards = []
        for path, shard in paths:
            shards.append(_open(path, shard))
            stack.enter_context(closing(shards[-1].data.file))
        shards.sort(key=lambda shard: (shard.first, shard.last))
        check_alike(shards)
        pairs = check_cover(shards)
        writer = stack.enter_context(Writer(dst_path, _layout(shards, pairs)))
        resumed = int(np.logical_and.reduce(writer.done, axis=1).sum())
        _copy(shards, writer)
        writer.finish()
    return Joined(dst_path, pairs, len(shards), resumed, strays)


def _find(folder: Path) -> tuple[list[tuple[Path, Shard]], tuple[str, ...]]:
    """The shards in a folder, and the names of the other files there."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; want the --temp_dir of generate_fields.py")
    files = [(path, shard_named(path.name)) for path in sorted(folder.iterdir()) if path.is_file()]
    shards = [(path, shard) for path, shard in files if shard is not None]
    if not shards:
        raise UsageError(f"{folder}: no shards there: want files such as 0_16.h5, from generate_fields.py")
    return shards, tuple(path.name for path, shard in files if shard is None and not path.name.startswith("."))


def _open(path: Path, shard: Shard) -> OpenShard:
    data = open_dataset(path)
    if data.main.shape[0] != shard.count:
        data.file.close()
        raise UsageError(f"{path}: holds {data.main.shape[0]} pairs, but its name says {shard.count}")
    if data.main.dtype != np.float32:
        data.file.close()
        raise UsageError(f"{path}: holds {data.main.dtype}: want float32")
    return OpenShard(shard.first, shard.last, data)


def check_alike(shards: list[OpenShard]) -> None:
    """Refuse shards of different shape or origin, by both names."""
    first = shards[0]
    for shard in shards[1:]:
        for name, ours, theirs in _compared(first, shard):
            if ours != theirs:
                raise UsageError(f"{first.path} and {shard.path} differ in {name}: {ours} and {theirs}")


def _compared(one: OpenShard, other: OpenShard) -> Iterator[tuple[str, Any, Any]]:
    yield "shape", one.data.main.shape[1:], other.data.main.shape[1:]
    for name in ("mip", "pairs", "decimals", "spec_sha256"):
        yield name, one.data.attributes.get(name), other.data.attributes.get(name)
    yield "provenance", one.data.provenance, other.data.provenance
    yield "datasets", sorted(one.data.file), sorted(other.data.file)


def check_cover(shards: list[OpenShard]) -> int:
    """The number of pairs, if the shards, in order, hold each exactly once. Older shards do not say how many."""
    pairs = int(shards[0].data.attributes.get("pairs", shards[-1].last))
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


def _layout(shards: list[OpenShard], pairs: int) -> Layout:
    first = shards[0].data
    names = [name for name in first.file if name != "crc32" and _is_known(first.file[name], first.main)]
    arrays = {
        name: np.concatenate([shard.data.file[name][:] for shard in shards]) for name in names if name not in BOX_FACTS
    }
    attributes = {name: value for name, value in first.attributes.items() if name not in _OF_A_SHARD}
    made_of = provenance(
        shards=[[shard.path.name, shard.data.fingerprint] for shard in shards], origin=first.provenance
    )
    facts = tuple(name for name in names if name in BOX_FACTS)
    return Layout((pairs, *first.main.shape[1:]), 1, arrays, facts, made_of, attributes)


def _is_known(dataset: Any, main: h5py.Dataset) -> bool:
    """Whether a shard's dataset holds something of each of its pairs."""
    return isinstance(dataset, h5py.Dataset) and dataset.name != main.name and dataset.shape[:1] == main.shape[:1]


def _copy(shards: list[OpenShard], writer: Writer) -> None:
    done = np.logical_and.reduce(writer.done, axis=1)
    uncommitted = 0
    with tqdm(total=len(done), initial=int(done.sum()), desc="pairs", unit="pair") as bar:
        for shard in shards:
            stored_alike = _is_stored_as(shard.data.main, writer.layout)
            facts = {name: shard.data.file[name][:] for name in writer.layout.facts}
            for pair in range(shard.first, shard.last):
                if done[pair]:
                    continue
                sample = pair - shard.first
                chunk = _chunk(shard.data, sample, stored_alike)
                writer.put(pair, SOURCE, chunk, _of(facts, sample, SOURCE))
                writer.put(pair, TARGET, None, _of(facts, sample, TARGET))
                bar.update()
                uncommitted += chunk.data.nbytes
                if uncommitted >= COMMIT_BYTES:
                    writer.commit()
                    uncommitted = 0


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
