"""Which boxes overlap, and which hang together: compared with what all comparisons of all boxes give."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.tissue import components, meeting, overlap, thickened

NO_TIES = np.empty((0, 2), np.intp)


def some_boxes(seed: int, count: int, extent: int, sizes: int = 3) -> np.ndarray:
    """Of several sizes, in few sections."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, (extent, extent, 4), (count, 3))
    size = rng.choice([8, 12, 30][:sizes], (count, 1)) * [1, 1, 0] + [0, 2, 1]
    return np.stack([low, low + size], axis=1)


def hanging_together(near: np.ndarray) -> np.ndarray:
    """(N,): the first that each hangs together with. near: (N, N) bool."""
    near = near | near.T | np.eye(len(near), dtype=bool)
    while ((further := near @ near) != near).any():
        near = further
    return np.asarray(near.argmax(axis=1))


# Few boxes are compared with one another; with many, and with large extents, space is divided.
BOXES = st.builds(some_boxes, st.integers(0, 2**31), st.integers(1, 250), st.integers(1, 400), st.integers(1, 3))


@given(BOXES, st.integers(0, 2))
def test_components_are_those_of_all_overlaps(boxes: np.ndarray, gap: int) -> None:
    boxes = thickened(boxes, gap)
    expected = hanging_together(overlap(boxes[:, None], boxes))
    np.testing.assert_array_equal(components(boxes, NO_TIES), expected)


@given(BOXES, st.integers(0, 2**31))
def test_ties_hang_boxes_together_wherever_they_are(boxes: np.ndarray, seed: int) -> None:
    ties = np.random.default_rng(seed).integers(0, len(boxes), (20, 2))
    near = overlap(boxes[:, None], boxes)
    near[ties[:, 0], ties[:, 1]] = True
    np.testing.assert_array_equal(components(boxes, ties), hanging_together(near))


@given(BOXES, BOXES, st.integers(0, 500))
def test_a_meeting_is_found_just_if_there_is_one(boxes: np.ndarray, others: np.ndarray, shift: int) -> None:
    others = others + np.array([shift, 0, 0])
    among_all = overlap(boxes[:, None], others)
    found = meeting(boxes, others)
    assert (found is not None) == among_all.any()
    assert found is None or among_all[found]


def test_tiles_that_touch_do_not_overlap() -> None:
    places = np.stack(np.meshgrid(np.arange(40), np.arange(40), [0], indexing="ij"), axis=-1).reshape(-1, 3)
    low = places * [16, 8, 1]
    tiles = np.stack([low, low + np.array([16, 8, 1])], axis=1)
    assert (components(tiles, NO_TIES) == np.arange(1600)).all()
    white = places.sum(axis=1) % 2 == 0
    assert meeting(tiles[white], tiles[~white]) is None
    tiles[0, 1, 0] += 1
    assert meeting(tiles[white], tiles[~white]) is not None


@pytest.mark.parametrize("gap", [0, 1, 5])
def test_boxes_a_gap_apart_overlap_once_they_are_thickened(gap: int) -> None:
    def at(z: int) -> np.ndarray:
        return thickened(np.array([[[0, 0, z], [8, 8, z + 1]]]), gap)

    assert overlap(at(3), at(3 + gap)).all()
    assert not overlap(at(3), at(4 + gap)).any()
    assert overlap(at(3 + gap), at(3)).all()


def test_none_have_no_components_and_no_meeting() -> None:
    none = np.empty((0, 2, 3), np.int64)
    assert len(components(none, NO_TIES)) == 0
    assert meeting(none, some_boxes(0, 3, 10)) is None
