"""Splits of a dataset into parts that share no tissue, and the file that holds one.

The file is JSON, with the pairs of each part in the form of a spec: {"parts": [{"name": "train", "fraction": 0.8,
"pairs": [{"src": {"x_start": ..., "y_start": ..., "z_start": ...}, "tgt": {...}}, ...]}, ...], "left_out": [...],
"by": "section", "gap": 1, "seed": 0, "from": [...]}. docs/splits.md describes it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct, field

from .errors import UsageError
from .files import PathLike
from .pair_selection import first_alike, narrow, pairs_text
from .spec import FARTHEST, Start, pair_texts
from .tissue import HIGH, LOW, components, meeting, thickened

WAYS = ("section", "block", "point")
LEFT_OUT = -1

_AXES = {"section": (2,), "block": (0, 1)}


@dataclass(frozen=True)
class PairBoxes:
    """Pairs, and where the tissue is that they show.

    starts: (N, 2, 3) int64, as in the spec, by which pairs are known. corners: (N, 2, 2, 3) int64, of the source and
    the target the lowest corner and the highest, which is excluded; x and y in MIP-0 voxels, z in sections.
    """

    starts: np.ndarray
    corners: np.ndarray

    @classmethod
    def of(cls, starts: np.ndarray, translations: np.ndarray | int, size: tuple[int, int]) -> "PairBoxes":
        """Pairs of boxes of one size. starts: (N, 2, 3). translations: (N, 2, 2) or 0. size: x, y in MIP-0 voxels."""
        low = starts.astype(np.int64)
        low[..., :2] += translations
        return cls(starts.astype(np.int64), np.stack([low, low + np.array([*size, 1])], axis=2))

    @classmethod
    def joined(cls, several: Sequence["PairBoxes"]) -> "PairBoxes":
        """All pairs, each of them once. Boxes of the same start become one that holds them all, in all pairs."""
        starts, corners = (np.concatenate([getattr(each, name) for each in several]) for name in ("starts", "corners"))
        boxes, flat = narrow(starts).reshape(-1, 1, 3), corners.reshape(-1, 2, 3)
        place = first_alike(boxes.repeat(2, axis=1))  # each box as a pair with itself
        joined = flat.copy()
        np.minimum.at(joined[:, LOW], place, flat[:, LOW])
        np.maximum.at(joined[:, HIGH], place, flat[:, HIGH])
        kept = np.unique(first_alike(narrow(starts)))
        return cls(starts[kept], joined[place].reshape(-1, 2, 2, 3)[kept])


@dataclass(frozen=True)
class Part:
    """A part of a split. fraction: what it was to hold of all pairs. pairs: (N, 2, 3) int64, as in the spec."""

    name: str
    fraction: float
    pairs: np.ndarray


@dataclass(frozen=True)
class Split:
    """Parts that share no tissue.

    left_out: (N, 2, 3) int64, pairs that are in no part. by: one of `WAYS`. gap: sections no farther apart than this
    count as the same tissue. made_from: the names of the files whose pairs were divided.
    """

    parts: tuple[Part, ...]
    left_out: np.ndarray
    by: str
    gap: int
    seed: int
    made_from: tuple[str, ...]

    def part(self, name: str) -> Part:
        """The part of a name; a `UsageError` if there is none."""
        for part in self.parts:
            if part.name == name:
                return part
        names = ", ".join(part.name for part in self.parts)
        raise UsageError(f"no part {name} in the split: want one of {names}")


# Dividing


def divide(pairs: PairBoxes, fractions: Sequence[float], by: str, gap: int, seed: int) -> np.ndarray:
    """(N,): the part of each pair, or LEFT_OUT. No two parts share tissue, and each has a pair.

    A `UsageError` if that cannot be. by: one of `WAYS`. gap: sections. The same seed gives the same parts.
    """
    rng = np.random.default_rng(seed)
    boxes = _thick(pairs, gap)
    if by == "point":
        return _by_components(boxes, fractions, rng)
    low = boxes[:, :, LOW].min(axis=1)[:, _AXES[by]]
    high = boxes[:, :, HIGH].max(axis=1)[:, _AXES[by]]
    if by == "block":  # a part may be cut off at either end of an axis
        low, high = np.concatenate([low, -high], axis=1), np.concatenate([high, -low], axis=1)
    order = rng.permutation(len(fractions))
    part = _by_cuts(low, high, [fractions[place] for place in order])
    if part is None:
        raise UsageError(
            f"{pairs_text(len(low))} cannot be divided by {by} into {len(fractions)} parts, as too few boxes lie "
            f"apart: want fewer parts{', a smaller --gap' if by == 'section' else ''}, or another --by"
        )
    return np.where(part == LEFT_OUT, LEFT_OUT, order[part])


def leaks(pairs: PairBoxes, parts: np.ndarray, gap: int) -> tuple[int, int] | None:
    """Two pairs of different parts that share tissue, by their indices; None if there are none.

    parts: (N,), the part of each pair, or LEFT_OUT.
    """
    boxes = _thick(pairs, gap)
    members = [np.flatnonzero(parts == part) for part in np.unique(parts[parts != LEFT_OUT])]
    for one, other in combinations(members, 2):
        found = meeting(boxes[one].reshape(-1, 2, 3), boxes[other].reshape(-1, 2, 3))
        if found is not None:
            return int(one[found[0] // 2]), int(other[found[1] // 2])
    return None


def _thick(pairs: PairBoxes, gap: int) -> np.ndarray:
    return thickened(pairs.corners, min(gap, 4 * FARTHEST))  # beyond that, all sections are neighbours


def _by_components(boxes: np.ndarray, fractions: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """(N,): the part of each pair; pairs that hang together by tissue are in the same. boxes: (N, 2, 2, 3)."""
    distinct, place = np.unique(boxes.reshape(-1, 6), axis=0, return_inverse=True)
    place = place.reshape(-1, 2)
    of_box = components(distinct.reshape(-1, 2, 3), place)
    _, component, sizes = np.unique(of_box[place[:, 0]], return_inverse=True, return_counts=True)
    if len(sizes) < len(fractions):
        form = "one component" if len(sizes) == 1 else f"{len(sizes)} components"
        raise UsageError(
            f"{pairs_text(len(boxes))} form {form} whose pairs hang together by shared tissue, too few for "
            f"{len(fractions)} parts: want --by section or --by block, which leave pairs out, or a smaller --gap"
        )
    return _assigned(sizes, fractions, rng)[component]


def _assigned(sizes: np.ndarray, fractions: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """(C,): a part for each component, by chance, so that the parts hold about these fractions, and each something.

    The largest come first. The chance of a part is what room is left in it, so that large and small components come
    into all parts, and the many small ones fill each part just to its fraction.
    """
    room = (np.array(fractions) * sizes.sum()).tolist()
    empty = set(range(len(fractions)))
    parts = np.empty(len(sizes), np.intp)
    order = np.lexsort((rng.random(len(sizes)), -sizes))
    draws = rng.random(len(sizes)).tolist()
    for left, (component, size, draw) in enumerate(zip(order.tolist(), sizes[order].tolist(), draws, strict=True)):
        fitting = [part for part, there in enumerate(room) if there >= size]
        if len(empty) >= len(sizes) - left:  # the last ones go where nothing is yet
            fitting = sorted(empty)
        part = _drawn(fitting, room, draw) if fitting else room.index(max(room))
        parts[component] = part
        room[part] -= size
        empty.discard(part)
    return parts


def _drawn(fitting: list[int], room: list[float], draw: float) -> int:
    """One of some parts. draw: from 0 to 1."""
    at = draw * sum(room[part] for part in fitting)
    for part in fitting:
        at -= room[part]
        if at < 0:
            return part
    return fitting[-1]


def _by_cuts(low: np.ndarray, high: np.ndarray, fractions: Sequence[float]) -> np.ndarray | None:
    """(N,): the part of each pair, or LEFT_OUT if it straddles a cut; None if there are too few places to cut.

    One part after the other is cut off from the rest. low, high: (N, A), where each pair begins and ends, along the
    axes across which cuts are made.
    """
    part = np.full(len(low), LEFT_OUT)
    rest = np.arange(len(low))
    for number, fraction in enumerate(fractions[:-1]):
        cut = _best_cut(low[rest], high[rest], fraction / sum(fractions[number:]), len(fractions) - 1 - number)
        if cut is None:
            return None
        axis, place = cut
        part[rest[high[rest, axis] <= place]] = number
        rest = rest[low[rest, axis] >= place]
    part[rest] = len(fractions) - 1
    return part


def _best_cut(low: np.ndarray, high: np.ndarray, share: float, parts: int) -> tuple[int, int] | None:
    """The axis and the place of a cut, before which a share of the pairs lies, with room for some parts behind it.

    Of all cuts, that is the best at which the side that lacks most of its share lacks least. So both the fractions, and
    how many pairs straddle the cut, count.
    """
    for needed in (parts, 1):  # what one axis has no room for, another may have
        best: tuple[float, int, int] | None = None
        for axis in range(low.shape[1]):
            begins, ends = np.sort(low[:, axis]), np.sort(high[:, axis])
            places = np.unique(begins)
            before = np.searchsorted(ends, places, side="right")
            behind = len(begins) - np.searchsorted(begins, places)
            reached = np.minimum(before / share, behind / (1 - share))
            reached[(places > _last_begin(low[:, axis], high[:, axis], needed)) | (behind < parts)] = 0
            at = int(reached.argmax())
            if reached[at] > 0 and (best is None or reached[at] > best[0]):
                best = float(reached[at]), axis, int(places[at])
        if best is not None:
            return best[1:]
    return None


def _last_begin(low: np.ndarray, high: np.ndarray, parts: int) -> float:
    """The last place behind which so many parts can be cut off, each with a pair; -inf if there is none."""
    last = float(low.max(initial=-FARTHEST))
    for _ in range(parts - 1):
        begins = low[high <= last]
        if not len(begins):
            return -np.inf
        last = float(begins.max())
    return last


# The file


class _Pair(Struct, frozen=True, gc=False):
    src: Start
    tgt: Start


class _Part(Struct, frozen=True):
    name: str
    pairs: list[_Pair]
    fraction: float = 0


class _Split(Struct, frozen=True):
    parts: list[_Part]
    left_out: list[_Pair] = []
    by: str = ""
    gap: int = 0
    seed: int = 0
    made_from: list[str] = field(default_factory=list, name="from")


def split_text(split: Split) -> Iterator[str]:
    """The text of a split's file in pieces, a pair on a line."""
    head = {"by": split.by, "gap": split.gap, "seed": split.seed, "from": split.made_from}
    yield "{\n" + "".join(f'  "{key}": {json.dumps(value)},\n' for key, value in head.items()) + '  "parts": ['
    for number, part in enumerate(split.parts):
        yield ",\n" if number else "\n"
        yield f'    {{"name": {json.dumps(part.name)}, "fraction": {json.dumps(part.fraction)}, "pairs": '
        yield from _list_text(part.pairs, "    ")
        yield "}"
    yield '\n  ],\n  "left_out": '
    yield from _list_text(split.left_out, "  ")
    yield "\n}\n"


def _list_text(pairs: np.ndarray, indent: str) -> Iterator[str]:
    line = f"\n{indent}  "
    separator = "["
    for block in pair_texts(pairs):
        yield separator + line + f",{line}".join(block)
        separator = ","
    yield f"\n{indent}]" if len(pairs) else "[]"


def read_split(path: PathLike) -> Split:
    """Read a split; a `UsageError` if the file is none, or if a name or a pair is there twice.

    Only the parts' names and pairs must be there. Whether parts share tissue is not checked: the file does not say how
    large the boxes are.
    """
    try:
        content = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")
        found = msgspec.json.decode(content, type=_Split)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not a split, as split_pairs.py writes it: {error}") from None
    parts = tuple(Part(part.name, part.fraction, _starts(part.pairs)) for part in found.parts)
    names = [part.name for part in parts]
    if not names or len(set(names)) < len(names):
        raise UsageError(
            f"{path}: its parts are {', '.join(names) or 'none'}: want one or more, each with its own name"
        )
    listed = np.concatenate([part.pairs for part in parts])
    repeats = np.flatnonzero(first_alike(listed) != np.arange(len(listed)))
    if len(repeats):
        raise UsageError(f"{path}: the pair {listed[repeats[0]].tolist()} is there twice: want each pair once")
    return Split(parts, _starts(found.left_out), found.by, found.gap, found.seed, tuple(found.made_from))


def _starts(pairs: Sequence[_Pair]) -> np.ndarray:
    numbers = (
        number
        for pair in pairs
        for start in (pair.src, pair.tgt)
        for number in (start.x_start, start.y_start, start.z_start)
    )
    return np.fromiter(numbers, np.int64, count=6 * len(pairs)).reshape(-1, 2, 3)
