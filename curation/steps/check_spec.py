"""What a spec holds, for create_spec.py --check."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..files import PathLike
from ..pair_selection import first_alike
from ..spec import Spec, VolumeSpec, read_spec
from .report import table


@dataclass(frozen=True)
class SpecContents:
    """A spec that is valid, to be shown."""

    path: PathLike
    spec: Spec

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
                ("offsets", _offsets(starts)),
            ]
        return table(lines)


def check_spec(path: PathLike) -> SpecContents:
    """Read and check a spec, which may be a template; any fault is a `UsageError`."""
    return SpecContents(path, read_spec(path, template=True))


def _volume(volume: VolumeSpec) -> str:
    text = f"{volume.path} at MIP {volume.src_mip}"
    if volume.reference is None:
        return f"{text}; each box is its own reference"
    at = volume.reference
    return f"{text}; reference {at.x_size} x {at.y_size} at MIP {at.dst_mip}, from {at.path} at MIP {at.src_mip}"


def _pairs(spec: Spec, starts: np.ndarray) -> str:
    repeated = int((first_alike(starts) != np.arange(len(starts))).sum())
    notes = len(spec.notes())
    return f"{len(starts)}, {repeated} of them repeated" + (f", {notes} with a note" if notes else "")


def _offsets(starts: np.ndarray) -> str:
    counts = Counter((starts[:, 1, 2] - starts[:, 0, 2]).tolist())
    return ", ".join(f"{offset:+d} ({counts[offset]} pairs)" for offset in sorted(counts))
