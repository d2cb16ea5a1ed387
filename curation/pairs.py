"""From points to pairs of boxes, appended to a spec."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .boxes import snap
from .errors import UsageError
from .files import PathLike, check_new
from .points import read_points
from .spec import FARTHEST, read_spec, write_spec


@dataclass(frozen=True)
class Appended:
    """What `append_pairs` did, for its summary line."""

    path: PathLike
    points: int
    repeated_points: int
    kept_pairs: int
    new_pairs: int
    repeated_pairs: int

    def __str__(self) -> str:
        text = f"{self.path}: {self.kept_pairs + self.new_pairs} pairs, {self.new_pairs} of them new"
        text += f" from {self.points} points"
        if self.repeated_points:
            text += f"; {self.repeated_points} points repeat the start of an earlier one"
        if self.repeated_pairs:
            text += f"; {self.repeated_pairs} repeated pairs left out"
        return text


def append_pairs(
    src_spec_path: PathLike,
    dst_spec_path: PathLike,
    points_path: PathLike,
    *,
    offsets: Sequence[int],
    permute: bool,
    overwrite: bool,
) -> Appended:
    """Write the source spec with the pairs of all points appended, none of them twice."""
    check_offsets(offsets)
    check_new(dst_spec_path, overwrite)
    spec = read_spec(src_spec_path, template=True)
    points = read_points(points_path)
    kept = spec.starts()
    made = pair_starts(points, offsets, permute, spec.max_mip)
    starts = np.concatenate([kept, made])
    first = first_occurrences(starts)
    new = starts[first[first >= len(kept)]]
    write_spec(dst_spec_path, spec, pair_texts(np.concatenate([kept, new])), overwrite)
    boxes = pair_starts(points, [1], False, spec.max_mip)
    return Appended(
        path=dst_spec_path,
        points=len(points),
        repeated_points=len(boxes) - len(first_occurrences(boxes)),
        kept_pairs=len(kept),
        new_pairs=len(new),
        repeated_pairs=len(made) - len(new),
    )


def pair_starts(points: np.ndarray, offsets: Sequence[int], permute: bool, max_mip: int) -> np.ndarray:
    """The pairs that points and section offsets stand for, (N, 2, 3) int64 in MIP-0 voxels.

    points: (P, 3) int64, (x, y, z). For each point in order, for each offset in order: source at section z and
    target at z + offset; with `permute` followed by the same two sections the other way round. x and y are
    snapped down to multiples of 2^max_mip. Repeated pairs stay in.
    """
    check_offsets(offsets)
    steps = [(0, offset) for offset in offsets]
    if permute:
        steps = [step for forth in steps for step in (forth, forth[::-1])]
    starts = np.repeat(points[:, None, None, :], 2, axis=2).repeat(len(steps), axis=1)
    starts[..., :2] = snap(starts[..., :2], max_mip)
    starts[..., 2] += np.array(steps)
    if abs(starts).max(initial=0) > FARTHEST:
        raise UsageError("points and offsets lead beyond any volume")
    return starts.reshape(-1, 2, 3)


def check_offsets(offsets: Sequence[int]) -> None:
    """Refuse offsets that make no pair, or a pair of a section with itself."""
    if not offsets:
        raise UsageError("no offsets: want at least one, such as --offsets -1 -2")
    if 0 in offsets:
        raise UsageError("offset 0 pairs a section with itself: want offsets other than 0")
    farthest = max(offsets, key=abs)
    if abs(farthest) > FARTHEST:
        raise UsageError(f"offset {farthest} leads beyond any volume")


def first_occurrences(starts: np.ndarray) -> np.ndarray:
    """Indices of the pairs that do not repeat an earlier one, in order. starts: (N, 2, 3)."""
    columns = starts.reshape(len(starts), 6)
    order = np.lexsort(columns.T)  # stable, so that of equal pairs the earliest comes first
    ordered = columns[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return np.sort(order[is_first])


def pair_texts(starts: np.ndarray) -> Iterator[str]:
    """Each pair as JSON, in the spec's form. starts: (N, 2, 3)."""
    start = '{"x_start": %d, "y_start": %d, "z_start": %d}'
    template = f'{{"src": {start}, "tgt": {start}}}'
    for block in np.array_split(starts.reshape(-1, 6), max(1, len(starts) // 4096)):
        for numbers in block.tolist():
            yield template % tuple(numbers)
