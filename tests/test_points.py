"""Annotation files, in all the ways that programs write them, and in those that are refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from curation.errors import UsageError
from curation.points import read_points

Csv = Callable[..., Path]


@pytest.fixture
def csv(tmp_path: Path) -> Csv:
    """A file of the rows given, as bytes or text."""

    def write(*rows: str, ends: str = "\n", encoding: str = "utf-8") -> Path:
        path = tmp_path / "points.csv"
        path.write_bytes("".join(row + ends for row in rows).encode(encoding))
        return path

    return write


def assert_refused(path: Path, *parts: str) -> None:
    """Refused in words that name the file and hold all of `parts`."""
    with pytest.raises(UsageError) as caught:
        read_points(path)
    assert str(caught.value).startswith(f"{path}: ")
    for part in parts:
        assert part in str(caught.value)


# What is read


def test_neuroglancer_export(csv: Csv) -> None:
    path = csv(
        "Coordinate 1,Coordinate 2,Ellipsoid Dimensions,Tags,Description,Segment IDs,Parent ID,Type,ID",
        '"(58321, 41207, 2011)",,,"crack,fold","left ""edge"", bad","7205…78,7206…32",,Point,',
        '"(58000, 41000, 2010)","(58512, 41512, 2012)",,,,,,Line,',
    )
    np.testing.assert_array_equal(
        read_points(path), np.array([[58321, 41207, 2011], [58000, 41000, 2010]]), strict=True
    )


def test_plain_table(csv: Csv) -> None:
    path = csv("x0,y0,z0", "1,2,3", "4,5,6")
    np.testing.assert_array_equal(read_points(path), [[1, 2, 3], [4, 5, 6]])


def test_columns_in_any_order_among_others(csv: Csv) -> None:
    path = csv("z0,note,y0,x0", "3,a,2,1")
    np.testing.assert_array_equal(read_points(path), [[1, 2, 3]])


def test_coordinate_column_after_others(csv: Csv) -> None:
    path = csv("ID,Coordinate 1", 'a1,"(1, 2, 3)"')
    np.testing.assert_array_equal(read_points(path), [[1, 2, 3]])


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("header", ["Coordinate 1", '"Coordinate 1"'])
def test_bom_line_ends_and_quotes_make_no_difference(csv: Csv, header: str, encoding: str, ends: str) -> None:
    path = csv(header, '"(1, 2, 3)"', ends=ends, encoding=encoding)
    np.testing.assert_array_equal(read_points(path), [[1, 2, 3]])


def test_last_row_needs_no_line_end(csv: Csv) -> None:
    path = csv("x0,y0,z0", "1,2,3")
    path.write_bytes(path.read_bytes().rstrip())
    np.testing.assert_array_equal(read_points(path), [[1, 2, 3]])


def test_blank_lines_hold_no_point(csv: Csv) -> None:
    path = csv("x0,y0,z0", "", "1,2,3", "")
    np.testing.assert_array_equal(read_points(path), [[1, 2, 3]])


def test_fractions_are_floored_below_zero_too(csv: Csv) -> None:
    path = csv("Coordinate 1", '"(1000.5, 2.999, 3)"', '"(-0.5, -2, -2.001)"')
    np.testing.assert_array_equal(read_points(path), [[1000, 2, 3], [-1, -2, -3]])


def test_points_keep_their_order_and_their_repeats(csv: Csv) -> None:
    path = csv("x0,y0,z0", "5,5,5", "1,1,1", "5,5,5")
    np.testing.assert_array_equal(read_points(path), [[5, 5, 5], [1, 1, 1], [5, 5, 5]])


def test_whole_numbers_are_exact_where_floats_are_not(csv: Csv) -> None:
    path = csv("x0,y0,z0", f"{2**48 - 1},{-(2**48)},0")
    np.testing.assert_array_equal(read_points(path), [[2**48 - 1, -(2**48), 0]])


# What is refused


def test_missing_file_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none.csv", "No such file")


def test_folder_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, "Is a directory")


def test_empty_file_is_refused(csv: Csv) -> None:
    assert_refused(csv(), "empty")


def test_header_alone_is_refused(csv: Csv) -> None:
    assert_refused(csv("x0,y0,z0"), "no points")


def test_no_coordinate_column_is_refused_with_the_columns_found(csv: Csv) -> None:
    assert_refused(csv("x0,y0,Tags", "1,2,3"), "'Coordinate 1', or x0, y0, z0", "found x0, y0, Tags")


@pytest.mark.parametrize("cell", ["", "a", "(1, 2)", "(1, b, 3)", "(1, 2, 3, 4)", "(1, , 3)"])
def test_cell_that_is_no_coordinate_is_refused_with_its_row(csv: Csv, cell: str) -> None:
    assert_refused(csv("Coordinate 1,Type", '"(1, 2, 3)",Point', f'"{cell}",Point'), "row 3: ")


@pytest.mark.parametrize("row", ["1,,3", "1,two,3", ",,", "1;2;3", " "])
def test_plain_row_that_is_no_coordinate_is_refused_with_its_row(csv: Csv, row: str) -> None:
    assert_refused(csv("x0,y0,z0", "1,2,3", row), "row 3: ")


def test_short_row_is_refused_with_its_row(csv: Csv) -> None:
    assert_refused(csv("x0,y0,z0", "1,2"), "row 2: 2 columns, too few")


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e30", "-1e30", "1" + 30 * "0", "9" * 5000])
def test_number_that_is_no_place_is_refused_with_its_row(csv: Csv, number: str) -> None:
    assert_refused(csv("Coordinate 1", '"(1, 2, 3)"', f'"(1, {number}, 3)"'), "row 3: ", number)


def test_text_that_is_not_utf_8_is_refused(csv: Csv) -> None:
    assert_refused(csv("Description,x0,y0,z0", "größer,1,2,3", encoding="latin-1"), "not UTF-8")
