"""One entry for all kinds of source, told apart by what they hold; and inputs that nobody thought of."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from neuroglancer import CoordinateSpace
from neuroglancer.write_annotations import AnnotationWriter

from curation.annotations.read import read_annotations
from curation.errors import UsageError

STATE: dict[str, Any] = {
    "dimensions": {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]},
    "layers": [
        {
            "type": "annotation",
            "name": "pairs",
            "source": {
                "url": "local://annotations",
                "transform": {"matrix": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0]]},
            },
            "annotations": [
                {"type": "point", "point": [1, 2, 3], "id": "a", "tagIds": [1], "description": "b"},
                {"type": "line", "pointA": [1, 2, 3], "pointB": [4, 5, 6], "parentId": "c"},
            ],
            "annotationTags": [{"id": 1, "label": "crack"}],
        }
    ],
}
STATE["layers"][0]["source"]["transform"]["outputDimensions"] = STATE["dimensions"]
TABLE = b'Coordinate 1,Coordinate 2,Type,Tags\r\n"(1, 2, 3)",,Point,"a,b"\r\n"(1, 2, 3)","(4, 5, 6)",Line,'


def refusal(source: str, layer: str | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        read_annotations(source, layer)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def write_layer(folder: Path) -> None:
    writer = AnnotationWriter(CoordinateSpace(names=["x", "y", "z"], scales=[8, 8, 40], units="nm"), "point")
    writer.add_point([1, 2, 3])
    writer.write(folder)


def test_what_a_file_is_its_content_tells(tmp_path: Path) -> None:
    path = tmp_path / "points.txt"
    link = "https://neuroglancer-demo.appspot.com/#!" + json.dumps(STATE)
    indented = "\ufeff\n  " + json.dumps(STATE, indent=2)
    for content, known in [
        (TABLE, False),
        (indented.encode(), True),
        (link.encode(), True),
        (b"\n" + link.encode(), True),
    ]:
        path.write_bytes(content)
        annotations = read_annotations(str(path))
        assert annotations.shapes.tolist() == [0, 1]
        assert (annotations.resolution is not None) == known
        assert annotations.origin == str(path)


def test_link_given_as_text() -> None:
    assert len(read_annotations("https://neuroglancer-demo.appspot.com/#!" + json.dumps(STATE), "pairs").shapes) == 2


def test_layer_given_as_folder_or_cloud_path(tmp_path: Path) -> None:
    write_layer(tmp_path)
    for source in (str(tmp_path), f"file://{tmp_path}", f"precomputed://file://{tmp_path}"):
        assert read_annotations(source).ends.tolist() == [[[1, 2, 3], [1, 2, 3]]]


def test_layer_is_chosen_in_states_only(tmp_path: Path) -> None:
    write_layer(tmp_path / "layer")
    (tmp_path / "state").write_text(json.dumps(STATE))
    (tmp_path / "table").write_bytes(TABLE)
    assert len(read_annotations(str(tmp_path / "state"), "pairs").shapes) == 2
    assert "no layer 'other'" in refusal(str(tmp_path / "state"), "other")
    for name in ("table", "layer"):
        path = str(tmp_path / name)
        wanted = f"{path}: only a viewer state has layers to choose from: leave out 'pairs'"
        assert refusal(path, "pairs") == wanted


def test_missing_file(tmp_path: Path) -> None:
    assert refusal(str(tmp_path / "none.csv")) == f"{tmp_path}/none.csv: No such file or directory"


@pytest.mark.parametrize("source", ["", "a\0b", "x" * 5000, "\ud800"])
def test_name_of_no_file(source: str) -> None:
    refusal(source)


def test_folder_that_is_no_layer(tmp_path: Path) -> None:
    assert refusal(str(tmp_path)) == f"{tmp_path}: Is a directory, and no annotation layer: it has no info file"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not UTF-8 text"),
        (b"PK\x03\x04\x14\0\0\0\x08\0", "no coordinate column"),
        (b"\x1f\x8b\x08\0", "not UTF-8 text"),
        (TABLE.decode().encode("utf-16"), "not UTF-8 text"),
        (b"", "empty"),
        (b"<html>\n", "no coordinate column"),
    ],
)
def test_file_of_something_else(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "points.csv"
    path.write_bytes(content)
    assert refusal(str(path)).startswith(f"{path}: {fault}")


def test_what_tables_do_not_need_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(TABLE)
    code = (
        "import sys; from curation.annotations.read import read_annotations; read_annotations(sys.argv[1]); "
        "print({'cloudvolume', 'cloudfiles', 'torch', 'h5py', 'neuroglancer'} & set(sys.modules))"
    )
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", code, str(tmp_path / "table.csv")]
    assert subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout == "set()\n"


# Whatever is given is read, or refused in one line

several = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_or_refuse(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        annotations = read_annotations(str(path))
    except UsageError as error:
        assert str(error).startswith(f"{path}: ")
        assert len(str(error).splitlines()) == 1
    else:
        assert annotations.ends.shape == (len(annotations.shapes), 2, 3)
        assert set(annotations.notes) <= set(range(len(annotations.shapes)))


@several
@given(start=st.sampled_from([b"", b"x,y,z\n", b"Coordinates\n", b'{"layers":', b"#!", TABLE]), rest=st.binary())
def test_any_bytes(tmp_path: Path, start: bytes, rest: bytes) -> None:
    read_or_refuse(tmp_path / "any", start + rest)


@several
@given(st.sampled_from([b"x0,y0,z0", b"Coordinates,Tags", b"point[0],point[1],point[2],id", TABLE[:37]]), st.data())
def test_any_table(tmp_path: Path, header: bytes, data: st.DataObject) -> None:
    cells = st.sampled_from(
        ['"(1, 2, 3)"', '"(1,2,3)-(4,5,6)"', "1", "-2.5", "nan", "Line", "AABB", "", '"', "×", "\r"]
    )
    rows = data.draw(st.lists(st.lists(cells, max_size=5).map(",".join), max_size=4))
    read_or_refuse(tmp_path / "any", b"\n".join([header, *(row.encode() for row in rows)]))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["x", "point", "m"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "type", "id"]), inner, max_size=3)
    ),
    max_leaves=4,
)


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Every place in JSON, as its container and key."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else [])
    return [place for key, inner in items for place in [(value, key), *places_in(inner)]]


@settings(several, max_examples=400)
@given(data=st.data())
def test_any_state(tmp_path: Path, data: st.DataObject) -> None:
    state = json.loads(json.dumps(STATE))
    container, key = data.draw(st.sampled_from(places_in(state)))
    container[key] = data.draw(json_values)
    read_or_refuse(tmp_path / "any", json.dumps(state).encode())
