"""Displacement fields, against arrays built by hand, and against torch and torchfields."""

import numpy as np
import pytest
import torch
import torchfields

from curation import fields
from curation.errors import UsageError

NAN, INF = np.nan, np.inf

# (X, Y) = (3, 4): each value says where it stands
IMAGE = np.array([[11, 12, 13, 14], [21, 22, 23, 24], [31, 32, 33, 34]], np.float32)


def constant_field(y: float, x: float, shape: tuple[int, int] = (3, 4)) -> np.ndarray:
    """The same displacement everywhere: component 0 along y, component 1 along x."""
    return np.stack([np.full(shape, y, np.float32), np.full(shape, x, np.float32)])


def random(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(7).standard_normal(shape)).astype(np.float32)


# Upsampling


def test_upsample_places_fine_pixels_at_quarters_between_coarse_ones() -> None:
    row = np.array([[0, 8, 0]], np.float32)
    expected = [
        0,  # at -0.25: beyond the edge, its value
        2,  # at 0.25: 0 * 3/4 + 8 * 1/4
        6,  # at 0.75
        6,  # at 1.25
        2,  # at 1.75
        0,  # at 2.25: beyond the edge
    ]
    np.testing.assert_array_equal(fields.upsample(row, 2), [expected, expected])


def test_upsample_goes_along_both_axes() -> None:
    square = np.array([[0, 8], [16, 24]], np.float32)
    expected = [
        [0, 2, 6, 8],  # along y: 0 2 6 8, at the edge of x
        [4, 6, 10, 12],  # along x: 4 12 16 more
        [12, 14, 18, 20],
        [16, 18, 22, 24],
    ]
    np.testing.assert_array_equal(fields.upsample(square, 2), expected)


def test_upsample_by_1_changes_nothing() -> None:
    np.testing.assert_array_equal(fields.upsample(IMAGE, 1), IMAGE)


def test_upsample_spreads_nan_to_what_is_interpolated_from_it_alone() -> None:
    row = np.array([[4, 4, NAN]], np.float32)
    expected = [4, 4, 4, NAN, NAN, NAN]  # pixel 3 lies between the second and the third
    np.testing.assert_array_equal(fields.upsample(row, 2), [expected, expected])


@pytest.mark.parametrize("factor", [2, 4, 8, 32])
@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 1, 1), (2, 1, 6)])
def test_upsample_is_what_torch_interpolates(shape: tuple[int, ...], factor: int) -> None:
    array = random(*shape)
    judged = torch.nn.functional.interpolate(
        torch.from_numpy(array)[None], scale_factor=factor, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(fields.upsample(array, factor), judged[0].numpy(), rtol=0, atol=1e-6)


def test_upsample_is_what_torchfields_does() -> None:
    field = random(2, 6, 6)
    judged = torchfields.Field(torch.from_numpy(field)[None]).up(mips=2)
    np.testing.assert_allclose(fields.upsample(field, 4), judged.tensor()[0].numpy(), rtol=0, atol=1e-6)


# Coarser


def test_average_is_the_mean_of_each_block() -> None:
    array = np.array([[0, 4, 1, 1], [8, 0, 1, 5]], np.float32)
    # (0 + 4 + 8 + 0) / 4, (1 + 1 + 1 + 5) / 4
    np.testing.assert_array_equal(fields.average(array, 2), [[3, 2]])


def test_average_keeps_channels_apart() -> None:
    array = np.stack([np.full((4, 2), 1, np.float32), np.full((4, 2), 5, np.float32)])
    np.testing.assert_array_equal(fields.average(array, 2), [[[1], [1]], [[5], [5]]])


def test_any_of_is_true_where_one_pixel_of_the_block_is() -> None:
    mask = np.array([[0, 0, 0, 0, 1, 1], [0, 1, 0, 0, 1, 1]], bool)
    np.testing.assert_array_equal(fields.any_of(mask, 2), [[True, False, True]])


# Changing level


def test_to_level_at_the_same_level_only_cuts() -> None:
    cut = fields.to_level(IMAGE.astype(np.uint8), 3, 3, shape=(2, 2), crop=(1, 0))
    np.testing.assert_array_equal(cut, np.array([[21, 22], [31, 32]], np.float32), strict=True)


def test_to_level_finer_interpolates_then_cuts() -> None:
    square = np.array([[0, 8], [16, 24]], np.uint8)
    cut = fields.to_level(square, 3, 2, shape=(2, 3), crop=(1, 0))
    # rows 1 and 2 and columns 0 to 2 of the upsampled
    np.testing.assert_array_equal(cut, np.array([[4, 6, 10], [12, 14, 18]], np.float32), strict=True)


def test_to_level_coarser_averages() -> None:
    array = np.array([[0, 4, 1, 1], [8, 0, 1, 6]], np.uint8)
    cut = fields.to_level(array, 2, 3, shape=(1, 2), crop=(0, 0))
    np.testing.assert_array_equal(cut, np.array([[3, 2.25]], np.float32), strict=True)


# Warping


def test_warp_by_zero_is_the_image() -> None:
    np.testing.assert_array_equal(fields.warp(IMAGE, constant_field(0, 0)), IMAGE, strict=True)


def test_component_0_pulls_along_the_last_axis() -> None:
    expected = [
        [12, 13, 14, 0],  # warped[x, y] = image[x, y + 1]
        [22, 23, 24, 0],
        [32, 33, 34, 0],  # beyond the last y is 0
    ]
    np.testing.assert_array_equal(fields.warp(IMAGE, constant_field(1, 0)), expected)


def test_component_1_pulls_along_the_first_axis() -> None:
    expected = [
        [21, 22, 23, 24],  # warped[x, y] = image[x + 1, y]
        [31, 32, 33, 34],
        [0, 0, 0, 0],  # beyond the last x is 0
    ]
    np.testing.assert_array_equal(fields.warp(IMAGE, constant_field(0, 1)), expected)


def test_negative_displacement_pulls_from_before() -> None:
    expected = [
        [0, 0, 0, 0],  # before the first x is 0
        [0, 0, 11, 12],  # warped[x, y] = image[x - 1, y - 2]
        [0, 0, 21, 22],
    ]
    np.testing.assert_array_equal(fields.warp(IMAGE, constant_field(-2, -1)), expected)


def test_half_a_pixel_is_the_mean_of_two_and_at_the_edge_of_one_and_0() -> None:
    expected = [
        [11.5, 12.5, 13.5, 7],
        [21.5, 22.5, 23.5, 12],
        [31.5, 32.5, 33.5, 17],  # the last: (34 + 0) / 2
    ]
    np.testing.assert_array_equal(fields.warp(IMAGE, constant_field(0.5, 0)), expected)


def test_half_a_pixel_before_the_first_is_half_of_it() -> None:
    expected = [
        [5.5, 6, 6.5, 7],  # (0 + image) / 2
        [16, 17, 18, 19],
        [26, 27, 28, 29],
    ]
    np.testing.assert_array_equal(fields.warp(IMAGE, constant_field(0, -0.5)), expected)


def test_corner_between_four_pixels_weighs_them_by_area() -> None:
    image = np.array([[16, 32], [64, 128]], np.float32)
    field = constant_field(0.25, 0.5, (2, 2))
    expected = [
        [(16 * 3 + 32 * 1) / 8 + (64 * 3 + 128 * 1) / 8, (32 * 3) / 8 + (128 * 3) / 8],
        [(64 * 3 + 128 * 1) / 8, (128 * 3) / 8],  # half of them outside
    ]
    np.testing.assert_array_equal(fields.warp(image, field), expected)


@pytest.mark.parametrize("far", [4, -4, 1e9, -1e9, 3e38])
def test_outside_is_0(far: float) -> None:
    np.testing.assert_array_equal(fields.warp(IMAGE, constant_field(far, 0)), np.zeros((3, 4)))
    np.testing.assert_array_equal(fields.warp(IMAGE, constant_field(0, far)), np.zeros((3, 4)))


def test_each_pixel_has_its_own_vector() -> None:
    field = np.zeros((2, 3, 4), np.float32)
    field[:, 0, 0] = 3, 2  # y + 3, x + 2: the far corner
    field[:, 2, 3] = -3, 0  # y - 3: the row's beginning
    expected = IMAGE.copy()
    expected[0, 0] = 34
    expected[2, 3] = 31
    np.testing.assert_array_equal(fields.warp(IMAGE, field), expected)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("component", [0, 1])
def test_vector_that_is_not_finite_gives_0(bad: float, component: int) -> None:
    field = np.zeros((2, 3, 4), np.float32)
    field[component, 1, 2] = bad
    expected = IMAGE.copy()
    expected[1, 2] = 0
    np.testing.assert_array_equal(fields.warp(IMAGE, field), expected)


def test_warp_leaves_its_arguments_alone() -> None:
    image, field = IMAGE.copy(), constant_field(NAN, 0.5)
    fields.warp(image, field)
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(field, constant_field(NAN, 0.5))


@pytest.mark.parametrize("size", [1, 5, 150])
def test_warp_is_what_torchfields_does_on_squares(size: int) -> None:
    image, field = random(size, size), random(2, size, size, scale=3)
    displacement = torchfields.Field(torch.from_numpy(field)[None]).from_pixels()
    judged = displacement.sample(torch.from_numpy(image)[None, None])
    np.testing.assert_allclose(fields.warp(image, field), judged[0, 0].numpy(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("shape", [(7, 130), (130, 7)])
def test_warp_is_what_torch_samples_where_x_and_y_differ(shape: tuple[int, int]) -> None:
    image, field = random(*shape), random(2, *shape, scale=3)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")) + field[::-1]  # x, then y
    x, y = ((2 * place + 1) / size - 1 for place, size in zip(places, shape, strict=True))
    grid = torch.from_numpy(np.stack([y, x], axis=-1).astype(np.float32))  # torch wants the last axis first
    judged = torch.nn.functional.grid_sample(torch.from_numpy(image)[None, None], grid[None], align_corners=False)
    np.testing.assert_allclose(fields.warp(image, field), judged[0, 0].numpy(), rtol=0, atol=2e-4)


# The mean vector


def test_mean_finite_vector_is_of_vectors_with_both_components_finite() -> None:
    y = [1, 3, NAN, 100, 100, INF]
    x = [2, 6, 100, NAN, -INF, 100]
    field = np.array([y, x], np.float32).reshape(2, 2, 3)
    # (1 + 3) / 2 and (2 + 6) / 2: each of the others lacks a component
    np.testing.assert_array_equal(fields.mean_finite_vector(field), [2, 4])


def test_mean_finite_vector_of_none_is_none() -> None:
    field = np.array([[[NAN, 1]], [[1, INF]]], np.float32)
    assert fields.mean_finite_vector(field) is None


# Fields of another level


def test_rescale_from_the_start_keeps_the_start_corner() -> None:
    field = np.array([[[0, 8], [0, 8]], [[0, 0], [16, 16]]], np.float32)
    expected = [
        [[0, 4], [0, 4]],  # along y: 0 2 6 8 in coarse pixels, twice as many fine ones
        [[0, 0], [8, 8]],  # along x: 0 4 12 16
    ]
    np.testing.assert_array_equal(fields.rescale(field, 3, 2, "start"), expected)


def test_rescale_from_the_center_keeps_the_middle() -> None:
    field = np.array([[[0, 8], [0, 8]], [[0, 0], [16, 16]]], np.float32)
    expected = [
        [[4, 12], [4, 12]],  # 2 and 6, twice
        [[8, 8], [24, 24]],  # 4 and 12, twice
    ]
    np.testing.assert_array_equal(fields.rescale(field, 3, 2, "center"), expected)


@pytest.mark.parametrize("crop", ["start", "center"])
@pytest.mark.parametrize("levels", [1, 2, 5])
@pytest.mark.parametrize(
    ("shape", "dst_mip"), [((1, 1), 0), ((2, 3), 0), ((7, 4), 0), ((9, 15), 0), ((2, 6), 3), ((14, 10), 1)]
)
def test_rescale_is_upsampling_everything_and_cropping(
    shape: tuple[int, int], dst_mip: int, levels: int, crop: str
) -> None:
    field = random(2, *shape)
    factor = 2**levels
    whole = fields.upsample(field, factor) * factor  # one coarse pixel is `factor` fine ones
    x, y = (0, 0) if crop == "start" else (-(-size * (factor - 1) // 2) for size in shape)
    expected = whole[:, x : x + shape[0], y : y + shape[1]]
    np.testing.assert_array_equal(fields.rescale(field, dst_mip + levels, dst_mip, crop), expected)


@pytest.mark.parametrize(("size", "src_mip", "dst_mip", "first"), [(5, 1, 0, 3), (65, 2, 0, 98), (6, 3, 1, 9)])
def test_the_middle_begins_where_boxes_around_one_centre_do(size: int, src_mip: int, dst_mip: int, first: int) -> None:
    assert fields.crop_start(size, src_mip, dst_mip, "center") == first


@pytest.mark.parametrize("size", [3, 4, 5, 8, 13, 64, 65])
@pytest.mark.parametrize(("src_mip", "dst_mip"), [(1, 0), (2, 0), (5, 0), (2, 1), (6, 3)])
def test_coarse_and_fine_boxes_share_their_centre(size: int, src_mip: int, dst_mip: int) -> None:
    def places(mip: int) -> np.ndarray:
        """Where the pixels lie of a box around 1000, in MIP-0 voxels from there."""
        return -(size * 2**mip // 2) + (np.arange(size) + 0.5) * 2**mip

    if size % 2 and dst_mip:
        with pytest.raises(UsageError):
            fields.crop_start(size, src_mip, dst_mip, "center")
        return
    # A field that tells places: bilinear interpolation keeps it as it is.
    x, y = np.meshgrid(places(src_mip), places(src_mip), indexing="ij")
    finer = fields.rescale(np.stack([y, x]).astype(np.float32) / 2**src_mip, src_mip, dst_mip, "center") * 2**dst_mip
    np.testing.assert_array_equal(finer[1, :, 0], places(dst_mip))
    np.testing.assert_array_equal(finer[0, 0], places(dst_mip))


@pytest.mark.parametrize("crop", ["start", "center"])
def test_rescale_to_the_same_level_changes_nothing(crop: str) -> None:
    field = random(2, 5, 4)
    field[0, 1, 1] = NAN
    np.testing.assert_array_equal(fields.rescale(field, 3, 3, crop), field)


# Rounding


def test_rounded_keeps_decimals_and_what_is_not_finite() -> None:
    field = np.array([1.234, -1.236, 0.004, NAN, INF, -INF], np.float32).reshape(2, 3, 1)
    expected = np.array([1.23, -1.24, 0, NAN, INF, -INF], np.float32).reshape(2, 3, 1)
    np.testing.assert_array_equal(fields.rounded(field, 2), expected, strict=True)


@pytest.mark.parametrize("scale", [1e-3, 20, 5000, 30_000])
def test_rounded_to_a_binary_grid_is_the_nearest_multiple_exactly(scale: float) -> None:
    field = random(2, 200, 200, scale=scale)
    stored = fields.rounded(field, fields.BINARY).astype(np.float64)
    np.testing.assert_array_equal(stored, np.rint(field.astype(np.float64) * 256) / 256)
    assert np.abs(stored - field).max() <= 1 / 512


def test_rounded_to_a_binary_grid_keeps_what_is_large_or_not_finite() -> None:
    most = np.finfo(np.float32).max
    field = np.array([[-most, most, 2**15 + 2**-8, -(2**23) - 1], [NAN, INF, -INF, 1e-40]], np.float32)[:, None]
    expected = field.copy()
    expected[1, 0, 3] = 0
    np.testing.assert_array_equal(fields.rounded(field, fields.BINARY), expected, strict=True)


def test_rounded_to_no_decimals_asked_for_is_the_field() -> None:
    field = random(2, 3, 4)
    np.testing.assert_array_equal(fields.rounded(field, None), field, strict=True)


@pytest.mark.parametrize("scale", [20, 300, 5000])
def test_rounded_by_at_most_half_of_the_last_decimal(scale: float) -> None:
    field = random(2, 300, 300, scale=scale)
    stored = fields.rounded(field, 2).astype(np.float64)
    assert (np.abs(stored - field) <= 0.005 + np.spacing(np.abs(field)) / 2).all()


def test_rounded_image_is_the_nearest_multiple_and_black_nowhere_else() -> None:
    step = 1 / 64
    image = np.array([[0, 0.3 * step, -0.3 * step, 0.5 * step], [0.6 * step, 1, -1.4 * step, 1e-30]], np.float32)
    expected = np.array([[0, step, -step, step], [step, 1, -step, step]], np.float32)
    np.testing.assert_array_equal(fields.rounded_image(image, step), expected, strict=True)


@pytest.mark.parametrize("step", [1.0, 2**-11, 2**-24])
def test_rounded_image_of_many_pixels(step: float) -> None:
    image = random(200, 150, scale=3)
    image[::3] = 0
    found = fields.rounded_image(image, step)
    np.testing.assert_array_equal(found == 0, image == 0)
    np.testing.assert_array_equal(found / np.float32(step), np.rint(found / np.float32(step)))
    error = np.abs(found.astype(np.float64) - image)
    assert (error <= np.where(np.abs(found) == np.float32(step), step, step / 2)).all()


def test_an_image_without_a_step_is_as_it_is() -> None:
    image = random(3, 4)
    assert fields.rounded_image(image, None) is image


# Images with black pixels


def brought(image: np.ndarray, src_mip: int, dst_mip: int) -> tuple[np.ndarray, np.ndarray]:
    """An image wholly brought to another level, and where it is black."""
    shape = tuple(int(size * 2.0 ** (src_mip - dst_mip)) for size in image.shape)
    return fields.image_to_level(image, src_mip, dst_mip, (shape[0], shape[1]), (0, 0))


def test_a_coarser_pixel_is_the_mean_of_what_is_not_black() -> None:
    image = np.array([[0, 0, 4, 8], [0, 6, 0, 0], [0, 0, 5, -5], [0, 0, -5, 5]], np.float32)
    coarser, black = brought(image, 0, 1)
    np.testing.assert_array_equal(black, [[False, False], [True, False]])
    np.testing.assert_array_equal(coarser[~black], [6, 6, 0])  # the last is no black: its values cancel


def test_a_finer_pixel_is_black_where_the_pixel_that_contains_it_is() -> None:
    image = np.array([[0, 8, 8, 4]], np.float32)
    finer, black = brought(image, 1, 0)
    np.testing.assert_array_equal(black, np.repeat(image == 0, 2, axis=1).repeat(2, axis=0))
    # Beside the black pixel there is no rim; between 8 and 4 the weights are 3/4 and 1/4.
    np.testing.assert_array_equal(finer[:, 2:], [[8, 8, 8, 7, 5, 4]] * 2)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_pixel_that_is_no_finite_number_is_black(value: float) -> None:
    image = np.array([[value, 8, 8, 4]], np.float32)
    for level in (0, 1):
        finer, black = brought(image, 1, level)
        expected, expected_black = brought(np.nan_to_num(image, nan=0, posinf=0, neginf=0), 1, level)
        np.testing.assert_array_equal(black, expected_black)
        np.testing.assert_array_equal(finer[~black], expected[~black])


@pytest.mark.parametrize(("src_mip", "dst_mip"), [(2, 0), (0, 2)])
def test_far_from_black_nothing_differs(src_mip: int, dst_mip: int) -> None:
    image = np.abs(random(64, 64, scale=30)) + 1
    spotted = image.copy()
    spotted[:8, :8] = 0
    plain, _ = brought(image, src_mip, dst_mip)
    around, black = brought(spotted, src_mip, dst_mip)
    far = np.ones(black.shape, bool)
    reach = int(12 * 2.0 ** (src_mip - dst_mip))
    far[:reach, :reach] = False
    np.testing.assert_array_equal(around[far], plain[far])
    assert black.any()


def test_a_fold_has_no_halo() -> None:
    """Brought finer or coarser, a constant image with a black fold is the constant, or black."""
    image = np.full((32, 32), 200, np.uint8)
    image[9:14] = 0
    for src_mip, dst_mip in ((2, 0), (0, 1), (0, 3)):
        changed, black = brought(image, src_mip, dst_mip)
        np.testing.assert_allclose(changed[~black], 200, rtol=1e-6)
        assert black.any() == ((src_mip, dst_mip) != (0, 3))  # a block of 8 rows is never wholly in the fold
