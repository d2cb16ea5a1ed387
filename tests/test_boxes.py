"""Where boxes lie at each level."""

import numpy as np
import pytest

from curation.boxes import Box, Window, snap
from curation.errors import UsageError


def test_window_at_the_box_own_level_is_the_box_in_that_level_voxels() -> None:
    box = Box(8, 12, z=5, x_size=4, y_size=3, mip=2)
    # 8 / 4 = 2 and 12 / 4 = 3, then 4 and 3 pixels
    assert box.window(2) == Window((2, 3), (6, 6), 5, crop=(0, 0))


def test_window_at_a_finer_level_has_more_voxels() -> None:
    box = Box(8, 12, z=5, x_size=4, y_size=3, mip=2)
    # a pixel of MIP 2 spans 4 voxels of MIP 0 and 2 of MIP 1
    assert box.window(0) == Window((8, 12), (24, 24), 5, crop=(0, 0))
    assert box.window(1) == Window((4, 6), (12, 12), 5, crop=(0, 0))


def test_window_at_a_coarser_level_that_lines_up_needs_no_crop() -> None:
    box = Box(16, 8, z=5, x_size=4, y_size=2, mip=2)
    # MIP 0: x 16..32, y 8..16
    assert box.window(3) == Window((2, 1), (4, 2), 5, crop=(0, 0))


def test_window_at_a_coarser_level_covers_a_start_between_its_voxels() -> None:
    box = Box(12, 8, z=5, x_size=4, y_size=4, mip=2)
    # x 12..28 lies in 8..32, from the second pixel of MIP 2 on; y 8..24 lines up
    assert box.window(3) == Window((1, 1), (4, 3), 5, crop=(1, 0))


def test_window_at_a_coarser_level_covers_an_end_between_its_voxels() -> None:
    box = Box(0, 0, z=5, x_size=3, y_size=1, mip=0)
    # x 0..3 and y 0..1 at 4 voxels a pixel
    assert box.window(2) == Window((0, 0), (1, 1), 5, crop=(0, 0))


def test_windows_of_negative_starts_reach_below_zero() -> None:
    box = Box(-12, -8, z=-1, x_size=4, y_size=4, mip=2)
    # x -12..4, y -8..8
    assert box.window(2) == Window((-3, -2), (1, 2), -1, crop=(0, 0))
    # x in -16..8, from the second pixel of MIP 2 on; y lines up
    assert box.window(3) == Window((-2, -1), (1, 1), -1, crop=(1, 0))


@pytest.mark.parametrize("start", [-20, -12, -4, 0, 4, 12, 28])
@pytest.mark.parametrize("src_mip", [2, 3, 4, 5])
def test_cropped_window_holds_every_pixel_of_the_box(start: int, src_mip: int) -> None:
    window = Box(start, 0, z=0, x_size=5, y_size=8, mip=2).window(src_mip)
    voxels = np.arange(window.start[0], window.stop[0])  # each by its own number
    repeated = voxels.repeat(2 ** (src_mip - 2))  # brought to MIP 2
    cropped = repeated[window.crop[0] : window.crop[0] + 5]
    np.testing.assert_array_equal(cropped, (start + 4 * np.arange(5)) // 2**src_mip)


def test_start_between_the_voxels_that_are_read_is_refused() -> None:
    with pytest.raises(UsageError, match="start 6 lies between the voxels of MIP 2: want a multiple of 4"):
        Box(6, 0, z=0, x_size=4, y_size=4, mip=2).window(2)


def test_start_between_the_box_own_pixels_is_refused_at_a_coarser_level_too() -> None:
    with pytest.raises(UsageError, match="start 5 lies between the voxels of MIP 1"):
        Box(0, 5, z=0, x_size=4, y_size=4, mip=1).window(3)


def test_start_between_the_box_own_pixels_is_read_from_a_finer_level() -> None:
    # x 6..22 and y 0..16 are whole voxels at MIP 0 and MIP 1
    box = Box(6, 0, z=0, x_size=4, y_size=4, mip=2)
    assert box.window(0) == Window((6, 0), (22, 16), 0, crop=(0, 0))
    assert box.window(1) == Window((3, 0), (11, 8), 0, crop=(0, 0))


def test_shifted_moves_the_start_alone() -> None:
    assert Box(8, 12, 5, 4, 3, mip=2).shifted(-16, 4) == Box(-8, 16, 5, 4, 3, mip=2)


def test_shapes_are_x_first() -> None:
    box = Box(0, 0, z=0, x_size=4, y_size=3, mip=2)
    assert box.shape == (4, 3)
    assert box.window(1).shape == (8, 6)


def test_snap_floors_also_below_zero() -> None:
    values = np.array([-9, -8, -1, 0, 7, 8, 15])
    np.testing.assert_array_equal(snap(values, 3), [-16, -8, -8, 0, 0, 8, 8])
    assert snap(-1, 3) == -8


def test_snap_to_mip_0_changes_nothing() -> None:
    values = np.array([-3, 0, 5])
    np.testing.assert_array_equal(snap(values, 0), [-3, 0, 5])


def test_outside_is_of_the_box_itself_not_of_what_must_be_read_for_it() -> None:
    # x 52 to 68 of a volume that ends at 64; at MIP 3 its pixels are 8 wide, and 48 to 72 would be read.
    box = Box(52, 0, 0, 16, 16, 0)
    assert box.outside((0, 0), (8, 8), mip=3) == 0.25
    assert box.outside((0, 0), (64, 64), mip=0) == 0.25


def test_outside_counts_both_axes_and_below_zero() -> None:
    assert Box(-8, -4, 0, 4, 4, 2).outside((0, 0), (100, 100), mip=0) == 1 - 8 * 12 / 16**2
    assert Box(0, 0, 0, 4, 4, 2).outside((-5, -5), (100, 100), mip=0) == 0
    assert Box(400, 0, 0, 4, 4, 2).outside((0, 0), (100, 100), mip=0) == 1
