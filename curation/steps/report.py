"""The tables that scripts print: what a run would do, what it did, and what is not as it should be."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.dataset import open_dataset
from ..datasets.facts import BOX_FACTS, ROLES, VOLUMES
from ..pair_selection import Exclusion
from .pair_quality import QualityTable

NAMED = 5  # places of a kind that are named; the rest is in the file


def table(lines: Iterable[tuple[str, str]]) -> str:
    """Names and values, a line each, as text."""
    return "\n".join(f"{name:<16} {value}" for name, value in lines)


def size_text(count: int) -> str:
    """A number of bytes, for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def free_bytes(path: str | Path) -> int | None:
    """Free disk in a folder, which may have to be made in another yet; None where that cannot be told."""
    folder = Path(path).absolute()
    try:
        return shutil.disk_usage(folder if folder.exists() else folder.parent).free
    except OSError:
        return None


@dataclass(frozen=True)
class Plan:
    """What a command would do, for --dry_run. output_bytes is what the output takes without compression.

    boxes, chunks, leaving: of the distinct boxes that are to be cut. kept: images that --update would keep. exclusion:
    what was left out of the pairs, if anything was asked to be.
    """

    outputs: tuple[str, ...]
    pairs: int
    boxes: int
    repeated_pairs: int
    chunks: int
    leaving: int  # boxes that lie partly outside the image's volume
    kept: int
    output_bytes: int
    free_bytes: int | None
    exclusion: Exclusion | None = None

    def __str__(self) -> str:
        free = "" if self.free_bytes is None else f"; {size_text(self.free_bytes)} are free there"
        if self.free_bytes is not None and self.free_bytes < self.output_bytes:
            free += ", which may not be enough"
        lines = [
            ("output", ", ".join(self.outputs)),
            ("pairs", str(self.pairs) + (f", {self.repeated_pairs} of them repeated" if self.repeated_pairs else "")),
            *([] if self.exclusion is None else [("excluded", str(self.exclusion))]),
            *([("kept", f"{self.kept} of {2 * self.pairs} images, as they are stored")] if self.kept else []),
            ("distinct boxes", f"{self.boxes}, {self.leaving} of them partly outside the image's volume"),
            ("chunks to read", f"{self.chunks}, before the shifts that fields ask for"),
            ("output size", f"up to {size_text(self.output_bytes)}{free}"),
        ]
        return table(lines)


@dataclass(frozen=True)
class Report:
    """The facts of a dataset, (N, 2) each, and what this run did.

    starts: (N, 2, 3). pairs: (N,), each sample's number among the spec's pairs. volumes: what each of `VOLUMES` is, as
    far as they are read. resumed: boxes found done. kept: boxes taken from earlier files; kept_from: those of the files
    that were not replaced. exclusion: what was left out of the spec's pairs, if anything was asked to be. done_already:
    whether nothing was left to do.
    """

    outputs: tuple[str, ...]
    starts: np.ndarray
    pairs: np.ndarray
    facts: Mapping[str, np.ndarray]
    volumes: Mapping[str, str] = field(default_factory=dict)
    resumed: int = 0
    kept: int = 0
    kept_from: tuple[str, ...] = ()
    retries: int = 0
    left_out: int = 0
    min_valid: float | None = None
    quality: QualityTable | None = None
    exclusion: Exclusion | None = None
    done_already: bool = False

    def __str__(self) -> str:
        return table(self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        images = 2 * len(self.starts)
        pairs = str(len(self.starts)) + (", done already" if self.done_already else "")
        if self.left_out:
            pairs += f"; {self.left_out} left out, their valid area being below {self.min_valid:g}"
        yield "output", ", ".join(self.outputs)
        yield "pairs", pairs
        if self.exclusion is not None:
            yield "excluded", str(self.exclusion)
        yield "boxes", f"{self._distinct().sum()} distinct, of {images} images"
        if self.resumed:
            yield "found done", f"{self.resumed} of {images} images"
        if self.kept:
            yield "kept", f"{self.kept} of {images} images, as they were stored; the rest was cut"
        if self.kept_from:
            yield "left there", f"{', '.join(self.kept_from)}: named for another first pair; delete it, or give --name"
        yield "missing chunks", self._missing()
        yield "valid", f"{self._mean('valid'):.2%} of the area"
        for name in ("outside", "masked"):
            yield name, self._share(name) + self._where(self.facts[name] > 0)
        yield "zero variance", self._images(self.facts["zero_variance"] != 0)
        yield "no vector", self._images(self.facts["no_vector"] != 0)
        yield "retries", str(self.retries)
        if self.quality is not None:
            yield from self.quality.lines()

    def _distinct(self) -> np.ndarray:
        """(N, 2) bool: one place for each distinct box."""
        flat = self.starts.reshape(-1, 3)
        first = np.unique(flat, axis=0, return_index=True)[1]
        return np.isin(np.arange(len(flat)), first).reshape(-1, 2)

    def _missing(self) -> str:
        """Such as "3 of 40 of image gs://... at MIP 2, read as black"."""
        distinct = self._distinct()
        asked, missing = (self.facts[name][distinct].sum(axis=0) for name in ("chunks_by_volume", "missing_by_volume"))
        counted = [
            f"{missing[index]} of {asked[index]} of {name} {self.volumes.get(name, '')}"
            for index, name in enumerate(VOLUMES)
            if missing[index]
        ]
        if not counted:
            return "0"
        return f"{', '.join(counted)}; read as black{self._where(self.facts['missing_chunks'] > 0)}"

    def _mean(self, name: str) -> float:
        return float(self.facts[name][self._distinct()].mean())

    def _share(self, name: str) -> str:
        return f"{self._mean(name):.2%} of the area"

    def _images(self, which: np.ndarray) -> str:
        return f"{which.sum()}{self._where(which)}"

    def _where(self, which: np.ndarray) -> str:
        places = np.argwhere(which)
        if not len(places):
            return ""
        named = [f"pair {self.pairs[sample]} {ROLES[role]}" for sample, role in places[:NAMED].tolist()]
        more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
        return f" ({', '.join(named)}{more})"


def report_of(target: Path, outputs: Sequence[Path], **of_this_run: Any) -> Report:
    """The report of a finished image file, beside which there may be a field file. of_this_run: what it cannot tell."""
    tables = [QualityTable.of_file(path) for path in outputs if path != target]
    data = open_dataset(target)
    with data.file as file:
        return Report(
            outputs=tuple(map(str, outputs)),
            starts=file["start"][:],
            pairs=file["pair"][:],
            facts={name: file[name][:] for name in BOX_FACTS},
            volumes=json.loads(file.attrs.get("volumes", "{}")),
            left_out=len(file["left_out"]) if "left_out" in file else 0,
            min_valid=file.attrs.get("min_valid"),
            quality=tables[0] if tables else None,
            **of_this_run,
        )
