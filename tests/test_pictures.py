"""Arrays as pictures, and the contact sheet's scale bar."""

import numpy as np
import pytest
from PIL import Image

from curation.quality import folded_pixels, soundness
from curation.review import pictures
from curation.review.sheet import Scale, SheetRow, draw_sheet


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def test_grey_values_span_the_levels_and_tissue_alone_decides_them() -> None:
    image = noise(200, 100) * 3 + 50
    image[:50] = 0
    image[50, 0] = np.nan
    low, high = pictures.levels_of(image)
    tissue = image[51:]
    assert low == pytest.approx(np.percentile(tissue, 1), rel=0.01)
    assert high == pytest.approx(np.percentile(tissue, 99), rel=0.01)
    made = pictures.grey(image, (low, high))
    assert made.invalid[:50].all() and made.invalid[50, 0] and not made.invalid[51:].any()
    np.testing.assert_array_equal(
        made.values[51:], (np.clip((tissue - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    )


@pytest.mark.parametrize("image", [np.zeros((5, 5), np.float32), np.full((5, 5), 3, np.float32)])
def test_an_image_of_one_value_has_levels(image: np.ndarray) -> None:
    low, high = pictures.levels_of(image)
    assert low < high
    assert pictures.grey(image, (low, high)).values.max() == 0


def test_an_overlay_is_grey_where_images_agree() -> None:
    source, target = np.uint8([[10, 200, 30]]), np.uint8([[10, 50, 90]])
    made = pictures.overlay(source, target, np.array([[False, False, True]]))
    assert made[0, 0].tolist() == [10, 10, 10]
    assert made[0, 1].tolist() == [200, 50, 200]
    *tint, alpha = pictures.INVALID
    expected = [90 * (1 - alpha / 255) + part * alpha / 255 for part in tint]
    assert made[0, 2].tolist() == pytest.approx(expected, abs=1)


def test_colours_of_a_field_tell_its_direction_and_length() -> None:
    field = np.zeros((2, 1, 6), np.float32)
    field[1, 0, 1], field[1, 0, 2] = 4, -4  # along x
    field[0, 0, 3], field[0, 0, 4] = 4, -400  # along y; the other way, beyond the rim
    field[0, 0, 5] = np.nan
    still, right, left, down, up, nothing = pictures.field_colours(field, 4.0)[0].astype(int)
    assert still.tolist() == [128, 128, 128]
    assert (right > still + 90).all() and (left < still - 90).all()
    assert down[0] > still[0] + 80 and down[2] < still[2] - 80
    assert up[0] < still[0] - 80 and up[2] > still[2] + 80
    assert nothing.tolist() == [0, 0, 0]
    half = pictures.field_colours(field / 2, 4.0)[0, 1].astype(int)
    np.testing.assert_allclose(half - still, (right - still) / 2, atol=1)


@pytest.mark.parametrize(("longest", "scale"), [(0, 1), (0.9, 1), (1.1, 2), (3, 5), (7, 10), (420, 500)])
def test_the_rim_of_the_legend_is_a_round_length(longest: float, scale: float) -> None:
    field = np.zeros((2, 40, 40), np.float32)
    field[0] = longest
    assert pictures.length_at_rim(field) == pytest.approx(scale)
    field[:, 0, 0] = np.nan
    assert pictures.length_at_rim(field) == pytest.approx(scale)


def test_the_wheel_has_the_colours_of_its_vectors() -> None:
    wheel = np.asarray(pictures.wheel(101)).astype(int)
    assert wheel[0, 0, 3] == 0 and wheel[50, 50].tolist() == [128, 128, 128, 255]
    for x, y, vector in ((99, 50, (0, 1)), (50, 99, (1, 0)), (25, 50, (0, -0.5))):
        field = np.array(vector, np.float32).reshape(2, 1, 1)
        np.testing.assert_allclose(wheel[y, x, :3], pictures.field_colours(field, 1.0)[0, 0], atol=4)


def test_masks_and_marks_are_transparent_elsewhere() -> None:
    where = np.zeros((30, 20), bool)
    where[3:20, 5:9] = True
    for made in (pictures.mask(where), pictures.checks(where)):
        assert made.size == (30, 20)
        shown = np.asarray(made.convert("RGBA"))
        np.testing.assert_array_equal(shown[..., 3].T > 0, where)
    marks = np.asarray(pictures.checks(where).convert("RGBA"))[5:9, 3:20, 0]
    assert set(marks.ravel().tolist()) == {0, 255}


@pytest.mark.parametrize(("size", "longest", "factor"), [((64, 32), 64, 1), ((65, 32), 64, 2), ((32, 300), 64, 5)])
def test_pictures_and_masks_are_made_smaller_alike(size: tuple[int, int], longest: int, factor: int) -> None:
    assert pictures.reduction(size, longest) == factor
    picture = pictures.reduced(np.zeros(size, np.uint8), factor)
    mask = np.zeros(size, bool)
    mask[-1, 0] = True
    small = pictures.any_in_block(mask, factor)
    assert picture.size == small.shape and max(small.shape) <= longest
    assert np.argwhere(small).tolist() == [[small.shape[0] - 1, 0]]


def test_folded_pixels_are_those_that_are_counted() -> None:
    field = noise(2, 150, 90) * np.float32(0.6)
    field[0, 70, 30] = np.nan
    folded = folded_pixels(field)
    assert folded.shape == (150, 90) and not folded[-1].any() and not folded[:, -1].any()
    known = 149 * 89 - 3  # a vector takes part in the differences at three pixels
    assert folded.sum() / known == pytest.approx(soundness(field)[0], rel=1e-6)
    assert folded.any()


@pytest.mark.parametrize(
    ("scale", "bar", "name"),
    [
        (Scale(4, "nm"), 50, "200 nm"),
        (Scale(4, "nm"), 125, "500 nm"),
        (Scale(32, "nm"), 62.5, "2000 nm"),
        (Scale(1, "px"), 100, "100 px"),
    ],
)
def test_the_scale_bar_is_a_round_length_that_fits(scale: Scale, bar: float, name: str) -> None:
    longest = 102 if scale.unit == "px" or bar < 60 else 130
    assert scale.bar(99 if bar == 50 else longest) == (pytest.approx(bar), name)


@pytest.mark.parametrize("size", [(16, 16), (256, 100), (900, 1100)])
def test_a_sheet_shows_its_pictures_in_rows(size: tuple[int, int]) -> None:
    red = np.zeros((*size, 3), np.uint8) + np.uint8([250, 0, 0])
    rows = [SheetRow(("pair 1", "more"), (red, red // 2)), SheetRow(("pair 2",), (red, red // 2))]
    sheet = draw_sheet("a title", ("one", "two"), rows, Scale(4, "nm"))
    pixels = np.asarray(sheet).astype(int)
    is_red, is_dark = (np.all(pixels == colour, axis=-1) for colour in ((250, 0, 0), (125, 0, 0)))
    assert is_red.sum() == is_dark.sum() > 2 * 90 * 90
    assert np.flatnonzero(is_red.any(axis=0)).max() < np.flatnonzero(is_dark.any(axis=0)).min()
    assert isinstance(sheet, Image.Image)
