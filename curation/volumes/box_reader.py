"""Reading all that a spec wants of one box, and checking beforehand that it can be read."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from .. import fields, samples
from ..boxes import Box, Window
from ..errors import UsageError, ranges_text
from ..samples import Translation
from ..spec import Reference, Spec, field_reference, image_reference
from .volume import PROBES, ChunkKey, Volume, Volumes, check_scales, window_text


@dataclass(frozen=True)
class BoxData:
    """All that is read for one box.

    residual: (2, X, Y) pixels, or None where the spec has no field. image: (X, Y) float32. black, masked: (X, Y) bool.
    reference: (P,), the reference's pixels that are neither black nor masked; None where images are wanted as they are
    stored. asked, missing: how many chunks were asked for, and how many of these the stores did not have, by the parts
    of the spec that name their volumes; a chunk of two parts counts for the first. outside: the fraction of the box
    that lies outside the image's volume.
    """

    shift: Translation
    residual: np.ndarray | None
    image: np.ndarray
    black: np.ndarray
    masked: np.ndarray
    reference: np.ndarray | None
    asked: Mapping[str, int]
    missing: Mapping[str, int]
    outside: float


class BoxReader:
    """Reads what a spec wants of one box. normalised: whether that includes the image's reference."""

    def __init__(self, spec: Spec, volumes: Volumes, normalised: bool = True) -> None:
        self._spec = spec
        self._normalised = normalised
        volumes.open_layers(spec.paths())
        self.image = volumes.open(spec.image.path, spec.image.src_mip)
        self._image_reference = image_reference(spec)
        self.reference = volumes.open(self._image_reference.path, self._image_reference.src_mip)
        self.masks = [volumes.open(mask.path, mask.src_mip) for mask in spec.masks]
        self.field: Volume | None = None
        self.field_reference: Volume | None = None
        if spec.field is not None:
            self._field_reference = field_reference(spec)
            self.field = volumes.open(spec.field.path, spec.field.src_mip)
            self.field_reference = volumes.open(self._field_reference.path, self._field_reference.src_mip)

    def volumes(self) -> list[Volume]:
        """Every volume that is read."""
        return [volume for _, volume in self._named()]

    def _named(self) -> list[tuple[str, Volume]]:
        """The volumes, and which part of the spec names each."""
        found = [
            ("image", self.image),
            ("image.reference", self.reference),
            *(("masks", mask) for mask in self.masks),
            ("field", self.field),
            ("field.reference", self.field_reference),
        ]
        return [(name, volume) for name, volume in found if volume is not None]

    def box(self, start: tuple[int, int, int]) -> Box:
        """The sample's box, not yet shifted."""
        return Box(*start, self._spec.x_size, self._spec.y_size, self._spec.dst_mip)

    def windows(self, start: tuple[int, int, int]) -> Iterator[tuple[str, Volume, Window]]:
        """What would be read if nothing were shifted: where in the spec, the volume, and its window."""
        box = self.box(start)
        if self.field is not None and self.field_reference is not None:
            yield "field", self.field, box.window(self.field.mip)
            at = _reference_box(self._field_reference, box)
            yield "field.reference", self.field_reference, at.window(self.field_reference.mip)
        yield "image", self.image, box.window(self.image.mip)
        at = _reference_box(self._image_reference, box)
        if self._normalised:
            yield "image.reference", self.reference, at.window(self.reference.mip)
        for index, mask in enumerate(self.masks):
            yield f"masks[{index}]", mask, box.window(mask.mip)
            if self._normalised:
                yield f"masks[{index}] over image.reference", mask, at.window(mask.mip)

    def read(self, start: tuple[int, int, int]) -> BoxData:
        """Read one box, first the field that says where its image is."""
        tally = _ReadTally()
        box = self.box(start)
        shift, residual = self._displacement(tally, box)
        box = box.shifted(shift.x, shift.y)
        image, black = tally.image(self.image, box)
        masked = self._masked(tally, box)
        reference = None
        if self._normalised:
            if self._reference_is_own(box):
                reference = image[~(black | masked)]
            else:
                at = _reference_box(self._image_reference, box)
                values, reference_black = tally.image(self.reference, at)
                reference = values[~(reference_black | self._masked(tally, at))]
        return BoxData(
            shift=shift,
            residual=residual,
            image=image,
            black=black,
            masked=masked,
            reference=reference,
            asked=self._by_volume(tally.asked),
            missing=self._by_volume(tally.missing),
            outside=self._outside(box),
        )

    def leaves(self, start: tuple[int, int, int]) -> bool:
        """Whether a box that is not shifted lies partly outside the image's volume."""
        return self._outside(self.box(start)) > 0

    def _outside(self, box: Box) -> float:
        return box.outside(self.image.start[:2], self.image.stop[:2], self.image.mip)

    def _by_volume(self, chunks: Iterable[ChunkKey]) -> Mapping[str, int]:
        names = {(volume.path, volume.mip): name for name, volume in reversed(self._named())}
        return Counter(names[path, mip] for path, mip, _ in chunks)

    def _displacement(self, tally: "_ReadTally", box: Box) -> tuple[Translation, np.ndarray | None]:
        if self.field is None or self.field_reference is None:
            return Translation(0, 0, found=True), None
        at_reference = _reference_box(self._field_reference, box)
        shift = samples.translation(tally.vectors(self.field_reference, at_reference), self.field_reference.mip)
        # Interpolation is linear, so the shift can be taken out first, where there are few vectors.
        return shift, tally.vectors(self.field, box, lambda field: samples.residual(field, shift, box.mip))

    def _reference_is_own(self, box: Box) -> bool:
        own = _reference_box(self._image_reference, box) == box
        return own and (self.reference.path, self.reference.mip) == (self.image.path, self.image.mip)

    def _masked(self, tally: "_ReadTally", box: Box) -> np.ndarray:
        """(X, Y) bool: where any mask masks a pixel of the box."""
        masked = np.zeros(box.shape, bool)
        for mask, volume in zip(self._spec.masks, self.masks, strict=True):
            masked |= tally.mask(volume, box, mask.threshold)
        return masked


def _reference_box(reference: Reference, box: Box) -> Box:
    return Box(box.x_start, box.y_start, box.z, reference.x_size, reference.y_size, reference.dst_mip)


@dataclass
class _ReadTally:
    """Reads boxes, and keeps count of the chunks that were asked for, and of those that were not there."""

    asked: set[ChunkKey] = field(default_factory=set)
    missing: set[ChunkKey] = field(default_factory=set)

    def image(self, volume: Volume, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """(X, Y), and (X, Y) bool: an image over a box, and where it is black."""
        window = box.window(volume.mip)
        values = self._read(volume, window)
        return fields.image_to_level(values[0], volume.mip, box.mip, box.shape, window.crop)

    def vectors(
        self, volume: Volume, box: Box, before: Callable[[np.ndarray], np.ndarray] = lambda field: field
    ) -> np.ndarray:
        """(2, X, Y): a field over a box. before: done to it before it is brought to the box's level."""
        window = box.window(volume.mip)
        field = before(self._read(volume, window).astype(np.float32))
        return fields.to_level(field, volume.mip, box.mip, box.shape, window.crop)

    def mask(self, volume: Volume, box: Box, threshold: float) -> np.ndarray:
        """(X, Y) bool: where a mask volume masks pixels of a box."""
        window = box.window(volume.mip)
        values = self._read(volume, window)
        return samples.mask_to_level(values[0], threshold, volume.mip, box.mip, box.shape, window.crop)

    def _read(self, volume: Volume, window: Window) -> np.ndarray:
        cutout = volume.read(window)
        self.asked.update((volume.path, volume.mip, start) for start in volume.chunks(window))
        self.missing.update(cutout.missing)
        return cutout.values


# Checks before anything is read


def check_volumes(reader: BoxReader) -> None:
    """Refuse volumes that do not hold what the spec takes them for."""
    check_scales(reader.volumes())
    for name, volume, channels in [
        ("image", reader.image, 1),
        ("image.reference", reader.reference, 1),
        *((f"masks[{index}]", mask, 1) for index, mask in enumerate(reader.masks)),
        ("field", reader.field, 2),
        ("field.reference", reader.field_reference, 2),
    ]:
        if volume is not None and volume.channels != channels:
            raise UsageError(f"{name}: {volume} has {volume.channels} channels: want {channels}")
    for name, volume in [("image", reader.image), ("image.reference", reader.reference)]:
        # float32, in which images are stored, holds whole numbers up to 2^24 only.
        if not (volume.dtype.kind == "f" or volume.dtype.itemsize <= 2):
            raise UsageError(f"{name}: {volume} holds {volume.dtype}: want grey values, 8 or 16 bit or float")
    for name, volume in [("field", reader.field), ("field.reference", reader.field_reference)]:
        if volume is not None and volume.dtype.kind != "f":
            raise UsageError(f"{name}: {volume} holds {volume.dtype}: want float vectors in MIP-0 voxels")


def check_boxes(reader: BoxReader, starts: np.ndarray) -> None:
    """Refuse boxes that lie wholly outside their volume, and name all their pairs. starts: (N, 2, 3).

    With a field, only where that is read is known: it tells where the image is.
    """
    unique, of_unique = np.unique(starts.reshape(-1, 3), axis=0, return_inverse=True)
    faults = {}
    for box, start in enumerate(unique.tolist()):
        for name, volume, window in reader.windows(tuple(start)):
            is_known = reader.field is None or name.startswith("field")
            if is_known and volume.overlap(window) == 0:
                where = f"{window_text(window)}; {volume.bounds_text()}"
                faults[box] = f"section {start[2]}: box wholly outside the volume of {name}: {where}"
                break
    if not faults:
        return
    places = np.flatnonzero(np.isin(of_unique.reshape(-1), list(faults)))
    pair, role = divmod(int(places[0]), 2)
    fault = f"pairs[{pair}].{('src', 'tgt')[role]}, {faults[int(of_unique.reshape(-1)[places[0]])]}"
    pairs = sorted(set((places // 2).tolist()))
    if len(pairs) == 1:
        raise UsageError(fault)
    raise UsageError(f"{len(pairs)} pairs cannot be cut: {ranges_text(pairs)}; the first: {fault}")


def check_data(reader: BoxReader, starts: np.ndarray) -> None:
    """Refuse volumes of image or field of which no chunk is there, where boxes are or elsewhere.

    starts: (B, 3); B may be 0.
    """
    unique = np.unique(starts, axis=0)
    some = unique[:: max(1, -(-len(unique) // PROBES))].tolist()
    box = reader.box((0, 0, 0))
    half = (box.x_size << box.mip) // 2, (box.y_size << box.mip) // 2
    middle = len(some) // 2
    # The middle one first: it is likeliest to lie in tissue.
    centres = [(x + half[0], y + half[1], z) for x, y, z in (*some[middle : middle + 1], *some)]
    named = {
        (volume.path, volume.mip): (name, volume)
        for name, volume in [
            ("field.reference", reader.field_reference),
            ("field", reader.field),
            ("image.reference", reader.reference),
            ("image", reader.image),
        ]
        if volume is not None
    }
    with ThreadPoolExecutor(len(named)) as pool:  # each asks a store, which may be far, at least once
        held = list(pool.map(lambda each: each[1].holds_any(centres), named.values()))
    for (name, volume), holds in zip(named.values(), held, strict=True):
        if not holds:
            mips = [str(level.mip) for level in volume.levels() if level.mip != volume.mip and level.holds_any(centres)]
            have = f"there are some at MIP {', '.join(mips)}" if mips else "nor is there one at another MIP"
            raise UsageError(
                f"{name}: {volume} holds no data: of the chunks asked for none is there; {have}; --missing black takes "
                "them for black"
            )
