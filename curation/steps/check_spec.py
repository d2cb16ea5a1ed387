"""What a spec holds, and whether its volumes can be read as it says, for create_spec.py --check."""

import re
from dataclasses import dataclass

import msgspec
import numpy as np

from ..annotations.coordinate_spaces import Resolution
from ..errors import UsageError, WorkError
from ..files import Existing, PathLike
from ..pair_selection import first_alike, offsets_text
from ..spec import Spec, VolumeSpec, read_spec
from ..volumes.extent import read_extent
from .box_work import BoxWork
from .pair_files import check_paths, link_file, link_remarks, write_pair_files
from .report import table


@dataclass(frozen=True)
class CheckSpecOptions:
    """What create_spec.py --check takes. volume_resolution: nm, for the link, where the image does not say it."""

    path: PathLike
    link_path: PathLike | None = None
    volume_resolution: Resolution | None = None
    existing: Existing = Existing.REFUSED


@dataclass(frozen=True)
class SpecContents:
    """A spec that is valid, to be shown. fault: why its volumes cannot be read as it says, or its link not written."""

    path: PathLike
    spec: Spec
    fault: UsageError | WorkError | None = None
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        spec, starts = self.spec, self.spec.starts()
        lines = [("spec", f"{self.path}: valid"), ("image", _volume(spec.image))]
        if spec.field is not None:
            lines.append(("field", _volume(spec.field)))
        lines += [("mask", f"{mask.path} at MIP {mask.src_mip}, from {mask.threshold:g} on") for mask in spec.masks]
        x, y = spec.box_size()
        lines += [
            ("boxes", f"{spec.x_size} x {spec.y_size} pixels at MIP {spec.dst_mip}, {x} x {y} voxels"),
            ("starts", f"multiples of {1 << spec.max_mip} voxels, by max_mip {spec.max_mip}"),
            ("pairs", _pairs(spec, starts)),
        ]
        if len(starts):
            boxes = np.unique(starts.reshape(-1, 3), axis=0)
            low, high = boxes.min(axis=0), boxes.max(axis=0)
            lines += [
                ("distinct boxes", str(len(boxes))),
                ("x, y from", f"{low[0]}, {low[1]} to {high[0] + x}, {high[1] + y}"),
                ("sections", f"{low[2]} to {high[2]}"),
                ("offsets", offsets_text(starts)),
            ]
        if self.fault is None:
            lines.append(("volumes", _can_be_read(spec)))
        return "\n".join([table(lines), *self.remarks])


def check_spec(options: CheckSpecOptions) -> SpecContents:
    """Read and check a spec, which may be a template, and its volumes; write the link, if one is wanted.

    What is wrong with the spec itself is a `UsageError`; what is wrong with the rest is the contents' fault.
    """
    check_paths(options.link_path)
    spec = read_spec(options.path, template=True)
    try:
        _check_volumes(spec)
    except (UsageError, WorkError) as error:
        kind = UsageError if isinstance(error, UsageError) else WorkError
        return SpecContents(options.path, spec, fault=kind(f"{options.path}: {error}"))
    try:
        remarks = [] if options.link_path is None else _write_link(options.link_path, spec, options)
    except (UsageError, WorkError) as error:
        return SpecContents(options.path, spec, fault=error)
    return SpecContents(options.path, spec, remarks=tuple(remarks))


def _write_link(path: PathLike, spec: Spec, options: CheckSpecOptions) -> list[str]:
    resolution = options.volume_resolution or read_extent(spec.image.path).resolution
    (done,) = write_pair_files([link_file(path, spec, spec.starts(), spec.notes(), resolution)], options.existing)
    return [f"{path}: {'done already' if done else 'written'}", *link_remarks(path, spec)]


def _check_volumes(spec: Spec) -> None:
    """Refuse volumes that cannot be read as the spec says, and pairs that cannot be cut out of them."""
    stands_for = [f"{name} {path}" for name, path in spec.named_paths() if re.search(r"://BUCKET(/|$)", path)]
    if stands_for:
        raise UsageError(
            f"BUCKET stands for a bucket of your own in {', '.join(stands_for)}: want the paths of your volumes, such "
            "as gs://my-bucket/image or file:///data/image; leave out field and masks if you have none"
        )
    BoxWork(msgspec.structs.replace(spec, pairs=())).checked_reader(spec.starts())


def _volume(volume: VolumeSpec) -> str:
    text = f"{volume.path} at MIP {volume.src_mip}"
    if volume.reference is None:
        return f"{text}; each box is its own reference"
    at = volume.reference
    return f"{text}; reference {at.x_size} x {at.y_size} at MIP {at.dst_mip}, from {at.path} at MIP {at.src_mip}"


def _can_be_read(spec: Spec) -> str:
    text = "there, with data at the MIPs that are read"
    if not spec.pairs:
        return text
    unless = ", unless the field moves a box out of the image" if spec.field else ""
    return f"{text}; all pairs can be cut out{unless}"


def _pairs(spec: Spec, starts: np.ndarray) -> str:
    repeated = int((first_alike(starts) != np.arange(len(starts))).sum())
    notes = len(spec.notes())
    return f"{len(starts)}, {repeated} of them repeated" + (f", {notes} with a note" if notes else "")
