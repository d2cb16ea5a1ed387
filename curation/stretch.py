"""A contiguous stretch: every section of a range paired with the one before it, as stored in the volume."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import runner
from .boxes import Box
from .cutting import SOURCE, TARGET, Cut, CutBox, Sink, distinct_boxes, drive
from .datasets import FACTS, Layout, Writer, encode, image_name
from .errors import UsageError
from .files import check_folder, check_new
from .volumes import Volume, Volumes, check_scales, window_text


@dataclass(frozen=True)
class Options:
    """download_image's arguments. mips and patch_sizes go together, a file each; offsets are MIP-0 voxels."""

    cv_path: str
    dst_folder: str
    z_start: int
    z_end: int
    x_offset: int
    y_offset: int
    mips: tuple[int, ...]
    patch_sizes: tuple[int, ...]
    cv_path_defects: str | None = None
    mask_val: float | None = None
    parallel: int = 1
    overwrite: bool = False


@dataclass(frozen=True)
class Downloaded:
    """What was downloaded, for the summary."""

    paths: tuple[Path, ...]
    pairs: int
    missing: int

    def __str__(self) -> str:
        text = f"{self.pairs} pairs each: {', '.join(map(str, self.paths))}"
        return text + (f"; {self.missing} missing chunks read as black" if self.missing else "")


@dataclass(frozen=True)
class Patch:
    """What one file is cut from: a square of `size` pixels at `mip`, and what zeroes pixels of it."""

    cv_path: str
    mip: int
    size: int
    defects: str | None
    mask_val: float

    def open(self, volumes: Volumes) -> list[Volume]:
        """The image's volume and, if there is one, that of the defects."""
        return [volumes.open(path, self.mip) for path in (self.cv_path, self.defects) if path is not None]

    def box(self, start: tuple[int, int, int]) -> Box:
        """The box at a start (x, y, z) in MIP-0 voxels."""
        return Box(*start, self.size, self.size, self.mip)


def download_image(options: Options) -> Downloaded:
    """Write an image file for each level, with source = section z and target = section z - 1."""
    _check(options)
    starts = stretch_starts(options)
    targets = tuple(Path(options.dst_folder) / image_name(starts, mip) for mip in options.mips)
    if len(set(targets)) < len(targets):
        raise UsageError(f"--mips {' '.join(map(str, options.mips))}: a MIP is there twice, for one file")
    check_folder(options.dst_folder)
    for target in targets:
        check_new(target, options.overwrite)
    patches = [_patch(options, *level) for level in zip(options.mips, options.patch_sizes, strict=True)]
    for patch in patches:
        _check_patch(patch, starts)
    missing = 0
    for patch, target in zip(patches, targets, strict=True):
        missing += _download(patch, starts, target, options.parallel)
    return Downloaded(targets, len(starts), missing)


def stretch_starts(options: Options) -> np.ndarray:
    """(N, 2, 3): each section of [z_start, z_end) and the one before it."""
    sections = np.arange(options.z_start, options.z_end, dtype=np.int64)
    starts = np.empty((len(sections), 2, 3), np.int64)
    starts[..., 0] = options.x_offset
    starts[..., 1] = options.y_offset
    starts[:, SOURCE, 2] = sections
    starts[:, TARGET, 2] = sections - 1
    return starts


def _check(options: Options) -> None:
    if options.z_start >= options.z_end:
        raise UsageError(f"--z_start {options.z_start} is not before --z_end {options.z_end}: no section lies between")
    if len(options.mips) != len(options.patch_sizes):
        count = f"{len(options.mips)} and {len(options.patch_sizes)} values"
        raise UsageError(f"--mips and --patch_sizes have {count}: want a size for each MIP")
    if (options.cv_path_defects is None) != (options.mask_val is None):
        raise UsageError("--cv_path_defects and --mask_val go together: want both or neither")
    for mip in options.mips:
        for name, offset in (("--x_offset", options.x_offset), ("--y_offset", options.y_offset)):
            if offset % (1 << mip):
                raise UsageError(f"{name} {offset} is not a multiple of 2^{mip} = {1 << mip}, a pixel at MIP {mip}")


def _patch(options: Options, mip: int, size: int) -> Patch:
    return Patch(options.cv_path, mip, size, options.cv_path_defects, options.mask_val or 0)


def _check_patch(patch: Patch, starts: np.ndarray) -> None:
    volumes = patch.open(Volumes())
    check_scales(volumes)
    for volume in volumes:
        if volume.channels != 1:
            raise UsageError(f"{volume} has {volume.channels} channels: want 1")
        for x, y, z in np.unique(starts.reshape(-1, 3), axis=0).tolist():
            window = patch.box((x, y, z)).window(volume.mip)
            if volume.overlap(window) == 0:
                raise UsageError(f"section {z} is wholly outside: {window_text(window)}; {volume.bounds_text()}")


def _download(patch: Patch, starts: np.ndarray, target: Path, workers: int) -> int:
    """Make one file; how many chunks were missing."""
    identity: dict[str, Any] = {
        "cv_path": patch.cv_path,
        "cv_path_defects": patch.defects,
        "mask_val": patch.mask_val,
        "start": starts[0].tolist(),
        "sections": len(starts),
        "mip": patch.mip,
        "patch_size": patch.size,
    }
    attributes = {"mip": patch.mip, "anchor": "start", "cv_path": patch.cv_path}
    shape = (len(starts), 2, patch.size, patch.size)
    with ExitStack() as stack:
        writer = Writer(target, Layout(shape, 2, {"start": starts}, tuple(FACTS), identity, attributes))
        stack.callback(writer.close)
        sink = Sink(writer, None)
        missing = drive(StretchWork(patch), distinct_boxes(starts, sink.done()), workers, sink.put)
        writer.finish()
    return len(missing)


@dataclass(frozen=True)
class StretchWork:
    """What a worker does with its sections."""

    patch: Patch

    def __call__(self, number: int, boxes: Iterator[tuple[int, CutBox]]) -> Iterator[tuple[int, Cut]]:
        volumes = self.patch.open(Volumes())
        depth = 0 if volumes[0].is_local else 8
        for (place, _), cut in runner.ahead(lambda unit: self._cut(volumes, unit[1]), boxes, depth):
            yield place, cut

    def _cut(self, volumes: list[Volume], box: CutBox) -> Cut:
        at = self.patch.box(box.start)
        cutouts = [volume.read(at.window(volume.mip)) for volume in volumes]
        image = cutouts[0].values[0].astype(np.float32)
        masked = np.zeros(image.shape, bool)
        if len(cutouts) > 1:
            masked = cutouts[1].values[0] >= self.patch.mask_val
        image[masked] = 0
        chunk = encode(image)
        facts = {
            "translation": (0, 0),
            "mean": 0.0,
            "std": 1.0,
            "valid": float((image != 0).mean()),
            "masked": float(masked.mean()),
            "outside": cutouts[0].outside,
            "missing_chunks": sum(len(cutout.missing) for cutout in cutouts),
            "zero_variance": False,
            "no_vector": False,
        }
        missing = frozenset(key for cutout in cutouts for key in cutout.missing)
        return Cut(chunk, chunk, None, facts, missing)
