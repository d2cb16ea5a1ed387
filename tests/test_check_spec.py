"""create_spec.py --check: what a spec holds."""

from pathlib import Path

import pytest
from commands import Command
from small_jobs import DELETED, Json, Refused, changed, pair, put_json, spec_of, tree

REFERENCE = {"path": "gs://b/other", "src_mip": 3, "dst_mip": 2, "x_size": 512, "y_size": 256}


def checked(folder: Path, command: Command, spec: Json) -> dict[str, str]:
    """What --check prints of a spec, by its first column."""
    put_json(folder / "spec.json", spec)
    before = tree(folder)
    done = command("create_spec.py", "--src_spec_path", "spec.json", "--check")
    assert (done.code, done.stderr) == (0, "")
    assert tree(folder) == before
    rows = [(row[:16].rstrip(), row[17:]) for row in done.stdout.splitlines()]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_a_template_has_no_pairs_to_tell_of(tmp_path: Path, command: Command) -> None:
    assert checked(tmp_path, command, spec_of("gs://b/image", pairs=[])) == {
        "spec": "spec.json: valid",
        "image": "gs://b/image at MIP 0; each box is its own reference",
        "boxes": "32 x 16 pixels at MIP 0, 32 x 16 voxels",
        "starts": "multiples of 16 voxels, by max_mip 4",
        "pairs": "0, 0 of them repeated",
    }


def test_a_full_spec(tmp_path: Path, command: Command) -> None:
    pairs = [
        {**pair(0, 32, 5), "note": {"id": "a"}},
        pair(0, 32, 5),  # repeated
        pair(-16, 64, 5, 8),
        pair(-16, 64, 8, 5),
        {**pair(16, 32, 4), "note": {"tags": ["b"]}},
    ]
    spec = spec_of("gs://b/image", "gs://b/field", pairs)
    spec |= {"dst_mip": 1, "masks": [{"path": "gs://b/mask", "src_mip": 4, "threshold": 128}]}
    spec["field"]["reference"] = REFERENCE
    assert checked(tmp_path, command, spec) == {
        "spec": "spec.json: valid",
        "image": "gs://b/image at MIP 0; each box is its own reference",
        "field": "gs://b/field at MIP 2; reference 512 x 256 at MIP 2, from gs://b/other at MIP 3",
        "mask": "gs://b/mask at MIP 4, from 128 on",
        "boxes": "32 x 16 pixels at MIP 1, 64 x 32 voxels",
        "starts": "multiples of 16 voxels, by max_mip 4",
        "pairs": "5, 1 of them repeated, 2 with a note",
        "distinct boxes": "6",  # (0, 32) in 5 and 4; (-16, 64) in 5 and 8; (16, 32) in 4 and 3
        "x, y from": "-16, 32 to 80, 96",  # the last box begins at 16, 64 and is 64 x 32 voxels
        "sections": "3 to 8",
        "offsets": "-3 (1 pairs), -1 (3 pairs), +3 (1 pairs)",
    }


def test_pairs_of_older_forms_are_checked_too(tmp_path: Path, command: Command) -> None:
    older = [{"x": 16, "y": 8, "z": 5}, {"x": 16, "y": 8, "z": 3}]  # centres of 32 x 16
    shown = checked(tmp_path, command, spec_of("gs://b/image", pairs=[older]))  # type: ignore[list-item]
    assert (shown["x, y from"], shown["offsets"]) == ("0, 0 to 32, 16", "-2 (1 pairs)")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("image", "src_mip"), DELETED, "missing required field `src_mip` - at `$.image`"),
        (("pairs", 1, "src", "x_start"), 17, "pairs[1].src.x_start: 17 is not a multiple of 2^max_mip = 16"),
        (("pairs", 2, "tgt"), {"x_start": 64, "y_start": 64, "z_start": 3}, "pairs[2]: source and target are the same"),
        (("dst_mip",), 5, "dst_mip 5 is above max_mip 4"),
        (("pairs", 0, "note"), {"by": "me"}, "unknown field `by` - at `$.pairs[0].note`"),
        (("pairs", 0, "note"), {"tags": "fold"}, "Expected `array`, got `str` - at `$.pairs[0].note.tags`"),
    ],
)
def test_a_broken_spec_is_refused(
    path: tuple[str | int, ...], value: object, said: str, tmp_path: Path, refused: Refused
) -> None:
    put_json(tmp_path / "spec.json", changed(spec_of("gs://b/image"), {path: value}))
    line = refused("create_spec.py", "--src_spec_path", "spec.json", "--check")
    assert line.startswith("create_spec: error: spec.json: ")
    assert said in line


@pytest.mark.parametrize("content", [None, "", "x,y,z\n1,2,3\n", "[]", "{}"])
def test_what_is_no_spec_is_refused(content: str | None, tmp_path: Path, refused: Refused) -> None:
    if content is not None:
        (tmp_path / "spec.json").write_text(content)
    line = refused("create_spec.py", "--src_spec_path", "spec.json", "--check")
    assert line.startswith("create_spec: error: spec.json: ")
