"""The judge itself, against cases computed by hand, torch and torchfields."""

from typing import Any

import numpy as np
import pytest
import torch
import torchfields
from numpy.typing import ArrayLike
from one_sample import (
    Box,
    Floats,
    Reading,
    UndecidedError,
    Volume,
    WhollyOutsideError,
    brought_finer,
    field_over,
    floored_mean,
    image_over,
    masked_over,
    outside,
    pulled,
    sample,
    section,
    statistics,
)

NAN, INF = np.nan, np.inf
WHOLE_CHUNK = (64, 64, 1)


def volume(values: ArrayLike, offset: tuple[int, int, int] = (0, 0, 0), **more: Any) -> Volume:
    """A level of one section, from (X, Y) or (X, Y, C)."""
    array = np.asarray(values, np.float32)
    return Volume(array.reshape(*array.shape[:2], 1, -1), offset, more.pop("chunk", WHOLE_CHUNK), **more)


def image(values: ArrayLike, mip: int, box: Box, offset: tuple[int, int, int] = (0, 0, 0)) -> tuple[Floats, Any]:
    """An image of MIP `mip`, (X, Y), over a box: its values and where it is not black."""
    return image_over(Reading({("image", mip): volume(values, offset)}), "image", mip, box, before_reading=True)


def random(*shape: int, scale: float = 1.0) -> Floats:
    return np.random.default_rng(3).normal(0, scale, shape).astype(np.float32).astype(np.float64)


# Rule 5


def test_coarser_is_the_mean_of_the_pixels_that_are_not_black() -> None:
    values, has_value = image([[4, 8, 0, 0], [0, 0, 0, 0]], 0, Box(0, 0, 0, 1, 2, 1))
    np.testing.assert_array_equal(values, [[6, 0]])
    np.testing.assert_array_equal(has_value, [[True, False]])


def test_values_that_cancel_are_not_black() -> None:
    values, has_value = image([[-3, 3], [0, 0]], 0, Box(0, 0, 0, 1, 1, 1))
    assert (values[0, 0], has_value[0, 0]) == (0, True)


def test_finer_takes_a_quarter_of_the_neighbour() -> None:
    # A pixel of MIP 1 is two of MIP 0, a quarter of a pixel before its middle and behind it.
    values, has_value = image([[4, 8]], 1, Box(0, 0, 0, 1, 4, 0))
    np.testing.assert_array_equal(values, [[4, 5, 7, 8]])
    assert has_value.all()


def test_finer_takes_nothing_of_black() -> None:
    values, has_value = image([[4, 0, 8]], 1, Box(0, 0, 0, 2, 6, 0))
    np.testing.assert_array_equal(values, [[4, 4, 0, 0, 8, 8]] * 2)
    np.testing.assert_array_equal(has_value, [[True, True, False, False, True, True]] * 2)


def test_the_weights_of_three_neighbours_add_up_to_one() -> None:
    values, _ = image([[16, 32], [64, 0]], 1, Box(0, 0, 0, 4, 4, 0))
    # A quarter off the first pixel's middle both ways: 9, 3, 3 and 1 sixteenths, the last of them black.
    assert values[1, 1] == pytest.approx((9 * 16 + 3 * 32 + 3 * 64) / 15)
    assert values[3, 3] == 0


def test_a_pixel_that_is_no_number_is_black() -> None:
    values, has_value = image([[4, NAN, 8, INF]], 0, Box(0, 0, 0, 1, 4, 0))
    np.testing.assert_array_equal(values, [[4, 0, 8, 0]])
    np.testing.assert_array_equal(has_value, [[True, False, True, False]])


def test_what_lies_beyond_the_volume_is_black() -> None:
    values, has_value = image([[4, 8]], 1, Box(-2, 0, 0, 4, 6, 0))
    np.testing.assert_array_equal(has_value, [[False] * 6] * 2 + [[True] * 4 + [False] * 2] * 2)
    np.testing.assert_array_equal(values[2:], [[4, 5, 7, 8, 0, 0]] * 2)


def test_a_box_may_start_within_a_coarse_pixel() -> None:
    values, _ = image([[4, 8, 8]], 2, Box(0, 2, 0, 1, 3, 1))
    # MIP-0 voxels 2 to 8 of pixels of 4: the second half of the first, and the second, whose neighbour is alike.
    np.testing.assert_array_equal(values, [[5, 7, 8]])


def test_a_volume_lies_at_its_offset() -> None:
    values, _ = image([[4, 8], [1, 2]], 1, Box(-6, 10, 0, 1, 1, 1), offset=(-4, 5, 0))
    assert values[0, 0] == 1  # MIP-0 voxels (-6, 10) are the level's (-3, 5)


@pytest.mark.parametrize("factor_mip", [1, 2, 3])
def test_without_black_finer_is_what_torch_interpolates(factor_mip: int) -> None:
    values, box = random(5, 7), Box(0, 0, 0, 5 << factor_mip, 7 << factor_mip, 0)
    judged = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], scale_factor=2.0**factor_mip, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(image(values, factor_mip, box)[0], judged[0, 0].numpy(), rtol=0, atol=1e-12)


def test_without_black_coarser_is_what_torch_averages() -> None:
    values = random(12, 8)
    judged = torch.nn.functional.avg_pool2d(torch.from_numpy(values)[None, None], 4)
    np.testing.assert_allclose(image(values, 0, Box(0, 0, 0, 3, 2, 2))[0], judged[0, 0].numpy(), rtol=0, atol=1e-12)


def test_a_finer_field_is_what_torchfields_makes_of_it() -> None:
    vectors = random(2, 6, 6)
    reading = Reading({("field", 2): volume(np.moveaxis(vectors, 0, -1))})
    judged = torchfields.Field(torch.from_numpy(vectors)[None]).up(mips=2)
    found = field_over(reading, "field", 2, Box(0, 0, 0, 24, 24, 0))
    np.testing.assert_allclose(found, judged.tensor()[0].numpy(), rtol=0, atol=1e-12)


def test_a_vector_that_is_not_finite_spreads_to_the_pixels_between() -> None:
    reading = Reading({("field", 1): volume([[[0.0, 0.0], [NAN, INF], [0.0, 0.0]]])})
    found = field_over(reading, "field", 1, Box(0, 0, 0, 2, 6, 0))
    np.testing.assert_array_equal(found[0, 0], [0, NAN, NAN, NAN, NAN, 0])
    np.testing.assert_array_equal(found[1, 0], [0, INF, INF, INF, INF, 0])


# Rule 4


def test_a_finer_mask_masks_if_any_pixel_does_and_a_coarser_one_is_repeated() -> None:
    volumes = {("fine", 0): volume([[0, 0, 3, 0], [0, 0, 0, 0]]), ("coarse", 2): volume([[2, 3]])}
    fine, coarse = ({"path": path, "src_mip": mip, "threshold": 3} for path, mip in volumes)
    box = Box(0, 0, 0, 1, 4, 1)
    np.testing.assert_array_equal(masked_over(Reading(volumes), [fine], box, True), [[False, True, False, False]])
    np.testing.assert_array_equal(masked_over(Reading(volumes), [coarse], box, True), [[False, False, True, True]])
    np.testing.assert_array_equal(masked_over(Reading(volumes), [fine, coarse], box, True), [[False, True, True, True]])


# Rules 1 and 3


def test_the_mean_vector_is_floored_below_zero_too() -> None:
    # The means are -5 along y and 9 along x, of the two vectors that are finite.
    vectors = np.array([[[-4, NAN, -6, 3]], [[8, 8, 10, INF]]], np.float64)
    assert floored_mean(vectors, 2) == (8, -8)
    assert floored_mean(vectors[:, :, 1:2], 2) is None


def test_a_mean_that_float32_cannot_tell_from_a_step_is_undecided() -> None:
    assert floored_mean(np.full((2, 1, 1), 8.0), 3) == (8, 8)
    with pytest.raises(UndecidedError):
        floored_mean(np.full((2, 1, 1), 8 - 1e-7), 3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (0, 1, True)),
        ([7], (7, 1, True)),
        ([7, 7], (7, 1, True)),
        ([1e6, 1e6 + 0.01], (1e6 + 0.005, 1, True)),
        ([1, 3], (2, 2**0.5, False)),
    ],
)
def test_statistics(values: list[float], expected: tuple[float, float, bool]) -> None:
    assert statistics(np.array(values, np.float64)) == pytest.approx(expected)


def test_outside_is_of_the_box_and_not_of_what_is_read_for_it() -> None:
    # The box is x 52 to 68 of a volume that ends at 64; read at MIP 3 it is 48 to 72.
    assert outside(volume(np.ones((8, 8))), 3, Box(52, 0, 0, 16, 16, 0)) == 0.25
    assert outside(volume(np.ones((8, 8)), (-4, 0, 0)), 0, Box(-8, -2, 0, 2, 2, 2)) == 1 - 4 * 6 / 64


# The pull


def test_the_pull_takes_component_0_along_y() -> None:
    values = np.array([[11, 12, 13], [21, 22, 23]], np.float64)
    along_y, along_x = np.zeros((2, 2, 3)), np.zeros((2, 2, 3))
    along_y[0], along_x[1] = 1, 0.5
    np.testing.assert_array_equal(pulled(values, along_y), [[12, 13, 0], [22, 23, 0]])
    np.testing.assert_array_equal(pulled(values, along_x), [[16, 17, 18], [10.5, 11, 11.5]])
    np.testing.assert_array_equal(pulled(values, along_y * NAN), np.zeros((2, 3)))


def test_the_pull_is_what_torchfields_does_on_squares() -> None:
    values, vectors = random(9, 9), random(2, 9, 9, scale=3)
    judged = (
        torchfields.Field(torch.from_numpy(vectors)[None]).from_pixels().sample(torch.from_numpy(values)[None, None])
    )
    np.testing.assert_allclose(pulled(values, vectors), judged[0, 0].numpy(), rtol=0, atol=1e-12)


# Whole samples


def spec_of(**more: Any) -> dict[str, Any]:
    return {"image": {"path": "image", "src_mip": 0}, "max_mip": 0, "dst_mip": 0, "x_size": 1, "y_size": 3, **more}


def test_a_sample_without_a_field() -> None:
    volumes = {("image", 0): volume([[1, 0, 3, 9]]), ("mask", 0): volume([[0, 0, 0, 1]])}
    spec = spec_of(masks=[{"path": "mask", "src_mip": 0, "threshold": 1}], y_size=4)
    box = sample(spec, volumes, (0, 0, 0))
    # 1 and 3 count; the second is black, the last masked.
    np.testing.assert_allclose(box.image, [[-(0.5**0.5), 0, 0.5**0.5, 0]])
    assert (box.mean, box.std) == pytest.approx((2, 2**0.5))
    assert (box.valid, box.masked, box.outside, box.zero_variance, box.no_vector) == (0.5, 0.25, 0, False, False)
    assert box.stored(1) is box.image


def test_the_image_is_read_where_the_field_leads() -> None:
    vectors = np.zeros((1, 8, 2))
    vectors[..., 0] = [4, 4, 5.5, 4, 4, 4, 4, 4]
    volumes = {("image", 0): volume([np.arange(8) + 10]), ("field", 0): volume(vectors)}
    reference = {"path": "image", "src_mip": 0, "dst_mip": 0, "x_size": 1, "y_size": 2}
    spec = spec_of(field={"path": "field", "src_mip": 0}, image={**spec_of()["image"], "reference": reference})
    box = sample(spec, volumes, (0, 1, 0))
    # The mean of 4, 5.5 and 4 is floored to 4: pixels 5, 6 and 7 are read, and the reference is 5 and 6.
    assert box.translation == (0, 4)
    assert (box.mean, box.std) == pytest.approx((15.5, 0.5**0.5))
    assert box.residual is not None
    np.testing.assert_array_equal(box.residual[0], [[0, 1.5, 0]])
    np.testing.assert_allclose(box.image * box.std + box.mean, [[15, 16, 17]])
    # The second is pulled from one and a half pixels further: half of the last, and half of nothing.
    np.testing.assert_allclose(box.warped * box.std, [[-0.5, 0.75, 1.5]])


def test_missing_chunks_are_counted_once() -> None:
    chunks = frozenset({(0, 0, 0), (0, 2, 0), (0, 6, 0)})
    level = volume([[0, 0, 0, 0, 5, 6, 0, 0]], chunk=(1, 2, 1), missing=chunks)
    reference = {"path": "image", "src_mip": 0, "dst_mip": 0, "x_size": 1, "y_size": 5}
    spec = spec_of(image={**spec_of()["image"], "reference": reference})
    # The box is pixels 2 to 4, the reference 2 to 6: the chunks of pixels 2 and 6 are wanted, one of them twice.
    assert sample(spec, {("image", 0): level}, (0, 2, 0)).missing_chunks == 2


def test_what_is_read_says_what_is_outside() -> None:
    far = np.full((1, 3, 2), 100.0)
    field = {"path": "field", "src_mip": 0}
    volumes = {("image", 0): volume([[1, 2, 3]], (100, 100, 0)), ("field", 0): volume(far)}
    assert sample(spec_of(field=field), volumes, (0, 0, 0)).translation == (100, 100)
    with pytest.raises(WhollyOutsideError, match="image") as refused:
        sample(spec_of(field=field), {**volumes, ("image", 0): volume([[1, 2, 3]])}, (0, 0, 0))
    assert not refused.value.before_reading
    with pytest.raises(WhollyOutsideError, match="image") as refused:
        sample(spec_of(), volumes, (0, 0, 0))
    assert refused.value.before_reading


# The other scripts


def test_a_section_is_as_stored_but_for_its_defects() -> None:
    volumes = {("image", 1): volume([[7, 0, 5]]), ("defects", 1): volume([[0, 3, 4]])}
    found = section(volumes, "image", Box(0, 0, 0, 1, 4, 1), "defects", 4)
    np.testing.assert_array_equal(found.image, [[7, 0, 0, 0]])
    assert (found.valid, found.masked, found.outside, found.missing_chunks) == (0.25, 0.25, 0.25, 0)


@pytest.mark.parametrize(("size", "src_mip", "dst_mip", "first"), [(5, 1, 0, 3), (65, 2, 0, 98), (4, 2, 1, 2)])
def test_the_centre_is_where_older_specs_have_it(size: int, src_mip: int, dst_mip: int, first: int) -> None:
    pixels = random(2, size, size)
    factor = 2 ** (src_mip - dst_mip)
    judged = torch.nn.functional.interpolate(
        torch.from_numpy(pixels * factor)[None], scale_factor=float(factor), mode="bilinear", align_corners=False
    )[0].numpy()
    for crop, low in (("center", first), ("start", 0)):
        found = brought_finer(pixels, src_mip, dst_mip, crop)
        assert found is not None
        np.testing.assert_allclose(found, judged[:, low : low + size, low : low + size], rtol=0, atol=1e-12)


def test_there_may_be_no_whole_pixel_at_the_centre() -> None:
    assert brought_finer(random(2, 5, 4), 2, 1, "center") is None  # (20 // 2 - 10 // 2) / 2 = 2.5
