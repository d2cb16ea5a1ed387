"""A contiguous stretch: every section of a range paired with the one before it, as stored in the volume."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import runner
from .boxes import Box
from .datasets import FACTS, Chunk, Layout, encode_grey, image_name
from .errors import UsageError
from .files import check_folder, locked
from .plans import SOURCE, TARGET, CutBox, Plan, distinct_boxes, free_bytes
from .report import Report, report_of
from .writing import Writer, is_finished

if TYPE_CHECKING:
    from .cutting import Cut
    from .volumes import Volume, Volumes

# What needs CloudVolume is imported where it is used: it takes a second, and a fault of the options is told before.


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
    missing: str = "black"
    overwrite: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Downloaded:
    """What was downloaded, for the summary."""

    reports: tuple[Report, ...]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.reports))


@dataclass(frozen=True)
class Patch:
    """What one file is cut from: a square of `size` pixels at `mip`, and what zeroes pixels of it."""

    cv_path: str
    mip: int
    size: int
    defects: str | None
    mask_val: float

    def open(self, volumes: "Volumes") -> list["Volume"]:
        """The image's volume and, if there is one, that of the defects."""
        return [volumes.open(path, self.mip) for path in (self.cv_path, self.defects) if path is not None]

    def box(self, start: tuple[int, int, int]) -> Box:
        """The box at a start (x, y, z) in MIP-0 voxels."""
        return Box(*start, self.size, self.size, self.mip)


def download_image(options: Options) -> "Downloaded | Plan":
    """Write an image file for each level, with source = section z and target = section z - 1."""
    check(options)
    starts = stretch_starts(options)
    targets = [Path(options.dst_folder) / image_name(starts, mip) for mip in options.mips]
    check_folder(options.dst_folder)
    patches = [
        Patch(options.cv_path, mip, size, options.cv_path_defects, options.mask_val or 0)
        for mip, size in zip(options.mips, options.patch_sizes, strict=True)
    ]
    layouts = [_layout(patch, starts, options.missing) for patch in patches]
    with ExitStack() as stack:
        if not options.dry_run:
            for target in targets:
                stack.enter_context(locked(target))
        files = list(zip(patches, targets, layouts, strict=True))
        finished = [is_finished(target, layout.identity, options.overwrite) for _, target, layout in files]
        if all(finished):
            raise UsageError(f"{targets[0]} is there already, finished: --overwrite replaces it")
        if options.parallel > 1 and not options.dry_run:
            runner.warm_up("cloudvolume", "h5py", "isal", "msgspec")
        for patch in patches:
            _check_patch(patch, starts)
        if options.dry_run:
            return _plan(options, patches, targets, starts)
        reports = [
            report_of(target, [target], starts.size // 3) if is_done else _download(patch, target, layout, options)
            for (patch, target, layout), is_done in zip(files, finished, strict=True)
        ]
    return Downloaded(tuple(reports))


def stretch_starts(options: Options) -> np.ndarray:
    """(N, 2, 3): each section of [z_start, z_end) and the one before it."""
    sections = np.arange(options.z_start, options.z_end, dtype=np.int64)
    starts = np.empty((len(sections), 2, 3), np.int64)
    starts[..., 0] = options.x_offset
    starts[..., 1] = options.y_offset
    starts[:, SOURCE, 2] = sections
    starts[:, TARGET, 2] = sections - 1
    return starts


def check(options: Options) -> None:
    if options.z_start >= options.z_end:
        raise UsageError(f"--z_start {options.z_start} is not before --z_end {options.z_end}: no section lies between")
    if len(options.mips) != len(options.patch_sizes):
        count = f"{len(options.mips)} and {len(options.patch_sizes)} values"
        raise UsageError(f"--mips and --patch_sizes have {count}: want a size for each MIP")
    if (options.cv_path_defects is None) != (options.mask_val is None):
        raise UsageError("--cv_path_defects and --mask_val go together: want both or neither")
    if len(set(options.mips)) < len(options.mips):
        raise UsageError(f"--mips {' '.join(map(str, options.mips))}: a MIP is there twice, for one file")
    for mip in options.mips:
        for name, offset in (("--x_offset", options.x_offset), ("--y_offset", options.y_offset)):
            if offset % (1 << mip):
                raise UsageError(f"{name} {offset} is not a multiple of 2^{mip} = {1 << mip}, a pixel at MIP {mip}")


def _check_patch(patch: Patch, starts: np.ndarray) -> None:
    from .volumes import Volumes, check_scales, window_text

    volumes = patch.open(Volumes())
    check_scales(volumes)
    for volume in volumes:
        if volume.channels != 1:
            raise UsageError(f"{volume} has {volume.channels} channels: want 1")
        for x, y, z in np.unique(starts.reshape(-1, 3), axis=0).tolist():
            window = patch.box((x, y, z)).window(volume.mip)
            if volume.overlap(window) == 0:
                raise UsageError(f"section {z} is wholly outside: {window_text(window)}; {volume.bounds_text()}")


def _plan(options: Options, patches: list[Patch], targets: list[Path], starts: np.ndarray) -> Plan:
    from .volumes import Volumes

    sections = np.unique(starts.reshape(-1, 3), axis=0).tolist()
    windows = [
        (volume, patch.box((x, y, z)).window(volume.mip))
        for patch in patches
        for volume in patch.open(Volumes())
        for x, y, z in sections
    ]
    return Plan(
        outputs=tuple(map(str, targets)),
        pairs=len(starts) * len(patches),
        boxes=len(sections) * len(patches),
        repeated_pairs=0,
        chunks=len({(volume.path, volume.mip, at) for volume, window in windows for at in volume.chunks(window)}),
        leaving=sum(volume.overlap(window) < 1 for volume, window in windows),
        output_bytes=sum(8 * len(starts) * patch.size**2 for patch in patches),
        free_bytes=free_bytes(options.dst_folder),
    )


def _layout(patch: Patch, starts: np.ndarray, missing: str) -> Layout:
    identity: dict[str, Any] = {
        "cv_path": patch.cv_path,
        "cv_path_defects": patch.defects,
        "mask_val": patch.mask_val,
        "start": starts[0].tolist(),
        "sections": len(starts),
        "mip": patch.mip,
        "patch_size": patch.size,
        "missing": missing,
    }
    attributes = {"mip": patch.mip, "anchor": "start", "cv_path": patch.cv_path}
    shape = (len(starts), 2, patch.size, patch.size)
    arrays = {"start": starts, "pair": np.arange(len(starts))}
    return Layout(shape, 2, arrays, tuple(FACTS), identity, attributes)


def _download(patch: Patch, target: Path, layout: Layout, options: Options) -> Report:
    from .cutting import Sink, drive

    with Writer(target, layout) as writer:
        sink = Sink(layout.main[0], writer, None)
        done = sink.done()
        boxes = distinct_boxes(layout.arrays["start"], done)
        retries = drive(StretchWork(patch, options.missing), boxes, options.parallel, sink.put)
        writer.finish()
    return report_of(target, [target], int(done.sum()), retries)


@dataclass(frozen=True)
class StretchWork:
    """What a worker does with its sections. missing: what a missing chunk means, see `Volumes`."""

    patch: Patch
    missing: str

    def __call__(self, number: int, boxes: Iterator[tuple[int, CutBox]]) -> Iterator[tuple[int, "Cut"]]:
        from .cutting import READ_AHEAD, Cut
        from .volumes import Volumes

        volumes = Volumes(missing=self.missing)
        layers = self.patch.open(volumes)
        depth = 0 if layers[0].is_local else READ_AHEAD
        for (place, _), (chunk, facts) in runner.ahead(lambda unit: self._cut(layers, unit[1]), boxes, depth):
            yield place, Cut(chunk, chunk, None, facts, volumes.take_retries())

    def _cut(self, volumes: list["Volume"], box: CutBox) -> tuple[Chunk, dict[str, Any]]:
        at = self.patch.box(box.start)
        cutouts = [volume.read(at.window(volume.mip)) for volume in volumes]
        image = cutouts[0].values[0].astype(np.float32)
        masked = np.zeros(image.shape, bool)
        if len(cutouts) > 1:
            masked = cutouts[1].values[0] >= self.patch.mask_val
        image[masked] = 0
        return encode_grey(image), {
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
