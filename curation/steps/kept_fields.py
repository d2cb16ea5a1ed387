"""Fields that an earlier run made from the same inputs, and that --update keeps: finding and reading them."""

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from isal import isal_zlib

from ..datasets.chunks import Chunk
from ..datasets.collection import Collection
from ..datasets.dataset import Dataset, open_dataset
from ..datasets.facts import PAIR_FACTS, PairFacts
from ..datasets.probe import undamaged
from ..provenance import Provenance, alike_apart_from
from .field_inputs import Checksums

INPUTS = ("images", "previous_fields")  # the parts of a provenance that may change without changing each field


@dataclass(frozen=True)
class KeptFields:
    """Where the fields that were made from known inputs are: a file's place among `paths`, and a sample in it."""

    paths: Sequence[Path] = ()
    places: Mapping[bytes, tuple[int, int]] = field(default_factory=dict)


def kept_fields(paths: Sequence[Path], made_of: Provenance) -> KeptFields:
    """The fields in shards that were moved aside which are what `made_of` would make from the same inputs."""
    places: dict[bytes, tuple[int, int]] = {}
    for number in undamaged(paths):
        data = open_dataset(paths[number])
        with closing(data.file):
            if alike_apart_from(INPUTS, made_of, json.loads(data.provenance)) and says_all(data.file):
                places |= {key: (number, sample) for sample, key in _keys_of(data)}
    return KeptFields([path.absolute() for path in paths], places)  # a module may change the working directory


def _keys_of(data: Dataset) -> Iterable[tuple[int, bytes]]:
    """The samples whose fields the aligner has made, or its being left out has, with their keys."""
    checksums, failed = data.file["input_crc32"][:], data.file["failed"][:]
    for sample in np.flatnonzero(failed == 0).tolist():
        source, target, prior = checksums[sample].tolist()
        yield sample, key_of((source, target, prior), data, sample)


def says_all(file: h5py.File) -> bool:
    """Whether a shard says all that this version of the toolkit says of its pairs."""
    return all(name in file for name in ("input_crc32", *PAIR_FACTS))


def key_of(checksums: Checksums, data: Dataset | Collection, sample: int) -> bytes:
    """By what a field is found again: the checksums of its inputs, and where the boxes lie, as far as `data` says."""
    known = (data.arrays[name][sample] for name in ("start", "translation") if name in data.arrays)
    return b"".join(np.asarray(values, "<i8").tobytes() for values in (checksums, *known))


class KeptReader:
    """Reads kept fields, for one thread at a time; the file of the last one stays open."""

    def __init__(self, kept: KeptFields) -> None:
        self._kept = kept
        self._number = -1
        self._file: h5py.File | None = None
        self._using = threading.Lock()

    def find(self, key: bytes) -> tuple[Chunk, PairFacts] | None:
        """A field as it is stored, and its facts; None if it was not kept, or is damaged."""
        place = self._kept.places.get(key)
        if place is None:
            return None
        number, sample = place
        try:
            with self._using:
                return _chunk(self._open(number), sample)
        except (OSError, RuntimeError):  # of a chunk that cannot be read
            return None

    def _open(self, number: int) -> h5py.File:
        if self._file is None or number != self._number:
            if self._file is not None:
                self._file.close()
            self._file, self._number = h5py.File(self._kept.paths[number], "r"), number
        return self._file


def _chunk(file: h5py.File, sample: int) -> tuple[Chunk, PairFacts] | None:
    crc32 = int(file["crc32"][sample, 0])
    if isal_zlib.crc32(np.ascontiguousarray(file["main"][sample], "<f4")) != crc32:
        return None
    skipped, stored = file["main"].id.read_direct_chunk((sample, 0, 0, 0))
    facts = {name: file[name][sample].item() for name in PAIR_FACTS}
    return Chunk(np.frombuffer(stored, np.uint8), crc32, skipped), PairFacts(**facts)
