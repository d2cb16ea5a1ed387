"""Which boxes show the same tissue.

Boxes are (N, 2, 3) int64: the lowest corner and the highest, which is excluded; x and y in MIP-0 voxels, z in sections.
Two boxes share tissue if they overlap along all three axes. `thickened` makes boxes overlap that are no more than a gap
of sections apart, because neighbouring sections look alike.

`components` and `meeting` divide space until few boxes are left in each region, or one of them fills it. They never
compare all boxes with one another, so that a million boxes take less than a minute.
"""

import numpy as np

LOW, HIGH = 0, 1

_FEW = 64  # boxes that are compared with one another


def thickened(boxes: np.ndarray, gap: int) -> np.ndarray:
    """Boxes that overlap along z where the given ones, (..., 2, 3), are at most `gap` sections apart."""
    thick = boxes.copy()
    thick[..., HIGH, 2] += gap
    return thick


def overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(...) bool: whether boxes overlap; their arrays, (..., 2, 3), are broadcast."""
    apart = (one[..., HIGH, :] <= other[..., LOW, :]) | (other[..., HIGH, :] <= one[..., LOW, :])
    return np.asarray(~apart.any(axis=-1))


def hull(boxes: np.ndarray) -> np.ndarray:
    """(2, 3): the smallest box that holds boxes, (N, 2, 3)."""
    return np.stack([boxes[:, LOW].min(axis=0), boxes[:, HIGH].max(axis=0)])


def components(boxes: np.ndarray, tied: np.ndarray) -> np.ndarray:
    """(N,): of each box the first of those that it hangs together with, by overlaps or by ties.

    tied: (E, 2), indices of boxes that hang together wherever they lie.
    """
    forest = np.arange(len(boxes))  # each box points to one that it hangs together with, and never to a later one
    _join(forest, tied)
    regions = [(np.arange(len(boxes)), hull(boxes))] if len(boxes) else []
    while regions:
        which, region = regions.pop()  # each of the boxes overlaps the region
        firsts = _firsts(forest, which)
        if (firsts == firsts[0]).all():
            continue
        own = boxes[which]
        region = _common(region, hull(own))
        covers = _covers(own, region)
        if covers.any():  # such a box overlaps all others here
            forest[firsts] = firsts.min()
        elif len(which) <= _FEW:
            _join(forest, firsts[np.argwhere(overlap(own[:, None], own))])
        else:
            axis, place = _plane(own, region)
            for side, beyond in ((HIGH, own[:, LOW, axis] < place), (LOW, own[:, HIGH, axis] > place)):
                half = region.copy()
                half[side, axis] = place
                regions.append((which[beyond], half))
    return _firsts(forest, np.arange(len(boxes)))


def _join(forest: np.ndarray, edges: np.ndarray) -> None:
    while len(edges):
        ends = np.sort(_firsts(forest, edges), axis=1)
        edges = ends[ends[:, 0] < ends[:, 1]]
        forest[edges[:, 1]] = edges[:, 0]  # of several edges one wins; the others come up again in the next round


def _firsts(forest: np.ndarray, which: np.ndarray) -> np.ndarray:
    """The first of those that some boxes hang together with, as far as is known; the way there is made short."""
    found = forest[which]
    while (found != (further := forest[found])).any():
        found = further
    forest[which] = found
    return np.asarray(found)


def meeting(boxes: np.ndarray, others: np.ndarray) -> tuple[int, int] | None:
    """A box, and one of the others, (M, 2, 3), that overlap, by their indices; None if there are none."""
    if not len(boxes) or not len(others):
        return None
    everywhere = _common(hull(boxes), hull(others))
    regions = [(np.arange(len(boxes)), np.arange(len(others)), everywhere)]
    while regions:
        ours, theirs, region = regions.pop()
        ours = ours[overlap(boxes[ours], region)]
        theirs = theirs[overlap(others[theirs], region)]
        if not len(ours) or not len(theirs):
            continue
        # An overlap lies where the hulls of both overlap.
        region = _common(region, _common(hull(boxes[ours]), hull(others[theirs])))
        if (region[LOW] >= region[HIGH]).any():
            continue
        if len(ours) * len(theirs) <= _FEW**2:
            found = np.argwhere(overlap(boxes[ours][:, None], others[theirs]))
            if len(found):
                return int(ours[found[0, 0]]), int(theirs[found[0, 1]])
            continue
        both = np.concatenate([boxes[ours], others[theirs]])
        if _covers(both, region).all():
            return int(ours[0]), int(theirs[0])
        axis, place = _plane(both, region)
        for side in (LOW, HIGH):
            half = region.copy()
            half[side, axis] = place
            regions.append((ours, theirs, half))
    return None


def _common(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(2, 3): what two boxes share; its highest corner is not above its lowest where they share nothing."""
    return np.stack([np.maximum(one[LOW], other[LOW]), np.minimum(one[HIGH], other[HIGH])])


def _covers(boxes: np.ndarray, region: np.ndarray) -> np.ndarray:
    """(N,) bool: which boxes hold all of a region."""
    return np.asarray(((boxes[:, LOW] <= region[LOW]) & (boxes[:, HIGH] >= region[HIGH])).all(axis=1))


def _plane(boxes: np.ndarray, region: np.ndarray) -> tuple[int, int]:
    """An axis and a place on it that divide a region in two, with about as many sides of boxes in both.

    At least one box must have a side within the region. As every plane lies on such a side, each half has fewer of
    them, and dividing ends. Of the axes, the one along which the region is longest, measured in boxes, cuts the fewest
    boxes in two.
    """
    within = (boxes > region[LOW]) & (boxes < region[HIGH])
    lengths = (region[HIGH] - region[LOW]) / (boxes[:, HIGH] - boxes[:, LOW]).mean(axis=0)
    axis = int(np.where(within.any(axis=(0, 1)), lengths, -1).argmax())
    sides = boxes[..., axis][within[..., axis]]
    return axis, int(np.partition(sides, len(sides) // 2)[len(sides) // 2])
