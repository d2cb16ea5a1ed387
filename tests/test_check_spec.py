"""create_spec.py --check: what a spec holds, and whether its volumes can be read as it says."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import Command, Outcome
from layers_served import served
from small_jobs import (
    DELETED,
    Json,
    Refused,
    changed,
    field_layer,
    image_layer,
    pair,
    point,
    put_json,
    spec_arguments,
    spec_of,
    tree,
)
from volumes_made import make_layer

from curation import stores

CHECK = ("create_spec.py", "--src_spec_path", "spec.json", "--check")


def check(folder: Path, command: Command, spec: Json) -> Outcome:
    """What --check does with a spec; it writes nothing."""
    put_json(folder / "spec.json", spec)
    before = tree(folder)
    done = command(*CHECK)
    assert tree(folder) == before
    return done


def rows_of(done: Outcome) -> dict[str, str]:
    """What is printed, by its first column."""
    rows = [(row[:16].rstrip(), row[17:]) for row in done.stdout.splitlines()]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def checked(folder: Path, command: Command, spec: Json) -> dict[str, str]:
    """What --check prints of a spec in which nothing is wrong."""
    done = check(folder, command, spec)
    assert (done.code, done.stderr) == (0, "")
    return rows_of(done)


def fault_of(folder: Path, command: Command, spec: Json, code: int = 2) -> str:
    """The line that says what is wrong, after all that the spec holds was printed."""
    done = check(folder, command, spec)
    assert done.code == code
    assert rows_of(done)["spec"] == "spec.json: valid"
    assert "volumes" not in rows_of(done)
    (line,) = done.stderr.splitlines()
    start = f"create_spec: {'error' if code == 2 else 'failed'}: spec.json: "
    assert line.startswith(start)
    return line.removeprefix(start)


def test_a_template_has_no_pairs_to_tell_of(tmp_path: Path, command: Command) -> None:
    image = image_layer(tmp_path)
    assert checked(tmp_path, command, spec_of(image, pairs=[])) == {
        "spec": "spec.json: valid",
        "image": f"{image} at MIP 0; each box is its own reference",
        "boxes": "32 x 16 pixels at MIP 0, 32 x 16 voxels",
        "starts": "multiples of 16 voxels, by max_mip 4",
        "pairs": "0, 0 of them repeated",
        "volumes": "there, with data at the MIPs that are read",
    }


def test_a_full_spec(tmp_path: Path, command: Command) -> None:
    pairs = [
        {**pair(0, 32, 5), "note": {"id": "a"}},
        pair(0, 32, 5),  # repeated
        pair(-16, 64, 2, 5),
        pair(-16, 64, 5, 2),
        {**pair(16, 32, 4), "note": {"tags": ["b"]}},
    ]
    image, field = image_layer(tmp_path), field_layer(tmp_path)
    mask = make_layer(tmp_path / "mask", {2: np.ones((32, 32, 6), np.uint8)})
    spec = spec_of(image, field, pairs) | {"masks": [{"path": mask, "src_mip": 2, "threshold": 128}]}
    spec |= {"dst_mip": 1}
    spec["field"]["reference"] = {"path": field, "src_mip": 2, "dst_mip": 2, "x_size": 16, "y_size": 8}
    assert checked(tmp_path, command, spec) == {
        "spec": "spec.json: valid",
        "image": f"{image} at MIP 0; each box is its own reference",
        "field": f"{field} at MIP 2; reference 16 x 8 at MIP 2, from {field} at MIP 2",
        "mask": f"{mask} at MIP 2, from 128 on",
        "boxes": "32 x 16 pixels at MIP 1, 64 x 32 voxels",
        "starts": "multiples of 16 voxels, by max_mip 4",
        "pairs": "5, 1 of them repeated, 2 with a note",
        "distinct boxes": "6",  # (0, 32) in 5 and 4; (-16, 64) in 5 and 2; (16, 32) in 4 and 3
        "x, y from": "-16, 32 to 80, 96",  # the last box begins at 16, 64 and is 64 x 32 voxels
        "sections": "2 to 5",
        "offsets": "-3 (1 pair), -1 (3 pairs), +3 (1 pair)",
        "volumes": "there, with data at the MIPs that are read; all pairs can be cut out, unless the field moves a box "
        "out of the image",
    }


def test_pairs_of_older_forms_are_checked_too(tmp_path: Path, command: Command) -> None:
    older = [{"x": 16, "y": 8, "z": 5}, {"x": 16, "y": 8, "z": 3}]  # centres of 32 x 16
    shown = checked(tmp_path, command, spec_of(image_layer(tmp_path), pairs=[older]))  # type: ignore[list-item]
    assert (shown["x, y from"], shown["offsets"]) == ("0, 0 to 32, 16", "-2 (1 pair)")
    assert shown["volumes"] == "there, with data at the MIPs that are read; all pairs can be cut out"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("image", "src_mip"), DELETED, "missing required field `src_mip` - at `$.image`"),
        (("pairs", 1, "src", "x_start"), 17, "pairs[1].src.x_start: 17 is not a multiple of 2^max_mip = 16"),
        (("pairs", 2, "tgt"), {"x_start": 64, "y_start": 64, "z_start": 3}, "pairs[2]: source and target are the same"),
        (("dst_mip",), 5, "dst_mip 5 is above max_mip 4"),
        (("pairs", 0, "note"), {"by": "me"}, "$.pairs[0].note: unknown key 'by': want one of id, description, tags"),
        (("pairs", 0, "note"), {"tags": "fold"}, "Expected `array`, got `str` - at `$.pairs[0].note.tags`"),
    ],
)
def test_a_broken_spec_is_refused(
    path: tuple[str | int, ...], value: object, said: str, tmp_path: Path, refused: Refused
) -> None:
    put_json(tmp_path / "spec.json", changed(spec_of("gs://b/image"), {path: value}))
    line = refused(*CHECK)
    assert line.startswith("create_spec: error: spec.json: ")
    assert said in line


@pytest.mark.parametrize("content", [None, "", "x,y,z\n1,2,3\n", "[]", "{}"])
def test_what_is_no_spec_is_refused(content: str | None, tmp_path: Path, refused: Refused) -> None:
    if content is not None:
        (tmp_path / "spec.json").write_text(content)
    line = refused(*CHECK)
    assert line.startswith("create_spec: error: spec.json: ")


# The volumes


def test_what_stands_for_paths_in_the_template_is_named(tmp_path: Path, command: Command) -> None:
    template = json.loads((Path(__file__).parent.parent / "spec_template.json").read_text())
    assert fault_of(tmp_path, command, template) == (
        "BUCKET stands for a bucket of your own in image.path gs://BUCKET/image, image.reference.path "
        "gs://BUCKET/image, field.path gs://BUCKET/field, field.reference.path gs://BUCKET/field, masks[0].path "
        "gs://BUCKET/mask: want the paths of your volumes, such as gs://my-bucket/image or file:///data/image; leave "
        "out field and masks if you have none"
    )
    image = image_layer(tmp_path)
    masked = spec_of(image, pairs=[]) | {"masks": [{"path": "gs://BUCKET", "src_mip": 0, "threshold": 1}]}
    assert fault_of(tmp_path, command, masked).startswith("BUCKET stands for a bucket of your own in masks[0].path gs:")


@pytest.mark.parametrize("pairs", [None, []], ids=["pairs", "template"])
def test_volumes_that_cannot_be_read_so_are_told(pairs: list[Json] | None, tmp_path: Path, command: Command) -> None:
    image, field = image_layer(tmp_path), field_layer(tmp_path)
    three = make_layer(tmp_path / "three", {0: np.ones((128, 128, 6, 3), np.uint8)})
    coarse = make_layer(tmp_path / "coarse", {0: np.ones((64, 64, 6), np.uint8)}, resolution=(8, 8, 40))
    empty = make_layer(tmp_path / "empty", {2: np.ones((32, 32, 6), np.uint8)})
    masks = [{"path": coarse, "src_mip": 0, "threshold": 1}]
    for spec, said in [
        (spec_of("file:///nowhere/at/all", pairs=pairs), "file:///nowhere/at/all: no CloudVolume layer there"),
        (changed(spec_of(image, pairs=pairs), {("image", "src_mip"): 3}), f"{image} has no MIP 3: it has 0"),
        (spec_of(three, pairs=pairs), f"image: {three} at MIP 0 has 3 channels: want 1"),
        (spec_of(field, pairs=pairs), f"image: {field} at MIP 0 has 2 channels: want 1"),
        (spec_of(image, pairs=pairs) | {"masks": masks}, f"{coarse} at MIP 0 has voxels of 8 x 8 x 40 nm at MIP 0"),
        (spec_of(empty, pairs=pairs), "holds no data: of the chunks asked for none is there; there are some at MIP 2"),
    ]:
        assert said in fault_of(tmp_path, command, spec)


def test_pairs_that_cannot_be_cut_out_are_told(tmp_path: Path, command: Command) -> None:
    spec = spec_of(image_layer(tmp_path), pairs=[pair(0, 0, 3), pair(128, 0, 3)])
    assert "pairs[1]" in fault_of(tmp_path, command, spec)


def test_a_store_that_cannot_be_asked_is_a_failure(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "CHECK_FOR_S", 0.1)
    image_layer(tmp_path)
    with served(tmp_path) as server:
        url = f"{server.url}/image"
    assert url in fault_of(tmp_path, command, spec_of(url), code=1)


# The link


def test_a_link_is_written_for_the_spec_that_is_there(tmp_path: Path, command: Command) -> None:
    pairs = [{**pair(16, 32, 4), "note": {"description": "here"}}, pair(0, 0, 5)]
    put_json(tmp_path / "spec.json", spec_of(image_layer(tmp_path), pairs=pairs))
    done = command(*CHECK, "--neuroglancer_link", "link.json")
    assert (done.code, done.stderr) == (0, "")
    layers = {layer["name"]: layer for layer in json.loads((tmp_path / "link.json").read_text())["layers"]}
    layer = layers["pairs"]
    assert [line["pointA"] for line in layer["annotations"]] == [[16, 32, 4.5], [0, 0, 5.5]]
    assert layer["annotations"][0]["description"] == "here"
    written, serve, *commands = done.stdout.splitlines()[-3:]
    assert written == "link.json: written"
    assert serve.startswith("link.json shows volumes of this machine, which a browser reads only while they are served")
    assert commands == [
        f"  python -c 'from cloudvolume.server import view; view(\"file://{tmp_path}/image\", port=1337)'"
    ]
    before = (tmp_path / "link.json").stat().st_mtime_ns
    assert "link.json: done already" in command(*CHECK, "--neuroglancer_link", "link.json").stdout
    assert (tmp_path / "link.json").stat().st_mtime_ns == before


def test_a_link_of_other_pairs_is_refused_unless_it_may_be_replaced(tmp_path: Path, command: Command) -> None:
    image = image_layer(tmp_path)
    put_json(tmp_path / "spec.json", spec_of(image))
    arguments = (*CHECK, "--neuroglancer_link", "link")
    assert command(*arguments).code == 0
    put_json(tmp_path / "spec.json", spec_of(image, pairs=[pair(0, 0, 5)]))
    done = command(*arguments)
    assert (done.code, done.stdout.splitlines()[0]) == (2, "spec             spec.json: valid")
    assert "link is there already, with other content (3 pairs there, 1 now): --update" in done.stderr
    assert command(*arguments, "--update").code == 0
    assert "done already" in command(*arguments).stdout


def test_no_link_is_written_where_a_volume_cannot_be_read(tmp_path: Path, command: Command) -> None:
    put_json(tmp_path / "spec.json", spec_of("file:///nowhere"))
    done = command(*CHECK, "--neuroglancer_link", "link", "--volume_resolution", 4, 4, 40)
    assert (done.code, (tmp_path / "link").exists()) == (2, False)


def test_a_link_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path: Path, refused: Refused) -> None:
    put_json(tmp_path / "spec.json", spec_of("file:///nowhere"))
    assert "no such folder" in refused(*CHECK, "--neuroglancer_link", "no/such/link")


def test_a_link_that_is_checked_and_one_that_is_made_with_the_spec_are_the_same(
    tmp_path: Path, command: Command
) -> None:
    put_json(tmp_path / "template.json", spec_of(image_layer(tmp_path), field_layer(tmp_path), pairs=[]))
    places = [point(8, 8, 3.5), point(40, 8, 2.5, description="b")]
    dimensions = {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]}
    layer = {"type": "annotation", "name": "a", "annotations": places}
    put_json(tmp_path / "points.csv", {"dimensions": dimensions, "layers": [layer]})
    assert command("create_spec.py", *spec_arguments(tmp_path, "--neuroglancer_link", "made")).code == 0
    done = command(*CHECK, "--neuroglancer_link", "made")
    assert done.code == 0, done.stderr
    assert "made: done already" in done.stdout
