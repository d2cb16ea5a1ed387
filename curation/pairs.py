"""From annotations to pairs of boxes, appended to a spec."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import msgspec
import numpy as np

from .annotations import Annotations, read_annotations
from .errors import UsageError, WorkError
from .files import PathLike, check_folder, check_new
from .geometry import Geometry, Resolution, read_geometry
from .picking import BLOCK, Picking, check_offsets, counted, in_voxels, pair_blocks
from .rejections import read_rejections
from .spec import FARTHEST, Note, Spec, read_spec, write_spec
from .viewer import write_state


@dataclass(frozen=True)
class Options:
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
class Appended:
    """What `append_pairs` did, for its summary line.

    idle: annotations all of whose pairs were there already. excluded: pairs that are among the `rejected`, those that
    the rejection file lists, if there is one. outside: a sentence, or empty.
    """

    path: PathLike
    annotations: str
    idle: int
    kept_pairs: int
    new_pairs: int
    repeated_pairs: int
    excluded: int
    rejected: int | None
    not_drawn: int
    outside: str

    def __str__(self) -> str:
        text = f"{self.path}: {self.kept_pairs + self.new_pairs} pairs, {self.new_pairs} of them new"
        text += f" from {self.annotations}"
        if self.idle:
            text += f"; {self.idle} of these add nothing new"
        if self.repeated_pairs:
            text += f"; {self.repeated_pairs} repeated pairs left out"
        if self.rejected is not None:
            text += f"; {self.excluded} excluded pairs left out, of {self.rejected} listed"
        if self.not_drawn:
            text += f"; {self.not_drawn} more were not drawn"
        return f"{text}\n{self.outside}" if self.outside else text


def append_pairs(options: Options) -> Appended:
    """Write the source spec with the pairs of all annotations appended, none of them twice."""
    check_offsets(options.offsets)
    _check_destinations(options)
    spec = read_spec(options.src_spec_path, template=True)
    rejected = (
        read_rejections(options.exclude_path) if options.exclude_path is not None else np.empty((0, 2, 3), np.int64)
    )
    annotations = read_annotations(options.points_path, options.layer)
    placing = _Placing(spec, annotations, options)
    ends = placing.ends()
    made, whose = _narrow_pairs(pair_blocks(annotations.shapes, ends, _picking(spec, options)))
    chosen = _choose(rejected, spec.starts(), made, options)
    kept_notes = spec.notes()
    notes = {place: kept_notes[index] for place, index in enumerate(chosen.kept.tolist()) if index in kept_notes}
    if annotations.notes:
        picked = enumerate(whose[chosen.new].tolist(), start=len(chosen.kept))
        notes |= {place: annotations.notes[index] for place, index in picked if index in annotations.notes}
    starts = np.concatenate([spec.starts()[chosen.kept], made[chosen.new]])
    if options.link_path is not None:
        write_state(options.link_path, spec, starts, notes, placing.volume_resolution(), options.overwrite)
    write_spec(options.dst_spec_path, spec, pair_texts(starts, notes), options.overwrite)
    fruitful = np.bincount(whose[chosen.distinct], minlength=len(ends)) > 0
    return Appended(
        path=options.dst_spec_path,
        annotations=counted(annotations),
        idle=len(ends) - int(fruitful.sum()),
        kept_pairs=len(chosen.kept),
        new_pairs=len(chosen.new),
        repeated_pairs=chosen.repeated,
        excluded=chosen.excluded,
        rejected=None if options.exclude_path is None else len(rejected),
        not_drawn=len(chosen.distinct) - len(chosen.new),
        outside=placing.outside(ends),
    )


def _check_destinations(options: Options) -> None:
    """Refuse what cannot be written, before either file is: the one would stay without the other."""
    paths = [Path(path) for path in (options.dst_spec_path, options.link_path) if path is not None]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError(f"{paths[0]} is to be both the spec and the link: take another name for one of them")
    for path in paths:
        check_new(path, options.overwrite)
        check_folder(path.parent)
        if path.is_dir():
            raise UsageError(f"{path} is a folder: want a file's name")


def _picking(spec: Spec, options: Options) -> Picking:
    size = spec.box_size()
    # Beyond FARTHEST any stride leaves a single tile.
    stride = size if options.stride is None else (min(options.stride << spec.dst_mip, FARTHEST),) * 2
    return Picking(options.offsets, options.permute, options.anchor, spec.max_mip, size, stride)


# Where annotations lie in the image volume


class _Placing:
    """Brings annotations into the image volume's voxels. The volume is asked once, and only where it must be there."""

    def __init__(self, spec: Spec, annotations: Annotations, options: Options) -> None:
        self._path = spec.image.path
        self._annotations = annotations
        self._units = options.points_resolution or annotations.resolution
        self._given = options.volume_resolution
        self._geometry: Geometry | None = None
        self._why = ""
        try:
            self._geometry = read_geometry(self._path)
        except (UsageError, WorkError) as error:
            self._why = str(error)

    def volume_resolution(self) -> Resolution:
        """The image's, at MIP 0, in nm."""
        found = self._given or (self._geometry.resolution if self._geometry else None)
        if found is None:
            raise UsageError(f"{self._why}: want --volume_resolution X Y Z, its nm per voxel at MIP 0")
        return found

    def ends(self) -> np.ndarray:
        """(P, 2, 3) MIP-0 voxels, not floored yet. Where no unit is known, coordinates are taken for voxels."""
        if self._units is None:
            return self._annotations.ends
        return in_voxels(self._annotations.ends, self._units, self.volume_resolution())

    def outside(self, ends: np.ndarray) -> str:
        """What to say of annotations that do not begin in the image volume; nothing if all do."""
        if self._geometry is None:
            return f"not checked whether they lie in the image volume: {self._why}"
        first = np.floor(ends[:, 0])
        away = ~self._geometry.holds(first)
        if not away.any():
            return ""
        index = int(away.argmax())
        low, high = self._geometry.start, self._geometry.stop
        text = f"{away.sum()} of them begin outside the image volume, {low} to {high}; the first: annotation {index}"
        return f"{text} at {tuple(first[index].astype(int).tolist())}{self._likely(first)}"

    def _likely(self, places: np.ndarray) -> str:
        """The factor by which voxels of another size would explain it, where one of 2 to 32 does."""
        if self._geometry is None:
            return ""
        for power in (-1, 1, -2, 2, -3, 3, -4, 4, -5, 5):
            factor = 2.0**power
            if self._geometry.holds(np.floor(places * (factor, factor, 1))).all():
                x, y, z = self._units or self.volume_resolution()
                meant = f"--points_resolution {x * factor:.12g} {y * factor:.12g} {z:.12g}"
                return f". With x and y times {factor:g} all would lie in it: if that is meant, {meant}"
        return ""


# Which pairs are taken


@dataclass(frozen=True)
class _Chosen:
    """kept: indices of the source spec's pairs. distinct: of the made pairs that are not there yet. new: those drawn.

    repeated, excluded: how many made pairs repeat others; how many pairs, kept or made, are rejected.
    """

    kept: np.ndarray
    distinct: np.ndarray
    new: np.ndarray
    repeated: int
    excluded: int


def _choose(rejected: np.ndarray, kept: np.ndarray, made: np.ndarray, options: Options) -> _Chosen:
    """Choose among pairs, each (N, 2, 3): none that is rejected, none of the made ones twice."""
    first = first_alike(np.concatenate([_narrow(rejected), _narrow(kept), made]))
    begin, middle = len(rejected), len(rejected) + len(kept)
    own = first == np.arange(len(first))
    is_rejected = first < begin
    distinct = np.flatnonzero(own[middle:])
    new = distinct
    if options.max_pairs is not None and len(distinct) > options.max_pairs:
        drawn = np.random.default_rng(options.seed).choice(len(distinct), options.max_pairs, replace=False)
        new = distinct[np.sort(drawn)]
    kept_rejected = is_rejected[begin:middle]
    made_rejected = made[is_rejected[middle:]]
    return _Chosen(
        kept=np.flatnonzero(~kept_rejected),
        distinct=distinct,
        new=new,
        repeated=len(made) - len(made_rejected) - len(distinct),
        excluded=int(kept_rejected.sum()) + len(np.unique(made_rejected.reshape(-1, 6), axis=0)),
    )


def _narrow_pairs(blocks: Iterator[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """All blocks' pairs, (N, 2, 3), and whose they are, (N,), in half the space where they fit in it."""
    pairs, whose = zip(*((_narrow(block), of.astype(np.int32)) for block, of in blocks), strict=True)
    return np.concatenate(pairs), np.concatenate(whose)


def _narrow(starts: np.ndarray) -> np.ndarray:
    """Starts as 32-bit integers, if these hold their differences too."""
    return starts.astype(np.int32) if np.abs(starts).max(initial=0) < 2**30 else starts


def first_alike(starts: np.ndarray) -> np.ndarray:
    """(N,): for each pair the index of the first that equals it. starts: (N, 2, 3)."""
    if not len(starts):
        return np.empty(0, np.intp)
    keys = _keys(starts)
    # Stable, so that of equal pairs the earliest comes first.
    order = np.lexsort(keys.T)
    ordered = keys[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(order), np.intp)
    first[order] = order[begins].repeat(np.diff(np.append(np.flatnonzero(begins), len(order))))
    return first


def _keys(starts: np.ndarray) -> np.ndarray:
    """A number for each pair, equal for equal pairs, (N, 1); where 63 bits do not hold it, its own six, (N, 6)."""
    key = np.zeros(len(starts), np.int64)
    bits = 0
    for column in (*starts[:, 0].T, *(starts[:, 1] - starts[:, 0]).T):
        low = int(column.min())
        width = (int(column.max()) - low).bit_length()
        bits += width
        if bits > 63:
            return starts.reshape(-1, 6)
        key <<= width
        key |= column.astype(np.int64) - low
    return key[:, None]


def pair_texts(starts: np.ndarray, notes: Mapping[int, Note] = MappingProxyType({})) -> Iterator[str]:
    """Each pair as JSON, in the spec's form. starts: (N, 2, 3). notes: by pair."""
    start = '{"x_start": %d, "y_start": %d, "z_start": %d}'
    template = f'{{"src": {start}, "tgt": {start}%s}}'
    for first in range(0, len(starts), BLOCK):
        block = starts[first : first + BLOCK].reshape(-1, 6)
        said = (
            [_note_text(notes.get(pair)) for pair in range(first, first + len(block))] if notes else [""] * len(block)
        )
        columns = [*block.T.tolist(), said]
        yield from map(template.__mod__, zip(*columns, strict=True))


def _note_text(note: Note | None) -> str:
    return "" if note is None else f', "note": {msgspec.json.encode(note).decode()}'
