"""The spec: what it means, its older forms, and each way in which it can be wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_jobs
from commands import ROOT
from small_jobs import DELETED, Json

from curation.errors import UsageError
from curation.spec import (
    Note,
    Reference,
    Spec,
    field_reference,
    image_reference,
    parse_spec,
    read_spec,
    spec_file,
)

SPEC: Json = {
    "image": {
        "path": "file:///image",
        "src_mip": 0,
        "reference": {"path": "file:///reference", "src_mip": 2, "dst_mip": 2, "x_size": 8, "y_size": 8},
    },
    "field": {
        "path": "file:///field",
        "src_mip": 3,
        "reference": {"path": "file:///field", "src_mip": 4, "dst_mip": 3, "x_size": 8, "y_size": 8},
    },
    "masks": [{"path": "file:///mask", "src_mip": 2, "threshold": 0.5}],
    "max_mip": 3,
    "dst_mip": 1,
    "x_size": 5,
    "y_size": 4,
    "pairs": [
        {"src": {"x_start": 8, "y_start": 16, "z_start": 5}, "tgt": {"x_start": 8, "y_start": 16, "z_start": 4}},
        {"src": {"x_start": -8, "y_start": 0, "z_start": 5}, "tgt": {"x_start": -8, "y_start": 0, "z_start": 6}},
    ],
}
STARTS = [[[8, 16, 5], [8, 16, 4]], [[-8, 0, 5], [-8, 0, 6]]]


def changed(changes: dict[tuple[str | int, ...], Any]) -> Json:
    """SPEC with the values at some paths replaced, or deleted."""
    return small_jobs.changed(SPEC, changes)


Read = Callable[[Json], Spec]
Refusal = Callable[[Json], str]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read a spec from a file that holds it."""

    def reads(spec: Json) -> Spec:
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        return read_spec(tmp_path / "spec.json")

    return reads


@pytest.fixture
def refusal(read: Read, tmp_path: Path) -> Refusal:
    """Why a spec is refused, after the file's name."""

    def why(spec: Json) -> str:
        with pytest.raises(UsageError) as caught:
            read(spec)
        head = f"{tmp_path / 'spec.json'}: "
        assert str(caught.value).startswith(head)
        return str(caught.value).removeprefix(head)

    return why


# What it means


def test_starts_are_source_and_target_in_x_y_z(read: Read) -> None:
    np.testing.assert_array_equal(read(SPEC).starts(), np.array(STARTS), strict=True)


def test_every_value_is_read(read: Read) -> None:
    spec = read(SPEC)
    assert json.loads(spec.text()) == SPEC


def test_field_and_masks_may_be_left_out(read: Read) -> None:
    spec = read(changed({("field",): DELETED, ("masks",): DELETED}))
    assert (spec.field, spec.masks) == (None, ())


def test_masks_may_be_empty(read: Read) -> None:
    assert read(changed({("masks",): []})).masks == ()


def test_references_are_those_given(read: Read) -> None:
    spec = read(SPEC)
    assert image_reference(spec) == Reference("file:///reference", 2, 2, 8, 8)
    assert field_reference(spec) == Reference("file:///field", 4, 3, 8, 8)


def test_references_left_out_are_the_sample_own_box(read: Read) -> None:
    spec = read(changed({("image", "reference"): DELETED, ("field", "reference"): DELETED}))
    assert image_reference(spec) == Reference("file:///image", 0, 1, 5, 4)
    assert field_reference(spec) == Reference("file:///field", 3, 1, 5, 4)


def test_bom_makes_no_difference(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(SPEC), encoding="utf-8-sig")
    assert read_spec(tmp_path / "spec.json").starts().tolist() == STARTS


def test_template_may_be_without_pairs(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(changed({("pairs",): []})))
    assert read_spec(tmp_path / "spec.json", template=True).pairs == ()


# Older forms


def test_pair_as_a_list_is_source_then_target(read: Read) -> None:
    pairs = [[pair["src"], pair["tgt"]] for pair in SPEC["pairs"]]
    assert read(changed({("pairs",): pairs})) == read(SPEC)


def test_box_by_its_centre_starts_half_its_size_before(read: Read) -> None:
    # 5 pixels of 2 voxels: half is 5 along x; 4 pixels: half is 4 along y
    pair = {"src": {"x": 13, "y": 20, "z": 5}, "tgt": {"x": 13, "y": 20, "z": 4}}
    assert read(changed({("pairs", 0): pair})) == read(SPEC)


def test_half_of_an_odd_size_is_floored(read: Read) -> None:
    # 5 pixels of 1 voxel: 5 // 2 = 2 along x; 7 // 2 = 3 along y
    sizes: dict[tuple[str | int, ...], Any] = {("dst_mip",): 0, ("x_size",): 5, ("y_size",): 7}
    pair = {"src": {"x": 10, "y": 19, "z": 5}, "tgt": {"x": 10, "y": 19, "z": 4}}
    assert read(changed({**sizes, ("pairs", 0): pair})) == read(changed(sizes))


def test_centre_below_zero_starts_farther_below(read: Read) -> None:
    pair = {"src": {"x": -3, "y": 4, "z": 5}, "tgt": {"x": -3, "y": 4, "z": 6}}
    assert read(changed({("pairs", 1): pair})) == read(SPEC)


def test_forms_may_be_mixed(read: Read) -> None:
    first, second = SPEC["pairs"]
    pairs = [[{"x": 13, "y": 20, "z": 5}, first["tgt"]], {"src": second["src"], "tgt": {"x": -3, "y": 4, "z": 6}}]
    assert read(changed({("pairs",): pairs})) == read(SPEC)


# Writing


def test_written_spec_reads_back_the_same(read: Read, tmp_path: Path) -> None:
    spec = read(SPEC)
    (tmp_path / "written.json").write_text("".join(spec_file(spec, spec.starts(), {})))
    assert read_spec(tmp_path / "written.json") == spec
    assert json.loads((tmp_path / "written.json").read_text()) == SPEC


def test_written_spec_without_field_and_masks_names_neither(read: Read, tmp_path: Path) -> None:
    plain = changed({("field",): DELETED, ("masks",): DELETED, ("image", "reference"): DELETED})
    spec = read(plain)
    (tmp_path / "written.json").write_text("".join(spec_file(spec, spec.starts(), {})))
    assert json.loads((tmp_path / "written.json").read_text()) == plain


def test_written_spec_has_a_pair_a_line(read: Read, tmp_path: Path) -> None:
    spec = read(SPEC)
    notes = {1: Note(description="a fold")}
    (tmp_path / "written.json").write_text("".join(spec_file(spec, np.arange(18).reshape(3, 2, 3), notes)))
    lines = (tmp_path / "written.json").read_text().splitlines()
    first = lines.index('  "pairs": [') + 1
    assert lines[first] == (
        '    {"src": {"x_start": 0, "y_start": 1, "z_start": 2}, "tgt": {"x_start": 3, "y_start": 4, "z_start": 5}},'
    )
    assert lines[first + 1].endswith('"z_start": 11}, "note": {"description":"a fold"}},')
    assert lines[first + 3 :] == ["  ]", "}"]


# Not a spec


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json: No such file"):
        read_spec(tmp_path / "none.json")


@pytest.mark.parametrize("line", [2, 9, 30])
def test_malformed_json_is_refused_with_its_line(line: int) -> None:
    lines = json.dumps(SPEC, indent=1).splitlines()
    lines[line - 1] = lines[line - 1].rstrip(",") + " oops"
    with pytest.raises(UsageError, match=f"not JSON: .*, line {line}$"):
        parse_spec("\n".join(lines).encode())


def test_malformed_json_after_a_fault_of_meaning_is_refused_with_its_line() -> None:
    with pytest.raises(UsageError, match=r"^not JSON: .*, line 2$"):
        parse_spec(b'{"x_size": "seven",\n"y_size": 4 4}')


def test_truncated_json_is_refused_with_its_last_line() -> None:
    lines = json.dumps(SPEC, indent=1).splitlines()[:20]
    with pytest.raises(UsageError, match=r"not JSON: .*truncated, line 20$"):
        parse_spec("\n".join(lines).encode())


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'{"image": {"path": "\xff"}}'])
def test_bytes_that_are_no_json_are_refused(content: bytes) -> None:
    with pytest.raises(UsageError, match="not JSON"):
        parse_spec(content)


@pytest.mark.parametrize("content", [b"[]", b"null", b"7", b'"spec"'])
def test_json_that_is_no_object_is_refused(content: bytes) -> None:
    with pytest.raises(UsageError, match="Expected `object`"):
        parse_spec(content)


# Keys and values


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (("x_sizes",), "$: unknown key 'x_sizes': did you mean 'x_size'?"),
        (("image", "src_mipp"), "$.image: unknown key 'src_mipp': did you mean 'src_mip'?"),
        (("image", "reference", "dstmip"), "$.image.reference: unknown key 'dstmip': did you mean 'dst_mip'?"),
        (("field", "threshold"), "$.field: unknown key 'threshold': want one of path, src_mip, reference"),
        (("masks", 0, "treshold"), "$.masks[0]: unknown key 'treshold': did you mean 'threshold'?"),
        (("pairs", 1, "target"), "$.pairs[1]: unknown key 'target': did you mean 'tgt'?"),
        (("pairs", 1, "tgt", "mip"), "$.pairs[1].tgt: unknown key 'mip': want one of x_start, y_start, z_start"),
        (("pairs", 1, "note"), "$.pairs[1].note: unknown key 'tag': did you mean 'tags'?"),
        (("a` - at `$.no.where",), "Object contains unknown field `a` - at `$.no.where`"),
        (("a` - at `$.x_size",), "Object contains unknown field `a` - at `$.x_size`"),
    ],
)
def test_unknown_key_is_refused_with_its_path(refusal: Refusal, path: tuple[str | int, ...], said: str) -> None:
    value = {"tag": 1} if path[-1] == "note" else 1
    assert refusal(changed({path: value})).startswith(said)


@pytest.mark.parametrize(
    ("path", "where"),
    [
        (("dst_mip",), ""),
        (("image", "path"), " - at `$.image`"),
        (("field", "reference", "x_size"), " - at `$.field.reference`"),
        (("masks", 0, "threshold"), " - at `$.masks[0]`"),
        (("pairs", 1, "tgt"), " - at `$.pairs[1]`"),
        (("pairs", 1, "tgt", "z_start"), " - at `$.pairs[1].tgt`"),
    ],
)
def test_missing_key_is_refused_with_its_path(refusal: Refusal, path: tuple[str | int, ...], where: str) -> None:
    why = refusal(changed({path: DELETED}))
    assert why == f"Object missing required field `{path[-1]}`{where}"


@pytest.mark.parametrize("size", [0, -4])
@pytest.mark.parametrize("path", [("x_size",), ("y_size",), ("image", "reference", "x_size")])
def test_size_below_1_is_refused(refusal: Refusal, path: tuple[str, ...], size: int) -> None:
    assert refusal(changed({path: size})) == f"Expected `int` >= 1 - at `$.{'.'.join(path)}`"


@pytest.mark.parametrize("path", [("dst_mip",), ("image", "src_mip"), ("field", "reference", "dst_mip")])
def test_negative_mip_is_refused(refusal: Refusal, path: tuple[str, ...]) -> None:
    assert refusal(changed({path: -1})) == f"Expected `int` >= 0 - at `$.{'.'.join(path)}`"


@pytest.mark.parametrize("value", ["4", 4.5, None, True, [4], 10**30])
def test_value_of_another_type_is_refused(refusal: Refusal, value: Any) -> None:
    assert "at `$.x_size`" in refusal(changed({("x_size",): value}))


# Levels


def test_dst_mip_may_be_max_mip(read: Read) -> None:
    assert read(changed({("dst_mip",): 3})).dst_mip == 3


def test_field_reference_finer_than_wanted_is_refused(refusal: Refusal) -> None:
    why = refusal(changed({("field", "reference", "src_mip"): 2}))
    assert why.startswith("field.reference.src_mip 2 is finer than field.reference.dst_mip 3")


def test_field_may_be_read_at_the_level_wanted(read: Read) -> None:
    spec = read(changed({("field", "src_mip"): 1, ("field", "reference", "src_mip"): 3}))
    assert spec.field is not None
    assert spec.field.src_mip == 1


def test_reference_where_starts_do_not_line_up_is_refused(refusal: Refusal) -> None:
    why = refusal(changed({("image", "reference", "src_mip"): 4, ("image", "reference", "dst_mip"): 4}))
    assert why.startswith("image.reference.src_mip 4, wanted at MIP 4: boxes start at multiples of 2^3 voxels")


def test_mask_that_does_not_line_up_where_the_reference_wants_it_is_refused(refusal: Refusal) -> None:
    """At the sample's own level, 1, it would."""
    why = refusal(changed({("masks", 0, "src_mip"): 4, ("image", "reference", "dst_mip"): 4}))
    assert why.startswith("masks[0].src_mip 4, wanted at MIP 4: boxes start at multiples of 2^3 voxels, by max_mip")


def test_mask_coarser_than_max_mip_may_be_wanted_finer(read: Read) -> None:
    assert read(changed({("masks", 0, "src_mip"): 4})).masks[0].src_mip == 4


def test_shifts_between_the_pixels_of_the_image_are_refused(refusal: Refusal) -> None:
    shifts: dict[tuple[str | int, ...], Any] = {("field", "reference", "src_mip"): 1}
    why = refusal(changed({**shifts, ("field", "reference", "dst_mip"): 1}))
    assert why.startswith("image.reference.src_mip 2, wanted at MIP 2: boxes are shifted by multiples of 2^1")


# Pairs


@pytest.mark.parametrize("pair", [7, "a", None, [], [SPEC["pairs"][0]["src"]], ["a", "b"], [[1, 2, 3], [1, 2, 4]]])
def test_pair_of_another_type_is_refused_with_its_index(refusal: Refusal, pair: Any) -> None:
    assert "at `$.pairs[1]" in refusal(changed({("pairs", 1): pair}))


@pytest.mark.parametrize("number", ["8", 8.5, None])
@pytest.mark.parametrize("keys", [("x_start", "y_start", "z_start"), ("x", "y", "z")])
def test_start_of_another_type_is_refused_with_its_index(refusal: Refusal, keys: tuple[str, ...], number: Any) -> None:
    box = dict(zip(keys, (number, 8, 8), strict=True))
    assert refusal(changed({("pairs", 1, "tgt"): box})).endswith("at `$.pairs[1].tgt.x_start`")


@pytest.mark.parametrize("pair", [{"x": 8, "y": 16}, {"x": 8, "y_start": 16, "z_start": 5}])
def test_centre_that_lacks_a_key_is_refused_with_its_index(refusal: Refusal, pair: Json) -> None:
    assert "$.pairs[1].src: " in refusal(changed({("pairs", 1, "src"): pair}))


def test_boxes_that_differ_in_one_number_are_a_pair(read: Read) -> None:
    spec = read(changed({("pairs", 1, "tgt", "z_start"): 5, ("pairs", 1, "tgt", "y_start"): 8}))
    assert spec.starts()[1].tolist() == [[-8, 0, 5], [-8, 8, 5]]


@pytest.mark.parametrize(("role", "axis", "start"), [("src", "x", 12), ("tgt", "y", -4), ("tgt", "x", 1)])
def test_start_between_the_coarsest_pixels_is_refused_with_its_index(
    refusal: Refusal, role: str, axis: str, start: int
) -> None:
    why = refusal(changed({("pairs", 1, role, f"{axis}_start"): start}))
    assert why == f"pairs[1].{role}.{axis}_start: {start} is not a multiple of 2^max_mip = 8"


def test_sections_need_not_be_multiples(read: Read) -> None:
    assert read(changed({("pairs", 1, "tgt", "z_start"): 7})).starts()[1, 1].tolist() == [-8, 0, 7]


def test_a_template_may_leave_pairs_out(tmp_path: Path) -> None:
    content = json.loads((ROOT / "spec_template.json").read_text())
    del content["pairs"]
    (tmp_path / "spec.json").write_text(json.dumps(content))
    assert read_spec(tmp_path / "spec.json", template=True).pairs == ()
    with pytest.raises(UsageError, match="no pairs: make some"):
        read_spec(tmp_path / "spec.json")
