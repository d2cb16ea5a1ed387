"""What generate_fields reads: the images and the prior of each pair, and their checksums."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from isal import isal_zlib

from ..datasets.collection import Collection, open_finished
from ..datasets.matching import places_of
from ..datasets.stored import Empty
from ..errors import UsageError, numbered

Checksums = tuple[int, int, int]
"""Of a pair: the CRC-32 of its source, its target and its prior, as `crc32` in files; 0 where there is no prior."""


@dataclass(frozen=True)
class PairInputs:
    """What is read of a pair. images: (2, X, Y) float32, source and target. prior: (2, X, Y) float32 or None."""

    images: np.ndarray
    prior: np.ndarray | None

    @property
    def black(self) -> bool:
        """Whether an image is all 0, so that no aligner is run."""
        return not (self.images[0].any() and self.images[1].any())

    def checksums(self) -> Checksums:
        """Their checksums."""
        source, target = map(crc32_of, self.images)
        return source, target, 0 if self.prior is None else crc32_of(self.prior)

    @property
    def prior_or_zeros(self) -> np.ndarray:
        """What stands in for the field of a pair that has none of its own, (2, X, Y) float32."""
        return np.zeros(self.images.shape, np.float32) if self.prior is None else self.prior


@dataclass(frozen=True)
class FieldInputs:
    """The images and the previous fields, each in a file or in shards, open to be read.

    prior_of: (N,) int64, the place of each pair's prior among the previous fields; -1 where it has none there.
    known_images, known_priors: `crc32` of the files, (N, 2) and (M, 1), where they hold it.
    """

    images: Collection
    prior: Collection | None
    prior_of: np.ndarray
    known_images: np.ndarray | None
    known_priors: np.ndarray | None

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return self.images.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """X and Y of the images, in pixels."""
        x_size, y_size = self.images.shape[2:]
        return x_size, y_size

    def matched(self) -> "Matched":
        """How the pairs and the previous fields belong together, for the tables."""
        if self.prior is None:
            return Matched(self.pairs)
        found = int((self.prior_of >= 0).sum())
        zero_priors = tuple(np.flatnonzero(self.prior_of < 0).tolist())
        return Matched(self.pairs, self.prior.shape[0] - found, zero_priors)

    def read(self, pair: int, empty: Empty | None = None) -> PairInputs:
        """The images and the prior of a pair, in any thread. empty: makes the arrays that they are read into."""
        images = self.images.read(pair, empty)
        if self.prior is None:
            return PairInputs(images, None)
        place = int(self.prior_of[pair])
        if place < 0:
            return PairInputs(images, np.zeros(images.shape, np.float32))
        return PairInputs(images, self.prior.read(place, empty))

    def known_checksums(self, pair: int) -> Checksums | None:
        """The checksums of a pair, if the files hold them."""
        place = int(self.prior_of[pair])
        if self.known_images is None or (self.prior is not None and (self.known_priors is None or place < 0)):
            return None
        source, target = self.known_images[pair].tolist()
        return source, target, 0 if self.known_priors is None else int(self.known_priors[place, 0])


@dataclass(frozen=True)
class Matched:
    """How pairs and previous fields belong together.

    passed_over: previous fields whose pairs are not among the images. zero_priors: pairs without a previous field.
    """

    pairs: int
    passed_over: int = 0
    zero_priors: tuple[int, ...] = ()

    def lines(self) -> Iterator[tuple[str, str]]:
        """What a table says of it: nothing where each pair has a previous field, and none is left."""
        if self.passed_over:
            yield "passed over", f"{self.passed_over} previous fields, whose pairs are not among the images"
        if self.zero_priors:
            count = len(self.zero_priors)
            yield "prior of 0", f"{count}, there being no previous field ({numbered(self.zero_priors)})"


def crc32_of(values: np.ndarray) -> int:
    """The checksum of an image or a field, as `crc32` in files."""
    return int(isal_zlib.crc32(np.ascontiguousarray(values, "<f4")))


def open_inputs(image_path: str, prev_field_path: str | None, src_mip: int, missing_prior: str) -> FieldInputs:
    """Open the images and the previous fields, each a file or a folder of all shards, which must belong together.

    missing_prior: "stop" or "zero", what is done of pairs whose start no previous field has.
    """
    images = open_finished(image_path)
    if prev_field_path is None:
        _check(images, "image", src_mip)
        return FieldInputs(images, None, np.full(images.shape[0], -1, np.int64), _known(images, 2), None)
    prior = open_finished(prev_field_path)
    _check(images, "image", src_mip)
    _check(prior, "field", src_mip)
    prior_of = places_of(images, prior)
    missing = np.flatnonzero(prior_of < 0)
    if len(missing) and missing_prior == "stop":
        raise UsageError(
            f"{prior.path} has no field with the start of {numbered(missing)} of {images.path}: "
            "make such fields, or take their prior for 0 with --missing_prior zero"
        )
    return FieldInputs(images, prior, prior_of, _known(images, 2), _known(prior, 1))


def _check(dataset: Collection, kind: str, src_mip: int) -> None:
    dataset.check_whole()
    if dataset.kind not in (kind, None):
        raise UsageError(f"{dataset.path}: {dataset.kind} file, where {kind} file is wanted")
    if dataset.mip is not None and dataset.mip != src_mip:
        raise UsageError(f"{dataset.path} is of MIP {dataset.mip}, not src_mip {src_mip}")


def _known(dataset: Collection, columns: int) -> np.ndarray | None:
    """`crc32` of the files, (N, columns), if it is there."""
    known = dataset.column("crc32")
    return None if known is None or known.shape[1:] != (columns,) else known
