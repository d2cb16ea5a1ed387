"""The numbers of a pair, against definitions that are written out pixel by pixel, and against what must hold of any."""

import math
from dataclasses import astuple, fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.datasets.facts import QUALITY_FACTS
from curation.quality import PairQuality, correlation_map, measure, pulled

NAN, INF = np.nan, np.inf


def texture(seed: int = 0, shape: tuple[int, int] = (96, 70)) -> np.ndarray:
    """A smooth random image of no 0, (X, Y)."""
    noise = np.random.default_rng(seed).normal(size=(shape[0] + 8, shape[1] + 8))
    for axis in (0, 1):
        noise = sum(np.roll(noise, step, axis) for step in range(5)) / 5
    return (noise[8:, 8:] + 3).astype(np.float32)


def field_of(x: np.ndarray | float, y: np.ndarray | float, shape: tuple[int, int] = (96, 70)) -> np.ndarray:
    """A field whose vectors are x along the first axis and y along the last."""
    return np.stack([np.broadcast_to(y, shape), np.broadcast_to(x, shape)]).astype(np.float32)


def zeros(shape: tuple[int, int] = (96, 70)) -> np.ndarray:
    return field_of(0, 0, shape)


def plain_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's, of the pixels that are not 0 in both."""
    used = (one != 0) & (other != 0)
    if used.sum() < 2 or np.ptp(one[used]) == 0 or np.ptp(other[used]) == 0:
        return math.nan
    return float(np.corrcoef(one[used].astype(np.longdouble), other[used].astype(np.longdouble))[0, 1])


def plain_windows(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    found = np.full((one.shape[0] // 32, one.shape[1] // 32), NAN)
    for x, y in np.ndindex(found.shape):
        window = np.s_[32 * x : 32 * x + 32, 32 * y : 32 * y + 32]
        if ((one[window] != 0) & (other[window] != 0)).sum() >= 512:
            found[x, y] = plain_correlation(one[window], other[window])
    return found


def plain_pull(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Pixel by pixel, 0 where any pixel of weight above 0 is 0 or outside."""
    made = np.zeros(image.shape)
    for x, y in np.ndindex(image.shape):
        dy, dx = map(float, field[:, x, y])
        if not (math.isfinite(dx) and math.isfinite(dy)):
            continue
        at = np.float32(x + dx), np.float32(y + dy)
        low = [math.floor(value) for value in at]
        weights = [float(value) - below for value, below in zip(at, low, strict=True)]
        total = 0.0
        for along_x in (0, 1):
            for along_y in (0, 1):
                weight = (weights[0] if along_x else 1 - weights[0]) * (weights[1] if along_y else 1 - weights[1])
                place = low[0] + along_x, low[1] + along_y
                if weight == 0:
                    continue
                inside = 0 <= place[0] < image.shape[0] and 0 <= place[1] < image.shape[1]
                if not inside or image[place] == 0:
                    total = math.nan
                else:
                    total += weight * float(image[place])
        made[x, y] = 0 if math.isnan(total) else total
    return made


# Likeness


def test_the_facts_of_a_pair_are_the_numbers_that_are_measured() -> None:
    assert tuple(QUALITY_FACTS) == tuple(each.name for each in fields(PairQuality))


def test_the_correlation_is_pearsons_over_the_pixels_that_are_valid_in_both() -> None:
    source, target = texture(0), texture(0) + texture(1)
    source[10:40, 5:25] = 0
    target[30:60, 50:] = 0
    found = measure(source, target, zeros())
    assert found.correlation_before == pytest.approx(plain_correlation(source, target), abs=1e-6)
    assert found.correlation_after == found.correlation_before


def test_the_windows_are_of_32_pixels_and_count_if_half_of_them_are_valid() -> None:
    source, target = texture(0), texture(0) + texture(1)
    source[:16, :32] = 0  # exactly half of the first window is left
    target[32:49, :32] = 0  # less than half of the one below it
    expected = plain_windows(source, target)
    found = correlation_map(source, target)
    assert found.shape == (3, 2)
    assert np.isnan(found).tolist() == [[False, False], [True, False], [False, False]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    known = expected[~np.isnan(expected)]
    numbers = measure(source, target, None)
    assert numbers.cpc_median_before == pytest.approx(np.median(known), abs=1e-6)
    assert numbers.cpc_low_before == pytest.approx(np.percentile(known, 5), abs=1e-6)


def test_an_image_of_fewer_than_32_pixels_is_one_window() -> None:
    source, target = texture(0, (20, 70)), texture(1, (20, 70))
    found = correlation_map(source, target)
    assert found.shape == (1, 2)
    assert found[0, 1] == pytest.approx(plain_correlation(source[:, 32:64], target[:, 32:64]), abs=1e-6)


@pytest.mark.parametrize("offset", [255.0, 65535.0, -1e5])
def test_large_grey_values_lose_no_digits(offset: float) -> None:
    source, target = (texture(seed) + np.float32(offset) for seed in (0, 1))
    source[:32] += 1000  # so that the windows lie far from the mean of the image
    found = measure(source, target, zeros())
    assert found.correlation_before == pytest.approx(plain_correlation(source, target), abs=1e-9)
    np.testing.assert_allclose(correlation_map(source, target), plain_windows(source, target), atol=1e-6)


def test_a_whole_shift_that_the_field_undoes_leaves_a_correlation_of_1() -> None:
    whole = texture(3, (110, 80))
    source, target = whole[:96, :70], whole[5:101, 3:73]
    found = measure(source, target, field_of(5, 3))
    assert found.correlation_after == pytest.approx(1, abs=1e-12)
    assert (found.cpc_median_after, found.cpc_low_after) == (1, 1)
    assert found.correlation_before < 0.7
    assert found.displacement_median == found.displacement_max == pytest.approx(math.sqrt(34))


def test_what_is_pulled_is_valid_only_if_all_that_it_is_made_of_is() -> None:
    image = texture(4, (20, 24))
    image[8:11, 6:9] = 0
    random = np.random.default_rng(5)
    field = random.normal(0, 3, (2, 20, 24)).astype(np.float32)
    field[:, ::3] = np.rint(field[:, ::3])  # whole in x and y; then in x alone, and in y alone
    field[1, 1::3, ::2] = np.rint(field[1, 1::3, ::2])
    field[0, 1::3, 1::2] = np.rint(field[0, 1::3, 1::2])
    field[0, 4, 4], field[1, 5, 5], field[0, 6, 6] = NAN, INF, -INF
    expected = plain_pull(image, field)
    found = pulled(image, field)
    assert ((found == 0) == (expected == 0)).all()
    assert 0.2 < (found != 0).mean() < 0.9
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_values_that_are_not_finite_are_invalid() -> None:
    source, target = texture(0), texture(0) + texture(1)
    damaged = source.copy()
    damaged[10:20, 10:20], source[10:20, 10:20] = NAN, 0
    damaged[40, 40], source[40, 40] = INF, 0
    field = field_of(0.5, 1)
    assert measure(damaged, target, field) == measure(source, target, field)


@pytest.mark.parametrize("black", ["source", "target", "both", "apart"])
def test_images_without_a_common_valid_pixel_have_no_correlation(black: str) -> None:
    source, target = texture(0), texture(1)
    if black in ("source", "both"):
        source[:] = 0
    if black in ("target", "both"):
        target[:] = 0
    if black == "apart":
        source[:, ::2] = target[:, 1::2] = 0
    found = measure(source, target, zeros())
    assert all(math.isnan(value) for value in astuple(found)[:6])
    assert (found.displacement_max, found.folded, found.roughness) == (0, 0, 0)


def test_an_image_that_does_not_vary_has_no_correlation() -> None:
    flat = np.full((96, 70), 0.1, np.float32)
    assert math.isnan(measure(flat, texture(), None).correlation_before)
    flat[50:] = 7000.3  # each window but one lies in one of the parts
    assert np.isnan(correlation_map(flat, texture()))[[0, 2]].all()


def test_numbers_are_not_known_without_a_field() -> None:
    found = measure(texture(0), texture(1), None)
    assert [math.isnan(value) for value in astuple(found)] == [name not in BEFORE for name in QUALITY_FACTS]


BEFORE = ("correlation_before", "cpc_median_before", "cpc_low_before")

seeds = st.integers(0, 50)


@settings(max_examples=25, deadline=None)
@given(seeds, st.floats(-40, 40), st.floats(-40, 40))
def test_contrast_and_order_of_the_images_do_not_matter(seed: int, gain: float, offset: float) -> None:
    source, target = texture(seed), texture(seed) + texture(seed + 1)
    field = field_of(1.5, -0.25)
    known = measure(source, target, field)
    assert measure(target, source, None).correlation_before == pytest.approx(known.correlation_before, abs=1e-12)
    if abs(gain) < 0.01:
        return
    changed = np.float32(gain) * source + np.float32(offset)
    found = measure(changed, target, field)
    sign = math.copysign(1, gain)
    if (changed == 0).any():
        return
    assert found.correlation_before == pytest.approx(sign * known.correlation_before, abs=1e-3)
    assert found.correlation_after == pytest.approx(sign * known.correlation_after, abs=1e-3)
    assert measure(source, changed, zeros()).cpc_median_after == pytest.approx(sign, abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from([2.0**-20, 0.5, 1024.0, 2.0**40]))
def test_scaling_by_a_power_of_two_changes_nothing(seed: int, scale: float) -> None:
    source, target = texture(seed), texture(seed + 1)
    source[:, 20:30] = 0
    field = np.random.default_rng(seed).normal(0, 2, (2, 96, 70)).astype(np.float32)
    scaled = measure(np.float32(scale) * source, target, field)
    np.testing.assert_allclose(astuple(scaled), astuple(measure(source, target, field)), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_vectors_that_are_not_finite_count_nowhere(seed: int) -> None:
    """Each number is the same whatever the image and the other component hold at such a vector."""
    random = np.random.default_rng(seed)
    source, target = texture(seed), texture(seed + 1)
    field = random.normal(0, 2, (2, 96, 70)).astype(np.float32)
    holes = random.random((96, 70)) < 0.1
    one, other, pulls_nothing = field.copy(), field.copy(), field.copy()
    one[0, holes], other[1, holes], pulls_nothing[:, holes] = NAN, INF, 1e6
    found = measure(source, target, one)
    assert found == measure(source, target, other)
    assert not any(map(math.isnan, astuple(found)))
    assert found.correlation_after == measure(source, target, pulls_nothing).correlation_after
    lengths = np.hypot(*field)[~holes]
    assert found.displacement_median == pytest.approx(np.median(lengths))
    assert found.displacement_max == lengths.max()


def test_a_field_of_nan_alone_has_no_numbers() -> None:
    found = measure(texture(0), texture(1), zeros() + np.float32(NAN))
    assert [math.isnan(value) for value in astuple(found)] == [name not in BEFORE for name in QUALITY_FACTS]


# The field


def test_the_displacement_is_from_the_prior() -> None:
    random = np.random.default_rng(2)
    field, prior = random.normal(0, 2, (2, 2, 96, 70)).astype(np.float32)
    prior[0, :5] = NAN
    lengths = np.sqrt(((field - prior) ** 2).sum(axis=0))[5:]
    found = measure(texture(0), texture(1), field, prior)
    assert found.displacement_median == pytest.approx(np.median(lengths), rel=1e-6)
    assert found.displacement_max == pytest.approx(lengths.max(), rel=1e-6)


def plain_folds(field: np.ndarray) -> float:
    """By the area of the triangle of a pixel, the next one in x, and the next one in y."""
    y, x = field.astype(float)
    folds = []
    for at in np.ndindex(field.shape[1] - 1, field.shape[2] - 1):
        corners = [(at[0] + step_x, at[1] + step_y) for step_x, step_y in ((0, 0), (1, 0), (0, 1))]
        places = [np.array([here[0] + x[here], here[1] + y[here]]) for here in corners]
        (a, b), (c, d) = places[1] - places[0], places[2] - places[0]
        if np.isfinite([a, b, c, d]).all():
            folds.append(a * d - b * c <= 0)
    return float(np.mean(folds))


def test_folds_are_where_the_triangle_of_neighbours_turns_over() -> None:
    field = np.random.default_rng(8).normal(0, 0.5, (2, 150, 40)).astype(np.float32)
    field[0, 20:24, 11], field[1, 64, 3] = NAN, INF
    found = measure(texture(0, (150, 40)), texture(1, (150, 40)), field).folded
    assert 0.05 < found < 0.95
    assert found == pytest.approx(plain_folds(field), abs=1e-12)


@pytest.mark.parametrize(
    ("slope_x", "slope_y", "folded"), [(-0.99, 0, 0), (-1.01, 0, 1), (0, -2, 1), (-2, -2, 0), (0.5, 0.5, 0), (-1, 3, 1)]
)
def test_a_linear_field_folds_where_a_slope_is_below_minus_1(slope_x: float, slope_y: float, folded: float) -> None:
    """With both slopes below -1 the image is turned by half, which keeps its orientation."""
    x, y = np.meshgrid(np.arange(96), np.arange(70), indexing="ij")
    found = measure(texture(0), texture(1), field_of(slope_x * x, slope_y * y))
    assert found.folded == folded
    assert found.roughness == pytest.approx(0, abs=2e-5)


def test_a_flipped_pixel_of_a_smooth_field_is_a_fold() -> None:
    field = zeros()
    field[1, 63, 10] = 1.5  # beyond the next pixel in x; row 63 is the last of its strip
    assert measure(texture(0), texture(1), field).folded == pytest.approx(1 / (95 * 69), rel=1e-12)


def plain_roughness(field: np.ndarray) -> float:
    squares = []
    for at in np.ndindex(*field.shape[1:]):
        for step in ((1, 0), (0, 1)):
            places = [tuple(np.add(at, np.multiply(step, times))) for times in (0, 1, 2)]
            if all(np.less(place, field.shape[1:]).all() for place in places):
                first, middle, last = (field[:, *place].astype(float) for place in places)
                squares.append(((first - 2 * middle + last) ** 2).sum())
    known = np.array(squares)[np.isfinite(squares)]
    return float(np.sqrt(known.mean()))


def test_the_roughness_is_the_root_mean_square_of_the_second_differences() -> None:
    field = np.random.default_rng(9).normal(0, 3, (2, 140, 33)).astype(np.float32)
    field[:, 70, 5:9] = NAN
    found = measure(texture(0, (140, 33)), texture(1, (140, 33)), field).roughness
    assert found == pytest.approx(plain_roughness(field), rel=1e-6)


def test_the_roughness_of_a_parabola_is_its_curvature() -> None:
    x = np.arange(96.0)[:, None]
    found = measure(texture(0), texture(1), field_of(0.25 * x**2, 0.25 * x**2)).roughness
    along_x, along_y = 94 * 70, 96 * 68
    assert found == pytest.approx(math.sqrt(2 * 0.5**2 * along_x / (along_x + along_y)), rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (2, 2), (40, 1), (65, 3)])
def test_images_of_any_size_have_numbers(shape: tuple[int, int]) -> None:
    found = measure(texture(0, shape), texture(1, shape), zeros(shape))
    assert found.displacement_max == 0
    assert math.isnan(found.folded) == (min(shape) < 2)
    assert math.isnan(found.roughness) == (max(shape) < 3)
    assert math.isnan(found.correlation_after) == (shape == (1, 1))


def test_huge_vectors_are_told_as_they_are() -> None:
    field = field_of(1e30, 1e30)
    field[:, 50] = -1e30
    found = measure(texture(0), texture(1), field)
    assert found.displacement_max == pytest.approx(math.sqrt(2) * 1e30)
    assert math.isnan(found.correlation_after)
    assert found.folded > 0
