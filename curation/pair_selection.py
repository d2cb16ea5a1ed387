"""Which pairs are taken: none that is excluded, none twice, and at random no more than are wanted.

An exclusion file, for the --exclude of create_spec.py and make_dataset.py and for --exclude_boxes, lists pairs that
somebody does not want. It is JSON: {"pairs": [{"src": {"x_start": ..., "y_start": ..., "z_start": ...}, "tgt": {...}},
...]}, or that list alone. Other keys, such as a reason, are for people. A spec is such a file too, of all its pairs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from .errors import UsageError
from .files import PathLike
from .spec import Pair, Start, parse_spec


@dataclass(frozen=True)
class Excluded:
    """What is not wanted, (N, 2, 3) each: pairs, in either direction; and pairs of which no box is wanted either."""

    pairs: np.ndarray
    of_boxes: np.ndarray


@dataclass(frozen=True)
class Chosen:
    """Which pairs are taken.

    kept: indices of the source spec's pairs. distinct: of the made pairs that are not there yet. new: those drawn.

    repeated: how many made pairs repeat others. excluded: how many pairs, kept or made, are excluded themselves.
    sharing: how many others are excluded because of a box.
    """

    kept: np.ndarray
    distinct: np.ndarray
    new: np.ndarray
    repeated: int
    excluded: int
    sharing: int


def choose(
    excluded: Excluded, kept: np.ndarray, made: np.ndarray, max_pairs: int | None = None, seed: int = 0
) -> Chosen:
    """Choose among pairs, each (N, 2, 3): none that is excluded, none of the made ones twice.

    max_pairs: of the new ones, a random subset of so many at most, the same for the same `seed`.
    """
    pairs, middle = np.concatenate([narrow(kept), made]), len(kept)
    own = first_alike(pairs) == np.arange(len(pairs))
    is_excluded = are_listed(pairs, excluded.pairs)
    is_sharing = _share_box(pairs, excluded.of_boxes) & ~is_excluded
    is_wanted = ~(is_excluded | is_sharing)
    distinct = np.flatnonzero((own & is_wanted)[middle:])
    new = distinct
    if max_pairs is not None and len(distinct) > max_pairs:
        drawn = np.random.default_rng(seed).choice(len(distinct), max_pairs, replace=False)
        new = distinct[np.sort(drawn)]

    def count(which: np.ndarray) -> int:
        """How many pairs there are of those, the made ones without repeats."""
        return int(which[:middle].sum()) + len(np.unique(made[which[middle:]].reshape(-1, 6), axis=0))

    return Chosen(
        kept=np.flatnonzero(is_wanted[:middle]),
        distinct=distinct,
        new=new,
        repeated=int(is_wanted[middle:].sum()) - len(distinct),
        excluded=count(is_excluded),
        sharing=count(is_sharing),
    )


def are_listed(pairs: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """(N,) bool: which pairs, (N, 2, 3), are in a list, (M, 2, 3), in either direction."""
    if not len(listed):
        return np.zeros(len(pairs), bool)
    both_ways = np.concatenate([listed, listed[:, ::-1]])
    first = first_alike(np.concatenate([narrow(both_ways), narrow(pairs)]))
    return np.asarray((first < len(both_ways))[len(both_ways) :])


def _share_box(pairs: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) bool: which pairs, (N, 2, 3), have a box that one of the others has too."""
    if not len(others):
        return np.zeros(len(pairs), bool)
    boxes = np.concatenate([narrow(others), pairs]).reshape(-1, 3)
    first = first_alike(np.repeat(boxes[:, None], 2, axis=1))  # each box as a pair with itself
    return np.asarray((first < 2 * len(others))[2 * len(others) :].reshape(-1, 2).any(axis=1))


def offsets_text(starts: np.ndarray) -> str:
    """How many sections pairs, (N, 2, 3), lead away, such as `-2 (1 pair), -1 (3 pairs)`."""
    counts = Counter((starts[:, 1, 2] - starts[:, 0, 2]).tolist())
    return ", ".join(f"{offset:+d} ({pairs_text(counts[offset])})" for offset in sorted(counts))


def pairs_text(count: int) -> str:
    """A number of pairs, such as `1 pair`."""
    return f"{count} pair{'' if count == 1 else 's'}"


def narrow(starts: np.ndarray) -> np.ndarray:
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


# Exclusion files


@dataclass(frozen=True)
class Exclusion:
    """What exclusion files leave out of some pairs; as text, a line of a summary.

    files: their names. mask: (N,) bool, which pairs they leave out. unmatched: how many distinct pairs they list that
    are not among these pairs, in either direction.
    """

    files: tuple[str, ...]
    mask: np.ndarray
    unmatched: int

    def __str__(self) -> str:
        text = f"{pairs_text(int(self.mask.sum()))}, by {', '.join(self.files)}"
        if self.unmatched:
            verb = "is" if self.unmatched == 1 else "are"
            text += f"; {pairs_text(self.unmatched)} listed there {verb} not in the spec"
        return text


def read_exclusion(paths: Sequence[PathLike], pairs: np.ndarray) -> Exclusion:
    """What the exclusion files, at least one, leave out of pairs, (N, 2, 3)."""
    listed = np.concatenate([read_excluded_pairs(path) for path in paths])
    unmatched = np.unique(listed[~are_listed(listed, pairs)].reshape(-1, 6), axis=0)
    return Exclusion(tuple(map(str, paths)), are_listed(pairs, listed), len(unmatched))


class _ExcludedPair(Struct, frozen=True):
    src: Start
    tgt: Start


class _ExcludedPairs(Struct, frozen=True):
    pairs: list[_ExcludedPair]


def read_excluded_pairs(path: PathLike) -> np.ndarray:
    """The pairs of an exclusion file, (N, 2, 3) int64: source and target starts in MIP-0 voxels."""
    try:
        content = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").strip()
        if content.startswith(b"["):
            pairs: Sequence[_ExcludedPair | Pair] = msgspec.json.decode(content, type=list[_ExcludedPair])
        else:
            pairs = _pairs_of_object(content)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not a list of pairs to leave out: {error}") from None
    starts = [[[at.x_start, at.y_start, at.z_start] for at in (pair.src, pair.tgt)] for pair in pairs]
    return np.array(starts, np.int64).reshape(-1, 2, 3)


def _pairs_of_object(content: bytes) -> Sequence[_ExcludedPair | Pair]:
    try:
        return msgspec.json.decode(content, type=_ExcludedPairs).pairs
    except msgspec.ValidationError:
        try:
            return parse_spec(content).pairs  # one of an older form
        except UsageError:
            pass
        raise
