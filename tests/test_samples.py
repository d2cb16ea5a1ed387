"""One sample, from arrays built by hand."""

import numpy as np
import pytest

from curation.fields import image_to_level
from curation.samples import Sample, Translation, mask_to_level, normalised, residual, translation

NAN, INF = np.nan, np.inf


def field_of(*vectors: tuple[float, float]) -> np.ndarray:
    """A field (2, 1, Y) of vectors (y, x): component 0 is along y."""
    return np.array(vectors, np.float32).T[:, None, :]


def image_of(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def unmasked(image: np.ndarray) -> np.ndarray:
    return np.zeros(image.shape, bool)


def by_itself(image: np.ndarray, masked: np.ndarray | None = None) -> Sample:
    """Normalised with itself for a reference."""
    masked = unmasked(image) if masked is None else masked
    return by_another(image, masked, image, masked)


def by_another(image: np.ndarray, masked: np.ndarray, reference: np.ndarray, reference_masked: np.ndarray) -> Sample:
    """Normalised with a reference, both read at the level at which they are wanted."""
    black, reference_black = (image_to_level(each, 0, 0, each.shape, (0, 0))[1] for each in (image, reference))
    return normalised(image, black, masked, reference[~(reference_black | reference_masked)])


# Translation


def test_translation_is_the_mean_vector_component_1_along_x() -> None:
    # y: (3 + 5) / 2, x: (10 + 20) / 2
    assert translation(field_of((3, 10), (5, 20)), step_mip=0) == Translation(x=15, y=4, found=True)


def test_translation_is_floored_not_rounded() -> None:
    assert translation(field_of((5.9, 7.5)), step_mip=0) == Translation(x=7, y=5, found=True)


def test_translation_is_floored_below_zero_too() -> None:
    assert translation(field_of((-0.1, -5.9)), step_mip=0) == Translation(x=-6, y=-1, found=True)


def test_translation_is_floored_to_multiples_of_the_step() -> None:
    assert translation(field_of((15.9, 16)), step_mip=3) == Translation(x=16, y=8, found=True)
    assert translation(field_of((-0.1, -8.1)), step_mip=3) == Translation(x=-16, y=-8, found=True)


def test_translation_leaves_out_vectors_that_lack_a_component() -> None:
    field = field_of((NAN, 100), (100, INF), (3, 7))
    assert translation(field, step_mip=0) == Translation(x=7, y=3, found=True)


def test_translation_of_no_finite_vector_is_0_and_says_so() -> None:
    assert translation(field_of((NAN, 100), (-INF, 3)), step_mip=2) == Translation(x=0, y=0, found=False)


# Residual


def test_residual_is_what_the_shift_leaves_in_pixels() -> None:
    field = field_of((9, 20), (4, 4))
    expected = field_of(
        (0.25, 1),  # (9 - 8) / 4 along y, (20 - 16) / 4 along x: a pixel is 4 voxels
        (-1, -3),  # (4 - 8) / 4, (4 - 16) / 4
    )
    result = residual(field, Translation(x=16, y=8, found=True), dst_mip=2)
    np.testing.assert_array_equal(result, expected, strict=True)


def test_residual_keeps_what_is_not_finite() -> None:
    result = residual(field_of((NAN, 4), (INF, -INF)), Translation(0, 0, found=True), dst_mip=1)
    np.testing.assert_array_equal(result, field_of((NAN, 2), (INF, -INF)))


# Normalising


def test_pixels_lose_the_mean_and_are_divided_by_the_unbiased_deviation() -> None:
    done = by_itself(image_of([1, 5], [1, 5]))
    # mean 3; deviations 2, 2, 2, 2: the squares' sum 16, over 4 - 1
    std = np.sqrt(16 / 3)
    np.testing.assert_allclose(done.image, image_of([-2, 2], [-2, 2]) / std, rtol=1e-6)
    assert done.image.dtype == np.float32
    assert (done.mean, done.flat) == (3, False)
    assert done.std == pytest.approx(std, rel=1e-6)


def test_black_pixels_stay_0_and_are_left_out() -> None:
    done = by_itself(image_of([1, 0, 3, 5], [0, 0, 0, 0]))
    # mean and deviation of 1, 3, 5 are 3 and 2; 3 itself becomes 0 as well
    np.testing.assert_array_equal(done.image, image_of([-1, 0, 0, 1], [0, 0, 0, 0]))
    assert (done.mean, done.std) == (3, 2)


def test_masked_pixels_become_0_and_are_left_out() -> None:
    image = image_of([1, 3, 5, 99])
    done = by_itself(image, masked=image == 99)
    np.testing.assert_array_equal(done.image, image_of([-1, 0, 1, 0]))
    assert (done.mean, done.std) == (3, 2)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_pixels_that_are_no_number_become_0_and_are_left_out(bad: float) -> None:
    done = by_itself(image_of([1, bad, 3, 5]))
    np.testing.assert_array_equal(done.image, image_of([-1, 0, 0, 1]))
    assert (done.mean, done.std) == (3, 2)


def test_statistics_are_the_reference_not_the_image() -> None:
    image, reference = image_of([13, 9]), image_of([1, 3, 5])
    done = by_another(image, unmasked(image), reference, unmasked(reference))
    np.testing.assert_array_equal(done.image, image_of([5, 3]))  # (13 - 3) / 2, (9 - 3) / 2
    assert (done.mean, done.std) == (3, 2)


def test_each_mask_counts_for_its_own_image() -> None:
    image, reference = image_of([13, 9]), image_of([1, 3, 5, 99])
    done = by_another(image, image == 9, reference, reference == 99)
    np.testing.assert_array_equal(done.image, image_of([5, 0]))
    assert (done.mean, done.std) == (3, 2)


def test_negative_values_are_not_black() -> None:
    np.testing.assert_array_equal(by_itself(image_of([-1, -3, -5])).image, image_of([1, 0, -1]))


def test_no_variance_takes_out_the_mean_alone() -> None:
    image, reference = image_of([7, 9, 0]), image_of([7, 7, 7])
    done = by_another(image, unmasked(image), reference, unmasked(reference))
    np.testing.assert_array_equal(done.image, image_of([0, 2, 0]))
    assert (done.mean, done.std, done.flat) == (7, 1, True)


@pytest.mark.parametrize("value", [0.1, 255.3, 60000])
def test_what_resampling_leaves_of_a_constant_is_no_variance(value: float) -> None:
    reference, black = image_to_level(np.full((8, 8), value, np.float32), 3, 0, (64, 64), (0, 0))
    assert reference.std() < 1e-6 * value
    done = normalised(reference, black, unmasked(reference), reference[~black])
    assert (done.std, done.flat) == (1, True)
    assert np.abs(done.image).max() < 1e-6 * value


def test_a_deviation_that_float32_resolves_is_one() -> None:
    reference = np.where(np.arange(64).reshape(8, 8) % 2, np.float32(1), np.float32(1.00001))
    assert not by_itself(reference).flat


@pytest.mark.filterwarnings("error")  # numpy warns of the deviation of one number
def test_single_pixel_has_no_variance() -> None:
    image, reference = image_of([7, 9]), image_of([7, 0])
    done = by_another(image, unmasked(image), reference, unmasked(reference))
    np.testing.assert_array_equal(done.image, image_of([0, 2]))
    assert (done.mean, done.std, done.flat) == (7, 1, True)


def test_no_pixel_at_all_leaves_the_image_as_it_is() -> None:
    image, reference = image_of([7, 9]), image_of([0, NAN])
    done = by_another(image, unmasked(image), reference, unmasked(reference))
    np.testing.assert_array_equal(done.image, image_of([7, 9]))
    assert (done.mean, done.std, done.flat) == (0, 1, True)


def test_black_image_stays_black() -> None:
    done = by_itself(image_of([0, 0], [0, 0]))
    np.testing.assert_array_equal(done.image, image_of([0, 0], [0, 0]))
    assert (done.mean, done.std, done.flat, done.valid) == (0, 1, True, 0)


def test_wholly_masked_image_is_0() -> None:
    done = by_itself(image_of([1, 5]), masked=np.ones((1, 2), bool))
    np.testing.assert_array_equal(done.image, image_of([0, 0]))
    assert (done.flat, done.valid, done.masked) == (True, 0, 1)


def test_fractions_are_of_the_image_pixels() -> None:
    image = image_of([0, 0, 2, 3], [4, 5, 6, 7])
    masked = np.array([[1, 0, 0, 0], [1, 0, 0, 0]], bool)
    done = by_another(image, masked, image, unmasked(image))
    assert done.valid == 5 / 8  # all but two black ones, and one more that is masked
    assert done.masked == 2 / 8


# Masks


def test_mask_is_at_or_above_the_threshold() -> None:
    values = np.array([[0, 1, 2, 3]], np.uint8)
    masked = mask_to_level(values, 2, 3, 3, shape=(1, 4), crop=(0, 0))
    np.testing.assert_array_equal(masked, np.array([[False, False, True, True]]), strict=True)


def test_mask_threshold_may_lie_between_values() -> None:
    values = np.array([[0, 1, 2]], np.uint8)
    masked = mask_to_level(values, 0.5, 3, 3, shape=(1, 3), crop=(0, 0))
    np.testing.assert_array_equal(masked, [[False, True, True]])


def test_coarser_mask_is_repeated() -> None:
    values = np.array([[1, 0], [0, 0]], np.uint8)
    masked = mask_to_level(values, 1, 3, 2, shape=(4, 4), crop=(0, 0))
    expected = [
        [1, 1, 0, 0],  # each value over 2 x 2 pixels
        [1, 1, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(masked, np.array(expected, bool))


def test_coarser_mask_is_cut_to_the_box() -> None:
    values = np.array([[1, 0], [0, 1]], np.uint8)
    masked = mask_to_level(values, 1, 3, 2, shape=(2, 3), crop=(1, 0))
    expected = [
        [1, 1, 0],  # row 1 of 1 1 0 0
        [0, 0, 1],  # row 2 of 0 0 1 1
    ]
    np.testing.assert_array_equal(masked, np.array(expected, bool))


def test_finer_mask_masks_a_pixel_that_has_one_masked() -> None:
    values = np.array([[0, 9, 0, 0], [0, 0, 0, 0], [1, 1, 0, 9], [1, 1, 9, 9]], np.uint8)
    masked = mask_to_level(values, 9, 1, 2, shape=(2, 2), crop=(0, 0))
    expected = [
        [1, 0],  # one of four is enough
        [0, 1],  # none reaches 9; three do
    ]
    np.testing.assert_array_equal(masked, np.array(expected, bool))
