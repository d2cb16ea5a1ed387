"""From annotations to pairs of boxes, appended to a spec."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..annotations.coordinate_spaces import Resolution, in_nm
from ..annotations.model import Annotations
from ..annotations.pairing import Picking, check_offsets, counted, pair_blocks
from ..annotations.read import read_annotations
from ..errors import UsageError, WorkError
from ..files import Existing, PathLike
from ..pair_selection import Excluded, choose, narrow, offsets_text, pairs_text, read_excluded_pairs
from ..spec import FARTHEST, Spec, read_spec
from ..volumes.extent import Extent, read_extent
from .pair_files import check_paths, link_file, link_remarks, spec_of_pairs, write_pair_files

# By which x and y of points may be off that were picked at another MIP, the likelier first.
FACTORS = tuple(2.0**power for steps in range(1, 6) for power in (-steps, steps))


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
    exclude_boxes_path: PathLike | None = None
    max_pairs: int | None = None
    seed: int = 0
    link_path: PathLike | None = None
    existing: Existing = Existing.REFUSED


@dataclass(frozen=True)
class CreatedSpec:
    """What `create_spec` did, for its summary.

    done: whether the spec was there already, just as the command makes it. idle: annotations all of whose pairs were
    there already. left_out: what the exclusion files left out, a text for each file. remarks: what there is to say of
    units, of places outside a volume, and of the link.
    """

    path: PathLike
    done: bool
    annotations: str
    idle: int
    kept_pairs: int
    new_pairs: int
    repeated_pairs: int
    left_out: tuple[str, ...]
    not_drawn: int
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.path}: done already: " if self.done else f"{self.path}: "
        text += f"{self.kept_pairs + self.new_pairs} pairs, {self.new_pairs} of them new from {self.annotations}"
        if self.idle:
            text += f"; {self.idle} of these add nothing new"
        if self.repeated_pairs:
            text += f"; {self.repeated_pairs} repeated pairs left out"
        text += "".join(f"; {each}" for each in self.left_out)
        if self.not_drawn:
            text += f"; {self.not_drawn} more were not drawn"
        return "\n".join([text, *self.remarks])


def create_spec(options: CreateSpecOptions) -> CreatedSpec:
    """Write the source spec with the pairs of all annotations appended, none of them twice."""
    check_offsets(options.offsets)
    check_paths(options.dst_spec_path, options.link_path)
    spec = read_spec(options.src_spec_path, template=True)
    excluded = Excluded(_pairs_in(options.exclude_path), _pairs_in(options.exclude_boxes_path))
    annotations = read_annotations(options.points_path, options.layer)
    placing = _Placing(spec, annotations, options)
    ends = placing.ends()
    made, annotation_index = _narrow_pairs(pair_blocks(annotations.shapes, ends, _picking(spec, options)))
    remarks = list(placing.remarks(ends))
    can_be_cut = placing.can_be_cut(made)
    if not can_be_cut.all():
        lost = np.unique(made[~can_be_cut].reshape(-1, 6), axis=0).reshape(-1, 2, 3)
        made, annotation_index = made[can_be_cut], annotation_index[can_be_cut]
        text = f"a box of theirs lying wholly outside the volume: offsets {offsets_text(lost)}"
        if not len(made):
            raise UsageError("; ".join([f"{annotations.origin}: no new pair can be cut out, {text}", *remarks]))
        remarks.insert(0, f"{pairs_text(len(lost))} left out, {text}")
    chosen = choose(excluded, spec.starts(), made, options.max_pairs, options.seed)
    kept_notes = spec.notes()
    notes = {place: kept_notes[index] for place, index in enumerate(chosen.kept.tolist()) if index in kept_notes}
    if annotations.notes:
        picked = enumerate(annotation_index[chosen.new].tolist(), start=len(chosen.kept))
        notes |= {place: annotations.notes[index] for place, index in picked if index in annotations.notes}
    starts = np.concatenate([spec.starts()[chosen.kept], made[chosen.new]])
    files = [spec_of_pairs(options.dst_spec_path, spec, starts, notes)]
    if options.link_path is not None:
        files.append(link_file(options.link_path, spec, starts, notes, placing.volume_resolution()))
        remarks += link_remarks(options.link_path, spec)
    done = write_pair_files(files, options.existing)
    adds_pairs = np.bincount(annotation_index[chosen.distinct], minlength=len(ends)) > 0
    return CreatedSpec(
        path=options.dst_spec_path,
        done=done[0],
        annotations=counted(annotations),
        idle=len(ends) - int(adds_pairs.sum()),
        kept_pairs=len(chosen.kept),
        new_pairs=len(chosen.new),
        repeated_pairs=chosen.repeated,
        left_out=tuple(
            f"{pairs_text(count)} left out by --{option}, which lists {len(listed)}"
            for option, path, count, listed in [
                ("exclude", options.exclude_path, chosen.excluded, excluded.pairs),
                ("exclude_boxes", options.exclude_boxes_path, chosen.sharing, excluded.of_boxes),
            ]
            if path is not None
        ),
        not_drawn=len(chosen.distinct) - len(chosen.new),
        remarks=tuple(remarks),
    )


def _pairs_in(path: PathLike | None) -> np.ndarray:
    return np.empty((0, 2, 3), np.int64) if path is None else read_excluded_pairs(path)


def _narrow_pairs(blocks: Iterator[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """All blocks' pairs, (N, 2, 3), and the index of each one's annotation, (N,), in half the space where they fit."""
    pairs, annotation_index = zip(*((narrow(block), of.astype(np.int32)) for block, of in blocks), strict=True)
    return np.concatenate(pairs), np.concatenate(annotation_index)


def _picking(spec: Spec, options: CreateSpecOptions) -> Picking:
    size = spec.box_size()
    # Beyond FARTHEST any stride leaves a single tile.
    stride = size if options.stride is None else (min(options.stride << spec.dst_mip, FARTHEST),) * 2
    return Picking(options.offsets, options.permute, options.anchor, spec.max_mip, size, stride)


# Where annotations lie in the image volume


class _Placing:
    """Brings annotations into the image volume's voxels. Each volume is asked once; it need not be there."""

    def __init__(self, spec: Spec, annotations: Annotations, options: CreateSpecOptions) -> None:
        self._size = spec.box_size()
        self._annotations = _in_units(annotations, options.points_resolution)
        self._say_their_units = annotations.resolution is not None
        self._given = options.volume_resolution
        self._extent, self._why = _extent(spec.image.path)
        self._has_field = spec.field is not None
        self._field_extent, self._why_no_field = _extent(spec.field.path) if spec.field is not None else (None, "")

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

    def can_be_cut(self, pairs: np.ndarray) -> np.ndarray:
        """(N,) bool: which pairs, (N, 2, 3), have no box that lies wholly outside a volume whose place is known.

        With a field only that volume's place is known in x and y: the field says where in the image a box is.
        """
        found = np.ones(pairs.shape[:2], bool)
        if self._extent is not None:
            met = self._extent.meets(pairs, self._size)
            found &= met[..., 2] if self._has_field else met.all(axis=2)
        if self._field_extent is not None:
            found &= self._field_extent.meets(pairs, self._size).all(axis=2)
        return np.asarray(found.all(axis=1))

    def remarks(self, ends: np.ndarray) -> Iterator[str]:
        """What to say of annotations whose units are not known, and of those that begin outside the image volume."""
        if self._annotations.resolution is None and self._annotations.may_say_units:
            yield (
                "the annotations do not say their units, and were taken for MIP-0 voxels of the image: "
                "--points_resolution X Y Z says that they are others"
            )
        if self._extent is None:
            yield f"not checked whether they lie in the image volume: {self._why}"
        else:
            first = np.floor(ends[:, 0])
            away = ~self._extent.holds(first)
            if away.any():
                index = int(away.argmax())
                count = f"{away.sum()} of {len(away)} annotations {'begins' if away.sum() == 1 else 'begin'}"
                span = f"the image volume, {self._extent.start} to {self._extent.stop}"
                where = f"annotation {index} at {tuple(first[index].astype(int).tolist())}"
                yield f"{count} outside {span}; the first: {where}{self._likely(ends[:, 0])}"
        if self._why_no_field:
            yield f"not checked whether boxes lie in the field volume: {self._why_no_field}"

    def _likely(self, places: np.ndarray) -> str:
        """What the units may be by which all places, (P, 3) voxels, would lie in the image: a sentence for each."""
        sentences = [
            f"If x and y are meant times {factor:g}, give {self._with_factor(factor)}."
            for factor in FACTORS
            if self._all_within(places * (factor, factor, 1))
        ]
        if not self._say_their_units and self._all_within(places * self._nm_per_unit() ** -1.0):
            sentences.append("If they are in nanometres, give --points_resolution 1 1 1.")
        if not sentences:
            return ""
        several = "Several units would bring" if sentences[1:] else "One change of units would bring"
        return " ".join([f". {several} all of them into it.", *sentences])

    def _all_within(self, places: np.ndarray) -> bool:
        return self._extent is not None and bool(self._extent.holds(np.floor(places)).all())

    def _nm_per_unit(self) -> np.ndarray:
        """(3,): nm per unit of points that do not say it."""
        return np.array(self._annotations.resolution or self.volume_resolution())

    def _with_factor(self, factor: float) -> str:
        """The option by which x and y would be times a factor: voxels are sized anew, where points say their units."""
        if self._say_their_units:
            x, y, z = self.volume_resolution()
            return f"--volume_resolution {x / factor:.12g} {y / factor:.12g} {z:.12g}"
        x, y, z = self._nm_per_unit().tolist()
        return f"--points_resolution {x * factor:.12g} {y * factor:.12g} {z:.12g}"


def _extent(path: str) -> tuple[Extent | None, str]:
    """A volume's extent, or why it cannot be read."""
    try:
        return read_extent(path), ""
    except (UsageError, WorkError) as error:
        return None, str(error)


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
