"""From coordinates to voxels: the floors and ceilings are those of exact fractions of the numbers that are written."""

import math
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.annotations.coordinate_spaces import Resolution, exact, plain_space, space_before
from curation.annotations.model import Annotations, Shape
from curation.errors import UsageError
from curation.spec import FARTHEST

EM, FINE = (8.0, 8.0, 40.0), (4.0, 4.0, 40.0)


def in_voxels(ends: np.ndarray, units: Resolution, voxels: Resolution) -> np.ndarray:
    """Ends, (P, 2, 3), in units of `units` nm as those of voxels."""
    points = np.full(len(ends), Shape.POINT, np.uint8)
    return Annotations(points, ends, plain_space(units), {}, "points").in_voxels(voxels)


def along_x(places: Sequence[float], unit: float, voxel: float) -> list[float]:
    """The floors of places along x, of `unit` nm in voxels of `voxel` nm."""
    coordinates = np.array([[place, 0, 0] for place in places], np.float64)
    return np.floor(plain_space((unit, 1.0, 1.0)).in_voxels((voxel, 1.0, 1.0)).to_xyz(coordinates))[:, 0].tolist()


def test_points_of_wide_voxels_have_larger_numbers_in_narrow_ones() -> None:
    ends = np.array([[[100.5, -3.25, 7.5], [1, 2, 3]]])
    np.testing.assert_array_equal(in_voxels(ends, EM, FINE), [[[201, -6.5, 7.5], [2, 4, 3]]])


def test_points_of_narrow_voxels_are_not_floored_yet_in_wide_ones() -> None:
    ends = np.array([[[101.0, -3.0, 7.5], [1, 2, 3]]])
    np.testing.assert_array_equal(in_voxels(ends, FINE, EM), [[[50.5, -1.5, 7.5], [0.5, 1, 3]]])


@pytest.mark.parametrize("noisy", [8.000000000000002, 7.999999999999999, 8.0000000000004])
def test_noise_in_a_width_moves_no_point(noisy: float) -> None:
    ends = np.array([[[58321.0, -58321.0, 3.0], [2.0**40, 1, 0]]])
    np.testing.assert_array_equal(in_voxels(ends, (noisy, noisy, 40.0), EM), ends)
    np.testing.assert_array_equal(in_voxels(ends, (noisy, 8.0, 40.0), FINE), ends * (2, 2, 1))
    np.testing.assert_array_equal(in_voxels(ends, FINE, (noisy, 8.0, 40.0)), ends / (2, 2, 1))


def test_thirds_that_make_a_whole_voxel_make_it() -> None:
    # 3 units of 4 nm are one voxel of 12 nm: 3 * (4 / 12) must not fall short of 1
    places = np.arange(0.0, 3000.0, 3.0)
    ends = np.stack([places] * 6, axis=1).reshape(-1, 2, 3)
    moved = in_voxels(ends, (4.0, 4.0, 4.0), (12.0, 12.0, 12.000000000000002))
    np.testing.assert_array_equal(moved, ends / 3)


@pytest.mark.parametrize("third", [10 / 3, 3.33333333333, 3.3333333333333333])
def test_a_third_that_cannot_be_written_is_one(third: float) -> None:
    assert along_x([3, -3, 2.999, 300_000, -300_000], third, 10.0) == [1, -1, 0, 100_000, -100_000]
    assert along_x([1, -1, 100_000], 10.0, third) == [3, -3, 300_000]


def test_a_ratio_that_is_not_simple_is_taken_as_it_is_written() -> None:
    assert along_x([1207], 25.0, 3.5371) == [8530]  # 30175 / 3.5371 is 8530.99997
    assert along_x([35371, 35370.999], 25.0, 3.5371) == [250_000, 249_999]
    assert along_x([100, 1], 26.4, 8.8) == [300, 3]


@pytest.mark.parametrize("place", [100.1, 7.3, -7.3, 1234567.9, 0.007])
def test_a_coordinate_is_the_decimal_that_is_written(place: float) -> None:
    # 100.1 is a little less than that as a float: its thousandfold would be floored to 100099
    assert along_x([place], 1000.0, 1.0) == [round(place * 1000)]
    assert along_x([place], 1.0, 0.001) == [round(place * 1000)]


def test_points_that_their_units_bring_nowhere_are_refused() -> None:
    ends = np.array([[[2.0**40, 0, 0]] * 2])
    with pytest.raises(UsageError, match=r"points of 1000000 x 8 x 40 nm lie beyond any volume of 8 x 8 x 40 nm"):
        in_voxels(ends, (1e6, 8.0, 40.0), EM)


@pytest.mark.parametrize(("unit", "voxel"), [(1e308, 1e-5), (1e300, 4.0), (1e-320, 4.0), (5e-324, 1e308)])
def test_units_that_no_volume_has_are_refused(unit: float, voxel: float) -> None:
    with pytest.raises(UsageError, match="want units less far apart"):
        in_voxels(np.zeros((1, 2, 3)), (8.0, unit, 40.0), (8.0, voxel, 40.0))


# Against fractions, one by one

widths = st.one_of(
    st.sampled_from([4.0, 8.0, 8.000000000000002, 8.8, 26.4, 3.5371, 25.0, 10 / 3, 12.5, 0.1, 33.3]),
    st.decimals("0.001", "100000", places=3).map(float),
    st.floats(1e-3, 1e6).map(lambda width: float(f"{width:.12g}")),
)
coordinates = st.one_of(
    st.integers(-(10**6), 10**6).map(float),
    st.integers(-(10**6), 10**6).map(lambda place: place + 0.5),
    st.decimals("-1000000", "1000000", places=2).map(float),
    st.floats(-1e6, 1e6, width=32),
    st.floats(-1e9, 1e9),
    st.integers(-(2**40), 2**40).map(float),
)
factors = st.sampled_from([0, 0, 1, -1, 2, 0.5, 1 / 3, 0.1, 0.30000000000000004, 0.7071067811865476, 1e-9, 12345.678])
shifts = st.sampled_from([0, 1, -0.5, 0.1, 1 / 3, 123456789012345.0, -1e-12])


def assert_exact(found: float, place: Fraction) -> None:
    if abs(place) > FARTHEST:  # refused by those who use it, and more than float64 holds to the voxel
        assert abs(found) > FARTHEST * (1 - 1e-12)
        return
    assert (math.floor(found), math.ceil(found)) == (math.floor(place), math.ceil(place))


@given(place=coordinates, unit=widths, voxel=widths)
def test_any_coordinate_is_floored_as_its_fraction_is(place: float, unit: float, voxel: float) -> None:
    meant = Fraction(str(place)) * exact(unit) / exact(voxel)
    found = plain_space((1.0, unit, 1.0)).in_voxels((1.0, voxel, 1.0)).to_xyz(np.array([0, place, 0]))
    assert_exact(found[1], meant)


@given(count=st.integers(-(10**6), 10**6), unit=widths, voxel=widths, beside=st.sampled_from([-1e-7, 0, 1e-7]))
def test_any_coordinate_at_a_whole_voxel_is_floored_as_its_fraction_is(
    count: int, unit: float, voxel: float, beside: float
) -> None:
    place = float(count * exact(voxel) / exact(unit)) + beside
    meant = Fraction(str(place)) * exact(unit) / exact(voxel)
    found = plain_space((1.0, unit, 1.0)).in_voxels((1.0, voxel, 1.0)).to_xyz(np.array([0, place, 0]))
    assert_exact(found[1], meant)


@given(
    matrix=st.lists(st.lists(factors, min_size=3, max_size=3), min_size=3, max_size=3),
    shift=st.lists(shifts, min_size=3, max_size=3),
    places=st.lists(coordinates, min_size=3, max_size=3),
    source=st.lists(widths, min_size=3, max_size=3),
    output=st.lists(widths, min_size=3, max_size=3),
    voxel=widths,
)
def test_any_coordinates_go_through_a_matrix_and_on_to_voxels_exactly(
    matrix: list[list[float]],
    shift: list[float],
    places: list[float],
    source: list[float],
    output: list[float],
    voxel: float,
) -> None:
    transform: dict[str, Any] = {
        "inputDimensions": {name: [width, "nm"] for name, width in zip("012", source, strict=True)},
        "outputDimensions": {name: [width, "nm"] for name, width in zip("xyz", output, strict=True)},
        "matrix": [[*row, last] for row, last in zip(matrix, shift, strict=True)],
    }
    found = space_before(transform).in_voxels((voxel, voxel, voxel)).to_xyz(np.array(places))
    if transform["matrix"] == np.eye(3, 4).tolist():
        output = source
    for value, row, last, width in zip(found.tolist(), matrix, shift, output, strict=True):
        lengths = [
            Fraction(str(place)) * exact(factor) * exact(unit)
            for place, factor, unit in zip(places, row, source, strict=True)
        ]
        meant = (sum(lengths) + Fraction(str(float(last))) * exact(width)) / exact(voxel)
        if abs(meant) < 2**48:
            assert_exact(value, meant)


def test_a_million_whole_voxels_take_seconds() -> None:
    places = np.random.default_rng(0).integers(-(10**6), 10**6, (10**6, 3)) / 2
    begun = time.process_time()
    found = plain_space((26.4, 10.0, 25.0)).in_voxels((8.8, 4.0, 3.5371)).to_xyz(places)
    assert time.process_time() - begun < 10
    np.testing.assert_array_equal(found[:, 0], places[:, 0] * 3)
    np.testing.assert_array_equal(found[:, 1], places[:, 1] * 5 / 2)
    np.testing.assert_array_equal(np.floor(found[:, 2]), (places[:, 2] * 2).astype(int) * 125_000 // 35371)
