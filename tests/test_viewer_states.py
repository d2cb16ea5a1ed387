"""Viewer states and links: those that Neuroglancer's own package makes, those of the past, and those refused."""

import json
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

import msgspec
import neuroglancer
import numpy as np
import pytest
from small_jobs import Json, image_layer, line, point, spec_of

from curation.annotations.model import Annotations, Shape
from curation.annotations.viewer_states import (
    PICTURE,
    command_to_serve,
    commands_to_serve,
    read_link,
    read_state,
    state_file,
)
from curation.errors import UsageError
from curation.spec import Note, Spec, parse_spec

EM = {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]}
PAGE = "https://neuroglancer-demo.appspot.com/#!"


def layer(*annotations: Any, name: str = "pairs", **more: Any) -> Json:
    return {"type": "annotation", "name": name, "annotations": list(annotations), **more}


def state(*layers: Any, **more: Any) -> Json:
    return {"dimensions": EM, "layers": list(layers), **more}


def source(**transform: Any) -> Json:
    return {"url": "local://annotations", "transform": transform}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


def read(saved: Path, content: Any, wanted: str | None = None) -> Annotations:
    """What is read from a file that holds `content`, as text or as JSON."""
    saved.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_state(str(saved), wanted)


def refusal(saved: Path, content: Any, wanted: str | None = None) -> str:
    """The one line that refuses `content`, without the file's name."""
    with pytest.raises(UsageError) as caught:
        read(saved, content, wanted)
    message = str(caught.value)
    assert message.startswith(f"{saved}: ")
    assert len(message.splitlines()) == 1
    return message.removeprefix(f"{saved}: ")


def made_by_neuroglancer() -> neuroglancer.ViewerState:
    """A state with all types of annotation, as the `neuroglancer` package makes it."""
    space = neuroglancer.CoordinateSpace(names=["x", "y", "z"], units="nm", scales=[8, 8, 40])
    made = neuroglancer.ViewerState(dimensions=neuroglancer.CoordinateSpace(names=["x", "y", "z"], units="nm"))
    made.layers["em"] = neuroglancer.ImageLayer(source="precomputed://gs://bucket/em")
    made.layers["pairs & more"] = neuroglancer.LocalAnnotationLayer(
        dimensions=space,
        annotations=[
            neuroglancer.PointAnnotation(id="a", point=[58321.5, 41207.25, 2011.5], description='it\'s, "x"_&%'),
            neuroglancer.LineAnnotation(id="b", point_a=[4.5, 5.5, 6.5], point_b=[1.5, 2.5, 3.5]),
            neuroglancer.AxisAlignedBoundingBoxAnnotation(id="c", point_a=[4, 5, 6], point_b=[1, 2, 30]),
            neuroglancer.EllipsoidAnnotation(id="d", center=[7, 8, 9], radii=[1, 1, 1]),
        ],
    )
    return made


def assert_made_by_neuroglancer(annotations: Annotations) -> None:
    np.testing.assert_array_equal(annotations.shapes, np.array([0, 1, 2, 3], np.uint8), strict=True)
    np.testing.assert_array_equal(
        annotations.ends,
        np.array(
            [
                [[58321.5, 41207.25, 2011.5], [58321.5, 41207.25, 2011.5]],
                [[4.5, 5.5, 6.5], [1.5, 2.5, 3.5]],
                [[1, 2, 6], [4, 5, 30]],
                [[7, 8, 9], [7, 8, 9]],
            ]
        ),
        strict=True,
    )
    assert annotations.resolution == (8.0, 8.0, 40.0)
    assert annotations.notes == {0: Note("a", 'it\'s, "x"_&%'), 1: Note("b"), 2: Note("c"), 3: Note("d")}


# What is read


def test_state_that_neuroglancer_made(saved: Path) -> None:
    annotations = read(saved, neuroglancer.to_json_dump(made_by_neuroglancer(), indent=2))
    assert_made_by_neuroglancer(annotations)
    assert annotations.origin == str(saved)


def test_types_are_read_in_any_case_as_the_viewer_reads_them(saved: Path) -> None:
    made = made_by_neuroglancer().to_json()
    (*_, pairs) = made["layers"]
    for annotation in pairs["annotations"]:
        annotation["type"] = annotation["type"].upper()
    assert_made_by_neuroglancer(read(saved, made))
    picture = {"type": "AXIS_ALIGNED_BOUNDING_BOX", "id": PICTURE + "0", "pointA": [0, 0, 0], "pointB": [9, 9, 9]}
    strip = {"type": "Line_Strip", "id": "s"}
    assert read(saved, state(layer(picture, strip, point(1, 2, 3)))).shapes.tolist() == [Shape.POINT]


def test_link_that_neuroglancer_made() -> None:
    annotations = read_link(neuroglancer.to_url(made_by_neuroglancer()))
    assert_made_by_neuroglancer(annotations)
    assert annotations.origin == "https://neuroglancer-demo.appspot.com"


@pytest.mark.parametrize("mark", ["#!", "#!+"])
def test_link_percent_encoded_through_and_through(mark: str) -> None:
    made = neuroglancer.to_json_dump(made_by_neuroglancer())
    assert_made_by_neuroglancer(read_link(f"http://localhost:8080/{mark}{quote(made, safe='')}"))


def test_link_in_a_file(saved: Path) -> None:
    assert_made_by_neuroglancer(read(saved, neuroglancer.to_url(made_by_neuroglancer()) + "\n"))


def test_bom_makes_no_difference(saved: Path) -> None:
    assert len(read(saved, "\ufeff" + json.dumps(state(layer(point(1, 2, 3))))).shapes) == 1


OLD_STATES = [
    "{'layers':{'a':{'type':'annotation'_'points':[[1_2_3]_[4_5_6]]}}_'navigation':{'zoomFactor':8}}",
    "{'layers':{'a_b':{'type':'annotation'&'points':[[1&2&3]&[4&5&6]]}}}",
    "{'layers':{'say \"a\"_b':{'type':'annotation','points':[[1,2,3],[4,5,6]]}}}",
    '{"layers":{"it\'s_":{"type":"annotation"_"points":[[1_2_3]_[4_5_6]]}}}',
]


@pytest.mark.parametrize("text", OLD_STATES)
def test_old_link_with_url_safe_json(text: str) -> None:
    assert read_link(PAGE + quote(text)).ends[:, 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert read_link(PAGE + text).ends[:, 0].tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("text", OLD_STATES)
def test_url_safe_json_is_what_neuroglancer_takes_it_for(text: str, saved: Path) -> None:
    (name,) = json.loads(neuroglancer.url_state.url_safe_to_json(text))["layers"]
    assert f"the layers are: {name!r} (annotation)" in refusal(saved, text, "other")


def test_url_safe_string_with_its_own_quote() -> None:
    assert read_link(PAGE + r"{'layers':{'it\'s':{'type':'annotation'_'points':[[1_2_3]]}}}", "it's").ends.size == 6


def test_layers_by_name(saved: Path) -> None:
    content = {"layers": {"em": {"type": "image"}, "pairs": {"type": "annotation", "annotations": [point(1, 2, 3)]}}}
    assert read(saved, content, "pairs").ends[0, 0].tolist() == [1, 2, 3]


def test_legacy_points_and_point_layers(saved: Path) -> None:
    for kind in ("annotation", "pointAnnotation"):
        content = state({"type": kind, "name": "old", "points": [[1, 2, 3], [4.5, 5, 6]]})
        assert read(saved, content).ends[:, 1].tolist() == [[1, 2, 3], [4.5, 5, 6]]


def test_members_of_the_forks_collections_count_once(saved: Path) -> None:
    strip = {"type": "line_strip", "id": "s", "source": [1, 2, 3], "entries": ["a", "b"], "childrenVisible": True}
    content = state(
        layer(
            strip,
            line([1, 2, 3], [4, 5, 6], id="a", parentId="s"),
            line([4, 5, 6], [7, 8, 9], id="b", parentId="s"),
            {"type": "spoke", "id": "t", "source": [0, 0, 0], "entries": []},
            {"type": "collection", "id": "u", "source": [0, 0, 0], "entries": []},
            {"type": "polyline", "id": "v", "points": [[1, 2, 3], [4, 5, 6]]},
            point(7, 8, 9, parentId="v"),
        )
    )
    annotations = read(saved, content)
    assert annotations.shapes.tolist() == [Shape.LINE, Shape.LINE, Shape.POINT]
    assert annotations.notes == {0: Note("a"), 1: Note("b")}


def test_tags_of_the_fork(saved: Path) -> None:
    tags = [{"id": 1, "label": "crack"}, {"id": 2, "label": "fold, big"}]
    annotations = read(saved, state(layer(point(1, 2, 3, tagIds=[2, 1, 9]), point(1, 2, 3), annotationTags=tags)))
    assert annotations.notes == {0: Note(tags=("fold, big", "crack"))}


def test_pictures_of_lines_are_ignored(saved: Path) -> None:
    picture = {"type": "axis_aligned_bounding_box", "id": PICTURE + "0", "pointA": [0, 0, 0], "pointB": [9, 9, 9]}
    box = {**picture, "id": "mine"}
    pictures = layer(picture, picture, name="boxes")
    annotations = read(saved, state(pictures, layer(picture, box, point(1, 2, 3))))
    assert annotations.shapes.tolist() == [Shape.BOX, Shape.POINT]
    assert "no layer that holds annotations" in refusal(saved, state(pictures))
    assert "no layer 'boxes' that holds annotations" in refusal(saved, state(pictures, layer(box)), "boxes")


# Which layer


def test_one_of_several_layers_is_chosen_by_name(saved: Path) -> None:
    content = state(layer(point(1, 2, 3), name="a"), layer(point(4, 5, 6), name="b"), layer(name="c"))
    assert read(saved, content, "b").ends[0, 0].tolist() == [4, 5, 6]
    assert refusal(saved, content) == "several layers hold annotations: choose one with --layer, of 'a', 'b'"


def test_only_layer_with_annotations_needs_no_name(saved: Path) -> None:
    assert len(read(saved, state(layer(name="a"), {"type": "image", "name": "em"}, layer(point(1, 2, 3)))).shapes) == 1


def test_layer_that_is_not_there_is_refused_with_those_that_are(saved: Path) -> None:
    content = state(layer(point(1, 2, 3)), {"type": "image", "name": "em"})
    assert refusal(saved, content, "pears") == (
        "no layer 'pears' that holds annotations; the layers are: 'pairs' (annotation), 'em' (image)"
    )
    assert "no layer 'em' that holds annotations" in refusal(saved, content, "em")


@pytest.mark.parametrize("url", ["precomputed://gs://bucket/pairs", ["precomputed://gs://bucket/pairs"]])
def test_annotations_kept_elsewhere_are_told(saved: Path, url: Any) -> None:
    there = {"type": "annotation", "name": "far", "source": url}
    wanted = "'far' (its annotations are at precomputed://gs://bucket/pairs: give that path as --points_path)"
    assert wanted in refusal(saved, state(there))
    assert wanted in refusal(saved, state(there, layer(point(1, 2, 3))), "far")
    assert wanted in refusal(saved, state({**there, "source": {"url": "precomputed://gs://bucket/pairs"}}))


def test_state_without_layers_is_refused(saved: Path) -> None:
    assert refusal(saved, state()) == "no layer that holds annotations; the layers are: none"


# Units


@pytest.mark.parametrize(
    ("dimensions", "resolution"),
    [
        ({"x": [3.9999999999999994e-9, "m"], "y": [4e-9, "m"], "z": [4e-8, "m"]}, (4, 4, 40)),
        ({"x": [8, "nm"], "y": [0.008, "um"], "z": [4e-5, "mm"]}, (8, 8, 40)),
        ({"x": [0.5, "µm"], "y": [0.5, "μm"], "z": [0.0001, "cm"]}, (500, 500, 1000)),
    ],
)
def test_widths_in_all_units(saved: Path, dimensions: Json, resolution: tuple[float, ...]) -> None:
    assert read(saved, state(layer(point(1, 2, 3)), dimensions=dimensions)).resolution == resolution


def test_units_are_the_layers_own(saved: Path) -> None:
    fine = {"x": [4, "nm"], "y": [4, "nm"], "z": [40, "nm"]}
    finest = {"0": [1, "nm"], "1": [2, "nm"], "2": [3, "nm"]}

    def resolution(**more: Any) -> Any:
        annotations = read(saved, state(layer(point(1, 2, 3), **more)))
        assert annotations.ends[0, 0].tolist() == [1, 2, 3]
        return annotations.resolution

    assert resolution() == (8, 8, 40)
    assert resolution(source="local://annotations") == (8, 8, 40)
    assert resolution(source=["local://annotations"]) == (8, 8, 40)
    assert resolution(source={"url": "local://annotations"}) == (8, 8, 40)
    assert resolution(source=source(outputDimensions=fine)) == (4, 4, 40)
    assert resolution(source=[{"url": "precomputed://a"}, source(outputDimensions=fine)]) == (4, 4, 40)
    assert resolution(source=source(outputDimensions=fine, inputDimensions=finest)) == (1, 2, 3)
    identity = np.eye(3, 4).tolist()
    assert resolution(source=source(outputDimensions=fine, inputDimensions=finest, matrix=identity)) == (1, 2, 3)
    assert resolution(voxelSize=[16, 16, 45]) == (16, 16, 45)


def test_units_of_states_before_2019(saved: Path) -> None:
    content = {"layers": [layer(point(1, 2, 3))]}
    assert read(saved, content).resolution is None
    pose = {"navigation": {"pose": {"position": {"voxelSize": [4, 4, 40], "voxelCoordinates": [0, 0, 0]}}}}
    assert read(saved, {**content, **pose}).resolution == (4, 4, 40)
    own = {"layers": [layer(point(1, 2, 3), voxelSize=[8, 8, 40], transform=np.eye(4).tolist())]}
    assert read(saved, {**own, **pose}).resolution == (8, 8, 40)


def test_dimensions_in_another_order_and_number(saved: Path) -> None:
    dimensions = {"t": [1, "s"], "z": [40, "nm"], "c^": [1, ""], "y": [8, "nm"], "x": [4, "nm"]}
    annotations = read(saved, state(layer(line([0, 3, 9, 2, 1], [0, 6, 9, 5, 4])), dimensions=dimensions))
    assert annotations.ends.tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert annotations.resolution == (4, 8, 40)


def test_matrix_takes_lengths_to_lengths_and_moves_by_voxels_of_the_output(saved: Path) -> None:
    moved = source(
        inputDimensions={"0": [8, "nm"], "1": [8, "nm"], "2": [40, "nm"]},
        outputDimensions={"x": [4, "nm"], "y": [8, "nm"], "z": [20, "nm"]},
        matrix=[[0, 1, 0, 10], [-1, 0, 0, 0.5], [0, 0, 2, 0]],  # x and y change places
    )
    box = {"type": "axis_aligned_bounding_box", "pointA": [1, 1, 1], "pointB": [2, 2, 2]}
    annotations = read(saved, state(layer(point(100, 200, 3), box, source=moved)))
    assert annotations.ends.tolist() == [
        [[200 * 8 / 4 + 10, -100 + 0.5, 3 * 2 * 40 / 20]] * 2,
        [[12, -1.5, 4], [14, -0.5, 8]],  # the lower corner first, after moving
    ]
    assert annotations.resolution == (4, 8, 20)


def test_lengths_that_a_matrix_takes_to_whole_voxels_make_them(saved: Path) -> None:
    moved = source(
        inputDimensions={"0": [26.4e-9, "m"], "1": [8.8e-9, "m"], "2": [4e-8, "m"]},
        outputDimensions={"x": [8.8e-9, "m"], "y": [26.4e-9, "m"], "z": [4e-8, "m"]},
        matrix=[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]],
    )
    places = [point(100 * count, 3 * count, 5) for count in range(-999, 1000)]
    annotations = read(saved, state(layer(*places, source=moved)))
    expected = [[300 * count, count, 6] for count in range(-999, 1000)]
    np.testing.assert_array_equal(np.floor(annotations.ends[:, 0]), expected)
    np.testing.assert_array_equal(np.floor(annotations.in_voxels((4.4, 8.8, 40.0))[:, 1]) // (2, 3, 1), expected)


@pytest.mark.parametrize(
    ("dimensions", "fault"),
    [
        ({"x": [1, ""], "y": [1, ""], "z": [1, ""]}, "'' is no unit of length: want m, mm, um or nm"),
        ({**EM, "z": [1, "s"]}, "'s' is no unit of length"),
        ({**EM, "z": [0, "m"]}, "0 is no width: want a positive number"),
        ({**EM, "z": ["1", "m"]}, "'1' is no width"),
        ({**EM, "z": {"coordinates": [], "labels": []}}, "{'coordinates': [], 'labels': []} is no width: want"),
        ({"x": [1, "m"], "y": [1, "m"]}, "dimensions: want x, y, z; found 'x', 'y'"),
        ({**EM, "z'": [1, "m"]}, 'dimension "z\'" is a local or channel one'),
        ({"x": [1, "m"], "y": [1, "m"], "z^": [1, "m"]}, "dimension 'z^' is a local or channel one"),
        ([1], "dimensions: want an object"),
    ],
)
def test_units_that_are_none_are_refused(saved: Path, dimensions: Any, fault: str) -> None:
    content = state(layer(point(1, 2, 3)))
    assert refusal(saved, {**content, "dimensions": dimensions}).startswith(f"layer 'pairs': {fault}")
    own = state(layer(point(1, 2, 3), source=source(outputDimensions=dimensions)))
    assert refusal(saved, own).startswith(f"layer 'pairs': {fault}")


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({"voxelSize": [1, 2]}, "[1, 2] is no voxel size: want [x, y, z] in nm"),
        ({"voxelSize": [1, 2, -3]}, "-3 is no width"),
        ({"transform": [[2, 0, 0, 0]]}, "it is moved by a transform of its own"),
        ({"source": {"url": "local://annotations", "transform": 3}}, "transform: want an object"),
        ({"source": source(outputDimensions=EM, inputDimensions={"x": [1, "m"]})}, "inputDimensions: want as many"),
        ({"source": source(outputDimensions=EM, matrix=[[1, 2], [3]])}, "matrix: want 3 rows of 4 finite numbers"),
        ({"source": source(outputDimensions=EM, matrix=np.eye(4).tolist())}, "matrix: want 3 rows of 4"),
        ({"source": source(outputDimensions=EM, matrix="a")}, "matrix: want 3 rows of 4"),
    ],
)
def test_transforms_that_cannot_be_followed_are_refused(saved: Path, more: Json, fault: str) -> None:
    assert refusal(saved, state(layer(point(1, 2, 3), **more))).startswith(f"layer 'pairs': {fault}")


# What is refused


@pytest.mark.parametrize(
    ("annotation", "fault"),
    [
        (3, "want an object"),
        ({}, "None is no type of annotation: want one of point, line, axis_aligned_bounding_box, ellipsoid"),
        ({"type": ["point"]}, "['point'] is no type of annotation"),
        ({"type": "circle"}, "'circle' is no type of annotation"),
        ({"type": "polyline", "id": "a", "points": []}, "a polyline, which has no two ends: draw lines"),
        ({"type": "point"}, "point: want 3 numbers, got None"),
        (point(1, 2), "point: want 3 numbers, got [1, 2]"),
        (point(1, 2, "3"), "point: want 3 numbers, got [1, 2, '3']"),  # type: ignore[arg-type]
        (point(1, 2, True), "point: want 3 numbers, got [1, 2, True]"),
        (line([1, 2, 3], [4, 5]), "pointB: want 3 numbers, got [4, 5]"),
        ({"type": "ellipsoid", "radii": [1, 2, 3]}, "center: want 3 numbers, got None"),
        (point(1, 2, 1e300), "[[1.0, 2.0, 1e+300], [1.0, 2.0, 1e+300]] is not finite, or beyond any volume"),
        (point(1, 2, 10**15), "[[1.0, 2.0, 1000000000000000.0], "),
    ],
)
def test_annotation_that_is_none_is_refused_by_its_index(saved: Path, annotation: Any, fault: str) -> None:
    content = state(layer({"type": "spoke"}, point(1, 2, 3), annotation))
    assert refusal(saved, content).startswith(f"layer 'pairs': annotations[2]: {fault}")


def test_collections_without_members_are_no_annotations(saved: Path) -> None:
    assert "no annotations but collections" in refusal(saved, state(layer({"type": "spoke", "id": "s"})))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "the link holds no state"),
        ("{", "not JSON: "),
        ('{"layers": [], "n": NaN}', "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        ("[]", "not a viewer state: want a JSON object"),
        ("{}", "not a viewer state: it has no layers"),
        ('{"layers": 3}', "not a viewer state: it has no layers"),
        ('{"layers": [3]}', "layers[0]: want an object"),
        ('{"layers": [{"type": "annotation", "annotations": {"a": 1}}]}', "layer '': annotations: want a list"),
        ('{"@type": "neuroglancer_annotations_v1"}', "the info file of an annotation layer: give its folder"),
        (PAGE, "the link holds no state"),
        (PAGE + "%7B%22layers", "not JSON: "),
    ],
)
def test_text_that_is_no_state_is_refused(saved: Path, content: str, fault: str) -> None:
    assert refusal(saved, content).startswith(fault)


@pytest.mark.parametrize(
    "link",
    [
        PAGE + "https://global.daf-apis.com/nglstate/api/v1/5729",
        PAGE + "middleauth+https://global.daf-apis.com/nglstate/api/v1/5729",
        PAGE + "gs://bucket/state.json",
        "https://viz.neurodata.io/?json_url=https://json.neurodata.io/v1?NGStateID=abc",
        "middleauth+https://global.daf-apis.com/nglstate/api/v1/5729",
    ],
)
def test_state_on_a_server_is_refused_with_what_to_do(saved: Path, link: str) -> None:
    wanted = "its state is kept on a server: open it in Neuroglancer, and save the JSON state that the {} button shows"
    assert refusal(saved, link).startswith(wanted)
    with pytest.raises(UsageError, match=r"^[^ ]+: its state is kept on a server"):
        read_link(link)


def test_text_that_is_not_utf_8_is_refused(saved: Path) -> None:
    saved.write_bytes(b'{"layers": "\xff"}')
    with pytest.raises(UsageError, match="not UTF-8 text"):
        read_state(str(saved))


# What is written

STARTS = np.array([[[16, -32, 3], [16, -32, 2]], [[64, 0, 3], [96, 16, 3]], [[16, -32, 3], [16, -32, 5]]])
SPEC = parse_spec(json.dumps(spec_of("gs://bucket/em", pairs=[])).encode())  # 32 x 16 pixels at MIP 0


def written(path: Path, spec: Spec = SPEC, starts: np.ndarray = STARTS, **more: Any) -> neuroglancer.ViewerState:
    """What Neuroglancer's own package makes of the state that is written."""
    path.write_text(state_file(path, spec, starts, **{"notes": {}, "resolution": (4.0, 4.0, 40.0), **more}))
    text = path.read_text().strip()
    return neuroglancer.parse_url(text) if text.startswith("http") else neuroglancer.ViewerState(json.loads(text))


@pytest.mark.parametrize("name", ["state.json", "link.txt"])
def test_pairs_are_lines_from_the_middle_of_one_section_to_that_of_another(name: str, tmp_path: Path) -> None:
    (*_, pairs) = written(tmp_path / name).layers
    assert pairs.name == "pairs"
    assert [(list(line.point_a), list(line.point_b)) for line in pairs.annotations] == [
        ([16, -32, 3.5], [16, -32, 2.5]),
        ([64, 0, 3.5], [96, 16, 3.5]),
        ([16, -32, 3.5], [16, -32, 5.5]),
    ]


def test_each_box_is_shown_once_as_large_as_it_is_in_one_section(tmp_path: Path) -> None:
    spec = msgspec.structs.replace(SPEC, dst_mip=2)  # 128 x 64 voxels
    boxes = written(tmp_path / "state.json", spec).layers["boxes"].annotations
    assert [(list(box.point_a), list(box.point_b)) for box in boxes] == [
        ([16, -32, 2], [144, 32, 3]),
        ([16, -32, 3], [144, 32, 4]),
        ([16, -32, 5], [144, 32, 6]),
        ([64, 0, 3], [192, 64, 4]),
        ([96, 16, 3], [224, 80, 4]),
    ]
    assert len({box.id for box in boxes}) == 5


@pytest.mark.parametrize(
    ("resolution", "written_as"),
    [
        ((8.000000000000002, 7.999999999999999, 40.0), ["8e-9", "8e-9", "4e-8"]),
        ((4.0, 3.5, 33.3), ["4e-9", "3.5e-9", "3.33e-8"]),
    ],
)
def test_dimensions_have_no_noise(resolution: tuple[float, ...], written_as: list[str], tmp_path: Path) -> None:
    made = written(tmp_path / "state.json", resolution=resolution)
    assert made.dimensions.names == ("x", "y", "z")
    assert made.dimensions.units == ("m", "m", "m")
    assert made.dimensions.scales.tolist() == list(map(float, written_as))
    for name in ("boxes", "pairs"):
        space = made.layers[name].source[0].transform.output_dimensions
        assert space.to_json() == made.dimensions.to_json()


def test_descriptions_are_shown(tmp_path: Path) -> None:
    said = 'it\'s "so"_, 50% & #!\nü'
    pairs = written(tmp_path / "link", notes={1: Note("a", said, ("b",)), 2: Note("c")}).layers["pairs"].annotations
    assert [line.description for line in pairs] == [None, said, None]
    assert len({line.id for line in pairs}) == 3


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("gs://bucket/em", "precomputed://gs://bucket/em"),
        ("https://host/em", "precomputed://https://host/em"),
        ("precomputed://s3://bucket/em", "precomputed://s3://bucket/em"),
        ("zarr2://gs://bucket/em", "zarr2://gs://bucket/em"),
        ("file:///em", "precomputed://http://localhost:1337"),  # a browser reads no files
        ("zarr2://file:///em", "zarr2://http://localhost:1337"),
    ],
)
def test_the_image_is_where_the_spec_says(path: str, source: str, tmp_path: Path) -> None:
    spec = parse_spec(json.dumps(spec_of(path, pairs=[])).encode())
    assert written(tmp_path / "state.json", spec).layers["image"].source[0].url == source


def test_masks_and_the_field_are_shown_each_volume_from_its_own_server(tmp_path: Path) -> None:
    mask = {"path": "file:///mask", "src_mip": 0}
    content = spec_of("file:///em", "file:///field", pairs=[])
    content["masks"] = [
        {**mask, "threshold": 128},
        {**mask, "threshold": 0.5},
        {**mask, "path": "gs://b/m", "threshold": 1},
    ]
    spec = parse_spec(json.dumps(content).encode())
    layers = {layer.name: layer for layer in written(tmp_path / "state.json", spec).layers}
    assert list(layers) == ["image", "field", "mask 0", "mask 1", "mask 2", "boxes", "pairs"]
    local = "precomputed://http://localhost:"
    assert [layers[name].source[0].url for name in ("image", "field", "mask 0", "mask 1", "mask 2")] == [
        *(f"{local}{port}" for port in (1337, 1338, 1339, 1339)),
        "precomputed://gs://b/m",
    ]
    assert [layer.visible for layer in layers.values()] == [True, False, True, True, True, True, True]
    assert all(layers[name].layer.type == "image" for name in ("field", "mask 0", "mask 1"))
    assert ">= 128.0)" in layers["mask 0"].shader
    assert ">= 0.5)" in layers["mask 1"].shader
    assert commands_to_serve(spec) == [
        command_to_serve("file:///em", 1337),
        command_to_serve("file:///field", 1338),
        command_to_serve("file:///mask", 1339),
    ]


def test_the_view_opens_on_the_first_box_and_the_list_of_pairs(tmp_path: Path) -> None:
    spec = msgspec.structs.replace(SPEC, dst_mip=2)  # 128 x 64 voxels
    made = written(tmp_path / "state.json", spec)
    assert list(made.position) == [16 + 64, -32 + 32, 3.5]
    assert made.cross_section_scale == 0.2  # voxels in a pixel of the screen, 640 of which show the box
    assert (made.selected_layer.layer, made.selected_layer.visible) == ("pairs", True)
    assert made.layers["pairs"].tab == "annotations"
    # the scale counts in what is thinnest: z here; and y is the larger side
    made = written(tmp_path / "state.json", spec, resolution=(4.0, 16.0, 2.0))
    assert made.cross_section_scale == 64 * 16 / 2 / 640


def test_the_command_serves_a_folder_to_pages_of_other_sites(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s "so" ü'
    image = image_layer(folder)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = shlex.split(command_to_serve(image, port))
    assert words[:2] == ["python", "-c"]
    sizes = {"info": (folder / "image" / "info").stat().st_size, "4_4_40/0-64_0-64_0-1": 64 * 64}
    with subprocess.Popen([sys.executable, *words[1:]], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as server:
        try:
            for name, size in sizes.items():
                with _answer(f"http://localhost:{port}/{name}") as answer:
                    assert answer.headers["Access-Control-Allow-Origin"] == "*"
                    assert len(answer.read()) == size
        finally:
            server.kill()


def _answer(url: str) -> Any:
    for _ in range(300):  # until the server has begun
        try:
            return urlopen(url, timeout=10)
        except (ConnectionError, URLError):
            time.sleep(0.1)
    raise TimeoutError(url)


def test_a_link_is_one_line_that_can_be_clicked(tmp_path: Path) -> None:
    written(tmp_path / "link", notes={0: Note("", "a b\n\t<c> \\ | `")})
    text = (tmp_path / "link").read_text()
    assert text.startswith(PAGE)
    assert text.endswith("\n")
    assert not set(text[:-1]) & set(' \n\t<>"\\|`')


def test_what_is_written_is_read_as_the_same_pairs(saved: Path) -> None:
    written(saved, resolution=(8.000000000000002, 8.0, 40.0))
    annotations = read_state(str(saved))
    assert (annotations.shapes == Shape.LINE).all()
    np.testing.assert_array_equal(np.floor(annotations.ends), STARTS)
    assert annotations.resolution == (8.0, 8.0, 40.0)


def test_no_pairs_are_a_state_too(saved: Path) -> None:
    made = written(saved, starts=np.empty((0, 2, 3), np.int64))
    assert [len(made.layers[name].annotations) for name in ("boxes", "pairs")] == [0, 0]
