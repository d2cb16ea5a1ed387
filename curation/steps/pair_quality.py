"""The numbers of pairs and their fields: measured beside other work, in workers, or of any files; and their table."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import runner
from ..datasets.collection import Collection, open_collection
from ..datasets.dataset import open_dataset
from ..datasets.facts import QUALITY_FACTS, PairFacts
from ..datasets.matching import check_same_mip, places_of
from ..progress import progress
from ..provenance import WITH_QUALITY, alike_apart_from, before_joining, parsed
from ..quality import PairQuality, measure
from .field_inputs import PairInputs, crc32_of

NAMED = 5  # pairs of a kind that a table names
LONGEST_RUN = 8  # pairs given to a worker at a time


def facts_of(inputs: PairInputs, field: np.ndarray, not_run: bool, failed: bool) -> PairFacts:
    """What is known of a pair and the field (2, X, Y) that was made for it; see `PairFacts`."""
    source, target = inputs.images
    nonfinite = int((~np.isfinite(field)).any(axis=0).sum())
    numbers = asdict(measure(source, target, field, inputs.prior))
    return PairFacts(not_run=not_run, failed=failed, nonfinite=nonfinite, **numbers)


# Any files


@dataclass(frozen=True)
class Measured:
    """The numbers of a pair, by its place among the images.

    place: of its field in the field file; -1 where there is none, so that only the numbers before it are known.
    is_stored: the numbers are those in the field file, which are of the field as the aligner returned it; displacements
    are then from the aligner's prior. Otherwise they were measured just now, and displacements are from 0.
    """

    pair: int
    place: int
    quality: PairQuality
    is_stored: bool


class PairMeasurer:
    """Gives the numbers of any pair of an image file, and of its field in a field file or a folder of shards.

    Pair and field belong together by their starts, or by their place where a file holds no starts. A `UsageError` if
    the files cannot belong together. takes_stored: whether numbers that the field file holds of these images are taken
    as they are. places: (N,) int64, of each pair's field among the fields; -1 where there is none.
    """

    def __init__(self, images: Collection, fields: Collection | None, takes_stored: bool = True) -> None:
        self._images = images
        self._fields = fields
        self.places = np.full(images.shape[0], -1, np.int64)
        if fields is not None:
            self.places = places_of(images, fields)
            self.places[~fields.done[self.places]] = -1
        self._stored = _StoredNumbers(images, fields) if fields is not None and takes_stored else None

    def of(self, pair: int) -> Measured:
        """The numbers of one pair."""
        stored = self.stored(pair)
        place = int(self.places[pair])
        if stored is not None:
            return Measured(pair, place, stored, is_stored=True)
        source, target = self._images.read(pair)
        return Measured(pair, place, measure(source, target, self.field(pair)), is_stored=False)

    def stored(self, pair: int) -> PairQuality | None:
        """The numbers that the field file holds of this pair; None if it holds none of these images."""
        place = int(self.places[pair])
        return None if self._stored is None or place < 0 else self._stored.of(pair, place)

    def field(self, pair: int) -> np.ndarray | None:
        """The field of a pair, (2, X, Y) float32; None if there is none."""
        place = int(self.places[pair])
        if self._fields is None or place < 0:
            return None
        check_same_mip(self._images, self._fields)
        return self._fields.read(place)


class _StoredNumbers:
    """The numbers that a field file holds, as far as they are of these images."""

    def __init__(self, images: Collection, fields: Collection) -> None:
        self._images = images
        self._numbers = stored_numbers(fields)
        made_from = fields.column("input_crc32")
        self._made_from = None if made_from is None else made_from[:, :2]
        known = images.column("crc32")
        self._known = known if known is not None and known.shape[1] == 2 else None
        ours, theirs = (before_joining(parsed(each.provenance)) for each in (images, fields))
        self._made_together = bool(ours) and alike_apart_from((WITH_QUALITY,), ours, theirs)

    def of(self, pair: int, place: int) -> PairQuality | None:
        if self._numbers is None or not (self._made_together or self._are_the_inputs(pair, place)):
            return None
        return PairQuality(**{name: float(values[place]) for name, values in self._numbers.items()})

    def _are_the_inputs(self, pair: int, place: int) -> bool:
        if self._made_from is None:
            return False
        known = self._known[pair] if self._known is not None else list(map(crc32_of, self._images.read(pair)))
        return bool((self._made_from[place] == known).all())


def stored_numbers(fields: Collection) -> dict[str, np.ndarray] | None:
    """The numbers of all pairs in a field file, (N,) by name; None where it does not hold them, or not yet."""
    if not fields.done.all():  # an unfinished file has them last of all
        return None
    numbers = fields.columns(QUALITY_FACTS)
    return numbers if len(numbers) == len(QUALITY_FACTS) else None


def measured(images: Collection, fields: Collection | None, pairs: Iterable[int]) -> Iterator[Measured]:
    """The numbers of some pairs, one after the other: as the field file holds them, or else measured.

    Any files will do, also those of older tools that hold only `main`; without fields, the numbers before are given.
    """
    measurer = PairMeasurer(images, fields)
    return map(measurer.of, pairs)


@dataclass(frozen=True)
class QualityWork:
    """What a worker does: it measures pairs, whose places among the images are its units. See `PairMeasurer`."""

    images: Path
    fields: Path | None
    takes_stored: bool = True

    def __call__(self, worker: int, pairs: Iterator[tuple[int, int]]) -> Iterator[tuple[int, Measured]]:
        with ExitStack() as stack:
            images, *fields = (
                stack.enter_context(closing(open_collection(path))) for path in (self.images, self.fields) if path
            )
            measurer = PairMeasurer(images, fields[0] if fields else None, self.takes_stored)
            for number, pair in pairs:
                yield number, measurer.of(pair)


def numbers_of_fields(
    images: Path, fields: Path, pairs: Sequence[int], count: int, workers: int
) -> dict[str, np.ndarray]:
    """The numbers, (count,) by name, of the fields in a file, measured anew in workers.

    pairs: the places of the pairs among the images. The fields of other pairs have NaN.
    """
    numbers = {name: np.full(count, np.nan, how.dtype) for name, how in QUALITY_FACTS.items()}
    if not pairs:
        return numbers
    runs = [pairs[first : first + LONGEST_RUN] for first in range(0, len(pairs), LONGEST_RUN)]
    work = QualityWork(images, fields, takes_stored=False)
    with (
        progress(len(pairs), "pairs measured", "pair") as bar,
        closing(runner.run(work, runs, workers)) as results,
    ):
        for _, found in results:
            for name, values in numbers.items():
                values[found.place] = getattr(found.quality, name)
            bar.update()
    return numbers


# The table


@dataclass(frozen=True)
class QualityTable:
    """What the numbers of a file's pairs say, for a summary. numbers: (N,) by name. pairs: (N,), their numbers."""

    numbers: Mapping[str, np.ndarray]
    pairs: np.ndarray

    @classmethod
    def of_parts(cls, parts: Iterable[Mapping[str, Any]]) -> "QualityTable | None":
        """The table of files, or arrays by name, whose pairs follow one another; None where one lacks a number."""
        kept = list(parts)
        if not kept or not all(name in part for part in kept for name in QUALITY_FACTS):
            return None
        numbers = {name: np.concatenate([part[name][:] for part in kept]) for name in QUALITY_FACTS}
        return cls(numbers, np.arange(len(numbers["folded"])))

    @classmethod
    def of_file(cls, path: Path) -> "QualityTable | None":
        """The table of a field file; None where it does not hold the numbers."""
        with open_dataset(path).file as file:
            table = cls.of_parts([{name: file[name][:] for name in QUALITY_FACTS if name in file}])
            return replace(table, pairs=file["pair"][:]) if table and "pair" in file else table

    def lines(self) -> Iterator[tuple[str, str]]:
        """The lines of the table."""
        after = self.numbers["correlation_after"]
        known = int(np.isfinite(after).sum())
        if not known:
            yield "correlation", "of no pair: none has pixels that are valid in both images"
        else:
            of = f"median of {'the' if known == len(after) else f'{known} of {len(after)}'} pairs"
            yield "correlation", f"{self._change('correlation')} ({of})"
            yield "by windows", f"{self._change('cpc_median')}; 5th percentile {self._change('cpc_low')}"
            yield "least alike", self._named(np.argsort(after)[:known], after, "{:.2f}")
        lengths = self.numbers["displacement_median"], self.numbers["displacement_max"]
        if np.isfinite(lengths[1]).any():
            yield "displacement", f"{np.nanmedian(lengths[0]):.2f} px, the median; {np.nanmax(lengths[1]):.2f} at most"
        folded = self.numbers["folded"]
        found = int((folded > 0).sum())
        most = np.argsort(-folded)[:found]
        yield "folded", f"{found} fields" + (f": {self._named(most, folded, '{:.2%}')}" if found else "")

    def _change(self, name: str) -> str:
        before, after = (_median(self.numbers[f"{name}_{when}"]) for when in ("before", "after"))
        return f"{before:.2f} before, {after:.2f} after"

    def _named(self, order: np.ndarray, values: np.ndarray, how: str) -> str:
        """The first of some places, with their values: "pair 7 (0.12), pair 3 (0.20)"."""
        return ", ".join(f"pair {self.pairs[place]} ({how.format(values[place])})" for place in order[:NAMED])


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")
