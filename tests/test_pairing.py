"""From annotations of every kind to pairs of starts."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.annotations import pairing
from curation.annotations.coordinate_spaces import plain_space
from curation.annotations.model import Annotations, Shape
from curation.annotations.pairing import Picking, check_offsets, counted, pair_blocks
from curation.errors import UsageError
from curation.spec import FARTHEST

PICKING = Picking((-1,), False, "start", max_mip=3, size=(32, 16), stride=(32, 16))
Ends = Sequence[Sequence[float]]


def paired(
    annotations: Sequence[tuple[Shape, Ends]], how: Picking = PICKING
) -> tuple[list[list[list[int]]], list[int]]:
    """The pairs of all annotations, and whose they are."""
    shapes = np.array([shape for shape, _ in annotations], np.uint8)
    ends = np.array([ends for _, ends in annotations], np.float64).reshape(-1, 2, 3)
    pairs, whose = zip(*pair_blocks(shapes, ends, how), strict=True)
    return np.concatenate(pairs).tolist(), np.concatenate(whose).tolist()


def starts(low: Sequence[float], high: Sequence[float], how: Picking = PICKING) -> list[list[int]]:
    """Of the boxes that tile a bounding box."""
    pairs, _ = paired([(Shape.BOX, (low, high))], how)
    return [source for source, _ in pairs]


def point(*place: float) -> tuple[Shape, Ends]:
    return Shape.POINT, (place, place)


def line(first: Sequence[float], second: Sequence[float]) -> tuple[Shape, Ends]:
    return Shape.LINE, (first, second)


# Units

EM, FINE = (8.0, 8.0, 40.0), (4.0, 4.0, 40.0)


@pytest.mark.parametrize("place", [(203, 31.9, 3), (201.5, 16.5, 3.999)])
def test_halved_points_are_floored_and_never_rounded(place: Sequence[float]) -> None:
    halved = plain_space(FINE).in_voxels(EM).to_xyz(np.array(point(*place)[1]))
    pairs, _ = paired([(Shape.POINT, halved.tolist())], replace(PICKING, max_mip=0))
    x, y = {203: (101, 15), 201.5: (100, 8)}[place[0]]  # of 101.5, 15.95; 100.75, 8.25
    assert pairs == [[[x, y, 3], [x, y, 2]]]


# Points and ellipsoids


@pytest.mark.parametrize("shape", [Shape.POINT, Shape.ELLIPSOID])
def test_values_in_the_middle_of_a_voxel_are_floored_below_zero_too(shape: Shape) -> None:
    place = (1000.5, -0.5, 7.5)
    pairs, _ = paired([(shape, (place, place))], replace(PICKING, max_mip=0))
    assert pairs == [[[1000, -1, 7], [1000, -1, 6]]]


@pytest.mark.parametrize("shape", [Shape.POINT, Shape.ELLIPSOID])
def test_a_centre_is_half_a_box_from_its_start_which_is_then_snapped(shape: Shape) -> None:
    place = (1000.5, -0.5, 7.5)
    # boxes of 32 x 16 voxels: 1000 - 16 = 984 = 123 * 8; -1 - 8 = -9, snapped down to -16
    pairs, _ = paired([(shape, (place, place))], replace(PICKING, anchor="center"))
    assert pairs == [[[984, -16, 7], [984, -16, 6]]]


def test_half_of_an_odd_box_is_floored() -> None:
    pairs, _ = paired([point(10, 10, 1)], replace(PICKING, anchor="center", size=(5, 7), max_mip=0))
    assert pairs == [[[8, 7, 1], [8, 7, 0]]]  # 10 - 2, 10 - 3


# Lines


def test_a_line_is_one_pair_of_its_own_ends_each_snapped() -> None:
    pairs, _ = paired([line((1000.5, -0.5, 7.5), (1007.5, 20.5, 3.5))])
    assert pairs == [[[1000, -8, 7], [1000, 16, 3]]]


def test_offsets_and_permutation_do_not_apply_to_lines() -> None:
    how = replace(PICKING, offsets=(-1, 5), permute=True)
    assert paired([line((8, 8, 7), (16, 8, 9))], how) == ([[[8, 8, 7], [16, 8, 9]]], [0])


def test_lines_alone_need_no_offsets() -> None:
    lines = [line((8, 8, 7), (16, 8, 9)), line((0, 0, 1), (0, 0, 0))]
    pairs, whose = paired(lines, replace(PICKING, offsets=()))
    assert pairs == [[[8, 8, 7], [16, 8, 9]], [[0, 0, 1], [0, 0, 0]]]
    assert whose == [0, 1]


def test_both_ends_of_a_line_may_be_centres() -> None:
    pairs, _ = paired([line((100, 100, 7), (108, 84, 6))], replace(PICKING, anchor="center"))
    # 100 - 16 = 84 -> 80, 100 - 8 = 92 -> 88; 108 - 16 = 92 -> 88, 84 - 8 = 76 -> 72
    assert pairs == [[[80, 88, 7], [88, 72, 6]]]


def test_a_line_in_one_section_pairs_two_places_of_it() -> None:
    assert paired([line((0, 0, 7), (64, 0, 7))])[0] == [[[0, 0, 7], [64, 0, 7]]]


@pytest.mark.parametrize("before", [0, pairing.BLOCK])
def test_a_line_within_one_box_is_refused_by_its_number(before: int) -> None:
    lines = [line((0, 0, 7), (0, 0, 6))] * before + [line((8, 8, 7), (15.5, 9, 7.5))]
    said = rf"annotation {before}: both ends of the line lie in the box \[8, 8, 7\]"
    with pytest.raises(UsageError, match=said):
        paired(lines)


# Bounding boxes


def test_as_many_tiles_as_fit_in_by_rows_then_by_sections() -> None:
    # 70 x 40 voxels hold 2 x 2 boxes of 32 x 16; offset -1 each
    pairs, whose = paired([(Shape.BOX, ((64, 8, 5), (134, 48, 7)))])
    sources = [
        [64, 8, 5], [96, 8, 5], [64, 24, 5], [96, 24, 5],
        [64, 8, 6], [96, 8, 6], [64, 24, 6], [96, 24, 6],
    ]  # fmt: skip
    assert pairs == [[source, [*source[:2], source[2] - 1]] for source in sources]
    assert whose == [0] * 8


@pytest.mark.parametrize(
    ("width", "count"),
    [(0.5, 1), (31, 1), (32, 1), (63, 1), (63.9, 1), (64, 2), (95, 2), (96, 3)],
)
def test_the_last_tile_ends_within_but_there_is_always_one(width: float, count: int) -> None:
    assert len(starts((64, 8, 5), (64 + width, 24, 6))) == count


def test_stride_is_between_the_starts_of_tiles() -> None:
    how = replace(PICKING, stride=(8, 24))
    # x: 64, 72, 80, 88 end at 96, 104, 112, 120; y: 8 and 32 end at 24 and 48
    expected = [[x, y, 5] for y in (8, 32) for x in (64, 72, 80, 88)]
    assert starts((64, 8, 5), (120, 48, 6), how) == expected


@pytest.mark.parametrize(
    ("low", "high", "sections"),
    [
        (2010.5, 2012.5, [2010, 2011, 2012]),  # from the middle of one to the middle of another
        (10.0, 20.0, list(range(10, 20))),  # edges of sections: the last one ends at 20
        (3.0, 3.0, [3]),
        (3.5, 3.5, [3]),
        (3.25, 3.75, [3]),
        (3.25, 4.0, [3]),
        (3.75, 4.25, [3, 4]),
        (-2.5, 0.5, [-3, -2, -1, 0]),
    ],
)
def test_every_section_that_a_box_touches_has_its_tiles(low: float, high: float, sections: list[int]) -> None:
    assert starts((0, 0, low), (32, 16, high)) == [[0, 0, z] for z in sections]


def test_tiles_are_snapped_one_by_one() -> None:
    how = replace(PICKING, stride=(12, 16))
    # 5, 17, 29 are snapped down to 0, 16, 24; -9 to -16
    assert starts((5.5, -8.5, 0), (64, 8, 1), how) == [[0, -16, 0], [16, -16, 0], [24, -16, 0]]


def test_tiles_are_no_centres() -> None:
    assert starts((64, 8, 5), (96, 24, 6), replace(PICKING, anchor="center")) == [[64, 8, 5]]


@pytest.mark.parametrize("side", [1e5, 1e14])  # of 1e14, even the number of tiles is beyond 64 bits
def test_a_box_of_too_many_tiles_is_refused(side: float) -> None:
    with pytest.raises(UsageError, match="holds more than 20,000,000 boxes"):
        starts((-side, -side, 0), (side, side, 1), replace(PICKING, stride=(1, 1)))


def test_boxes_that_make_too_many_pairs_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "MOST_PAIRS", 40)
    boxes = [(Shape.BOX, ((0, 0, 0), (64, 64, 1)))] * 5  # 8 tiles each
    assert len(paired(boxes)[0]) == 40
    with pytest.raises(UsageError, match="these annotations make more than 40 pairs"):
        paired([*boxes, point(0, 0, 0)])
    with pytest.raises(UsageError, match="these annotations make more than 40 pairs"):
        paired(boxes, replace(PICKING, permute=True))


# All together


def test_pairs_keep_the_order_of_mixed_annotations() -> None:
    ellipsoid = (Shape.ELLIPSOID, ((24, 0, 4),) * 2)
    mixed = [
        line((0, 0, 1), (8, 0, 2)),
        point(0, 0, 3),
        (Shape.BOX, ((0, 8, 3), (64, 24, 4))),
        line((8, 8, 1), (8, 8, 2)),
        ellipsoid,
        point(8, 0, 5),
    ]
    pairs, whose = paired(mixed, replace(PICKING, offsets=(1,), permute=True))
    assert whose == [0, 1, 1, 2, 2, 2, 2, 3, 4, 4, 5, 5]
    assert pairs == [
        [[0, 0, 1], [8, 0, 2]],
        [[0, 0, 3], [0, 0, 4]],
        [[0, 0, 4], [0, 0, 3]],
        [[0, 8, 3], [0, 8, 4]],
        [[0, 8, 4], [0, 8, 3]],
        [[32, 8, 3], [32, 8, 4]],
        [[32, 8, 4], [32, 8, 3]],
        [[8, 8, 1], [8, 8, 2]],
        [[24, 0, 4], [24, 0, 5]],
        [[24, 0, 5], [24, 0, 4]],
        [[8, 0, 5], [8, 0, 6]],
        [[8, 0, 6], [8, 0, 5]],
    ]


def one_by_one(shape: int, ends: np.ndarray, how: Picking) -> list[list[list[int]]]:
    """The pairs of an annotation, in the plainest way."""
    grid = 2**how.max_mip
    half = [size // 2 if how.anchor == "center" else 0 for size in how.size]
    first, last = ([int(value // 1) for value in end] for end in ends.tolist())

    def snapped(place: list[int], shift: Sequence[int]) -> list[int]:
        return [(place[0] - shift[0]) // grid * grid, (place[1] - shift[1]) // grid * grid, place[2]]

    if shape == Shape.LINE:
        return [[snapped(first, half), snapped(last, half)]]
    places = [snapped(first, half)]
    if shape == Shape.BOX:
        z_stop = max(int(-(-ends[1, 2] // 1)), first[2] + 1)
        spans = [
            range(first[axis], max(last[axis] - how.size[axis], first[axis]) + 1, how.stride[axis]) for axis in (0, 1)
        ]
        places = [snapped([x, y, z], (0, 0)) for z in range(first[2], z_stop) for y in spans[1] for x in spans[0]]
    made = []
    for place in places:
        for offset in how.offsets:
            forth = [place, [*place[:2], place[2] + offset]]
            made += [forth, forth[::-1]] if how.permute else [forth]
    return made


coordinate = st.integers(-400, 400).map(lambda value: value / 4)


@given(
    shapes=st.lists(st.sampled_from(list(Shape)), min_size=1, max_size=6),
    how=st.builds(
        Picking,
        offsets=st.lists(st.integers(-3, 3).filter(bool), min_size=1, max_size=3).map(tuple),
        permute=st.booleans(),
        anchor=st.sampled_from(["start", "center"]),
        max_mip=st.integers(0, 5),
        size=st.tuples(st.integers(20, 90), st.integers(20, 90)),
        stride=st.tuples(st.integers(20, 90), st.integers(20, 90)),
    ),
    data=st.data(),
)
def test_any_annotations_make_what_they_make_one_by_one(shapes: list[Shape], how: Picking, data: st.DataObject) -> None:
    ends = np.array(data.draw(st.lists(coordinate, min_size=6 * len(shapes), max_size=6 * len(shapes)))).reshape(
        -1, 2, 3
    )
    lines, boxes = ([shape == kind for shape in shapes] for kind in (Shape.LINE, Shape.BOX))
    ends[lines, 1, 2] = ends[lines, 0, 2] + 1  # into another section
    ends[boxes] = np.sort(ends[boxes], axis=1)
    expected = [one_by_one(shape, of, how) for shape, of in zip(shapes, ends, strict=True)]
    pairs, whose = paired(list(zip(shapes, ends.tolist(), strict=True)), how)
    assert pairs == [pair for of in expected for pair in of]
    assert whose == [index for index, of in enumerate(expected) for _ in of]


def test_a_hundred_thousand_annotations_make_what_they_make_one_by_one() -> None:
    generator = np.random.default_rng(3)
    shapes = generator.choice([Shape.POINT, Shape.LINE, Shape.ELLIPSOID], 100_000).astype(np.uint8)
    ends = generator.uniform(-1e6, 1e6, (100_000, 2, 3))
    how = replace(PICKING, offsets=(-2, 1), anchor="center")
    expected = [pair for shape, of in zip(shapes.tolist(), ends, strict=True) for pair in one_by_one(shape, of, how)]
    pairs, whose = zip(*pair_blocks(shapes, ends, how), strict=True)
    np.testing.assert_array_equal(np.concatenate(pairs), expected)
    counts = np.where(shapes == Shape.LINE, 1, 2)
    np.testing.assert_array_equal(np.concatenate(whose), np.arange(100_000).repeat(counts))


# Refusals


@pytest.mark.parametrize("shape", [Shape.POINT, Shape.BOX, Shape.ELLIPSOID])
def test_all_but_lines_need_offsets(shape: Shape) -> None:
    with pytest.raises(UsageError, match="no offsets"):
        paired([line((0, 0, 0), (0, 0, 1)), (shape, ((0, 0, 0), (1, 1, 1)))], replace(PICKING, offsets=()))


def test_offsets_that_lead_beyond_any_volume_are_refused() -> None:
    check_offsets((FARTHEST, -FARTHEST))
    with pytest.raises(UsageError, match=f"offset {FARTHEST + 1} leads beyond any volume"):
        check_offsets((1, FARTHEST + 1))
    with pytest.raises(UsageError, match="points and offsets lead beyond any volume"):
        paired([point(0, 0, 1)], replace(PICKING, offsets=(FARTHEST,)))


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ([Shape.POINT], "1 point"),
        ([Shape.BOX] * 2, "2 bounding boxes"),
        ([Shape.LINE, Shape.POINT, Shape.POINT], "2 points and 1 line"),
        ([Shape.ELLIPSOID, Shape.BOX, Shape.LINE, Shape.POINT], "1 point, 1 line, 1 bounding box and 1 ellipsoid"),
    ],
)
def test_annotations_are_counted_by_kind(shapes: list[Shape], said: str) -> None:
    ends = np.zeros((len(shapes), 2, 3))
    assert counted(Annotations(np.array(shapes, np.uint8), ends, plain_space(None), {}, "")) == said
