"""From annotations to pairs of boxes, appended to a spec."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..annotations.coordinate_spaces import Resolution, in_nm
from ..annotations.model import Annotations
from ..annotations.pairing import Picking, check_offsets, counted, pair_blocks
from ..annotations.read import read_annotations
from ..annotations.viewer_states import write_state
from ..errors import UsageError, WorkError
from ..files import PathLike, check_folder, check_name, check_new
from ..pair_selection import choose, narrow, read_excluded_pairs
from ..spec import FARTHEST, Spec, read_spec, write_spec
from ..volumes.extent import Extent, read_extent


@dataclass(frozen=True)
class CreateSpecOptions:
    """create_spec's arguments.

    points_resolution, volume_resolution: nm, where annotations and image do not say. anchor: "start" or "center".
    stride: pixels at dst_mip between the boxes that tile a bounding box; None: a box's size. max_pairs: of new ones.
    """

    src_spec_path: PathLike
    dst_spec_path: PathLike
    points_path: str
    offsets: tuple[int, ...] = ()
    permute: bool = False
    layer: str | None = None
    anchor: str = "start"
    stride: int | None = None
    points_resolution: Resolution | None = None
    volume_resolution: Resolution | None = None
    exclude_path: PathLike | None = None
    max_pairs: int | None = None
    seed: int = 0
    link_path: PathLike | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class CreatedSpec:
    """What `create_spec` did, for its summary line.

    idle: annotations all of whose pairs were there already. excluded: pairs that are among the `listed`, those of the
    exclusion file, if there is one. outside: a sentence, or empty.
    """

    path: PathLike
    annotations: str
    idle: int
    kept_pairs: int
    new_pairs: int
    repeated_pairs: int
    excluded: int
    listed: int | None
    not_drawn: int
    outside: str

    def __str__(self) -> str:
        text = f"{self.path}: {self.kept_pairs + self.new_pairs} pairs, {self.new_pairs} of them new"
        text += f" from {self.annotations}"
        if self.idle:
            text += f"; {self.idle} of these add nothing new"
        if self.repeated_pairs:
            text += f"; {self.repeated_pairs} repeated pairs left out"
        if self.listed is not None:
            text += f"; {self.excluded} excluded pairs left out, of {self.listed} listed"
        if self.not_drawn:
            text += f"; {self.not_drawn} more were not drawn"
        return f"{text}\n{self.outside}" if self.outside else text


def create_spec(options: CreateSpecOptions) -> CreatedSpec:
    """Write the source spec with the pairs of all annotations appended, none of them twice."""
    check_offsets(options.offsets)
    _check_destinations(options)
    spec = read_spec(options.src_spec_path, template=True)
    excluded = np.empty((0, 2, 3), np.int64)
    if options.exclude_path is not None:
        excluded = read_excluded_pairs(options.exclude_path)
    annotations = read_annotations(options.points_path, options.layer)
    placing = _Placing(spec, annotations, options)
    ends = placing.ends()
    made, annotation_index = _narrow_pairs(pair_blocks(annotations.shapes, ends, _picking(spec, options)))
    chosen = choose(excluded, spec.starts(), made, options.max_pairs, options.seed)
    kept_notes = spec.notes()
    notes = {place: kept_notes[index] for place, index in enumerate(chosen.kept.tolist()) if index in kept_notes}
    if annotations.notes:
        picked = enumerate(annotation_index[chosen.new].tolist(), start=len(chosen.kept))
        notes |= {place: annotations.notes[index] for place, index in picked if index in annotations.notes}
    starts = np.concatenate([spec.starts()[chosen.kept], made[chosen.new]])
    if options.link_path is not None:
        write_state(options.link_path, spec, starts, notes, placing.volume_resolution(), options.overwrite)
    write_spec(options.dst_spec_path, spec, starts, notes, options.overwrite)
    adds_pairs = np.bincount(annotation_index[chosen.distinct], minlength=len(ends)) > 0
    return CreatedSpec(
        path=options.dst_spec_path,
        annotations=counted(annotations),
        idle=len(ends) - int(adds_pairs.sum()),
        kept_pairs=len(chosen.kept),
        new_pairs=len(chosen.new),
        repeated_pairs=chosen.repeated,
        excluded=chosen.excluded,
        listed=None if options.exclude_path is None else len(excluded),
        not_drawn=len(chosen.distinct) - len(chosen.new),
        outside=placing.outside(ends),
    )


def _narrow_pairs(blocks: Iterator[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """All blocks' pairs, (N, 2, 3), and the index of each one's annotation, (N,), in half the space where they fit."""
    pairs, annotation_index = zip(*((narrow(block), of.astype(np.int32)) for block, of in blocks), strict=True)
    return np.concatenate(pairs), np.concatenate(annotation_index)


def _check_destinations(options: CreateSpecOptions) -> None:
    """Refuse what cannot be written, before either file is: the one would stay without the other."""
    paths = [Path(path) for path in (options.dst_spec_path, options.link_path) if path is not None]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError(f"{paths[0]} is to be both the spec and the link: take another name for one of them")
    for path in paths:
        check_new(path, options.overwrite)
        check_folder(path.parent)
        check_name(path)


def _picking(spec: Spec, options: CreateSpecOptions) -> Picking:
    size = spec.box_size()
    # Beyond FARTHEST any stride leaves a single tile.
    stride = size if options.stride is None else (min(options.stride << spec.dst_mip, FARTHEST),) * 2
    return Picking(options.offsets, options.permute, options.anchor, spec.max_mip, size, stride)


# Where annotations lie in the image volume


class _Placing:
    """Brings annotations into the image volume's voxels. The volume is asked once, and only where it must be there."""

    def __init__(self, spec: Spec, annotations: Annotations, options: CreateSpecOptions) -> None:
        self._path = spec.image.path
        self._annotations = _in_units(annotations, options.points_resolution)
        self._say_their_units = annotations.resolution is not None
        self._given = options.volume_resolution
        self._extent: Extent | None = None
        self._why = ""
        try:
            self._extent = read_extent(self._path)
        except (UsageError, WorkError) as error:
            self._why = str(error)

    def volume_resolution(self) -> Resolution:
        """The image's, at MIP 0, in nm."""
        found = self._given or (self._extent.resolution if self._extent else None)
        if found is None:
            raise UsageError(f"{self._why}: want --volume_resolution X Y Z, its nm per voxel at MIP 0")
        return found

    def ends(self) -> np.ndarray:
        """(P, 2, 3) MIP-0 voxels, not floored yet. Where no unit is known, coordinates are taken for voxels."""
        if self._annotations.resolution is None:
            return self._annotations.ends
        return self._annotations.in_voxels(self.volume_resolution())

    def outside(self, ends: np.ndarray) -> str:
        """What to say of annotations that do not begin in the image volume; nothing if all do."""
        if self._extent is None:
            return f"not checked whether they lie in the image volume: {self._why}"
        first = np.floor(ends[:, 0])
        away = ~self._extent.holds(first)
        if not away.any():
            return ""
        index = int(away.argmax())
        low, high = self._extent.start, self._extent.stop
        text = f"{away.sum()} of them begin outside the image volume, {low} to {high}; the first: annotation {index}"
        return f"{text} at {tuple(first[index].astype(int).tolist())}{self._likely(first)}"

    def _likely(self, places: np.ndarray) -> str:
        """The factor by which voxels of another size would explain it, where one of 2 to 32 does."""
        if self._extent is None:
            return ""
        for power in (-1, 1, -2, 2, -3, 3, -4, 4, -5, 5):
            factor = 2.0**power
            if self._extent.holds(np.floor(places * (factor, factor, 1))).all():
                meant = self._with_factor(factor)
                return f". With x and y times {factor:g} all would lie in it: if that is meant, {meant}"
        return ""

    def _with_factor(self, factor: float) -> str:
        """The option by which x and y would be times a factor: voxels are sized anew, where points say their units."""
        x, y, z = self.volume_resolution()
        if self._say_their_units:
            return f"--volume_resolution {x / factor:.12g} {y / factor:.12g} {z:.12g}"
        x, y, z = self._annotations.resolution or (x, y, z)
        return f"--points_resolution {x * factor:.12g} {y * factor:.12g} {z:.12g}"


def _in_units(annotations: Annotations, said: Resolution | None) -> Annotations:
    """The annotations in the units that are said, where they do not say theirs; a `UsageError` if these are others."""
    known = annotations.resolution
    if said is None:
        return annotations
    if known is not None and not all(map(math.isclose, known, said)):
        raise UsageError(
            f"{annotations.origin}: its units are {in_nm(known)}, not {in_nm(said)} as --points_resolution says: "
            "leave it out"
        )
    return replace(annotations, space=replace(annotations.space, resolution=said))
