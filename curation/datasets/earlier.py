"""Boxes of finished files that are the same in a file to be made: what --update keeps, as stored bytes.

The numbers of pairs are kept too, where both files are to hold them: they are made of such boxes alone.

A box is the same if it has the same start and role, and its file the same provenance, but for the parts that only say
which pairs there are, and whether the file holds the numbers of its pairs. Its bytes are trusted if they are as
`checksum` says; those of a damaged box are not.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..provenance import WHICH_PAIRS, WITH_QUALITY, alike_apart_from, before_joining, parsed
from .chunks import Chunk
from .dataset import Dataset, open_dataset
from .layout import Layout
from .partial import entry_of, row_of
from .probe import check_undamaged

NOWHERE = -1


@dataclass(frozen=True)
class _EarlierFile:
    """A finished file. facts, crc32, entries: all that its datasets of these names hold."""

    data: Dataset
    facts: Mapping[str, np.ndarray]
    crc32: np.ndarray
    entries: np.ndarray

    def box(self, sample: int, role: int) -> tuple[Chunk | None, dict[str, Any]] | None:
        chunk = None
        with suppress(OSError, RuntimeError):  # of a damaged file
            if role < self.crc32.shape[1]:
                skipped, stored = self.data.main.id.read_direct_chunk((sample, role, 0, 0))
                chunk = Chunk(np.frombuffer(stored, np.uint8), int(self.crc32[sample, role]), skipped)
            entry = entry_of(chunk, row_of(self.facts, self.crc32, sample, role))
            if entry == self.entries[sample, role]:
                return chunk, {name: values[sample, role] for name, values in self.facts.items()}
        return None


class EarlierBoxes:
    """The boxes of some finished files, of those that are there and fit a layout; a context manager.

    roles_alike: whether a box is stored in the same way as a source and as a target.
    """

    def __init__(self, paths: Iterable[Path], layout: Layout, roles_alike: bool) -> None:
        self._files = list(_fitting(paths, layout))
        self._roles_alike = roles_alike
        rows, places = [np.empty((0, 4), np.int64)], [np.empty((0, 3), np.int64)]
        for number, file in enumerate(self._files):
            starts = file.data.arrays["start"]
            rows.append(self._rows(starts))
            samples, roles = np.indices(starts.shape[:2]).reshape(2, -1)
            places.append(np.stack([np.full(len(samples), number), samples, roles], axis=1))
        self._known = np.concatenate(rows)
        self._places = np.concatenate(places)

    def __enter__(self) -> "EarlierBoxes":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.data.file.close()

    @property
    def paths(self) -> list[Path]:
        """The files that boxes may come from."""
        return [file.data.path for file in self._files]

    def left_out(self) -> Iterator[tuple[float, str, np.ndarray]]:
        """Of each file that leaves pairs out for their valid area: its least such area, its spec, and their places."""
        for file in self._files:
            if "left_out" in file.data.file:
                attributes = file.data.attributes
                yield float(attributes["min_valid"]), str(attributes["spec"]), file.data.file["left_out"][:]

    def places(self, starts: np.ndarray) -> np.ndarray:
        """(N, 2): where each box is, as `box` takes it, or NOWHERE. starts: (N, 2, 3)."""
        return _found(self._rows(starts), self._known).reshape(starts.shape[:2])

    def pair_facts(self, starts: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Which pairs are in files that hold facts of these names, (N,) bool; and theirs, one after the other, by name.

        starts: (N, 2, 3).
        """
        files = [file.data for file in self._files if set(names) <= set(file.data.file)]
        if not files:
            return np.zeros(len(starts), bool), {}
        places = _found(starts.reshape(-1, 6), np.concatenate([data.arrays["start"] for data in files]).reshape(-1, 6))
        known = places != NOWHERE
        values = {name: np.concatenate([data.file[name][:] for data in files])[places[known]] for name in names}
        return known, values

    def box(self, place: int) -> tuple[Chunk | None, dict[str, Any]] | None:
        """A box's stored chunk, if it has one in this kind of file, and its facts; None if it is damaged."""
        number, sample, role = map(int, self._places[place])
        return self._files[number].box(sample, role)

    def _rows(self, starts: np.ndarray) -> np.ndarray:
        """(2 N, 4): what tells one box from another."""
        roles = np.zeros(starts.shape[:2], np.int64) if self._roles_alike else np.indices(starts.shape[:2])[1]
        return np.concatenate([starts, roles[..., None]], axis=2).reshape(-1, 4)


def _found(rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(N,): for each row the place of the first that equals it among known ones, or NOWHERE."""
    _, first, inverse = np.unique(np.concatenate([known, rows]), axis=0, return_index=True, return_inverse=True)
    found = first[inverse.reshape(-1)[len(known) :]]
    return np.where(found < len(known), found, NOWHERE)


def _fitting(paths: Iterable[Path], layout: Layout) -> Iterator[_EarlierFile]:
    for path in paths:
        with suppress(UsageError):  # it is damaged, or no dataset file: nothing in it can be kept
            check_undamaged(path)
            data = open_dataset(path)
            if _fits(data, layout):
                yield _EarlierFile(
                    data,
                    {name: data.file[name][:] for name in layout.facts},
                    data.file["crc32"][:],
                    data.file["checksum"][:],
                )
            else:
                data.file.close()


def _fits(data: Dataset, layout: Layout) -> bool:
    wanted = {*layout.facts, "start", "crc32", "checksum"}
    return (
        alike_apart_from((*WHICH_PAIRS, WITH_QUALITY), before_joining(parsed(data.provenance)), layout.provenance)
        and data.main.shape[1:] == layout.main[1:]
        and data.main.chunks == layout.chunk
        and wanted <= set(data.file)
    )
