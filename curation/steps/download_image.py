"""A contiguous stretch: every section of a range paired with the one before it, as stored in the volume.

A stretch is a spec without normalisation: the image at one level, the defects as its mask, and pairs of neighbouring
sections. So it is cut, checked and written as any other dataset is, a file for each level.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..datasets.facts import BOX_FACTS, SOURCE, TARGET
from ..datasets.layout import Layout, image_name
from ..errors import UsageError
from ..files import Existing
from ..provenance import provenance
from ..spec import FARTHEST, Mask, Spec, VolumeSpec
from .box_job import BoxJob, OutputFile, plan_box_jobs, run_box_jobs
from .box_work import RETRY_FOR_S, BoxWork, volumes_text
from .report import Plan, Report

MOST_SECTIONS = 2 * 10**7


@dataclass(frozen=True)
class DownloadImageOptions:
    """download_image's arguments. mips and patch_sizes go together, a file each; offsets are MIP-0 voxels.

    missing: "black" or "fail", what a chunk is that the store does not have; None is black too, but volumes without any
    chunk are refused. retry_for: seconds for which a store that is away is waited for.
    """

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
    missing: str | None = None
    retry_for: float = RETRY_FOR_S
    existing: Existing = Existing.REFUSED
    dry_run: bool = False


@dataclass(frozen=True)
class Downloaded:
    """What was downloaded, for the summary."""

    reports: tuple[Report, ...]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.reports))


def download_image(options: DownloadImageOptions) -> Downloaded | Plan:
    """Write an image file for each level, with source = section z and target = section z - 1.

    If all files are there already, just as they would be made, they are not touched, and the reports say so.
    """
    _check(options)
    starts = stretch_starts(options)
    jobs = [_box_job(options, starts, mip, size) for mip, size in zip(options.mips, options.patch_sizes, strict=True)]
    if options.dry_run:
        planned = plan_box_jobs(jobs, options.existing)
        return planned if isinstance(planned, Plan) else Downloaded(tuple(planned))
    return Downloaded(tuple(run_box_jobs(jobs, options.parallel, options.existing)))


def _box_job(options: DownloadImageOptions, starts: np.ndarray, mip: int, size: int) -> BoxJob:
    """The job that makes the file of one level."""
    masks: tuple[Mask, ...] = ()
    if options.cv_path_defects is not None and options.mask_val is not None:
        masks = (Mask(options.cv_path_defects, mip, options.mask_val),)
    spec = Spec(image=VolumeSpec(options.cv_path, mip), masks=masks, max_mip=mip, dst_mip=mip, x_size=size, y_size=size)
    missing = options.missing or "black"
    made_of = provenance(
        cv_path=options.cv_path,
        cv_path_defects=options.cv_path_defects,
        mask_val=options.mask_val,
        start=starts[0].tolist(),
        sections=len(starts),
        mip=mip,
        patch_size=size,
        missing=missing,
    )
    layout = Layout(
        main=(len(starts), 2, size, size),
        chunk_roles=2,
        arrays={"start": starts, "pair": np.arange(len(starts))},
        facts=tuple(BOX_FACTS),
        provenance=made_of,
        attributes={"mip": mip, "anchor": "start", "cv_path": options.cv_path, "volumes": volumes_text(spec)},
    )
    work = BoxWork(
        spec,
        normalised=False,
        missing=missing,
        retry_for=options.retry_for,
        expects_data=options.missing != "black",
    )
    return BoxJob(work, starts, OutputFile(Path(options.dst_folder) / image_name(starts, mip), layout))


def stretch_starts(options: DownloadImageOptions) -> np.ndarray:
    """(N, 2, 3): each section of [z_start, z_end) and the one before it."""
    sections = np.arange(options.z_start, options.z_end, dtype=np.int64)
    starts = np.empty((len(sections), 2, 3), np.int64)
    starts[..., 0] = options.x_offset
    starts[..., 1] = options.y_offset
    starts[:, SOURCE, 2] = sections
    starts[:, TARGET, 2] = sections - 1
    return starts


def _check(options: DownloadImageOptions) -> None:
    for name in ("z_start", "z_end", "x_offset", "y_offset"):
        if abs(getattr(options, name)) > FARTHEST:
            raise UsageError(f"--{name} {getattr(options, name)} lies beyond any volume")
    if options.z_start >= options.z_end:
        raise UsageError(f"--z_start {options.z_start} is not before --z_end {options.z_end}: no section lies between")
    if options.z_end - options.z_start > MOST_SECTIONS:
        raise UsageError(f"--z_start {options.z_start} --z_end {options.z_end}: more than {MOST_SECTIONS:,} sections")
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
