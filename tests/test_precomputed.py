"""Precomputed annotation layers, as Neuroglancer's own writer makes them, and as the format allows besides."""

import http.server
import json
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloudvolume.datasource.precomputed.sharding import ShardingSpecification
from neuroglancer import AnnotationPropertySpec, CoordinateSpace
from neuroglancer.write_annotations import AnnotationType, AnnotationWriter

from curation.annotations.model import SHAPES, Annotations, Shape
from curation.annotations.precomputed import read_annotation_layer
from curation.errors import UsageError, WorkError
from curation.spec import Note

EM = CoordinateSpace(names=["x", "y", "z"], scales=[8, 8, 40], units="nm")
POINTS = {7: (1, 2, 3.5), 3: (40.25, -5, 6), 2**63 + 1: (7, 8, 9)}
IN_ORDER = [[40.25, -5, 6], [1, 2, 3.5], [7, 8, 9]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A layer of three points, written by Neuroglancer's package."""
    writer = AnnotationWriter(EM, "point")
    for id, place in POINTS.items():
        writer.add_point(place, id=id)
    writer.write(tmp_path / "layer")
    return tmp_path / "layer"


def change(folder: Path, **values: Any) -> None:
    """Rewrite parts of a layer's info; None takes one out."""
    info = {**json.loads((folder / "info").read_text()), **values}
    (folder / "info").write_text(json.dumps({key: value for key, value in info.items() if value is not None}))


def cell(points: dict[int, tuple[float, ...]]) -> bytes:
    """What a cell of the spatial index holds."""
    records = b"".join(struct.pack("<3f", *place) for place in points.values())
    return struct.pack("<Q", len(points)) + records + struct.pack(f"<{len(points)}Q", *points)


def assert_points(annotations: Annotations) -> None:
    np.testing.assert_array_equal(annotations.shapes, np.zeros(3, np.uint8), strict=True)
    np.testing.assert_array_equal(annotations.ends, np.repeat(np.array(IN_ORDER), 2, 0).reshape(3, 2, 3), strict=True)
    assert annotations.resolution == (8, 8, 40)
    assert annotations.notes == {0: Note("3"), 1: Note("7"), 2: Note(str(2**63 + 1))}


def refusal(path: Path | str) -> str:
    with pytest.raises(UsageError) as caught:
        read_annotation_layer(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    return message.removeprefix(f"{path}: ")


# What is read


@pytest.mark.parametrize(
    ("kind", "shape", "ends"),
    [
        ("line", Shape.LINE, [[1.5, 2, 30], [4, 5, 6]]),
        ("axis_aligned_bounding_box", Shape.BOX, [[1.5, 2, 6], [4, 5, 30]]),
        ("ellipsoid", Shape.ELLIPSOID, [[1.5, 2, 30], [1.5, 2, 30]]),
    ],
)
def test_layers_of_two_places(tmp_path: Path, kind: Any, shape: Shape, ends: list[list[float]]) -> None:
    writer = AnnotationWriter(EM, kind)
    getattr(writer, f"add_{kind}")([1.5, 2, 30], [4, 5, 6], id=12)
    writer.write(tmp_path)
    annotations = read_annotation_layer(str(tmp_path))
    assert annotations.shapes.tolist() == [shape]
    assert annotations.ends.tolist() == [ends]
    assert annotations.notes == {0: Note("12")}
    assert annotations.origin == str(tmp_path)


@pytest.mark.parametrize("spelled", [str.lower, str.upper])
@pytest.mark.parametrize("kind", ["point", "line", "axis_aligned_bounding_box", "ellipsoid"])
def test_names_of_kinds_are_read_in_any_case_as_the_viewer_reads_them(
    tmp_path: Path, kind: AnnotationType, spelled: Callable[[str], str]
) -> None:
    writer = AnnotationWriter(EM, kind)
    getattr(writer, f"add_{kind}")(*[[1, 2, 3]] * (1 if kind == "point" else 2), id=12)
    writer.write(tmp_path)
    entry = (tmp_path / "by_id" / "12").read_bytes()
    sharding = shard(tmp_path, "by_id", {12: entry}, "gzip")
    sharding |= {key: spelled(sharding[key]) for key in ("hash", "minishard_index_encoding", "data_encoding")}
    change(tmp_path, annotation_type=spelled(kind), spatial=[], by_id={"key": "by_id", "sharding": sharding})
    annotations = read_annotation_layer(str(tmp_path))
    assert annotations.shapes.tolist() == [SHAPES[kind]]
    assert annotations.ends.tolist() == [[[1, 2, 3], [1, 2, 3]]]


@pytest.mark.parametrize("name", ["hash", "minishard_index_encoding", "data_encoding"])
def test_name_that_the_format_does_not_have_is_refused(folder: Path, name: str) -> None:
    sharding = {**shard(folder, "by_id", {1: b"123456789012"}, "raw"), name: "zip"}
    change(folder, spatial=[], by_id={"key": "by_id", "sharding": sharding})
    message = refusal(folder)
    assert message.startswith("info: not an annotation layer's: ")
    assert name in message


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}", "precomputed://file://{}/"])
def test_points_by_every_form_of_a_path(folder: Path, form: str) -> None:
    assert_points(read_annotation_layer(form.format(folder)))


def test_path_from_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert_points(read_annotation_layer("layer"))


@pytest.mark.parametrize("index", ["spatial", "by_id"])
def test_properties_and_relationships_are_passed_over(tmp_path: Path, index: str) -> None:
    types = ("uint8", "int16", "float32", "rgb", "rgba", "uint8")
    properties = [AnnotationPropertySpec(id=f"p{number}", type=type) for number, type in enumerate(types)]
    writer = AnnotationWriter(EM, "line", relationships=["segments"], properties=properties)
    writer.add_line([1, 2, 3], [4, 5, 6], id=2, segments=[8, 9], p0=255, p1=-1, p2=1e30, p3=(255, 1, 2))
    writer.add_line([7, 8, 9], [0, 1, 2], id=1, p5=7)
    writer.write(tmp_path)
    change(tmp_path, **{"spatial": []} if index == "by_id" else {"by_id": None})
    assert read_annotation_layer(str(tmp_path)).ends.tolist() == [[[7, 8, 9], [0, 1, 2]], [[1, 2, 3], [4, 5, 6]]]


def test_dimensions_in_another_order_number_and_unit(tmp_path: Path) -> None:
    space = CoordinateSpace(names=["t", "z", "y", "x"], scales=[1, 4e-8, 8, 0.008], units=["s", "m", "nm", "um"])
    writer = AnnotationWriter(space, "line")
    writer.add_line([0, 3, 2, 1], [0, 6, 5, 4])
    writer.write(tmp_path)
    annotations = read_annotation_layer(str(tmp_path))
    assert annotations.ends.tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert annotations.resolution == (8, 8, 40)


def test_levels_and_cells_are_gathered_each_annotation_once(folder: Path) -> None:
    ids = list(POINTS)
    (folder / "spatial0" / "0_0_0").write_bytes(cell({ids[0]: POINTS[ids[0]]}))
    (folder / "spatial1").mkdir()
    rest = {id: POINTS[id] for id in ids[1:]}
    (folder / "spatial1" / "0_0_0").write_bytes(cell(rest))
    (folder / "spatial1" / "1_0_2").write_bytes(cell({ids[1]: POINTS[ids[1]]}))  # one that reaches into two cells
    (folder / "spatial1" / "1_0_1").write_bytes(cell({}))
    level = {"chunk_size": [1, 1, 1], "limit": 9}
    spatial = [
        {"key": "spatial0", "grid_shape": [1, 1, 1], **level},
        {"key": "spatial1", "grid_shape": [2, 1, 3], **level},
    ]
    change(folder, spatial=spatial)
    assert_points(read_annotation_layer(str(folder)))


def shard(folder: Path, key: str, entries: dict[int, bytes], encoding: str) -> dict[str, Any]:
    """Put an index's entries into shards, by CloudVolume; gives the index's `sharding`."""
    spec = ShardingSpecification("neuroglancer_uint64_sharded_v1", 0, "murmurhash3_x86_128", 1, 5, encoding, encoding)
    shutil.rmtree(folder / key)
    (folder / key).mkdir()
    for name, content in spec.synthesize_shards(entries).items():
        (folder / key / name).write_bytes(content)
    return {key: value if isinstance(value, str) else int(value) for key, value in spec.to_dict().items()}


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_sharded_spatial_index(folder: Path, encoding: str) -> None:
    cells = {number: cell({id: place}) for number, (id, place) in enumerate(POINTS.items())}
    level = {"key": "spatial0", "grid_shape": [4, 1, 1], "chunk_size": [9, 9, 9], "limit": 1}
    change(folder, spatial=[{**level, "sharding": shard(folder, "spatial0", cells, encoding)}], by_id=None)
    assert_points(read_annotation_layer(str(folder)))


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_sharded_index_by_id(folder: Path, encoding: str) -> None:
    entries = {id: struct.pack("<3f", *place) for id, place in POINTS.items()}
    sharding = shard(folder, "by_id", entries, encoding)
    change(folder, spatial=[], by_id={"key": "by_id", "sharding": sharding})
    assert_points(read_annotation_layer(str(folder)))


def test_spatial_index_too_large_to_walk_gives_way_to_that_by_id(folder: Path) -> None:
    huge = [{"key": "spatial0", "grid_shape": [10**6, 10**6, 10**6]}]
    change(folder, spatial=huge)
    assert_points(read_annotation_layer(str(folder)))
    change(folder, by_id=None)
    assert refusal(folder) == f"a spatial index of {10**18} cells, too many to read, and no index by id"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    """The address of a server that holds the layer."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder.parent))) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_layer_on_a_server(server: str, folder: Path) -> None:
    change(folder, spatial=[{"key": "spatial0", "grid_shape": [2, 1, 1]}])  # cells that are not there are empty
    assert_points(read_annotation_layer(f"precomputed://{server}/layer"))


def test_nothing_on_a_server(server: str) -> None:
    assert refusal(f"{server}/none") == "nothing there, and no annotation layer: it has no info file"


# What is refused


def test_folder_without_info_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "Is a directory, and no annotation layer: it has no info file"


@pytest.mark.parametrize(
    "path", ["graphene://https://example.org/a", "nonsense://a", "s4://bucket/a", "precomputed://", "gs://"]
)
def test_path_of_no_store_is_refused(path: str) -> None:
    assert refusal(path) == "no path of a layer: want one such as precomputed://gs://bucket/layer"


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"@type": "neuroglancer_multiscale_volume"}, "info: @type is 'neuroglancer_multiscale_volume', not an"),
        ({"@type": None}, "info: not an annotation layer's: "),
        ({"annotation_type": "polyline"}, "a layer of polylines: want one of point, line, axis_aligned_bounding_box"),
        ({"dimensions": {"x": [1, "m"], "y": [1, "m"]}}, "info: a grid_shape of another rank than the dimensions"),
        ({"dimensions": {"a": [1, "m"], "y": [1, "m"], "z": [1, "m"]}}, "dimensions: want x, y, z; found 'a', "),
        ({"dimensions": {"x": [1, ""], "y": [1, "m"], "z": [1, "m"]}}, "'' is no unit of length"),
        ({"dimensions": []}, "info: not an annotation layer's: "),
        ({"properties": [{"id": "p", "type": "text"}]}, "info: a property of type 'text', which the format does not"),
        (
            {"properties": [{"id": "p", "type": "uint8"}]},
            "spatial0/0_0_0: damaged: 68 bytes, but 3 annotations take 80",
        ),
        ({"spatial": [{"key": "spatial0", "grid_shape": [0, 1, 1]}]}, "info: not an annotation layer's: "),
        ({"spatial": [], "by_id": None}, "the layer holds no annotations"),
        ({"spatial": [{"key": "none", "grid_shape": [1, 1, 1]}]}, "the layer holds no annotations"),
    ],
)
def test_info_that_cannot_be_followed_is_refused(folder: Path, values: dict[str, Any], fault: str) -> None:
    change(folder, **values)
    assert refusal(folder).startswith(fault)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\x00", b"[" * 100_000])
def test_info_that_is_no_json_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / "info").write_bytes(content)
    assert refusal(folder).startswith("info: not an annotation layer's: ")


@pytest.mark.parametrize("content", [b"abc", b"\xff" * 64, cell({1: (1, 2, 3)})[:-1], cell({1: (1, 2, 3)}) + b"0"])
def test_damaged_cell_is_refused(folder: Path, content: bytes) -> None:
    (folder / "spatial0" / "0_0_0").write_bytes(content)
    assert refusal(folder).startswith("spatial0/0_0_0: damaged: ")


@pytest.mark.parametrize("name", ["7", "seven"])
def test_damaged_index_by_id_is_refused(folder: Path, name: str) -> None:
    change(folder, spatial=[])
    (folder / "by_id" / name).write_bytes(b"12345678")
    assert refusal(folder) == f"by_id/{name}: damaged, or not an annotation"


def test_damaged_shard_is_refused(folder: Path) -> None:
    sharding = shard(folder, "by_id", {1: b"123456789012"}, "gzip")
    change(folder, spatial=[], by_id={"key": "by_id", "sharding": sharding})
    (path,) = (folder / "by_id").iterdir()
    path.write_bytes(path.read_bytes()[:-10])
    assert refusal(folder).startswith(f"by_id/{path.name}: damaged: ")


def test_coordinate_that_is_nowhere_is_refused_by_its_id(folder: Path) -> None:
    (folder / "spatial0" / "0_0_0").write_bytes(cell({5: (1, 2, 3), 6: (1, float("nan"), 3)}))
    message = refusal(folder)
    assert message.startswith("id 6: ")
    assert message.endswith(" is not finite, or beyond any volume")


def test_object_that_came_back_empty_is_no_answer(folder: Path) -> None:
    (folder / "spatial0" / "0_0_0").write_bytes(b"")
    with pytest.raises(WorkError, match=r"^.*layer: DamagedError: .*came back empty"):
        read_annotation_layer(str(folder))


def test_server_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.stores.CHECK_FOR_S", 0)
    with pytest.raises(WorkError, match=r"^http://127\.0\.0\.1:9/layer: .*Connection"):
        read_annotation_layer("http://127.0.0.1:9/layer")
