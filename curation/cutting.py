"""From a spec to a dataset: plan, check, cut, write.

Samples repeat: with offsets -1 -2 -3 and permuted pairs, 12 images are 4 distinct boxes. So the plan is a list of
distinct boxes, each with the places in the dataset where it goes; a box is read, normalised, warped and encoded once.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tqdm import tqdm

from . import fields, runner, samples
from .boxes import Box, Window
from .datasets import FACTS, FIELD_FACTS, Chunk, Layout, Writer, encode, field_name, image_name
from .errors import UsageError
from .files import check_folder, check_new
from .samples import Normalised, Translation
from .spec import Reference, Spec, field_reference, image_reference, read_spec, sha256
from .volumes import ChunkKey, Volume, Volumes, check_scales, create_layer, upload_section, window_text

LONGEST_RUN = 16  # distinct boxes given to a worker at a time
READ_AHEAD = 8  # boxes read while one is computed, from stores worth waiting for
COMMIT_BYTES = 64 * 2**20  # written between two commits: what a crash can lose

SOURCE, TARGET = 0, 1


@dataclass(frozen=True)
class Place:
    """Where a box goes: which pair, and as which of its two."""

    pair: int
    role: int


@dataclass(frozen=True)
class CutBox:
    """A distinct box: its start (x, y, z) in MIP-0 voxels, and where it goes."""

    start: tuple[int, int, int]
    places: tuple[Place, ...]


def distinct_boxes(starts: np.ndarray, done: np.ndarray) -> list[CutBox]:
    """The distinct boxes that have places not yet done, neighbours together. starts: (N, 2, 3); done: (N, 2)."""
    places: dict[tuple[int, int, int], list[Place]] = {}
    for pair, role in np.argwhere(~done).tolist():
        x, y, z = starts[pair, role].tolist()
        places.setdefault((x, y, z), []).append(Place(pair, role))
    return [CutBox(start, tuple(places[start])) for start in sorted(places)]


def runs_of(boxes: Sequence[CutBox], workers: int) -> list[list[CutBox]]:
    """The boxes in runs: those over one another share chunks that are several sections deep."""
    longest = max(1, min(LONGEST_RUN, len(boxes) // (4 * workers)))
    columns = [list(column) for _, column in groupby(boxes, key=lambda box: box.start[:2])]
    return [column[first : first + longest] for column in columns for first in range(0, len(column), longest)]


@dataclass(frozen=True)
class Readings:
    """All that is read for one box. image, reference: (X, Y) float32; residual: (2, X, Y) pixels, or None."""

    shift: Translation
    residual: np.ndarray | None
    image: np.ndarray
    masked: np.ndarray
    reference: np.ndarray
    reference_masked: np.ndarray
    missing: frozenset[ChunkKey]
    outside: float


class Reader:
    """Reads what a spec wants of one box."""

    def __init__(self, spec: Spec, volumes: Volumes) -> None:
        self._spec = spec
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
        found = [self.image, self.reference, *self.masks, self.field, self.field_reference]
        return [volume for volume in found if volume is not None]

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
        yield "image.reference", self.reference, at.window(self.reference.mip)
        for index, mask in enumerate(self.masks):
            yield f"masks[{index}]", mask, box.window(mask.mip)

    def read(self, start: tuple[int, int, int]) -> Readings:
        """Read one box, first the field that says where its image is."""
        reading = _Reading()
        box = self.box(start)
        shift, residual = self._displacement(reading, box)
        box = box.shifted(shift.x, shift.y)
        at_reference = _reference_box(self._image_reference, box)
        image = reading.image(self.image, box)
        outside = reading.outside
        return Readings(
            shift=shift,
            residual=residual,
            image=image,
            masked=self._masked(reading, box),
            reference=image if self._reference_is_own(box) else reading.image(self.reference, at_reference),
            reference_masked=self._masked(reading, at_reference),
            missing=frozenset(reading.missing),
            outside=outside,
        )

    def _displacement(self, reading: "_Reading", box: Box) -> tuple[Translation, np.ndarray | None]:
        if self.field is None or self.field_reference is None:
            return Translation(0, 0, found=True), None
        at_reference = _reference_box(self._field_reference, box)
        reference = reading.vectors(self.field_reference, at_reference)
        shift = samples.translation(reference, self.field_reference.mip)
        return shift, samples.residual(reading.vectors(self.field, box), shift, box.mip)

    def _reference_is_own(self, box: Box) -> bool:
        own = _reference_box(self._image_reference, box) == box
        return own and (self.reference.path, self.reference.mip) == (self.image.path, self.image.mip)

    def _masked(self, reading: "_Reading", box: Box) -> np.ndarray:
        masked = np.zeros(box.shape, bool)
        for mask, volume in zip(self._spec.masks, self.masks, strict=True):
            masked |= reading.mask(volume, box, mask.threshold)
        return masked


def _reference_box(reference: Reference, box: Box) -> Box:
    return Box(box.x_start, box.y_start, box.z, reference.x_size, reference.y_size, reference.dst_mip)


@dataclass
class _Reading:
    """Reads boxes, and remembers what was not there."""

    missing: set[ChunkKey] = field(default_factory=set)
    outside: float = 0.0

    def image(self, volume: Volume, box: Box) -> np.ndarray:
        window = box.window(volume.mip)
        values = self._read(volume, window)
        return fields.to_level(values[0], volume.mip, box.mip, box.shape, window.crop)

    def vectors(self, volume: Volume, box: Box) -> np.ndarray:
        window = box.window(volume.mip)
        values = self._read(volume, window)
        return fields.to_level(values, volume.mip, box.mip, box.shape, window.crop)

    def mask(self, volume: Volume, box: Box, threshold: float) -> np.ndarray:
        window = box.window(volume.mip)
        values = self._read(volume, window)
        return samples.mask_to_level(values[0], threshold, volume.mip, box.mip, box.shape, window.crop)

    def _read(self, volume: Volume, window: Window) -> np.ndarray:
        cutout = volume.read(window)
        self.missing.update(cutout.missing)
        self.outside = cutout.outside
        return cutout.values


@dataclass(frozen=True)
class Cut:
    """A finished box: its image as a source and as a target, its residual field, and what is known of it."""

    source: Chunk | None
    target: Chunk | None
    residual: Chunk | None
    facts: dict[str, Any]
    missing: frozenset[ChunkKey]


@dataclass(frozen=True)
class CutWork:
    """What a worker does with its boxes: read ahead, compute, encode. `spec` is without pairs."""

    spec: Spec
    decimals: int | None
    layer: str | None  # where images go when they do not come back as chunks

    def __call__(self, number: int, boxes: Iterator[tuple[int, CutBox]]) -> Iterator[tuple[int, Cut]]:
        volumes = Volumes()
        reader = Reader(self.spec, volumes)
        depth = 0 if all(volume.is_local for volume in reader.volumes()) else READ_AHEAD
        layer = volumes.open_for_writing(self.layer) if self.layer else None
        for (place, box), readings in runner.ahead(lambda unit: reader.read(unit[1].start), boxes, depth):
            sample = samples.normalised(readings.image, readings.masked, readings.reference, readings.reference_masked)
            facts = _facts(readings, sample)
            if layer is None:
                yield place, self._encoded(box, readings, sample, facts)
            else:
                warped = _warped(sample, readings)
                for spot in box.places:
                    upload_section(layer, 2 * spot.pair + spot.role, warped)
                yield place, Cut(None, None, None, facts, readings.missing)

    def _encoded(self, box: CutBox, readings: Readings, sample: Normalised, facts: dict[str, Any]) -> Cut:
        roles = {place.role for place in box.places}
        source = target = residual = None
        if SOURCE in roles or readings.residual is None:
            source = encode(sample.image)
        if SOURCE in roles and readings.residual is not None:
            residual = encode(fields.rounded(readings.residual, self.decimals))
        if TARGET in roles:
            target = source if readings.residual is None else encode(_warped(sample, readings))
        return Cut(source, target, residual, facts, readings.missing)


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


@dataclass(frozen=True)
class Options:
    """make_dataset's arguments."""

    spec_path: str
    dst_path: str
    parallel: int
    suffix: str | None = None
    decimals: int | None = 2
    overwrite: bool = False


@dataclass
class Made:
    """What was made, for the summary."""

    pairs: int
    boxes: int
    outputs: list[str]
    facts: dict[str, np.ndarray]  # each (N, 2)
    missing: set[ChunkKey] = field(default_factory=set)

    def __str__(self) -> str:
        return f"{self.pairs} pairs from {self.boxes} boxes: {', '.join(self.outputs)}"


def make_dataset(options: Options) -> Made:
    """Cut a spec's pairs out of its volumes, into HDF5 files in a folder, or into a CloudVolume layer."""
    spec = read_spec(options.spec_path)
    to_layer = "://" in options.dst_path
    starts = spec.starts()
    targets: list[Path] = []
    if not to_layer:
        targets = _targets(spec, starts, options)
        check_folder(options.dst_path)
        for target in targets:
            check_new(target, options.overwrite)
    reader = Reader(spec, Volumes())
    check_volumes(reader)
    check_boxes(reader, starts)
    cut = _cut_to_layer if to_layer else _cut_to_files
    return cut(spec, starts, options, reader)


def _targets(spec: Spec, starts: np.ndarray, options: Options) -> list[Path]:
    folder = Path(options.dst_path)
    targets = [folder / image_name(starts, spec.dst_mip)]
    if spec.field is not None:
        targets.append(folder / field_name(starts, spec.dst_mip, options.suffix))
    return targets


def check_volumes(reader: Reader) -> None:
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
        if not (volume.dtype.kind == "f" or volume.dtype.itemsize <= 2):
            raise UsageError(f"{name}: {volume} holds {volume.dtype}: want grey values, 8 or 16 bit or float")
    for name, volume in [("field", reader.field), ("field.reference", reader.field_reference)]:
        if volume is not None and volume.dtype.kind != "f":
            raise UsageError(f"{name}: {volume} holds {volume.dtype}: want float vectors in MIP-0 voxels")


def check_boxes(reader: Reader, starts: np.ndarray) -> None:
    """Refuse boxes that lie wholly outside their volume, before any shift. starts: (N, 2, 3)."""
    unique, first = np.unique(starts.reshape(-1, 3), axis=0, return_index=True)
    for start, place in sorted(zip(unique.tolist(), first.tolist(), strict=True), key=lambda item: item[1]):
        for name, volume, window in reader.windows(tuple(start)):
            if volume.overlap(window) == 0:
                pair, role = divmod(place, 2)
                raise UsageError(
                    f"pairs[{pair}].{('src', 'tgt')[role]}: box wholly outside the volume of {name}: "
                    f"{window_text(window)}; {volume.bounds_text()}"
                )


def _cut_to_files(spec: Spec, starts: np.ndarray, options: Options, reader: Reader) -> Made:
    spec_text = spec.text()
    identity = {"spec_sha256": sha256(spec_text), "field_decimals": options.decimals}
    attributes = {"spec": spec_text, "spec_sha256": sha256(spec_text), "mip": spec.dst_mip, "anchor": "start"}
    shape = (len(starts), 2, spec.x_size, spec.y_size)
    targets = _targets(spec, starts, options)
    with ExitStack() as stack:
        images = Writer(targets[0], Layout(shape, 2, {"start": starts}, tuple(FACTS), identity, attributes))
        stack.callback(images.close)
        residuals = None
        if spec.field is not None:
            attributes = {**attributes, "decimals": "none" if options.decimals is None else options.decimals}
            layout = Layout(shape, 1, {"start": starts}, FIELD_FACTS, identity, attributes)
            residuals = Writer(targets[1], layout)
            stack.callback(residuals.close)
        sink = Sink(images, residuals)
        boxes = distinct_boxes(starts, sink.done())
        work = CutWork(_without_pairs(spec), options.decimals, None)
        missing = drive(work, boxes, options.parallel, sink.put)
        for writer in sink.writers:
            writer.finish()
    return Made(len(starts), len(boxes), [str(target) for target in targets], images.facts, missing)


class Sink:
    """Puts finished boxes where they go, and commits now and then."""

    def __init__(self, images: Writer, residuals: Writer | None) -> None:
        self._images = images
        self._residuals = residuals
        self.writers = [images] if residuals is None else [images, residuals]
        self._uncommitted = 0

    def done(self) -> np.ndarray:
        """(N, 2) bool: the boxes that need not be cut again."""
        done = self._images.done.copy()
        if self._residuals is not None:
            done[:, SOURCE] &= self._residuals.done[:, 0]
        return done

    def put(self, box: CutBox, cut: Cut) -> None:
        for place in box.places:
            image = cut.source if place.role == SOURCE else cut.target
            if image is not None:
                self._images.write(place.pair, place.role, image)
                self._uncommitted += len(image.data)
            if self._residuals is not None and cut.residual is not None and place.role == SOURCE:
                self._residuals.write(place.pair, 0, cut.residual)
                self._uncommitted += len(cut.residual.data)
            for writer in self.writers:
                writer.note(place.pair, place.role, cut.facts)
        if self._uncommitted >= COMMIT_BYTES:
            self.commit()

    def commit(self) -> None:
        # The field file first: the image file's entries are what says that a target's facts are there in both.
        for writer in reversed(self.writers):
            writer.commit()
        self._uncommitted = 0


def _cut_to_layer(spec: Spec, starts: np.ndarray, options: Options, reader: Reader) -> Made:
    if not options.overwrite and Volumes.exists(options.dst_path):
        raise UsageError(f"{options.dst_path} is there already: take another path, or --overwrite to replace it")
    x, y, z = reader.image.resolution
    scale = 2.0 ** (spec.dst_mip - spec.image.src_mip)
    create_layer(options.dst_path, (spec.x_size, spec.y_size), 2 * len(starts), (x * scale, y * scale, z))
    facts = {name: np.zeros((len(starts), 2, *shape), dtype) for name, (dtype, shape) in FACTS.items()}

    def put(box: CutBox, cut: Cut) -> None:
        for place in box.places:
            for name, values in facts.items():
                values[place.pair, place.role] = cut.facts[name]

    boxes = distinct_boxes(starts, np.zeros((len(starts), 2), bool))
    work = CutWork(_without_pairs(spec), options.decimals, options.dst_path)
    missing = drive(work, boxes, options.parallel, put)
    return Made(len(starts), len(boxes), [options.dst_path], facts, missing)


def _without_pairs(spec: Spec) -> Spec:
    return msgspec.structs.replace(spec, pairs=())


def drive(work: runner.Work[CutBox, Cut], boxes: list[CutBox], workers: int, put: Any) -> set[ChunkKey]:
    """Have all boxes cut and put; the chunks that were missing."""
    missing: set[ChunkKey] = set()
    runs = runs_of(boxes, workers)
    numbered = [box for run in runs for box in run]
    with tqdm(total=len(boxes), desc="boxes", unit="box") as bar:
        for number, cut in runner.run(work, runs, workers, preload=("cloudvolume", "h5py", "isal", "msgspec")):
            put(numbered[number], cut)
            missing |= cut.missing
            bar.update()
    return missing
