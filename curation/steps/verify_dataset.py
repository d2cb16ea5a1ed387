"""Reading finished dataset files back, chunk by chunk, and holding them against what they promise."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from isal import isal_zlib

from .. import runner
from ..datasets.dataset import Dataset, open_dataset
from ..datasets.facts import BOX_FACTS, PAIR_FACTS, ROLES
from ..datasets.partial import intact_boxes
from ..datasets.probe import lift_limits, limited
from ..datasets.seal import DamageError, seal_fault
from ..datasets.shards import SPEC_FILE, Shard, gaps, gaps_text, shards_in, spec_beside
from ..datasets.stored import SampleReader
from ..errors import UsageError
from ..files import PathLike
from ..machine import usable_cores
from ..progress import progress
from ..provenance import differences, parsed, sha256

MOST_READERS = 4  # threads that inflate


def faults(path: PathLike) -> Iterator[str]:
    """What is wrong with a file or a folder of shards, a line each.

    It is found in child processes, as damage may crash whoever reads it.
    """
    path = Path(path)
    return _folder_faults(path) if path.is_dir() else limited(look_for_faults, path)


def _folder_faults(folder: Path) -> Iterator[str]:
    there = shards_in(folder)
    if not there:
        yield f"{folder}: no shards in it: want a folder of FIRST_LAST.h5 files, or one file"
        return
    sound = []
    with progress(sum(shard.count for shard, _ in there), folder.name, "pair") as bar:
        for shard, path in there:
            found = list(limited(partial(look_for_faults, shows=False), path))
            yield from found
            if not found:
                sound.append((shard, path))
            bar.update(shard.count)
    yield from _faults_together(folder, sound, [shard for shard, _ in there])


def _faults_together(folder: Path, sound: Sequence[tuple[Shard, Path]], there: Sequence[Shard]) -> Iterator[str]:
    """What is wrong with shards that are sound each by itself, in order. there: these, and those that are not sound."""
    specs, made_of = set(), None
    end = pairs = 0
    for shard, path in sound:
        data = open_dataset(path)
        with data.file:
            if len(data.main) != shard.count:
                yield f"{path}: it holds {len(data.main)} pairs, but its name says {shard.count}"
            if made_of is None:
                made_of = data.provenance
            elif data.provenance != made_of:
                yield f"{path}: made with another {differences(parsed(made_of), parsed(data.provenance))}"
            if shard.first < end:
                yield f"{path}: pairs {shard.first} to {min(end, shard.last) - 1} are in another shard too"
            if "spec" not in data.attributes and "spec_sha256" in data.attributes:
                specs.add(str(data.attributes["spec_sha256"]))
            end = max(end, shard.last)
            pairs = max(pairs, int(data.attributes.get("pairs", 0)))
    if missing := list(gaps(there, pairs)):
        yield f"{folder}: {gaps_text(missing)}" + (f" of {pairs}" if pairs else "")
    for promised in sorted(specs):
        try:
            if spec_beside(folder, promised) is None:
                yield f"{folder / SPEC_FILE}: no such file, and the shards beside it hold only the hash of their spec"
        except UsageError as error:
            yield str(error)


def look_for_faults(path: Path, shows: bool = True) -> Iterator[str]:
    """What is wrong with a file, found in this process. shows: whether to show how far it is."""
    try:
        data = open_dataset(path)
    except UsageError as error:
        yield str(error)
        return
    with data.file:
        sound = True
        for what, check in _BUT_CHUNKS.items():
            for fault in _telling_errors(what, check(data)):
                sound = False
                yield f"{path}: {fault}"
        if sound:  # so that there will be so many samples, and so large, as it says
            lift_limits()
        yield from (f"{path}: {fault}" for fault in _telling_errors("chunks", _chunk_faults(data, sound, shows)))


def _telling_errors(what: str, found: Iterator[str]) -> Iterator[str]:
    try:
        yield from found
    except DamageError as error:
        yield f"cannot be read: {error}"
    except Exception as error:  # whatever HDF5 and h5py say of what damage has made of it
        yield f"{what}: cannot be read: {str(error) or type(error).__name__}"


def _seal_faults(data: Dataset) -> Iterator[str]:
    if ".partial." in data.path.name:
        yield "unfinished: run the command that began it again"
    elif fault := seal_fault(data.file):
        yield fault


def _attribute_faults(data: Dataset) -> Iterator[str]:
    spec, promised = data.attributes.get("spec"), data.attributes.get("spec_sha256")
    if spec is not None and sha256(str(spec)) != promised:
        yield f"spec does not have the hash that spec_sha256 says ({promised})"


def _fact_faults(data: Dataset) -> Iterator[str]:
    samples = data.main.shape[0]
    for name, item in data.file.items():
        is_array = isinstance(item, h5py.Dataset) and item.name != data.main.name and name != "left_out"
        if is_array and item.shape[:1] != (samples,):
            yield f"{name} is {item.shape}, for {samples} samples"
    for name, how in {**BOX_FACTS, **PAIR_FACTS}.items():
        if name in data.file:
            values = data.file[name][:]
            for place in np.argwhere(~how.allows(values))[:1].tolist():
                role = f" {ROLES[place[1]]}" if name in BOX_FACTS else ""
                yield f"{name} of pair {place[0]}{role} is {values[tuple(place)]}: want {how.wanted}"


_BUT_CHUNKS = {"seal": _seal_faults, "attributes": _attribute_faults, "facts": _fact_faults}


def _chunk_faults(data: Dataset, sound: bool, shows: bool) -> Iterator[str]:
    """What is wrong with the chunks. sound: whether nothing was found wrong with the rest of the file."""
    main = data.main
    roles = data.chunk_roles
    known = data.file["crc32"][:] if "crc32" in data.file else None
    stored = intact_boxes(data.file) if "checksum" in data.file else None
    read = SampleReader(main)

    def intact(sample: int) -> np.ndarray | None:
        """A sample whose chunks are stored as `checksum` says; what is wrong with any other, HDF5 is to tell."""
        if sound and stored is not None and stored[sample, :roles].all():
            with suppress(OSError, RuntimeError):
                return read(sample)
        return None

    readers = min(MOST_READERS, usable_cores()) if sound else 0
    with progress(main.shape[0], data.path.name, "sample") if shows else nullcontext() as bar:
        for sample, whole in runner.ahead(intact, range(main.shape[0]), readers):
            for role in range(roles):
                where = f"pair {sample}" + (f" {ROLES[role]}" if roles == len(ROLES) else "")
                try:
                    if whole is not None:
                        values = whole[role] if roles == len(ROLES) else whole
                    else:
                        values = main[sample, role] if roles == len(ROLES) else main[sample]
                except (OSError, RuntimeError) as error:
                    yield f"{where}: cannot be read: {_reason(main, error)}"
                    continue
                if known is not None and isal_zlib.crc32(np.ascontiguousarray(values, "<f4")) != known[sample, role]:
                    yield f"{where}: its values do not have the CRC-32 that crc32 says"
                elif stored is not None and not stored[sample, role]:
                    yield f"{where}: its facts are not those that were stored with it"
                elif main.scaleoffset is not None and roles == 1 and values.shape[0] == 2:
                    yield from (f"{where}: {fault}" for fault in _scaleoffset_faults(values))
            if bar is not None:
                bar.update()


def _reason(main: h5py.Dataset, error: Exception) -> str:
    if main.scaleoffset is not None:
        return "written through scaleoffset with NaN in it"
    return str(error)


def _scaleoffset_faults(field: np.ndarray) -> Iterator[str]:
    """Signs that a field (2, X, Y) held NaN: scaleoffset stores it as the smallest value of the chunk.

    So where a vector was NaN both components are the smallest there are, next to vectors that are not: a smooth field
    that comes down to its smallest value does not jump there.
    """
    smallest = field.min(axis=(1, 2), keepdims=True)
    holes = np.logical_and.reduce((field == smallest) | (field == field.min()), axis=0)
    if holes.all() or not holes.any():
        return
    if _jump(field, holes) > JUMP:
        yield f"{holes.sum()} vectors are the smallest value amid others: what scaleoffset makes of NaN"


def _jump(field: np.ndarray, holes: np.ndarray) -> float:
    """The median step, in pixels, from a hole to its neighbours that are none."""
    steps = []
    for axis in (0, 1):
        edge = np.diff(holes.astype(np.int8), axis=axis) != 0
        steps.append(np.abs(np.diff(field, axis=axis + 1)).max(axis=0)[edge])
    return float(np.median(np.concatenate(steps)))


JUMP = 1.0  # pixels: neighbouring vectors of a field that does not fold differ by less
