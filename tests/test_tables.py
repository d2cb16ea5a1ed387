"""Tables of annotations, in all the ways that programs write them, and in those that are refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from curation.annotations.model import Annotations, Shape
from curation.annotations.tables import read_table
from curation.errors import UsageError
from curation.spec import Note

Csv = Callable[..., Path]

FORK = "Coordinate 1,Coordinate 2,Ellipsoid Dimensions,Tags,Description,Segment IDs,Parent ID,Type,ID"
FORK_2019 = (
    "Coordinate 1,Coordinate 2 (if applicable),Ellipsoid Dimensions (if applicable),Tags,Description,Segment IDs"
)
FORK_FIRST = "Coordinates,Tags,Description,Segment IDs"
UPSTREAM_POINTS = "id,index,description,type,point[0],point[1],point[2]"
UPSTREAM_LINES = "id,type,pointA[0],pointA[1],pointA[2],pointB[0],pointB[1],pointB[2],description"


@pytest.fixture
def csv(tmp_path: Path) -> Csv:
    """A file of the rows given."""

    def write(*rows: str, ends: str = "\n", encoding: str = "utf-8") -> Path:
        path = tmp_path / "points.csv"
        path.write_bytes("".join(row + ends for row in rows).encode(encoding))
        return path

    return write


def places(path: Path) -> list[list[float]]:
    """The first ends of a table that holds points only."""
    annotations = read_table(str(path))
    assert (annotations.shapes == Shape.POINT).all()
    np.testing.assert_array_equal(annotations.ends[:, 0], annotations.ends[:, 1])
    return annotations.ends[:, 0].tolist()


def assert_refused(path: Path, *parts: str) -> None:
    """Refused in one line that begins with the file's name and holds all of `parts`."""
    with pytest.raises(UsageError) as caught:
        read_table(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message


def assert_same(annotations: Annotations, shapes: list[Shape], ends: list[list[list[float]]]) -> None:
    np.testing.assert_array_equal(annotations.shapes, np.array(shapes, np.uint8), strict=True)
    np.testing.assert_array_equal(annotations.ends, np.array(ends, np.float64), strict=True)


# The Seung-lab fork's exports


def test_export_of_the_fork_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "annotations.csv"
    path.write_bytes(
        b"Coordinate 1,Coordinate 2,Ellipsoid Dimensions,Tags,Description,Segment IDs,Parent ID,Type,ID\r\n"
        b'"(58321, 41207, 2011)",,,"crack,fold","left ""edge"", bad","7205,7206",,Point,\r\n'
        b'"(58000, 41000, 2010)","(58512, 41512, 2012)",,,,,,Line,\r\n'
        b'"(58512, 41000, 2012)","(58000, 41512, -2010)",,,,,,AABB,\r\n'
        b'"(58000, 41000, 2010)",,64 \xc3\x97 64 \xc3\x97 2,,,,,Ellipsoid,\r\n'
        b'"(58000, 41000, 2010)",,,,,,,Line Strip*,a1b2c3\r\n'
        b'"(1, 2, 3)","(4, 5, 6)",,,,,a1b2c3,Line,\r\n'
        b'"(9, 9, 9)",,,,gr\xc3\xb6\xc3\x9fer,,,Spoke,d4\r\n'
        b'"(9, 9, 9)",,,,,,,Collection,e5'
    )
    annotations = read_table(str(path))
    assert_same(
        annotations,
        [Shape.POINT, Shape.LINE, Shape.BOX, Shape.ELLIPSOID, Shape.LINE],
        [
            [[58321, 41207, 2011], [58321, 41207, 2011]],
            [[58000, 41000, 2010], [58512, 41512, 2012]],
            # Corners come in any order: the lower first. Section 2012, which one of them was floored to, belongs to it.
            [[58000, 41000, -2010], [58512, 41512, 2012.5]],
            [[58000, 41000, 2010], [58000, 41000, 2010]],  # a centre
            [[1, 2, 3], [4, 5, 6]],  # a member of the line strip, whose own row is none
        ],
    )
    assert annotations.notes == {0: Note("", 'left "edge", bad', ("crack", "fold"))}
    assert annotations.resolution is None
    assert annotations.origin == str(path)


def test_tags_are_separated_by_commas_outside_quotes_and_by_line_ends(csv: Csv) -> None:
    rows = [f'"(1, 2, 3)",,,{tags},,,,Point,' for tags in ('"a,b"', '"a,""b,c"""', '"a\nb,c"', "")]
    assert read_table(str(csv(FORK, *rows))).notes == {
        0: Note("", "", ("a", "b")),
        1: Note("", "", ("a", "b,c")),
        2: Note("", "", ("a", "b", "c")),
    }


def test_a_lines_ends_keep_their_order(csv: Csv) -> None:
    annotations = read_table(str(csv(FORK, '"(9, 9, 9)","(1, 1, 1)",,,,,,Line,')))
    assert annotations.ends.tolist() == [[[9, 9, 9], [1, 1, 1]]]


@pytest.mark.parametrize(
    ("first", "second", "ends"),
    [
        ("(1, 2, 3)", "(4, 5, 6)", [[1, 2, 3], [4, 5, 6.5]]),
        ("(4, 2, 6)", "(1, 5, 3)", [[1, 2, 3], [4, 5, 6.5]]),
        ("(1, 2, -3)", "(4, 5, -3)", [[1, 2, -3], [4, 5, -2.5]]),
        ("(1.5, 2, 3.25)", "(4, 5.5, 6.75)", [[1.5, 2, 3.25], [4, 5.5, 6.75]]),  # written by hand, not floored
    ],
)
def test_a_boxs_corners_are_where_points_of_their_coordinates_are(
    csv: Csv, first: str, second: str, ends: list[list[float]]
) -> None:
    box, *points = read_table(
        str(csv(FORK, f'"{first}","{second}",,,,,,AABB,', *(f'"{corner}",,,,,,,Point,' for corner in (first, second))))
    ).ends
    assert box.tolist() == ends
    np.testing.assert_array_equal(box[0], np.minimum(*(point[0] for point in points)))
    np.testing.assert_array_equal(box[1, :2], np.maximum(*(point[0] for point in points))[:2])


def test_export_of_2019_tells_points_and_ellipsoids(csv: Csv) -> None:
    path = csv(FORK_2019, '"(1, 2, 3)",,,,,', '"(4, 5, 6)",,2 × 2 × 1,,round,')
    annotations = read_table(str(path))
    assert_same(annotations, [Shape.POINT, Shape.ELLIPSOID], [[[1, 2, 3]] * 2, [[4, 5, 6]] * 2])
    assert annotations.notes == {1: Note(description="round")}


@pytest.mark.parametrize("header", [FORK_2019, FORK])
def test_two_coordinates_without_a_type_are_refused(csv: Csv, header: str) -> None:
    row = '"(1, 2, 3)","(4, 5, 6)"' + "," * (header.count(",") - 1)
    assert_refused(csv(header, row), "row 2: ", "a line or a box?")


def test_first_export_tells_points_and_ellipsoids(csv: Csv) -> None:
    path = csv(FORK_FIRST, '"(1, -2, 3)",fold,,', '"(4, 5, 6)±(2, 2, 1)",,,')
    annotations = read_table(str(path))
    assert_same(annotations, [Shape.POINT, Shape.ELLIPSOID], [[[1, -2, 3]] * 2, [[4, 5, 6]] * 2])
    assert annotations.notes == {0: Note(tags=("fold",))}


def test_first_export_does_not_tell_lines_from_boxes(csv: Csv) -> None:
    assert_refused(csv(FORK_FIRST, '"(1, 2, 3)-(-4, 5, 6)",,,'), "row 2: ", "a line or a box?")


@pytest.mark.parametrize("type", ["Polygon", "line strips", "*"])
def test_unknown_type_is_refused_with_its_row(csv: Csv, type: str) -> None:
    assert_refused(csv(FORK, f'"(1, 2, 3)",,,,,,,{type},'), "row 2: ", type, "want Point, Line, AABB or Ellipsoid")


def test_line_without_its_other_end_is_refused(csv: Csv) -> None:
    assert_refused(csv(FORK, '"(1, 2, 3)",,,,,,,Line,'), "row 2: '' is not (x, y, z)")


def test_collections_alone_are_no_annotations(csv: Csv) -> None:
    assert_refused(csv(FORK, '"(1, 2, 3)",,,,,,,Collection,a'), "no points below the header")


# The export proposed upstream


def test_upstream_points(csv: Csv) -> None:
    path = csv(UPSTREAM_POINTS, "a1,0,left edge,point,58321.5,41207.25,2011.5", "b2,1,,point,0.5,-0.5,1e3")
    assert places(path) == [[58321.5, 41207.25, 2011.5], [0.5, -0.5, 1000]]
    assert read_table(str(path)).notes == {0: Note("a1", "left edge"), 1: Note("b2")}


def test_upstream_lines_and_boxes(csv: Csv) -> None:
    path = csv(UPSTREAM_LINES, "a,line,4,5,6,1.5,2,3,", "b,axis_aligned_bounding_box,4,5,6,1.5,2,9,")
    assert_same(read_table(str(path)), [Shape.LINE, Shape.BOX], [[[4, 5, 6], [1.5, 2, 3]], [[1.5, 2, 6], [4, 5, 9]]])


def test_upstream_ellipsoids(csv: Csv) -> None:
    path = csv("id,center[0],center[1],center[2],radii[0],radii[1],radii[2]", "a,1.5,2,3,9,9,9")
    assert_same(read_table(str(path)), [Shape.ELLIPSOID], [[[1.5, 2, 3]] * 2])


@pytest.mark.parametrize("row", ["a,0,fold, left,point,1,2,3", "a,0,,1,2,3"])
def test_upstream_row_that_is_shifted_is_refused(csv: Csv, row: str) -> None:
    cells = row.count(",") + 1
    assert_refused(csv(UPSTREAM_POINTS, row), f"row 2: {cells} cells under 7 columns", "comma not quoted?")


def test_upstream_lines_without_type_are_refused(csv: Csv) -> None:
    path = csv(UPSTREAM_LINES.replace("type", "kind"), "a,line,4,5,6,1,2,3,")
    assert_refused(path, "row 2: ", "a line or a box?")


def test_upstream_point_among_lines_is_refused(csv: Csv) -> None:
    assert_refused(csv(UPSTREAM_LINES, "a,point,4,5,6,1,2,3,"), "row 2: 'point' has no two ends")


def test_upstream_column_that_is_missing_is_named(csv: Csv) -> None:
    assert_refused(csv("point[0],point[1]", "1,2"), "no column point[2]")


# Plain tables


@pytest.mark.parametrize("header", ["x0,y0,z0", "x,y,z", "X,Y,Z", "X0,Y0,Z0", " x0 , y0 , z0"])
def test_plain_table(csv: Csv, header: str) -> None:
    assert places(csv(header, "1,2,3", "4.25, 5 ,-6")) == [[1, 2, 3], [4.25, 5, -6]]


@pytest.mark.parametrize("mark", ["\t", ";"])
def test_tabs_and_semicolons_separate_too(csv: Csv, mark: str) -> None:
    path = csv(mark.join(["x", "y", "z", "description"]), mark.join(["1", "2", "3", "a, b"]))
    assert places(path) == [[1, 2, 3]]
    assert read_table(str(path)).notes == {0: Note(description="a, b")}


def test_columns_in_any_order_among_others(csv: Csv) -> None:
    assert places(csv("z0,type,y0,x0", "3,crack,2,1")) == [[1, 2, 3]]
    assert places(csv("ID,Coordinate 1", 'a1,"(1, 2, 3)"')) == [[1, 2, 3]]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("header", ["Coordinate 1", '"Coordinate 1"'])
def test_bom_line_ends_and_quotes_make_no_difference(csv: Csv, header: str, encoding: str, ends: str) -> None:
    assert places(csv(header, '"(1, 2, 3)"', ends=ends, encoding=encoding)) == [[1, 2, 3]]


def test_last_row_needs_no_line_end(csv: Csv) -> None:
    path = csv("x0,y0,z0", "1,2,3")
    path.write_bytes(path.read_bytes().rstrip())
    assert places(path) == [[1, 2, 3]]


def test_blank_lines_hold_no_point(csv: Csv) -> None:
    assert places(csv("x0,y0,z0", "", "1,2,3", "")) == [[1, 2, 3]]


def test_fractions_are_kept(csv: Csv) -> None:
    path = csv("Coordinate 1", '"(1000.5, 2.999, 3)"', '"(-0.5, -2, -2.001)"')
    assert places(path) == [[1000.5, 2.999, 3], [-0.5, -2, -2.001]]


def test_points_keep_their_order_and_their_repeats(csv: Csv) -> None:
    assert places(csv("x0,y0,z0", "5,5,5", "1,1,1", "5,5,5")) == [[5, 5, 5], [1, 1, 1], [5, 5, 5]]


def test_the_farthest_whole_numbers_are_exact(csv: Csv) -> None:
    assert places(csv("x0,y0,z0", f"{2**48 - 1},{-(2**48)},0")) == [[2**48 - 1, -(2**48), 0]]


# What is refused


def test_header_of_several_lines_is_shown_in_one(csv: Csv) -> None:
    assert_refused(csv('"a\nb\x00",c', "1,2"), r"found 'a\nb\x00, c'")


@pytest.mark.parametrize("cell", ["", "a", "(1, 2)", "(1, b, 3)", "(1, 2, 3, 4)", "(1, , 3)"])
def test_cell_that_is_no_coordinate_is_refused_with_its_row(csv: Csv, cell: str) -> None:
    assert_refused(csv("Coordinate 1,Type", '"(1, 2, 3)",Point', f'"{cell}",Point'), "row 3: ")


@pytest.mark.parametrize("row", ["1,,3", "1,two,3", ",,", "1;2;3", " ", "1,1_0,3"])
def test_plain_row_that_is_no_coordinate_is_refused_with_its_row(csv: Csv, row: str) -> None:
    assert_refused(csv("x0,y0,z0", "1,2,3", row), "row 3: ")


def test_short_row_is_refused_with_its_row(csv: Csv) -> None:
    assert_refused(csv("x0,y0,z0", "1,2"), "row 2: 2 columns, too few for a coordinate")


def test_long_row_is_refused_with_its_row(csv: Csv) -> None:
    assert_refused(csv("note,x0,y0,z0", "fold, 5,1,2,3"), "row 2: 5 cells under 4 columns: is a comma not quoted?")


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e30", "-1e30", "1" + 30 * "0", "9" * 5000])
def test_number_that_is_no_place_is_refused_with_its_row(csv: Csv, number: str) -> None:
    assert_refused(csv("Coordinate 1", '"(1, 2, 3)"', f'"(1, {number}, 3)"'), "row 3: ", number)


def test_text_that_is_not_utf_8_is_refused(csv: Csv) -> None:
    assert_refused(csv("Description,x0,y0,z0", "größer,1,2,3", encoding="latin-1"), "not UTF-8 text")


def test_cell_beyond_all_measure_is_refused_with_its_row(csv: Csv) -> None:
    assert_refused(csv("x0,y0,z0", "1,2," + "3" * 200_000), "row 2: field larger than field limit")
