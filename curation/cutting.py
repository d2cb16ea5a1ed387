"""Cutting boxes out of volumes with worker processes, and putting them where they go.

A box is read, normalised, warped and encoded once, in a worker; one process writes each file.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from . import fields, runner, samples
from .datasets import Chunk, encode, encode_grey
from .layers import open_for_writing, upload_section
from .plans import SOURCE, TARGET, CutBox, runs_of
from .reading import Reader, Readings
from .samples import Normalised
from .spec import Spec
from .volumes import Volumes
from .writing import Writer

READ_AHEAD = 8  # boxes read while one is computed, from stores worth waiting for
COMMIT_BYTES = 64 * 2**20  # written, or ...
COMMIT_S = 5.0  # ... time passed, between two commits: what a crash can lose


@dataclass(frozen=True)
class Cut:
    """A finished box: its image as a source and as a target, its residual field, and what is known of it.

    retries: readings that had to be tried again for it.
    """

    source: Chunk | None
    target: Chunk | None
    residual: Chunk | None
    facts: dict[str, Any]
    retries: int


@dataclass(frozen=True)
class CutWork:
    """What a worker does with its boxes: read ahead, compute, encode. `spec` is without pairs.

    layer: where images go when they do not come back as chunks. missing: what a missing chunk means, see `Volumes`.
    """

    spec: Spec
    decimals: int | None
    layer: str | None = None
    missing: str = "black"

    def __call__(self, number: int, boxes: Iterator[tuple[int, CutBox]]) -> Iterator[tuple[int, Cut]]:
        volumes = Volumes(missing=self.missing)
        reader = Reader(self.spec, volumes)
        depth = 0 if all(volume.is_local for volume in reader.volumes()) else READ_AHEAD
        layer = open_for_writing(self.layer) if self.layer else None
        for (place, box), readings in runner.ahead(lambda unit: reader.read(unit[1].start), boxes, depth):
            sample = samples.normalised(readings.image, readings.masked, readings.reference, readings.reference_masked)
            if layer is None:
                yield place, self._encoded(box, readings, sample, volumes.take_retries())
            else:
                warped = _warped(sample, readings)
                for spot in box.places:
                    upload_section(layer, 2 * spot.pair + spot.role, warped)
                yield place, Cut(None, None, None, _facts(readings, sample), volumes.take_retries())

    def _encoded(self, box: CutBox, readings: Readings, sample: Normalised, retries: int) -> Cut:
        roles = {place.role for place in box.places}
        source = target = residual = None
        if SOURCE in roles or readings.residual is None:
            source = encode_grey(sample.image)
        if SOURCE in roles and readings.residual is not None:
            residual = encode(fields.rounded(readings.residual, self.decimals))
        if TARGET in roles:
            target = source if readings.residual is None else encode(_warped(sample, readings))
        return Cut(source, target, residual, _facts(readings, sample), retries)


def _warped(sample: Normalised, readings: Readings) -> np.ndarray:
    return sample.image if readings.residual is None else fields.warp(sample.image, readings.residual)


def _facts(readings: Readings, sample: Normalised) -> dict[str, Any]:
    return {
        "translation": (readings.shift.x, readings.shift.y),
        "mean": sample.mean,
        "std": sample.std,
        "valid": sample.valid,
        "masked": sample.masked,
        "outside": readings.outside,
        "missing_chunks": len(readings.missing),
        "zero_variance": sample.flat,
        "no_vector": not readings.shift.found,
    }


@dataclass
class Sink:
    """Puts finished boxes into the files that are not finished yet, and commits now and then."""

    pairs: int
    images: Writer | None
    residuals: Writer | None
    _uncommitted: int = field(default=0, init=False)
    _committed_at: float = field(default_factory=time.monotonic, init=False)

    def done(self) -> np.ndarray:
        """(N, 2) bool: the boxes that need not be cut again."""
        done = np.ones((self.pairs, 2), bool)
        for writer in self._writers():
            done &= writer.done
        return done

    def put(self, box: CutBox, cut: Cut) -> None:
        for place in box.places:
            is_source = place.role == SOURCE
            if self.images is not None and not self.images.done[place.pair, place.role]:
                self._put(self.images, place.pair, place.role, cut.source if is_source else cut.target, cut)
            if self.residuals is not None and not self.residuals.done[place.pair, place.role]:
                self._put(self.residuals, place.pair, place.role, cut.residual if is_source else None, cut)
        if self._uncommitted >= COMMIT_BYTES or time.monotonic() - self._committed_at >= COMMIT_S:
            self._commit()

    def _put(self, writer: Writer, pair: int, role: int, chunk: Chunk | None, cut: Cut) -> None:
        writer.put(pair, role, chunk, cut.facts)
        self._uncommitted += len(chunk.data) if chunk else 0

    def _commit(self) -> None:
        for writer in self._writers():
            writer.commit()
        self._uncommitted = 0
        self._committed_at = time.monotonic()

    def _writers(self) -> list[Writer]:
        return [writer for writer in (self.images, self.residuals) if writer is not None]


def drive(work: runner.Work[CutBox, Cut], boxes: Sequence[CutBox], workers: int, put: Any) -> int:
    """Have all boxes cut and put; how many readings had to be tried again."""
    retries = 0
    runs = runs_of(boxes, workers)
    numbered = [box for run in runs for box in run]
    with tqdm(total=len(boxes), desc="boxes", unit="box") as bar:
        for number, cut in runner.run(work, runs, workers):
            put(numbered[number], cut)
            retries += cut.retries
            bar.update()
    return retries
