"""Faults 1 to 20 of docs/faults.md: points that cannot be read, and specs that cannot be cut.

Each ends with exit code 2 and one line.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from commands import Command
from small_jobs import (
    DELETED,
    NAME,
    Json,
    Refused,
    changed,
    dataset_arguments,
    field_layer,
    image_layer,
    made_folder,
    pair,
    put_json,
    spec_arguments,
    spec_of,
)

HEADER = "Coordinate 1,Type\n"


@pytest.fixture
def template(tmp_path: Path) -> Json:
    """Written to template.json: a spec of max_mip 4 without pairs."""
    spec = spec_of("file:///image", pairs=[])
    put_json(tmp_path / "template.json", spec)
    return spec


@pytest.fixture
def points(tmp_path: Path, template: Json) -> Callable[[str], None]:
    """Writes points.csv."""

    def write(text: str) -> None:
        (tmp_path / "points.csv").write_text(text, newline="")

    return write


def pairs_in(folder: Path) -> list[list[list[int]]]:
    """The starts in spec.json, each pair a source and a target of x, y, z."""
    pairs = json.loads((folder / "spec.json").read_text())["pairs"]
    return [[list(pair[role].values()) for role in ("src", "tgt")] for pair in pairs]


@pytest.fixture
def no_spec(tmp_path: Path, refused: Refused) -> Callable[..., str]:
    """create_spec.py must refuse, and write nothing; gives its line."""

    def run(*more: object) -> str:
        line = refused("create_spec.py", *spec_arguments(tmp_path, *more))
        assert {path.name for path in tmp_path.iterdir()} <= {"template.json", "points.csv"}
        return line

    return run


@pytest.fixture
def good(tmp_path: Path, command: Command) -> Callable[..., str]:
    """create_spec.py must succeed; gives what it says."""

    def run(*more: object) -> str:
        done = command("create_spec.py", *spec_arguments(tmp_path, *more))
        assert (done.code, done.stderr) == (0, "")
        return done.stdout

    return run


# create_spec


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file or directory"),
        ("", "empty: want a header, then one point a row"),
        (HEADER, "no points below the header"),
    ],
)
def test_01_csv_missing_or_empty(
    text: str | None, said: str, points: Callable[[str], None], no_spec: Callable[..., str]
) -> None:
    if text is not None:
        points(text)
    line = no_spec()
    assert "points.csv: " in line
    assert said in line


def test_02_no_coordinate_column_lists_the_columns_found(
    points: Callable[[str], None], no_spec: Callable[..., str]
) -> None:
    points("x0,y0,depth\n1,2,3\n")
    assert "want 'Coordinate 1', or x0, y0, z0; found x0, y0, depth" in no_spec()


def test_03_fractions_are_floored(points: Callable[[str], None], good: Callable[..., str], tmp_path: Path) -> None:
    points(HEADER + '"(1000.5, 2, 3.99)",Point\n')
    good()
    assert pairs_in(tmp_path) == [[[992, 0, 3], [992, 0, 2]]]


@pytest.mark.parametrize("cell", ["", "(1, 2, )", "(1, two, 3)", "(1, 2)"])
def test_04_blank_or_non_numeric_coordinate_is_named_by_its_row(
    cell: str, points: Callable[[str], None], no_spec: Callable[..., str]
) -> None:
    points(HEADER + f'"(1, 2, 3)",Point\n"{cell}",Point\n')
    assert "row 3" in no_spec()


def test_05_bom_crlf_and_quotes(points: Callable[[str], None], good: Callable[..., str], tmp_path: Path) -> None:
    points('\ufeffTags,"Coordinate 1"\r\n"a ""crack"", b","(16, 32, 5)"\r\n')
    good()
    assert pairs_in(tmp_path) == [[[16, 32, 5], [16, 32, 4]]]


@pytest.mark.parametrize(
    ("offsets", "said"),
    [
        (["0"], "offset 0 pairs a section with itself"),
        (["-1", "0"], "offset 0 pairs a section with itself"),
        ([], "no offsets"),
    ],
)
def test_06_offset_0_or_none(
    offsets: list[str], said: str, points: Callable[[str], None], no_spec: Callable[..., str]
) -> None:
    points("x0,y0,z0\n1,2,3\n")
    assert said in no_spec("--offsets", *offsets)


def test_07_negative_coordinates_are_snapped_down(
    points: Callable[[str], None], good: Callable[..., str], tmp_path: Path
) -> None:
    points("x0,y0,z0\n-1,-16.5,-2\n")
    good()
    assert pairs_in(tmp_path) == [[[-16, -32, -2], [-16, -32, -3]]]


def test_08_duplicate_points_are_said_and_not_doubled(
    points: Callable[[str], None], good: Callable[..., str], tmp_path: Path
) -> None:
    points("x0,y0,z0\n1,2,3\n16,2,3\n5,6,3\n")  # the third has the box of the first
    assert "2 of them new from 3 points; 1 of these add nothing new" in good()
    assert pairs_in(tmp_path) == [[[0, 0, 3], [0, 0, 2]], [[16, 0, 3], [16, 0, 2]]]


@pytest.mark.parametrize("number", ["nan", "inf", "-Infinity", "1e30", "1" + "0" * 30])
def test_09_nan_infinity_and_huge_numbers(
    number: str, points: Callable[[str], None], no_spec: Callable[..., str]
) -> None:
    points(f"x0,y0,z0\n1,{number},3\n")
    line = no_spec()
    assert "row 2" in line
    assert repr(number) in line


def test_10_a_million_rows_take_seconds(
    points: Callable[[str], None], good: Callable[..., str], tmp_path: Path
) -> None:
    rows = "\n".join(f'"({16 * number}, 32, 5)",Point' for number in range(1_000_000))
    points(HEADER + rows)
    began = time.monotonic()
    assert "1000000 of them new from 1000000 points" in good()
    assert time.monotonic() - began < 40  # of a busy machine; 6 s alone
    (tmp_path / "spec.json").unlink()


# The spec


@pytest.fixture
def spec(tmp_path: Path) -> Json:
    """Of a volume that is there, with a field."""
    return spec_of(image_layer(tmp_path), field_layer(tmp_path))


@pytest.fixture
def refusal(tmp_path: Path, refused: Refused) -> Callable[..., str]:
    """make_dataset.py must refuse a spec, given as its value or its text, and write nothing; gives its line."""

    def run(spec: Json | str) -> str:
        (tmp_path / "spec.json").write_text(spec if isinstance(spec, str) else json.dumps(spec))
        line = refused("make_dataset.py", *dataset_arguments(tmp_path / "spec.json", made_folder(tmp_path / "out")))
        assert list((tmp_path / "out").iterdir()) == []
        return line

    return run


Refusal = Callable[[Json | str], str]


def test_11_malformed_json_is_named_by_its_line(spec: Json, refusal: Refusal) -> None:
    line = refusal(json.dumps(spec, indent=1).replace('"max_mip": 4,', '"max_mip": 4 4,'))
    number = json.dumps(spec, indent=1).splitlines().index(' "max_mip": 4,') + 1
    assert "spec.json: not JSON" in line
    assert f"line {number}" in line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({("x_sice",): 3}, ["unknown key 'x_sice'", "did you mean 'x_size'?"]),
        ({("field", "reference"): {"path": "file:///f"}}, ["missing required field `src_mip`", "$.field.reference"]),
        ({("image", "src_mip"): DELETED}, ["missing required field `src_mip`", "$.image"]),
        ({("pairs", 1, "src", "w_start"): 0}, ["$.pairs[1].src: unknown key 'w_start': did you mean '"]),
    ],
)
def test_12_unknown_or_missing_key_is_named_by_its_path(
    change: Mapping[Any, Any], said: list[str], spec: Json, refusal: Refusal
) -> None:
    line = refusal(changed(spec, change))
    assert all(words in line for words in said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({("x_size",): 0}, "$.x_size"),
        ({("y_size",): -3}, "$.y_size"),
        ({("max_mip",): -1}, "$.max_mip"),
        ({("image", "src_mip"): -1}, "$.image.src_mip"),
        ({("dst_mip",): 5}, "dst_mip 5 is above max_mip 4"),
        ({("dst_mip",): 3}, "field.src_mip 2 is finer than dst_mip 3"),
    ],
)
def test_13_sizes_and_levels_that_cannot_be(change: Mapping[Any, Any], said: str, spec: Json, refusal: Refusal) -> None:
    assert said in refusal(changed(spec, change))


def test_13_a_level_whose_pixels_no_shifted_box_lines_up_with(spec: Json, refusal: Refusal) -> None:
    # By its field a box is shifted by multiples of 2^2 voxels: between the pixels of MIP 3.
    reference = {"path": spec["image"]["path"], "src_mip": 3, "dst_mip": 3, "x_size": 4, "y_size": 4}
    line = refusal(changed(spec, {("image", "reference"): reference}))
    assert "image.reference.src_mip 3, wanted at MIP 3" in line


@pytest.mark.parametrize("wrong", [7, "pair", {"src": {"x_start": 0, "y_start": 0}, "tgt": {}}, [1], None])
def test_14_a_pair_of_the_wrong_type_is_named_by_its_index(wrong: object, spec: Json, refusal: Refusal) -> None:
    assert "$.pairs[1]" in refusal(changed(spec, {("pairs", 1): wrong}))


def test_14_a_pair_without_z_start_is_named_by_its_index(spec: Json, refusal: Refusal) -> None:
    line = refusal(changed(spec, {("pairs", 2, "tgt", "z_start"): DELETED}))
    assert "missing required field `z_start`" in line
    assert "$.pairs[2].tgt" in line


def test_15_a_box_paired_with_itself_is_named_by_its_index(spec: Json, refusal: Refusal) -> None:
    line = refusal(changed(spec, {("pairs", 1): pair(-16, 32, 3, 3)}))
    assert "pairs[1]: source and target are the same box [-16, 32, 3]" in line


def test_16_no_pairs(spec: Json, refusal: Refusal) -> None:
    assert "no pairs" in refusal(changed(spec, {("pairs",): []}))


@pytest.mark.parametrize(
    ("outside", "role"),
    [(pair(128, 0, 3), "src"), (pair(0, -16, 3), "src"), (pair(0, 0, 6), "src"), (pair(0, 0, 0), "tgt")],
)
def test_17_a_box_wholly_outside_is_named_with_the_bounds(
    outside: Json, role: str, spec: Json, refusal: Refusal
) -> None:
    line = refusal(changed(spec, {("pairs", 2): outside, ("field",): DELETED}))
    assert f"pairs[2].{role}, section {outside[role]['z_start']}: box wholly outside" in line
    assert "spans x 0..128, y 0..128, z 0..6" in line


def test_18_a_mip_that_is_not_there_lists_those_there_are(spec: Json, refusal: Refusal) -> None:
    assert "has no MIP 3: it has 0, 1, 2" in refusal(changed(spec, {("field", "src_mip"): 3}))


def test_19_a_start_off_the_grid_is_named_by_its_index(spec: Json, refusal: Refusal) -> None:
    line = refusal(changed(spec, {("pairs", 1, "tgt", "y_start"): 8}))
    assert "pairs[1].tgt.y_start: 8 is not a multiple of 2^max_mip = 16" in line


@pytest.mark.parametrize("path", ["file:///nowhere/at/all", "nonsense", "EMPTY"])
def test_20_a_path_that_is_no_volume(path: str, spec: Json, refusal: Refusal, tmp_path: Path) -> None:
    if path == "EMPTY":
        path = f"file://{made_folder(tmp_path / 'empty')}"
    line = refusal(changed(spec, {("image", "path"): path}))
    assert path in line


def test_the_spec_that_these_faults_are_put_in_is_good(spec: Json, command: Command, tmp_path: Path) -> None:
    put_json(tmp_path / "spec.json", spec)
    done = command("make_dataset.py", *dataset_arguments(tmp_path / "spec.json", made_folder(tmp_path / "out")))
    assert done.code == 0, done.stderr
    assert (tmp_path / "out" / NAME).exists()
