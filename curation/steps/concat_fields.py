"""Joining shards into one file, or finished files into one: the stored bytes as they are."""

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np

from ..datasets.chunks import Chunk, encode
from ..datasets.collection import NOTES
from ..datasets.dataset import Dataset, open_dataset
from ..datasets.facts import BOX_FACTS, PAIR_FACTS
from ..datasets.layout import Layout
from ..datasets.partial import is_finished, of_another_origin, partial_path
from ..datasets.probe import check_undamaged
from ..datasets.seal import SEAL
from ..datasets.shard_store import fetched
from ..datasets.shards import BESIDE_SHARDS, SPEC_FILE, Shard, shard_named, shards_in, spec_beside
from ..datasets.writer import Writer
from ..errors import UsageError, WorkError
from ..files import Existing, check_destination, check_name, lock_path, locked, make_folder
from ..pair_selection import first_alike
from ..progress import progress
from ..provenance import WHICH_PAIRS, WITH_QUALITY, Provenance, fingerprint, parsed, provenance, sha256
from ..spec import parse_spec
from .pair_quality import QualityTable
from .report import table

COMMIT_BYTES = 16 * 2**20  # copied between two commits

# What a shard says of itself alone; the rest of its attributes are the joined file's too.
_OF_A_SHARD = ("first", "last", "pairs", "failed", "toolkit_version", "provenance", "identity", SEAL)

# What a file says of its own pairs; a file joined out of several says it anew, or not at all.
_OF_A_FILE = (*_OF_A_SHARD, "spec", "spec_sha256", "min_valid", "parts")
_INPUTS = ("images", "previous_fields")  # in a provenance of fields
_ROLES = "images or fields in a chunk"


@dataclass(frozen=True)
class Joined:
    """What was joined, for the summary. doubled: pairs that were left out, being there already."""

    path: str
    pairs: int
    parts: int
    what: str
    resumed: int
    quality: QualityTable | None
    strays: tuple[str, ...] = ()
    doubled: int = 0
    done_already: bool = False

    def __str__(self) -> str:
        done = "done already: " if self.done_already else ""
        text = f"{self.path}: {done}{self.pairs} pairs from {self.parts} {self.what}"
        if self.doubled:
            text += f"; {self.doubled} doubled pairs left out"
        if self.resumed and not self.done_already:
            text += f", {self.resumed} pairs found done"
        if self.strays:
            text += f"; not shards, left alone: {', '.join(self.strays)}"
        return "\n".join([text, *([table(self.quality.lines())] if self.quality else [])])


@dataclass(frozen=True)
class Part:
    """What was read of a shard, a file or a folder of shards; its images or fields are read when they are copied.

    No part stays open: large datasets have more of them than a process may have files open.
    first: the number of its first pair in the whole. samples: (M,), which of its samples are taken, in order.
    alike: what must be the same in all parts, by name. arrays: what it holds of each of its samples, but `main`.
    shards: those in the folder, if it is one, in order; their first is that in the folder.
    """

    path: Path
    first: int
    samples: np.ndarray
    alike: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any]
    fingerprint: str
    shards: Sequence["Part"] = ()

    @property
    def last(self) -> int:
        """The number of the pair after its last one."""
        return self.first + len(self.samples)


@dataclass(frozen=True)
class _Join:
    """What is to be made of which parts."""

    parts: Sequence[Part]
    layout: Layout
    summary: Joined


def concat_fields(temp_dir: str, dst_path: str, existing: Existing = Existing.REFUSED) -> Joined:
    """Join the shards in a folder into one image file or field file.

    A file that was joined from the same shards is not touched. Shards at a cloud path are fetched first, and take as
    much room again beside the file until it is joined.
    """
    _check_target(dst_path)
    if "://" in temp_dir and not temp_dir.startswith("file://"):
        target = Path(dst_path)
        make_folder(target.parent)
        with fetched(temp_dir, target) as copies:
            return _joined_folder(copies, dst_path, existing)
    return _joined_folder(Path(temp_dir.removeprefix("file://")), dst_path, existing)


def _joined_folder(folder: Path, dst_path: str, existing: Existing) -> Joined:
    shards, strays = _read_shards(folder), _strays(folder)
    pairs = shards[-1].last
    quality = QualityTable.of_parts(shard.arrays for shard in shards)
    summary = Joined(dst_path, pairs, len(shards), "shards", 0, quality, strays)
    return _make(_Join(shards, _layout_of_shards(shards, pairs), summary), existing)


def concat_files(paths: Sequence[str], dst_path: str, existing: Existing = Existing.REFUSED) -> Joined:
    """Join finished image files, or field files, into one; a pair that an earlier file holds too is left out.

    A folder of shards stands for the file that they would be joined into. All must have the same shape, MIP, and
    options, which include the spec apart from its pairs. A file that was joined from the same files is not touched.
    """
    _check_target(dst_path)
    if Path(dst_path).resolve() in {Path(path).resolve() for path in paths}:
        raise UsageError(f"{dst_path} is one of the files to be joined: want another name")
    check_undamaged(*(path for path in paths if not Path(path).is_dir()))
    read = _with_notes([_read_folder(Path(path)) if Path(path).is_dir() else _read_file(Path(path)) for path in paths])
    check_alike(read)
    parts = list(_without_doubles(read))
    pairs = parts[-1].last
    quality = QualityTable.of_parts(_taken(part) for part in parts)
    doubled = sum(len(part.samples) for part in read) - pairs
    summary = Joined(dst_path, pairs, len(parts), "files", 0, quality, doubled=doubled)
    return _make(_Join(parts, _layout_of_files(parts, pairs), summary), existing)


def _check_target(dst_path: str) -> None:
    check_name(dst_path)
    if not Path(dst_path).exists():
        check_destination(Path(dst_path).parent)


def _make(join: _Join, existing: Existing) -> Joined:
    target, made_of = Path(join.summary.path), join.layout.provenance
    done = replace(join.summary, resumed=join.summary.pairs, done_already=True)
    left = partial_path(target).exists() or lock_path(target).exists()  # of a run that was killed, or is at work
    if is_finished(target, made_of, existing) and not left:
        return done
    check_destination(target.parent)
    make_folder(target.parent)
    with ExitStack() as stack:
        stack.enter_context(locked(target))
        if is_finished(target, made_of, existing):
            partial_path(target).unlink(missing_ok=True)  # of a run that was killed before it deleted the file
            return done
        if of_another_origin(partial_path(target), made_of):
            partial_path(target).unlink(missing_ok=True)
        writer = stack.enter_context(Writer(target, join.layout))
        resumed = int(np.logical_and.reduce(writer.done, axis=1).sum())
        _copy(join.parts, writer)
        writer.finish(pair_facts={name: _joined(join.parts, name) for name in join.layout.pair_facts})
    return replace(join.summary, resumed=resumed)


# Shards


def _read_shards(folder: Path) -> list[Part]:
    """The shards in a folder, in order, which hold each pair exactly once."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; want one of shards, from generate_fields.py or make_dataset.py")
    there = [(shard, path) for shard, path in shards_in(folder) if path.is_file()]
    if not there:
        raise UsageError(f"{folder}: no shards there: want files such as 0_16.h5")
    check_undamaged(*(path for _, path in there))
    shards = _with_notes([_read_shard(path, shard) for shard, path in there])
    check_alike(shards)
    check_cover(shards)
    return shards


def _strays(folder: Path) -> tuple[str, ...]:
    """The names of the files in a folder that do not belong to its shards."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return tuple(name for name in names if not (shard_named(name) or name in BESIDE_SHARDS or name.startswith(".")))


def _read_shard(path: Path, shard: Shard) -> Part:
    data = open_dataset(path)
    with data.file:
        if data.main.shape[0] != shard.count:
            raise UsageError(f"{path}: holds {data.main.shape[0]} pairs, but its name says {shard.count}")
        alike = {name: data.attributes.get(name) for name in ("pairs", "spec_sha256")}
        datasets = sorted(set(data.file) - {NOTES})
        return _read(data, {**alike, "provenance": data.provenance, "datasets": datasets}, shard.first)


def _read(data: Dataset, alike: Mapping[str, Any], first: int = 0) -> Part:
    """What is read of an open shard or file. alike: what must be the same in all, beside what always must."""
    if data.main.dtype != np.float32:
        raise UsageError(f"{data.path}: holds {data.main.dtype}: want float32")
    names = [name for name in data.file if name != "crc32" and _is_known(data.file[name], data.main)]
    return Part(
        path=data.path,
        first=first,
        samples=np.arange(len(data.main)),
        alike={
            "shape": data.main.shape[1:],
            "kind": data.kind,
            _ROLES: data.chunk_roles,
            **{name: data.attributes.get(name) for name in ("mip", "decimals")},
            **alike,
        },
        arrays={name: data.file[name][:] for name in names},
        attributes=data.attributes,
        fingerprint=data.fingerprint,
    )


def _with_notes(parts: list[Part]) -> list[Part]:
    """Parts that all have notes, if one of them has: the rest hold none because no pair of theirs has one."""
    if not any(NOTES in part.arrays for part in parts):
        return parts
    return [
        replace(part, arrays={NOTES: np.full(len(part.samples), "", object), **part.arrays})
        if part.alike["kind"] == "image"
        else part
        for part in parts
    ]


def check_alike(parts: Sequence[Part]) -> None:
    """Refuse parts of different shape or origin, by both names."""
    first = parts[0]
    for part in parts[1:]:
        for name, ours in first.alike.items():
            if ours != part.alike[name]:
                raise UsageError(f"{first.path} and {part.path} differ in {name}: {ours} and {part.alike[name]}")


def check_cover(shards: Sequence[Part]) -> int:
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


def _layout_of_shards(shards: Sequence[Part], pairs: int) -> Layout:
    first = shards[0]
    made_of = provenance(
        shards=[[shard.path.name, shard.fingerprint] for shard in shards], origin=first.alike["provenance"]
    )
    attributes = {name: value for name, value in _with_spec(first).items() if name not in _OF_A_SHARD}
    return _layout(shards, pairs, made_of, attributes)


def _with_spec(shard: Part) -> Mapping[str, Any]:
    """The attributes of a shard, with the spec from beside it if the shard has only its hash."""
    if "spec" in shard.attributes or "spec_sha256" not in shard.attributes:
        return shard.attributes
    folder, promised = shard.path.parent, str(shard.attributes["spec_sha256"])
    if (spec := spec_beside(folder, promised)) is None:
        raise UsageError(
            f"{folder / SPEC_FILE}: no such file, and the shards beside it hold only the hash of their spec: "
            f"want the spec whose SHA-256 is {promised}"
        )
    return {**shard.attributes, "spec": spec}


def _layout(parts: Sequence[Part], pairs: int, made_of: Provenance, attributes: Mapping[str, Any]) -> Layout:
    chunk_roles = parts[0].alike[_ROLES]
    names = _in_all(parts)
    arrays = {name: _joined(parts, name) for name in names if name not in (*BOX_FACTS, *PAIR_FACTS, "checksum")}
    if NOTES in arrays and not arrays[NOTES].any():
        del arrays[NOTES]
    facts, pair_facts = (tuple(name for name in names if name in known) for known in (BOX_FACTS, PAIR_FACTS))
    main = (pairs, *parts[0].alike["shape"])
    return Layout(main, chunk_roles, arrays, facts, made_of, attributes, pair_facts)


# Files


def _read_file(path: Path) -> Part:
    data = open_dataset(path)
    with data.file:
        return _read(data, _options(data.provenance))


def _read_folder(folder: Path) -> Part:
    shards = _read_shards(folder)
    first = shards[0]
    alike = {name: first.alike[name] for name in ("shape", "kind", _ROLES, "mip", "decimals")}
    return Part(
        path=folder,
        first=0,
        samples=np.arange(shards[-1].last),
        alike={**alike, **_options(first.alike["provenance"])},
        arrays={name: _joined(shards, name) for name in _in_all(shards)},
        attributes=_with_spec(first),
        fingerprint=fingerprint(shard.fingerprint.encode() for shard in shards),
        shards=shards,
    )


def _options(made_of_text: str) -> dict[str, Any]:
    """What shaped the content of a file, apart from which pairs it holds and from the files it was made of."""
    made_of = parsed(made_of_text)
    if "origin" in made_of:  # it was joined itself
        made_of = parsed(made_of["origin"])
    left_out = {*WHICH_PAIRS, WITH_QUALITY, *_INPUTS}
    return {name: value for name, value in made_of.items() if name not in left_out}


def _without_doubles(parts: Sequence[Part]) -> Iterator[Part]:
    """The parts with the samples that no earlier one holds; all, where a file does not say where its boxes are."""
    taken = [np.ones(len(part.samples), bool) for part in parts]
    if all("start" in part.arrays for part in parts):
        first = first_alike(np.concatenate([part.arrays["start"] for part in parts]))
        file_of = np.repeat(np.arange(len(parts)), [len(part.samples) for part in parts])
        is_new = file_of[first] == file_of  # what a file itself holds twice, it is to hold twice
        taken = np.split(is_new, np.cumsum([len(part.samples) for part in parts])[:-1])
    end = 0
    for part, mask in zip(parts, taken, strict=True):
        yield replace(part, first=end, samples=np.flatnonzero(mask))
        end += int(mask.sum())


def _layout_of_files(parts: Sequence[Part], pairs: int) -> Layout:
    first = parts[0]
    attributes = {name: value for name, value in first.attributes.items() if name not in _OF_A_FILE}
    listed = [
        {"name": part.path.name, "first": part.first, "pairs": len(part.samples), "provenance": _stored(part)}
        for part in parts
    ]
    attributes["parts"] = json.dumps(listed)
    if (spec := _joined_spec(parts)) is not None:
        attributes |= {"spec": spec, "spec_sha256": sha256(spec)}
    origin = {name: first.alike[name] for name in first.alike if name in parsed(_origin(first))}
    made_of = provenance(
        files=[[part.path.name, part.fingerprint, len(part.samples)] for part in parts], origin=json.dumps(origin)
    )
    layout = _layout(parts, pairs, made_of, attributes)
    return replace(layout, arrays={**layout.arrays, "pair": np.arange(pairs)}) if "pair" in layout.arrays else layout


def _stored(part: Part) -> str:
    """The provenance of a part, as JSON."""
    return str(part.attributes.get("provenance", part.attributes.get("identity", "{}")))


def _origin(part: Part) -> str:
    made_of = parsed(_stored(part))
    return str(made_of["origin"]) if "origin" in made_of else _stored(part)


def _joined_spec(parts: Sequence[Part]) -> str | None:
    """The spec of all pairs that are taken; None where a file has none."""
    if not all("spec" in part.attributes and "pair" in part.arrays for part in parts):
        return None
    specs = [parse_spec(str(part.attributes["spec"]).encode()) for part in parts]
    pairs = (
        spec.pairs[place]
        for spec, part in zip(specs, parts, strict=True)
        for place in part.arrays["pair"][part.samples].tolist()
    )
    return msgspec.structs.replace(specs[0], pairs=tuple(pairs)).text()


# Copying


def _taken(part: Part) -> dict[str, np.ndarray]:
    """What a part holds of the samples that are taken."""
    return {name: values[part.samples] for name, values in part.arrays.items()}


def _in_all(parts: Sequence[Part]) -> list[str]:
    """The names of what all parts hold of their samples."""
    return [name for name in parts[0].arrays if all(name in part.arrays for part in parts)]


def _joined(parts: Iterable[Part], name: str) -> np.ndarray:
    return np.concatenate([part.arrays[name][part.samples] for part in parts])


def _is_known(dataset: Any, main: h5py.Dataset) -> bool:
    """Whether a dataset holds something of each pair."""
    return isinstance(dataset, h5py.Dataset) and dataset.name != main.name and dataset.shape[:1] == main.shape[:1]


def _copy(parts: Sequence[Part], writer: Writer) -> None:
    done = np.logical_and.reduce(writer.done, axis=1)
    uncommitted = 0
    with progress(len(done), "pairs", "pair", done=int(done.sum())) as bar:
        for part in parts:
            facts = {name: part.arrays[name] for name in writer.layout.facts}
            left = [place for place in range(len(part.samples)) if not done[part.first + place]]
            samples = part.samples[left].tolist()
            for place, sample, chunks in zip(left, samples, _chunks(part, samples, writer.layout), strict=True):
                for role, chunk in enumerate([*chunks, None][:2]):
                    writer.put(part.first + place, role, chunk, _of(facts, sample, role))
                bar.update()
                uncommitted += sum(chunk.data.nbytes for chunk in chunks)
                if uncommitted >= COMMIT_BYTES:
                    writer.commit()
                    uncommitted = 0


def _chunks(part: Part, samples: Sequence[int], layout: Layout) -> Iterator[list[Chunk]]:
    """The stored images, or the field, of some of a part's samples, which are in order."""
    for shard in part.shards:
        own = samples[bisect_left(samples, shard.first) : bisect_left(samples, shard.last)]
        yield from _chunks(shard, [sample - shard.first for sample in own], layout)
    if part.shards or not samples:
        return
    data = open_dataset(part.path)
    with data.file:
        if data.fingerprint != part.fingerprint:
            raise WorkError(f"{part.path}: changed while it was joined; the same command joins what is there now")
        stored_alike = _is_stored_as(data.main, layout)
        for sample in samples:
            yield [_chunk(data, sample, role, stored_alike) for role in range(layout.chunk_roles)]


def _of(facts: Mapping[str, np.ndarray], sample: int, role: int) -> dict[str, Any]:
    return {name: values[sample, role] for name, values in facts.items()}


def _is_stored_as(main: h5py.Dataset, layout: Layout) -> bool:
    """Whether chunks can be copied as they are stored."""
    ours = (layout.chunk, "gzip", True, False)
    return (main.chunks, main.compression, main.shuffle, main.scaleoffset is not None) == ours


def _chunk(data: Dataset, sample: int, role: int, stored_alike: bool) -> Chunk:
    crc32: Mapping[str, Any] = data.file
    if stored_alike and "crc32" in crc32:
        skipped, stored = data.main.id.read_direct_chunk((sample, role, 0, 0))
        return Chunk(np.frombuffer(stored, np.uint8), int(crc32["crc32"][sample, role]), skipped)
    return encode(data.main[sample, role] if data.chunk_roles == 2 else data.main[sample])
