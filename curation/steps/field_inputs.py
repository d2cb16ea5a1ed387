"""What generate_fields reads: the images and the prior of each pair, and their checksums."""

from dataclasses import dataclass

import numpy as np
from isal import isal_zlib

from ..datasets.dataset import Dataset, open_dataset
from ..errors import UsageError

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
        source, target = map(_crc32, self.images)
        return source, target, 0 if self.prior is None else _crc32(self.prior)

    @property
    def prior_or_zeros(self) -> np.ndarray:
        """What stands in for the field of a pair that has none of its own, (2, X, Y) float32."""
        return np.zeros(self.images.shape, np.float32) if self.prior is None else self.prior


@dataclass(frozen=True)
class FieldInputs:
    """The image file and the previous fields, open to be read.

    known_images, known_prior: `crc32` of the files, (N, 2) and (N, 1), where they hold it.
    """

    images: Dataset
    prior: Dataset | None
    known_images: np.ndarray | None
    known_prior: np.ndarray | None

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return int(self.images.main.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """X and Y of the images, in pixels."""
        x_size, y_size = self.images.main.shape[2:]
        return x_size, y_size

    def read(self, pair: int) -> PairInputs:
        """The images and the prior of a pair."""
        prior = None if self.prior is None else self.prior.main[pair].astype(np.float32)
        return PairInputs(self.images.main[pair].astype(np.float32), prior)

    def known_checksums(self, pair: int) -> Checksums | None:
        """The checksums of a pair, if the files hold them."""
        if self.known_images is None or (self.prior is not None and self.known_prior is None):
            return None
        source, target = self.known_images[pair].tolist()
        return source, target, 0 if self.known_prior is None else int(self.known_prior[pair, 0])


def _crc32(values: np.ndarray) -> int:
    return int(isal_zlib.crc32(np.ascontiguousarray(values, "<f4")))


def open_inputs(image_path: str, prev_field_path: str | None, src_mip: int) -> FieldInputs:
    """Open the image file and the previous fields, which must belong together."""
    images = open_dataset(image_path)
    if prev_field_path is None:
        _check(images, "image", src_mip)
        return FieldInputs(images, None, _known(images, 2), None)
    prior = open_dataset(prev_field_path)
    _check(images, "image", src_mip)
    _check(prior, "field", src_mip)
    if images.main.shape != prior.main.shape:
        raise UsageError(
            f"{images.path} is {images.main.shape}, {prior.path} is {prior.main.shape}: want the same shape"
        )
    for name in set(images.arrays) & set(prior.arrays):
        differs = (images.arrays[name] != prior.arrays[name]).reshape(len(images.main), -1).any(axis=1)
        if differs.any():
            pair = int(differs.argmax())
            raise UsageError(
                f"pair {pair}: {name} is {images.arrays[name][pair].tolist()} in {images.path} but "
                f"{prior.arrays[name][pair].tolist()} in {prior.path}: these fields are not of these images"
            )
    return FieldInputs(images, prior, _known(images, 2), _known(prior, 1))


def _check(dataset: Dataset, kind: str, src_mip: int) -> None:
    if dataset.kind not in (kind, None):
        raise UsageError(f"{dataset.path}: {dataset.kind} file, where {kind} file is wanted")
    if dataset.mip is not None and dataset.mip != src_mip:
        raise UsageError(f"{dataset.path} is of MIP {dataset.mip}, not src_mip {src_mip}")


def _known(dataset: Dataset, columns: int) -> np.ndarray | None:
    """`crc32` of a file, (N, columns), if it is there."""
    if "crc32" not in dataset.file or dataset.file["crc32"].shape != (dataset.main.shape[0], columns):
        return None
    return np.asarray(dataset.file["crc32"][:])
