"""The tables that scripts print: what a run would do, what it did, and what is not as it should be."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..datasets.dataset import open_dataset
from ..datasets.facts import BOX_FACTS, ROLES

NAMED = 5  # places of a kind that are named; the rest is in the file
RANGES = 50  # ranges of pairs that are named


def table(lines: Iterable[tuple[str, str]]) -> str:
    """Names and values, a line each, as text."""
    return "\n".join(f"{name:<16} {value}" for name, value in lines)


def gib(count: int) -> str:
    """A number of bytes, for people."""
    return f"{count / 2**30:.2f} GiB"


def free_bytes(path: str | Path) -> int | None:
    """Free disk in a folder; None where that cannot be told."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def numbered(pairs: Iterable[int]) -> str:
    """Pairs by their numbers, in rising order and neighbours in one: "pairs 3, 7-9"; of very many only the first."""
    found: list[list[int]] = []
    for number in map(int, pairs):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    count = sum(last - first + 1 for first, last in found)
    named = [str(first) if first == last else f"{first}-{last}" for first, last in found[:RANGES]]
    more = sum(last - first + 1 for first, last in found[RANGES:])
    return f"pair{'s' if count > 1 else ''} {', '.join(named)}" + (f" and {more} more" if more else "")


@dataclass(frozen=True)
class Plan:
    """What a command would do, for --dry_run. output_bytes is what the output takes without compression."""

    outputs: tuple[str, ...]
    pairs: int
    boxes: int
    repeated_pairs: int
    chunks: int
    leaving: int  # distinct boxes that lie partly outside a volume
    output_bytes: int
    free_bytes: int | None

    def __str__(self) -> str:
        free = "" if self.free_bytes is None else f"; {gib(self.free_bytes)} are free there"
        if self.free_bytes is not None and self.free_bytes < self.output_bytes:
            free += ", which may not be enough"
        lines = [
            ("output", ", ".join(self.outputs)),
            ("pairs", str(self.pairs) + (f", {self.repeated_pairs} of them repeated" if self.repeated_pairs else "")),
            ("distinct boxes", f"{self.boxes}, {self.leaving} of them partly outside a volume"),
            ("chunks to read", f"{self.chunks}, before the shifts that fields ask for"),
            ("output size", f"up to {gib(self.output_bytes)}{free}"),
        ]
        return table(lines)


@dataclass(frozen=True)
class Report:
    """The facts of a dataset, (N, 2) each, and what this run did.

    starts: (N, 2, 3). pairs: (N,), each sample's number among the spec's pairs. resumed: boxes found done.
    """

    outputs: tuple[str, ...]
    starts: np.ndarray
    pairs: np.ndarray
    facts: Mapping[str, np.ndarray]
    resumed: int
    retries: int
    left_out: int = 0
    min_valid: float | None = None

    def __str__(self) -> str:
        return table(self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        pairs = str(len(self.starts))
        if self.left_out:
            pairs += f"; {self.left_out} left out, their valid area being below {self.min_valid:g}"
        yield "output", ", ".join(self.outputs)
        yield "pairs", pairs
        yield "boxes", f"{self._distinct().sum()} distinct, of {self.starts.shape[0] * 2} images"
        if self.resumed:
            yield "found done", f"{self.resumed} of {self.starts.shape[0] * 2} images"
        yield "missing chunks", self._counted("missing_chunks") + self._where(self.facts["missing_chunks"] > 0)
        for name in ("outside", "masked"):
            yield name, self._share(name) + self._where(self.facts[name] > 0)
        yield "zero variance", self._images(self.facts["zero_variance"] != 0)
        yield "no vector", self._images(self.facts["no_vector"] != 0)
        yield "retries", str(self.retries)

    def _distinct(self) -> np.ndarray:
        """(N, 2) bool: one place for each distinct box."""
        flat = self.starts.reshape(-1, 3)
        first = np.unique(flat, axis=0, return_index=True)[1]
        return np.isin(np.arange(len(flat)), first).reshape(-1, 2)

    def _counted(self, name: str) -> str:
        count = int(self.facts[name][self._distinct()].sum())
        return f"{count} read as black" if count else "0"

    def _share(self, name: str) -> str:
        return f"{self.facts[name][self._distinct()].mean():.2%} of the area"

    def _images(self, which: np.ndarray) -> str:
        return f"{which.sum()}{self._where(which)}"

    def _where(self, which: np.ndarray) -> str:
        places = np.argwhere(which)
        if not len(places):
            return ""
        named = [f"pair {self.pairs[sample]} {ROLES[role]}" for sample, role in places[:NAMED].tolist()]
        more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
        return f" ({', '.join(named)}{more})"


def report_of(target: Path, outputs: Sequence[Path], resumed: int, retries: int = 0) -> Report:
    """The report of a finished image file, which may be one of several outputs."""
    data = open_dataset(target)
    with data.file as file:
        return Report(
            outputs=tuple(map(str, outputs)),
            starts=file["start"][:],
            pairs=file["pair"][:],
            facts={name: file[name][:] for name in BOX_FACTS},
            resumed=resumed,
            retries=retries,
            left_out=len(file["left_out"]) if "left_out" in file else 0,
            min_valid=file.attrs.get("min_valid"),
        )
