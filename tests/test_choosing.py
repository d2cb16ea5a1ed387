"""What create_spec takes of the pairs that annotations make, where it says they lie, and what it writes of them."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import h5py
import neuroglancer
import numpy as np
import pytest
from commands import Command
from small_jobs import (
    NAME,
    Json,
    Refused,
    changed,
    dataset_arguments,
    image_layer,
    leftovers,
    line,
    made_folder,
    pair,
    point,
    put_json,
    spec_arguments,
    spec_of,
    start,
    voxels,
)
from volumes_made import make_layer

from curation.annotations.viewer_states import command_to_serve
from curation.datasets.writer import Writer
from curation.errors import UsageError, WorkError
from curation.files import Existing
from curation.spec import Note, read_spec
from curation.steps.create_spec import CreatedSpec, CreateSpecOptions, create_spec

NOWHERE = "file:///nowhere/at/all"
EM = {"x": [8.000000000000002e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]}  # as viewers write them
FINE = {axis: [4.0000000001e-9 if axis != "z" else 4e-8, "m"] for axis in "xyz"}
TABLE = "x,y,z\n0,0,3\n16,0,3\n32,0,3\n48,0,3\n"  # four boxes, on multiples of 2^4
Starts = list[list[list[int]]]


def state(*annotations: Json, dimensions: Json = EM, **layer: Any) -> str:
    held = {"type": "annotation", "name": "picked", "annotations": list(annotations), **layer}
    return json.dumps({"dimensions": dimensions, "layers": [held]})


Append = Callable[..., CreatedSpec]


@pytest.fixture
def append(tmp_path: Path) -> Append:
    """Appends the pairs of `points`, a file's text, to the template: `kept`, of 32 x 16 pixels at MIP 0, max_mip 4."""

    def run(points: str, image: str = NOWHERE, kept: Sequence[Json] = (), **options: Any) -> CreatedSpec:
        put_json(tmp_path / "template.json", spec_of(image, pairs=kept))
        (tmp_path / "points").write_text(points)
        paths = {"src_spec_path": tmp_path / "template.json", "dst_spec_path": tmp_path / "spec.json"}
        return create_spec(
            CreateSpecOptions(**{**paths, "points_path": str(tmp_path / "points"), "offsets": (-1,), **options})
        )

    return run


@pytest.fixture
def starts(tmp_path: Path) -> Callable[[], Starts]:
    """What is in spec.json."""
    return lambda: read_spec(tmp_path / "spec.json", template=True).starts().tolist()


@pytest.fixture
def sources(starts: Callable[[], Starts]) -> Callable[[], list[list[int]]]:
    """What is in spec.json, of each pair the source."""
    return lambda: [source for source, _ in starts()]


def written(folder: Path) -> set[str]:
    """All but what `append` reads."""
    return {path.name for path in folder.iterdir()} - {"template.json", "points", "image"}


# Units

Sources = Callable[[], list[list[int]]]


def test_points_with_units_become_voxels_of_the_image(append: Append, sources: Sources, tmp_path: Path) -> None:
    # 8 nm in 4 nm: (8.5, 24.5) become (17, 49), snapped down to 16, 48; -0.5 becomes -1, and -16
    append(state(point(8.5, 24.5, 3.5), point(-0.5, 0, 2.5)), image_layer(tmp_path))
    assert sources() == [[16, 48, 3], [-16, 0, 2]]


def test_points_of_finer_units_are_floored(append: Append, sources: Sources, tmp_path: Path) -> None:
    image = image_layer(tmp_path, resolution=(8, 8, 40))
    # 4 nm in 8 nm: 31.5 becomes 15.75, 0 when snapped; 32 becomes exactly 16, noise or none
    append(state(point(31.5, 32, 3.5), point(32, 63.999, 3.5), dimensions=FINE), image)
    assert sources() == [[0, 16, 3], [16, 16, 3]]


def test_units_are_said_of_points_that_do_not_say_theirs(append: Append, sources: Sources, tmp_path: Path) -> None:
    append("x,y,z\n16,8,3\n", image_layer(tmp_path), points_resolution=(8.0, 16.0, 40.0))
    assert sources() == [[32, 32, 3]]  # 16 * 8 / 4; 8 * 16 / 4


@pytest.mark.parametrize("image", [NOWHERE, "there"])
def test_units_other_than_those_that_the_points_say_are_refused(image: str, append: Append, tmp_path: Path) -> None:
    path = NOWHERE if image == NOWHERE else image_layer(tmp_path)
    with pytest.raises(UsageError) as caught:
        append(state(point(16, 8, 3)), path, points_resolution=(8.0, 4.0, 40.0), volume_resolution=(4.0, 4.0, 40.0))
    assert str(caught.value) == (
        f"{tmp_path}/points: its units are 8 x 8 x 40 nm, not 8 x 4 x 40 nm as --points_resolution says: leave it out"
    )
    assert written(tmp_path) == set()


def test_units_that_are_said_twice_alike_are_taken(append: Append, sources: Sources, tmp_path: Path) -> None:
    append(state(point(16, 8, 3)), image_layer(tmp_path), points_resolution=(8.0, 8.0, 40.0))
    assert sources() == [[32, 16, 3]]


def test_units_are_said_of_a_state_from_before_they_were_kept(append: Append, sources: Sources, tmp_path: Path) -> None:
    old = json.dumps({"layers": [{"type": "annotation", "name": "old", "points": [[16, 8, 3]]}]})
    append(old, image_layer(tmp_path), points_resolution=(8.0, 8.0, 40.0))
    assert sources() == [[32, 16, 3]]


def test_a_table_without_units_is_of_voxels(append: Append, sources: Sources, tmp_path: Path) -> None:
    append("x,y,z\n16,32,3\n", image_layer(tmp_path, resolution=(8, 8, 40)))
    assert sources() == [[16, 32, 3]]


def test_a_volume_size_that_is_said_goes_before_the_one_that_is_read(
    append: Append, sources: Sources, tmp_path: Path
) -> None:
    append(state(point(16, 16, 2)), image_layer(tmp_path), volume_resolution=(2.0, 2.0, 20.0))
    assert sources() == [[64, 64, 4]]


def test_a_volume_size_that_is_said_needs_no_volume(append: Append, sources: Sources) -> None:
    made = append(state(point(16, 32, 3)), volume_resolution=(4.0, 4.0, 40.0))
    assert sources() == [[32, 64, 3]]
    assert f"not checked whether they lie in the image volume: {NOWHERE}: no CloudVolume layer there" in str(made)


@pytest.mark.parametrize("more", [{}, {"points_resolution": (8.0, 8.0, 40.0)}])
def test_known_units_in_an_unknown_volume_are_refused_with_what_to_do(
    more: Json, append: Append, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"^file:///nowhere.*: want --volume_resolution X Y Z, .* at MIP 0$") as caught:
        append(TABLE if more else state(point(0, 0, 1)), **more)
    assert len(str(caught.value).splitlines()) == 1
    assert written(tmp_path) == set()


def test_points_that_a_matrix_brings_to_whole_voxels_begin_there(append: Append, sources: Sources) -> None:
    transform = {
        "inputDimensions": {"0": [26.4e-9, "m"], "1": [26.4e-9, "m"], "2": [4e-8, "m"]},
        "outputDimensions": {"x": [8.8e-9, "m"], "y": [8.8e-9, "m"], "z": [4e-8, "m"]},
        "matrix": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]],
    }
    source = {"url": "local://annotations", "transform": transform}
    counts = range(-200, 200)
    append(state(*(point(16 * count, 0, 5) for count in counts), source=source), volume_resolution=(8.8, 8.8, 40.0))
    assert sources() == [[48 * count, 0, 6] for count in counts]


def test_points_in_units_of_several_digits_are_floored(append: Append, sources: Sources) -> None:
    units = {"points_resolution": (25.0, 25.0, 40.0), "volume_resolution": (3.5371, 3.5371, 40.0)}
    append("x,y,z\n35371,35370.9999,5\n", **units)
    assert sources() == [[250_000, 249_984, 5]]  # 249999.9993 snapped down


FORK = "Coordinate 1,Coordinate 2,Ellipsoid Dimensions,Tags,Description,Segment IDs,Parent ID,Type,ID\n"


def box(first: Sequence[float], second: Sequence[float]) -> Json:
    return {"type": "axis_aligned_bounding_box", "pointA": list(first), "pointB": list(second)}


@pytest.mark.parametrize(
    "annotation",
    [
        FORK + '"(40, 24, 2)","(88, 32, 4)",,,,,,AABB,\n',
        state(box((40.5, 24.5, 2.5), (88.5, 32.5, 4.5))),  # floored by the export: what the table holds
        state(box((40, 24, 2), (88, 32, 5))),  # the edges of its voxels and sections
    ],
    ids=["table", "state that it was exported from", "state by edges"],
)
def test_a_box_is_tiled_alike_in_a_table_and_in_a_state(annotation: str, append: Append, sources: Sources) -> None:
    more = {"volume_resolution": (8.0, 8.0, 40.0)} if annotation.startswith("{") else {}
    append(annotation, **more)
    assert sources() == [[32, 16, z] for z in (2, 3, 4)]  # 40, 24 snapped down


def test_a_box_of_a_table_begins_where_a_point_does(append: Append, sources: Sources) -> None:
    # 16 nm in 0.5 nm: half a unit would be 16 voxels
    units: Json = {"volume_resolution": (0.5, 0.5, 40.0), "points_resolution": (16.0, 16.0, 40.0)}
    append(FORK + '"(3, 5, 2)",,,,,,,Point,\n', **units)
    assert sources() == [[96, 160, 2]]
    append(FORK + '"(4, 6, 2)","(3, 5, 2)",,,,,,AABB,\n', **units, existing=Existing.REPLACED)
    assert sources() == [[96, 160, 2], [96, 176, 2]]  # 32 x 32 voxels hold two boxes of 32 x 16


# Outside the volume


def test_points_that_lie_within_are_not_spoken_of(append: Append, tmp_path: Path) -> None:
    image = image_layer(tmp_path, voxel_offset=(992, 992, 99))
    made = append("x,y,z\n1000,1000,100\n1119,1119,104\n", image)
    assert made.remarks == ()
    assert str(made) == f"{tmp_path}/spec.json: 2 pairs, 2 of them new from 2 points"


def test_points_before_a_volumes_offset_are_told_of(append: Append, tmp_path: Path) -> None:
    image = image_layer(tmp_path, voxel_offset=(1000, 1000, 100))
    made = append("x,y,z\n1000,1000,101\n980.5,1000,101\n1000,999,101\n", image)
    assert made.remarks == (
        "2 of 3 annotations begin outside the image volume, (1000, 1000, 100) to (1128, 1128, 106); "
        "the first: annotation 1 at (980, 1000, 101)",
    )
    assert made.new_pairs == 2  # their boxes reach into the volume; the last two are one


OUTSIDE = ", a box of theirs lying wholly outside the volume: offsets "


def test_pairs_that_cannot_be_cut_are_left_out_and_counted_by_their_offsets(
    append: Append, starts: Callable[[], Starts], tmp_path: Path
) -> None:
    made = append("x,y,z\n16,0,3\n16,0,3\n32,0,2\n128,0,3\n", image_layer(tmp_path), offsets=(-1, -3, 3), permute=True)
    forth = [([16, 0, 3], [16, 0, 2]), ([16, 0, 3], [16, 0, 0]), ([32, 0, 2], [32, 0, 1]), ([32, 0, 2], [32, 0, 5])]
    assert starts() == [list(each) for pair in forth for each in (pair, pair[::-1])]
    # at 16 that of offset 3, at 32 that of -3, and at 128 all; each with its reverse
    assert made.remarks[0] == (f"10 pairs left out{OUTSIDE}-3 (4 pairs), -1 (1 pair), +1 (1 pair), +3 (4 pairs)")
    assert (made.idle, made.repeated_pairs) == (2, 4)


def test_a_box_that_reaches_into_the_volume_by_a_voxel_is_kept(
    append: Append, starts: Callable[[], Starts], tmp_path: Path
) -> None:
    image = image_layer(tmp_path, voxel_offset=(47, 31, 2))  # to 175, 159, 8
    places = "".join(f"{x},{y},3\n" for x, y in [(0, 32), (16, 32), (48, 0), (48, 16), (160, 144), (176, 144)])
    made = append("x,y,z\n" + places + "64,160,3\n64,64,7\n64,64,8\n64,64,2\n", image)
    assert [source for source, _ in starts()] == [[16, 32, 3], [48, 16, 3], [160, 144, 3], [64, 64, 7]]
    assert made.remarks[0] == f"6 pairs left out{OUTSIDE}-1 (6 pairs)"


def test_with_a_field_its_volume_and_the_sections_of_the_image_say_which_pairs_can_be_cut(
    starts: Callable[[], Starts], tmp_path: Path
) -> None:
    image = image_layer(tmp_path, voxel_offset=(0, 0, 2))  # sections 2 to 7
    vectors = np.zeros((16, 16, 7, 2), np.float32)
    field = make_layer(tmp_path / "field", {2: vectors}, voxel_offset=(128, 128, 0))  # to 192, 192; sections 0 to 6
    put_json(tmp_path / "template.json", spec_of(image, field, pairs=[]))
    (tmp_path / "points").write_text("x,y,z\n128,128,3\n0,0,3\n128,128,2\n128,128,7\n128,128,6\n")
    made = create_spec(
        CreateSpecOptions(tmp_path / "template.json", tmp_path / "spec.json", str(tmp_path / "points"), (-1,))
    )
    assert [source for source, _ in starts()] == [[128, 128, 3], [128, 128, 6]]
    assert made.remarks[0] == f"3 pairs left out{OUTSIDE}-1 (3 pairs)"


def test_nothing_is_left_out_where_no_volume_can_be_read(tmp_path: Path) -> None:
    field = "file:///no/field"
    put_json(tmp_path / "template.json", spec_of(NOWHERE, field, pairs=[]))
    (tmp_path / "points").write_text("x,y,z\n-9999,0,-9\n")
    made = create_spec(
        CreateSpecOptions(tmp_path / "template.json", tmp_path / "spec.json", str(tmp_path / "points"), (-1,))
    )
    assert made.new_pairs == 1
    assert [remark.partition(": file")[0] for remark in made.remarks] == [
        "not checked whether they lie in the image volume",
        "not checked whether boxes lie in the field volume",
    ]


def test_pairs_that_the_source_spec_has_stay_wherever_they_lie(
    append: Append, starts: Callable[[], Starts], tmp_path: Path
) -> None:
    append("x,y,z\n0,0,3\n", image_layer(tmp_path), kept=[pair(512, 0, 3)])
    assert starts() == [[[512, 0, 3], [512, 0, 2]], [[0, 0, 3], [0, 0, 2]]]


def test_where_no_pair_can_be_cut_nothing_is_written(append: Append, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        append("x,y,z\n0,0,0\n16,0,0\n", image_layer(tmp_path), kept=[pair(0, 0, 3)], link_path=tmp_path / "link")
    assert str(caught.value) == f"{tmp_path}/points: no new pair can be cut out{OUTSIDE}-1 (2 pairs)"
    assert written(tmp_path) == set()


def hinted(append: Append, *arguments: Any, **options: Any) -> str:
    """What is said of annotations outside the volume, whether a pair can be cut out or none."""
    try:
        return "\n".join(append(*arguments, **options).remarks)
    except UsageError as error:
        return str(error)


Suggestion = tuple[str, tuple[float, ...]]


def suggested(text: str) -> list[Suggestion]:
    """The options that the hint names, and their values, in its order."""
    found = re.findall(r"give --(\w+) (\S+) (\S+) (\S+)\.(?= |\n|$)", text)
    assert len(found) == text.count("give --")
    return [(name, (float(x), float(y), float(z))) for name, x, y, z in found]


def by(name: str, x: float, y: float, z: float) -> Suggestion:
    return f"{name}_resolution", (x, y, z)


@pytest.mark.parametrize(
    ("volume", "points", "suggestions", "inside"),
    [
        (  # as nm: 30, 2, 1 and 8, 4, 3
            (8, 8, 40),
            "x,y,z\n240,16,40\n64,32,120\n",
            [by("points", 1, 1, 1)],
            [[[16, 0, 1], [0, 0, 3]]],
        ),
        (
            (8, 8, 40),
            "x,y,z\n900,16,3\n64,32,3\n",
            [by("points", 1, 1, 40), by("points", 0.5, 0.5, 40), by("points", 0.25, 0.25, 40), by("points", 1, 1, 1)],
            [[[112, 0, 3], [0, 0, 3]], [[48, 0, 3], [0, 0, 3]], [[16, 0, 3], [0, 0, 3]], None],
        ),
        ((8, 8, 400), "x,y,z\n3168,16,3\n", [by("points", 0.25, 0.25, 400)], [[[96, 0, 3]]]),  # 99, 0
        # 480, 32; then 120, 8. The points have said their units: it is the image whose voxels may be others
        (
            (4, 4, 40),
            state(point(240, 16, 3.5)),
            [by("volume", 16, 16, 40), by("volume", 32, 32, 40), by("volume", 64, 64, 40), by("volume", 128, 128, 40)],
            [[[112, 0, 3]], [[48, 0, 3]], [[16, 0, 3]], [[0, 0, 3]]],
        ),
    ],
)
def test_every_unit_that_would_bring_points_in_is_suggested_and_does(
    volume: tuple[int, int, int],
    points: str,
    suggestions: list[Suggestion],
    inside: list[list[list[int]] | None],
    append: Append,
    sources: Sources,
    tmp_path: Path,
) -> None:
    image = image_layer(tmp_path, resolution=volume)
    said = hinted(append, points, image)
    assert suggested(said) == suggestions
    several = "Several units would bring all of them into it. If " in said
    assert several == (len(suggestions) > 1)
    assert several or "One change of units would bring all of them into it. If " in said
    for (option, sizes), places in zip(suggestions, inside, strict=True):
        if places is None:  # in section 0: there is none before it
            continue
        assert append(points, image, **{option: sizes}, existing=Existing.REPLACED).remarks == ()
        assert sources() == places


def test_a_factor_may_be_larger_than_1(append: Append, sources: Sources, tmp_path: Path) -> None:
    image = image_layer(tmp_path, voxel_offset=(960, 960, 0))
    said = hinted(append, "x,y,z\n480,500,3\n", image)
    assert "If x and y are meant times 2, give --points_resolution 8 8 40." in said
    ((option, sizes),) = suggested(said)
    assert append("x,y,z\n480,500,3\n", image, **{option: sizes}).remarks == ()
    assert sources() == [[960, 992, 3]]  # 1000 is snapped down


def test_the_size_suggested_is_of_the_volume_as_it_is_said_to_be(append: Append, tmp_path: Path) -> None:
    given: Json = {"image": image_layer(tmp_path), "volume_resolution": (16.123456789, 16.0, 30.0)}
    (option, sizes), *_ = suggested(hinted(append, "x,y,z\n240,16,3\n", **given))
    assert (option, sizes) == by("points", 8.0617283945, 8, 30)
    assert append("x,y,z\n240,16,3\n", **given, **{option: sizes}).remarks == ()


def test_nanometres_are_told_from_units_that_were_said(append: Append, tmp_path: Path) -> None:
    image = image_layer(tmp_path, resolution=(4, 4, 40))
    said = hinted(append, "x,y,z\n400,40,120\n", image, points_resolution=(4.0, 4.0, 40.0))
    assert "If they are in nanometres, give --points_resolution 1 1 1." in said
    assert "If they" not in hinted(append, state(point(400, 40, 120)), image)  # which says what they are


@pytest.mark.parametrize("points", ["x,y,z\n240,16,300\n", "x,y,z\n240,16,3\n-1,16,3\n"])
def test_where_no_unit_helps_none_is_suggested(points: str, append: Append, tmp_path: Path) -> None:
    said = hinted(append, points, image_layer(tmp_path, resolution=(4, 4, 4)))
    assert "outside the image volume" in said
    assert "_resolution" not in said


NO_UNITS = (
    "the annotations do not say their units, and were taken for MIP-0 voxels of the image: "
    "--points_resolution X Y Z says that they are others"
)


def test_a_state_that_says_no_units_is_told_of(append: Append, tmp_path: Path) -> None:
    image = image_layer(tmp_path)
    bare = json.dumps({"layers": [{"type": "annotation", "name": "old", "points": [[16, 8, 3]]}]})
    assert append(bare, image).remarks == (NO_UNITS,)
    told = append(bare, image, points_resolution=(4.0, 4.0, 40.0), existing=Existing.REPLACED)
    assert told.remarks == ()
    assert append(TABLE, image, existing=Existing.REPLACED).remarks == ()  # no table says its units


# Notes


PICKED = state(
    point(8, 8, 3.5, id="a", description='a "crack",\nwide: 50 %s', tagIds=[1, 2]),
    point(16, 8, 3.5),
    line((8, 8, 3.5), (16, 8, 2.5), id="ü"),
    {"type": "axis_aligned_bounding_box", "pointA": [24, 0, 3], "pointB": [56, 8, 4], "description": "tiles"},
    annotationTags=[{"id": 1, "label": "fold"}, {"id": 2, "label": "dark"}],
)
NOTES = [  # with --offsets -1 and permuted: two pairs of each point, one of the line, two boxes of two pairs each
    *[Note("a", 'a "crack",\nwide: 50 %s', ("fold", "dark"))] * 2,
    *[None] * 2,
    Note("ü"),
    *[Note("", "tiles")] * 4,
]


def notes_in(path: Path) -> list[Note | None]:
    return [pair.note for pair in read_spec(path).pairs]


def test_notes_travel_to_every_pair_of_their_annotation(append: Append, tmp_path: Path) -> None:
    append(PICKED, image_layer(tmp_path), permute=True)
    assert notes_in(tmp_path / "spec.json") == NOTES
    assert json.loads((tmp_path / "spec.json").read_text())["pairs"][2] == {
        "src": start(32, 16, 3),
        "tgt": start(32, 16, 2),
    }


def test_notes_are_kept_when_pairs_are_added_and_left_out(append: Append, tmp_path: Path) -> None:
    append(PICKED, image_layer(tmp_path), permute=True)
    first = json.loads((tmp_path / "spec.json").read_text())["pairs"]
    rejected = put_json(tmp_path / "rejected.json", {"pairs": [first[0], first[4]]})
    more = "x,y,z,description\n0,0,5,\n96,0,5,late\n"
    append(more, image_layer(tmp_path), kept=first, exclude_path=rejected, existing=Existing.REPLACED)
    assert notes_in(tmp_path / "spec.json") == [*NOTES[2:4], *NOTES[5:], None, Note("", "late")]  # and not the reverse


def test_a_pair_that_is_there_keeps_its_own_note(append: Append, tmp_path: Path) -> None:
    kept = [{**pair(0, 0, 3), "note": {"id": "first"}}, pair(16, 0, 3)]
    append("x,y,z,id\n0,0,3,second\n16,0,3,third\n", kept=kept)
    assert notes_in(tmp_path / "spec.json") == [Note("first"), None]


def test_notes_of_drawn_pairs_are_their_own(append: Append, tmp_path: Path) -> None:
    rows = "".join(f"{16 * number},0,3,{number}\n" for number in range(50))
    append("x,y,z,id\n" + rows, max_pairs=10)
    spec = read_spec(tmp_path / "spec.json")
    assert len(spec.pairs) == 10
    assert [pair.note for pair in spec.pairs] == [Note(str(pair.src.x_start // 16)) for pair in spec.pairs]


def test_pairs_of_older_forms_have_no_notes(append: Append, tmp_path: Path) -> None:
    older = [{"x": 16, "y": 8, "z": 3}, {"x": 16, "y": 8, "z": 2}]  # centres of 32 x 16
    append("x,y,z,id\n16,0,3,new\n", kept=[older])
    assert notes_in(tmp_path / "spec.json") == [None, Note("new")]
    assert read_spec(tmp_path / "spec.json").starts()[0].tolist() == [[0, 0, 3], [0, 0, 2]]


@pytest.mark.parametrize("resumed", [False, True])
def test_notes_travel_into_the_image_file(
    resumed: bool, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = voxels()
    grey[:, :, 0] = 0
    image = make_layer(tmp_path / "image", {0: grey})
    kept = [{**pair(0, 0, 5), "note": {"id": "a"}}, {**pair(0, 0, 1), "note": {"id": "black"}}, pair(16, 0, 5)]
    kept += [{**pair(32, 0, 5), "note": {"tags": ["ü"], "description": '"\n'}}]
    spec = put_json(tmp_path / "spec.json", spec_of(image, pairs=kept))
    arguments = dataset_arguments(spec, made_folder(tmp_path / "out"), "--min_valid", 0.5)
    if resumed:
        with monkeypatch.context() as broken:
            broken.setattr(Writer, "finish", lambda *_: (_ for _ in ()).throw(WorkError("cut short")))
            assert command("make_dataset.py", *arguments).code == 1
        assert leftovers(tmp_path / "out") != []  # what the next run goes on from
    assert command("make_dataset.py", *arguments).code == 0
    assert leftovers(tmp_path / "out") == []
    with h5py.File(tmp_path / "out" / NAME) as file:
        assert file["pair"][:].tolist() == [0, 2, 3]  # the second target is black
        notes = [json.loads(note) if note else None for note in file["note"].asstr()[:]]
    assert notes == [{"id": "a"}, None, {"tags": ["ü"], "description": '"\n'}]
    assert command("verify_dataset.py", tmp_path / "out" / NAME).code == 0


def test_a_file_of_pairs_without_notes_has_none(tmp_path: Path, command: Command) -> None:
    spec = put_json(tmp_path / "spec.json", spec_of(image_layer(tmp_path)))
    assert command("make_dataset.py", *dataset_arguments(spec, made_folder(tmp_path / "out"))).code == 0
    with h5py.File(tmp_path / "out" / NAME) as file:
        assert "note" not in file


# Leaving out


REJECTED = [pair(16, 0, 3), pair(48, 0, 3, 4), pair(64, 0, 3)]


@pytest.mark.parametrize(
    "content",
    [
        {"pairs": REJECTED},
        REJECTED,
        {"by": "me", "pairs": [{**rejected, "why": ["dark", 3]} for rejected in REJECTED]},
        spec_of("gs://another/volume", pairs=[{**rejected, "note": {"id": "x"}} for rejected in REJECTED]),
        spec_of("gs://another/volume", pairs=[list(rejected.values()) for rejected in REJECTED]),  # type: ignore[misc]
    ],
    ids=["object", "list", "reasons", "spec", "older spec"],
)
def test_rejected_pairs_are_left_out_kept_and_new(
    content: object, append: Append, starts: Callable[[], Starts], tmp_path: Path
) -> None:
    rejected = put_json(tmp_path / "rejected.json", content)
    made = append(TABLE, kept=[pair(64, 0, 3), pair(48, 0, 3)], exclude_path=rejected)
    # of the kept ones the second stays: it is another pair than the rejected one with its source
    expected = [[[48, 0, 3], [48, 0, 2]], [[0, 0, 3], [0, 0, 2]], [[32, 0, 3], [32, 0, 2]]]
    assert starts() == expected
    assert (made.kept_pairs, made.new_pairs, made.repeated_pairs, made.idle) == (1, 2, 1, 2)
    assert "; 2 pairs left out by --exclude, which lists 3" in str(made)


def test_the_reverse_of_a_rejected_pair_is_left_out_too(
    append: Append, starts: Callable[[], Starts], tmp_path: Path
) -> None:
    rejected = put_json(tmp_path / "rejected.json", [pair(0, 0, 3), pair(32, 0, 2, 3)])
    kept = [pair(32, 0, 3), pair(32, 0, 3, 4)]
    made = append("x,y,z\n0,0,3\n16,0,3\n", kept=kept, permute=True, exclude_path=rejected)
    assert starts() == [[[32, 0, 3], [32, 0, 4]], [[16, 0, 3], [16, 0, 2]], [[16, 0, 2], [16, 0, 3]]]
    assert made.left_out == ("3 pairs left out by --exclude, which lists 2",)


def test_pairs_that_share_a_box_with_a_listed_one_are_left_out(
    append: Append, starts: Callable[[], Starts], tmp_path: Path
) -> None:
    listed = put_json(tmp_path / "listed.json", [pair(16, 0, 4, 3)])
    kept = [pair(16, 0, 9, 4), pair(16, 0, 9, 5), pair(16, 16, 4, 3)]  # the first shares a box
    made = append(
        "x,y,z\n16,0,6\n16,0,5\n16,0,5\n16,0,2\n0,0,4\n", kept=kept, offsets=(-1, 1), exclude_boxes_path=listed
    )
    assert starts() == [
        [[16, 0, 9], [16, 0, 5]],
        [[16, 16, 4], [16, 16, 3]],
        [[16, 0, 6], [16, 0, 5]],
        [[16, 0, 6], [16, 0, 7]],
        [[16, 0, 5], [16, 0, 6]],
        [[16, 0, 2], [16, 0, 1]],
        [[0, 0, 4], [0, 0, 3]],
        [[0, 0, 4], [0, 0, 5]],
    ]
    assert made.left_out == ("3 pairs left out by --exclude_boxes, which lists 1",)
    assert made.repeated_pairs == 1
    assert "; 3 pairs left out by --exclude_boxes, which lists 1" in str(made)


def test_both_files_leave_out_and_each_pair_counts_once(
    append: Append, starts: Callable[[], Starts], tmp_path: Path
) -> None:
    rejected = put_json(tmp_path / "rejected.json", [pair(0, 0, 3)])
    listed = put_json(tmp_path / "listed.json", [pair(0, 0, 3), pair(16, 0, 9)])
    made = append(TABLE, offsets=(-1, 1), permute=True, max_pairs=100, exclude_path=rejected, exclude_boxes_path=listed)
    assert made.left_out == (
        "2 pairs left out by --exclude, which lists 1",
        "2 pairs left out by --exclude_boxes, which lists 2",
    )
    assert {source[0] for source, _ in starts()} == {16, 32, 48}


def test_a_set_that_is_split_in_two_shares_no_box(append: Append, starts: Callable[[], Starts], tmp_path: Path) -> None:
    points = "x,y,z\n" + "".join(f"{16 * x},{16 * y},{z}\n" for x in range(5) for y in range(5) for z in range(5))
    picked: Json = {"points": points, "offsets": (-1, -2), "permute": True}
    append(**picked, max_pairs=40, seed=3, dst_spec_path=tmp_path / "validation.json")
    append(**picked, exclude_boxes_path=tmp_path / "validation.json")
    held_out = read_spec(tmp_path / "validation.json").starts().tolist()
    boxes = [{tuple(box) for pair in pairs for box in pair} for pairs in (held_out, starts())]
    assert len(held_out) == 40
    assert len(starts()) > 100
    assert not boxes[0] & boxes[1]


def test_a_list_that_excludes_nothing_is_said(append: Append, tmp_path: Path) -> None:
    rejected = put_json(tmp_path / "rejected.json", [pair(64, 64, 3), pair(64, 64, 4)])
    made = append("x,y,z\n0,0,3\n", exclude_path=rejected)
    assert str(made).splitlines()[0].endswith("; 0 pairs left out by --exclude, which lists 2")


def test_a_pair_made_twice_is_excluded_once(append: Append, tmp_path: Path) -> None:
    rejected = put_json(tmp_path / "rejected.json", [pair(0, 0, 3)])
    made = append("x,y,z\n0,0,3\n5,0,3\n16,0,3\n", exclude_path=rejected)
    assert made.left_out == ("1 pair left out by --exclude, which lists 1",)
    assert (made.new_pairs, made.repeated_pairs) == (1, 0)


@pytest.mark.parametrize("option", ["exclude_path", "exclude_boxes_path"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "not a list of pairs to leave out"),
        (b"x,y,z\n1,2,3\n", "not a list of pairs to leave out"),
        (b"{}", "missing required field `pairs`"),
        (b'{"pairs": {}}', r"Expected `array`, got `object` - at `\$\.pairs`"),
        (b'[{"src": {}}]', r"x_start`? - at `\$\[0\]\.src`"),
        (json.dumps([changed(pair(0, 0, 3), {("tgt", "z_start"): 2.5})]).encode(), r"\$\[0\]\.tgt\.z_start"),
        (b'["\x80"]', "not a list of pairs to leave out"),
        (b"[" * 100_000, "not a list of pairs to leave out"),
    ],
)
def test_a_file_of_no_pairs_to_leave_out_is_refused(
    option: str, content: bytes | None, said: str, append: Append, tmp_path: Path
) -> None:
    rejected = tmp_path / "rejected.json"
    if content is not None:
        rejected.write_bytes(content)
    with pytest.raises(UsageError, match=rf"^{rejected}: .*{said}") as caught:
        append(TABLE, **{option: rejected})
    assert len(str(caught.value).splitlines()) == 1
    assert written(tmp_path) <= {"rejected.json"}


def test_no_name_is_no_file_to_leave_out(append: Append, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        append(TABLE, exclude_path="")
    assert written(tmp_path) == set()


# Drawing


def drawn(append: Append, sources: Sources, count: int, seed: int) -> list[int]:
    """Which of 100 points' pairs are taken, after one that is kept."""
    rows = "".join(f"{16 * number},0,3\n" for number in range(100))
    kept = pair(1600, 0, 3)
    append("x,y,z\n" + rows, kept=[kept], max_pairs=count, seed=seed, existing=Existing.REPLACED)
    first, *others = (source[0] // 16 for source in sources())
    assert first == 100  # what is kept is not drawn from
    return others


def test_the_same_seed_draws_the_same_pairs_in_their_order(append: Append, sources: Sources) -> None:
    taken = drawn(append, sources, 30, 0)
    assert len(set(taken)) == 30
    assert taken == sorted(taken)
    assert taken == drawn(append, sources, 30, 0)
    assert taken != drawn(append, sources, 30, 1)


@pytest.mark.parametrize("count", [100, 101])
def test_all_are_taken_where_there_are_no_more(count: int, append: Append, sources: Sources) -> None:
    assert drawn(append, sources, count, 0) == list(range(100))


def test_pairs_that_are_not_drawn_are_counted_and_their_points_not_idle(append: Append, tmp_path: Path) -> None:
    made = append(TABLE + "0,0,3\n", image_layer(tmp_path), max_pairs=3)
    assert str(made) == (
        f"{tmp_path}/spec.json: 3 pairs, 3 of them new from 5 points; 1 of these add nothing new; "
        "1 repeated pairs left out; 1 more were not drawn"
    )


def test_rejected_and_repeated_pairs_are_not_drawn(append: Append, sources: Sources, tmp_path: Path) -> None:
    rejected = put_json(tmp_path / "rejected.json", [pair(0, 0, 3), pair(16, 0, 3)])
    append(TABLE + TABLE.partition("\n")[2], max_pairs=2, exclude_path=rejected)
    assert sources() == [[32, 0, 3], [48, 0, 3]]


# A link to see them


@pytest.mark.parametrize("name", ["link.json", "link.txt", "link"])
def test_a_link_gives_the_same_pairs_again(
    name: str, append: Append, starts: Callable[[], Starts], tmp_path: Path
) -> None:
    image = image_layer(tmp_path)
    kept = [pair(96, 0, 3)]
    append(PICKED, image, kept=kept, permute=True, link_path=tmp_path / name)
    first = starts()
    again = append((tmp_path / name).read_text(), image, offsets=(), existing=Existing.REPLACED)
    assert starts() == first
    assert again.annotations == f"{len(first)} lines"
    assert again.remarks == ()


def test_a_link_of_centred_points_gives_the_same_pairs_again(
    append: Append, starts: Callable[[], Starts], tmp_path: Path
) -> None:
    image = image_layer(tmp_path)
    append(state(point(30, 30, 3.5)), image, anchor="center", link_path=tmp_path / "link")
    assert starts() == [[[32, 48, 3], [32, 48, 2]]]  # 60 - 16 = 44, 60 - 8 = 52
    append((tmp_path / "link").read_text(), image, offsets=(), existing=Existing.REPLACED)
    assert starts() == [[[32, 48, 3], [32, 48, 2]]]


def test_a_state_shows_the_image_its_boxes_and_pairs(append: Append, tmp_path: Path) -> None:
    made = append("x,y,z,description\n16,32,3,here\n", image_layer(tmp_path), link_path=tmp_path / "link.json")
    shown = neuroglancer.ViewerState(json.loads((tmp_path / "link.json").read_text()))
    assert [layer.name for layer in shown.layers] == ["image", "boxes", "pairs"]
    assert shown.layers["image"].source[0].url == "precomputed://http://localhost:1337"
    assert list(shown.position) == [32, 40, 3.5]
    assert made.remarks[0].startswith(f"{tmp_path}/link.json shows volumes of this machine")
    assert made.remarks[1] == "  " + command_to_serve(f"file://{tmp_path}/image", 1337)


# What is there already


def times(folder: Path) -> dict[str, int]:
    """When the folder and everything in it was last changed, in ns."""
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}


def test_the_same_command_again_changes_nothing_and_says_so(append: Append, tmp_path: Path) -> None:
    image = image_layer(tmp_path)
    out = {"dst_spec_path": tmp_path / "out" / "spec.json", "link_path": tmp_path / "out" / "link"}
    first = str(append(PICKED, image, **out))
    before = times(tmp_path / "out")
    for existing in (Existing.REFUSED, Existing.UPDATED):
        again = str(append(PICKED, image, existing=existing, **out))
        assert again == first.replace("spec.json: 5 pairs", "spec.json: done already: 5 pairs")
        assert times(tmp_path / "out") == before
    assert not append(PICKED, image, existing=Existing.REPLACED, **out).done
    assert times(tmp_path / "out") != before


def test_pairs_added_to_their_own_spec_again_are_done_already(append: Append, starts: Callable[[], Starts]) -> None:
    append(TABLE)
    kept = [pair(x, 0, 3) for x in (0, 16, 32, 48)]
    assert append(TABLE, kept=kept).done
    assert len(starts()) == 4


def test_other_content_is_refused_with_the_numbers_of_pairs(append: Append, tmp_path: Path) -> None:
    image = image_layer(tmp_path)
    append(TABLE, image, link_path=tmp_path / "link")
    before = times(tmp_path)
    unwritten = [str(tmp_path), str(tmp_path / "spec.json"), str(tmp_path / "link")]
    for options, name in [
        ({}, "spec.json"),
        ({"dst_spec_path": tmp_path / "new", "link_path": tmp_path / "link"}, "link"),
    ]:
        with pytest.raises(UsageError) as caught:
            append("x,y,z\n0,0,3\n", image, **options)
        assert str(caught.value) == (
            f"{tmp_path / name} is there already, with other content (4 pairs there, 1 now): "
            "--update or --overwrite replaces it, or take another name"
        )
    after = times(tmp_path)
    assert [after[name] for name in unwritten] == [before[name] for name in unwritten]


def test_an_update_replaces_only_what_differs(append: Append, sources: Sources, tmp_path: Path) -> None:
    image = image_layer(tmp_path)
    append(TABLE, image, link_path=tmp_path / "link")
    (tmp_path / "link").write_text("of another spec")
    before = times(tmp_path)
    assert append(TABLE, image, link_path=tmp_path / "link", existing=Existing.UPDATED).done
    after = times(tmp_path)
    assert after[str(tmp_path / "spec.json")] == before[str(tmp_path / "spec.json")]
    assert after[str(tmp_path / "link")] != before[str(tmp_path / "link")]
    assert not append("x,y,z\n0,0,3\n", image, existing=Existing.UPDATED).done
    assert sources() == [[0, 0, 3]]


@pytest.mark.parametrize("ending", ["", " ", "more"])
def test_a_spec_of_which_the_end_differs_is_not_done(ending: str, append: Append, tmp_path: Path) -> None:
    append(TABLE)
    text = (tmp_path / "spec.json").read_text()
    (tmp_path / "spec.json").write_text(text + ending if ending else text[:-1])
    with pytest.raises(UsageError, match="with other content"):
        append(TABLE)


def test_a_missing_folder_is_made_if_its_parent_is_there(append: Append, tmp_path: Path) -> None:
    out = {"dst_spec_path": tmp_path / "specs" / "spec.json", "link_path": tmp_path / "links" / "link"}
    append(TABLE, volume_resolution=(4.0, 4.0, 40.0), **out)
    assert read_spec(tmp_path / "specs" / "spec.json").starts().shape == (4, 2, 3)
    assert (tmp_path / "links" / "link").exists()


@pytest.mark.parametrize(("link", "spec"), [("there", "spec.json"), ("link", "there"), ("there", "there")])
def test_what_is_there_is_not_replaced(link: str, spec: str, append: Append, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("precious")
    with pytest.raises(UsageError):
        append(TABLE, image_layer(tmp_path), link_path=tmp_path / link, dst_spec_path=tmp_path / spec)
    assert written(tmp_path) == {"there"}
    assert (tmp_path / "there").read_text() == "precious"


@pytest.mark.parametrize(
    ("link", "spec", "said"),
    [
        ("none/none/link", "spec.json", "none/none: no such folder, nor is there .*/none to make it in"),
        ("link", "none/none/spec.json", "none/none: no such folder, nor is there .*/none to make it in"),
        ("folder", "spec.json", "folder is a folder: want a file's name"),
        ("link", "folder", "folder is a folder: want a file's name"),
        ("folder/../both", "both", "both is to be both the spec and the link"),
    ],
)
def test_of_two_files_neither_is_written_where_one_cannot_be(
    link: str, spec: str, said: str, append: Append, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=said):
        append(
            TABLE,
            image_layer(tmp_path),
            link_path=tmp_path / link,
            dst_spec_path=tmp_path / spec,
            existing=Existing.REPLACED,
        )
    assert written(tmp_path) == {"folder"}


def test_a_link_wants_the_size_of_voxels(append: Append, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="want --volume_resolution"):
        append(TABLE, link_path=tmp_path / "link.json")
    assert written(tmp_path) == set()
    append(TABLE, link_path=tmp_path / "link.json", volume_resolution=(4.0, 4.0, 40.0))
    assert written(tmp_path) == {"link.json", "spec.json"}


# Large numbers


def test_a_hundred_thousand_lines_and_points_keep_their_places(
    append: Append, starts: Callable[[], Starts], tmp_path: Path
) -> None:
    generator = np.random.default_rng(5)
    places = generator.integers(-(10**6), 10**6, (100_000, 2, 3))
    places[:, 1, 2] = places[:, 0, 2] + generator.choice([-2, -1, 1], 100_000)
    is_line = generator.random(100_000) < 0.5
    rows = [
        f'"({a}, {b}, {c})",' + (f'"({d}, {e}, {f})",Line,{index}' if drawn else f",Point,{index}")
        for index, (((a, b, c), (d, e, f)), drawn) in enumerate(zip(places.tolist(), is_line, strict=True))
    ]
    made = append("Coordinate 1,Coordinate 2,Type,ID\n" + "\n".join(rows))
    assert (made.new_pairs, made.repeated_pairs) == (100_000, 0)
    found, notes = starts(), notes_in(tmp_path / "spec.json")
    for index in generator.choice(100_000, 2000, replace=False).tolist():
        (a, b, c), (d, e, f) = places[index].tolist()
        source = [a - a % 16, b - b % 16, c]
        target = [d - d % 16, e - e % 16, f] if is_line[index] else [*source[:2], c - 1]
        assert found[index] == [source, target]
        assert notes[index] == Note(str(index))


# As commands


def test_every_option_reaches_its_work(command: Command, tmp_path: Path, sources: Sources) -> None:
    put_json(tmp_path / "template.json", spec_of(NOWHERE, pairs=[]))
    box = {"type": "axis_aligned_bounding_box", "pointA": [0, 0, 3], "pointB": [48, 8, 4]}
    other = {"type": "annotation", "name": "other", "annotations": [point(0, 0, 1)]}
    whole = json.loads(state(box, point(40, 36, 3)))
    (tmp_path / "points.csv").write_text(json.dumps({**whole, "layers": [*whole["layers"], other]}))
    rejected = put_json(tmp_path / "rejected.json", [pair(32, 0, 3)])
    options = ["--layer", "picked", "--anchor", "center", "--stride", 16, "--exclude", rejected, "--permute_pairs"]
    options += ["--exclude_boxes", put_json(tmp_path / "listed.json", [pair(16, 0, 2)])]
    options += ["--volume_resolution", 4, 4, 40, "--max_pairs", 100, "--seed", 7, "--neuroglancer_link", "link"]
    done = command("create_spec.py", *spec_arguments(tmp_path, *options))
    assert (done.code, done.stderr) == (0, "")
    # the box: x 0..96, y 0..16 holds starts at 0, 16, 32, 48, 64; the point: 80 - 16, 72 - 8
    forth = [[x, 0] for x in (0, 16, 32, 48, 64)] + [[64, 64]]
    permuted = [[x, y, z] for x, y in forth for z in (3, 2)]
    permuted = [start for start in permuted if start[:2] not in ([32, 0], [16, 0])]
    assert sources() == permuted
    assert unquote((tmp_path / "link").read_text()).startswith("https://neuroglancer-demo.appspot.com/#!{")


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        ([], "--dst_spec_path, --points_path"),
        (["--dst_spec_path", "spec.json"], "--points_path"),
        (["--points_path", "points.csv"], "--dst_spec_path"),
    ],
)
def test_what_is_not_given_is_named(arguments: list[str], missing: str, refused: Refused, tmp_path: Path) -> None:
    put_json(tmp_path / "template.json", spec_of(NOWHERE, pairs=[]))
    said = refused("create_spec.py", "--src_spec_path", "template.json", *arguments)
    assert said == f"create_spec: error: the following arguments are required: {missing}"
    assert written(tmp_path) == set()


@pytest.mark.parametrize("stride", [2**62, 2**63, 10**30])
def test_a_stride_beyond_the_box_leaves_one_tile(stride: int, append: Append, sources: Sources) -> None:
    append('Coordinate 1,Coordinate 2,Type\n"(0, 0, 3)","(200, 100, 3)",AABB\n', stride=stride)
    assert sources() == [[0, 0, 3]]
