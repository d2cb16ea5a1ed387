"""From points to pairs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.annotations.pairing import Picking, pair_starts
from curation.errors import UsageError
from curation.pair_selection import first_alike
from curation.spec import pair_texts, read_spec
from curation.steps.create_spec import CreatedSpec, CreateSpecOptions, create_spec

TEMPLATE: dict[str, Any] = {
    "image": {"path": "file:///image", "src_mip": 0},
    "max_mip": 3,
    "dst_mip": 1,
    "x_size": 4,
    "y_size": 4,
    "pairs": [],
}


def append(folder: Path, points: str, offsets: Sequence[int] = (-1,), permute: bool = False) -> CreatedSpec:
    """Append the pairs of `points` to folder/template.json, into folder/spec.json."""
    (folder / "points.csv").write_text(points)
    options = CreateSpecOptions(
        folder / "template.json", folder / "spec.json", str(folder / "points.csv"), tuple(offsets), permute
    )
    return create_spec(options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a template."""
    (tmp_path / "template.json").write_text(json.dumps(TEMPLATE))
    return tmp_path


def picking(offsets: Sequence[int], permute: bool, max_mip: int) -> Picking:
    return Picking(tuple(offsets), permute, "start", max_mip, (8, 8), (8, 8))


def starts_in(folder: Path) -> list[list[list[int]]]:
    return read_spec(folder / "spec.json").starts().tolist()


# Which pairs


def test_pairs_go_by_point_then_by_offset() -> None:
    points = np.array([[8, 16, 5], [0, 0, 9]])
    expected = [
        [[8, 16, 5], [8, 16, 4]],  # the first point, -1: source at z, target at z - 1
        [[8, 16, 5], [8, 16, 3]],  # -2
        [[0, 0, 9], [0, 0, 8]],  # the second point
        [[0, 0, 9], [0, 0, 7]],
    ]
    np.testing.assert_array_equal(pair_starts(points, picking([-1, -2], False, max_mip=3)), expected)


def test_permuted_pairs_follow_their_own() -> None:
    points = np.array([[8, 16, 5]])
    expected = [
        [[8, 16, 5], [8, 16, 4]],  # -1
        [[8, 16, 4], [8, 16, 5]],  # the other way round
        [[8, 16, 5], [8, 16, 3]],  # -2
        [[8, 16, 3], [8, 16, 5]],
    ]
    np.testing.assert_array_equal(pair_starts(points, picking([-1, -2], True, max_mip=3)), expected)


def test_offsets_keep_the_order_given() -> None:
    targets = pair_starts(np.array([[0, 0, 5]]), picking([2, -3, 1], False, max_mip=0))[:, 1, 2]
    np.testing.assert_array_equal(targets, [7, 2, 6])


def test_starts_are_snapped_down_in_x_and_y_alone() -> None:
    points = np.array([[15, 16, 5], [-1, -9, -3]])
    expected = [
        [[8, 16, 5], [8, 16, 4]],
        [[-8, -16, -3], [-8, -16, -4]],  # floored below zero too; z is kept
    ]
    np.testing.assert_array_equal(pair_starts(points, picking([-1], False, max_mip=3)), expected)


def test_points_are_left_alone() -> None:
    points = np.array([[15, 17, 5]])
    pair_starts(points, picking([-1], True, max_mip=3))
    np.testing.assert_array_equal(points, [[15, 17, 5]])


def test_the_first_of_those_alike_is_found() -> None:
    starts = np.array([[9, 9, 9], [1, 1, 1], [9, 9, 9], [2, 2, 2], [1, 1, 1]])
    pairs = np.stack([starts, starts + 1], axis=1)
    np.testing.assert_array_equal(first_alike(pairs), [0, 1, 0, 3, 1])
    far = pairs * 2**40  # too wide for one number a pair
    np.testing.assert_array_equal(first_alike(far), [0, 1, 0, 3, 1])


def test_pairs_that_differ_in_one_number_are_two() -> None:
    pairs = np.zeros((7, 2, 3), np.int64)
    pairs.reshape(7, 6)[np.arange(1, 7), np.arange(6)] = 1  # each but the first has one number of its own
    np.testing.assert_array_equal(first_alike(pairs), np.arange(7))


def test_pair_and_its_reverse_are_two() -> None:
    pairs = np.array([[[0, 0, 1], [0, 0, 2]], [[0, 0, 2], [0, 0, 1]]])
    np.testing.assert_array_equal(first_alike(pairs), [0, 1])


def test_pair_texts_are_the_spec_form() -> None:
    ((text,),) = pair_texts(np.array([[[8, -16, 5], [8, -16, 4]]]))
    assert json.loads(text) == {
        "src": {"x_start": 8, "y_start": -16, "z_start": 5},
        "tgt": {"x_start": 8, "y_start": -16, "z_start": 4},
    }


# Appending


def test_pairs_follow_those_the_template_has(folder: Path) -> None:
    kept = {"src": {"x_start": 64, "y_start": 64, "z_start": 7}, "tgt": {"x_start": 64, "y_start": 64, "z_start": 8}}
    (folder / "template.json").write_text(json.dumps(TEMPLATE | {"pairs": [kept]}))
    made = append(folder, "x0,y0,z0\n8,8,3\n")
    assert starts_in(folder) == [[[64, 64, 7], [64, 64, 8]], [[8, 8, 3], [8, 8, 2]]]
    assert (made.kept_pairs, made.new_pairs) == (1, 1)


def test_older_pairs_are_written_in_the_present_form(folder: Path) -> None:
    older = [{"x": 68, "y": 68, "z": 7}, {"x": 68, "y": 68, "z": 8}]  # centres of boxes of 4 pixels, 8 voxels
    (folder / "template.json").write_text(json.dumps(TEMPLATE | {"pairs": [older]}))
    append(folder, "x0,y0,z0\n8,8,3\n")
    written = json.loads((folder / "spec.json").read_text())["pairs"]
    assert written == [
        {"src": {"x_start": 64, "y_start": 64, "z_start": 7}, "tgt": {"x_start": 64, "y_start": 64, "z_start": 8}},
        {"src": {"x_start": 8, "y_start": 8, "z_start": 3}, "tgt": {"x_start": 8, "y_start": 8, "z_start": 2}},
    ]


def test_the_rest_of_the_template_is_kept(folder: Path) -> None:
    append(folder, "x0,y0,z0\n8,8,3\n")
    written = json.loads((folder / "spec.json").read_text())
    assert {**written, "pairs": []} == TEMPLATE


def test_repeated_points_make_one_pair_and_are_said(folder: Path) -> None:
    made = append(folder, "x0,y0,z0\n8,8,3\n0,0,3\n9,8,3\n", permute=True)  # 9 is snapped to 8
    assert starts_in(folder) == [
        [[8, 8, 3], [8, 8, 2]],
        [[8, 8, 2], [8, 8, 3]],
        [[0, 0, 3], [0, 0, 2]],
        [[0, 0, 2], [0, 0, 3]],
    ]
    assert (made.annotations, made.idle, made.new_pairs, made.repeated_pairs) == ("3 points", 1, 4, 2)
    assert "4 of them new from 3 points; 1 of these add nothing new" in str(made)
    assert "2 repeated pairs left out" in str(made)


def test_pairs_the_template_has_are_not_doubled(folder: Path) -> None:
    kept = {"src": {"x_start": 8, "y_start": 8, "z_start": 3}, "tgt": {"x_start": 8, "y_start": 8, "z_start": 2}}
    (folder / "template.json").write_text(json.dumps(TEMPLATE | {"pairs": [kept]}))
    made = append(folder, "x0,y0,z0\n8,8,3\n")
    assert starts_in(folder) == [[[8, 8, 3], [8, 8, 2]]]
    assert (made.kept_pairs, made.new_pairs, made.repeated_pairs) == (1, 0, 1)


# Refusals, and nothing written


def test_destination_that_is_there_is_refused(folder: Path) -> None:
    (folder / "spec.json").write_text("precious")
    with pytest.raises(UsageError, match=r"spec\.json is there already"):
        append(folder, "x0,y0,z0\n8,8,3\n")
    assert (folder / "spec.json").read_text() == "precious"
