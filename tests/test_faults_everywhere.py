"""Faults 55 to 60 of docs/faults.md: stretches of a volume, and what holds for every script."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import ROOT, Command, Script
from small_jobs import (
    ONES,
    Refused,
    contents,
    dataset_arguments,
    field_layer,
    fields_arguments,
    image_layer,
    made_folder,
    put_json,
    pyramid_of,
    spec_arguments,
    spec_of,
    stretch_arguments,
)

Arguments = Callable[..., list[object]]


# download_image


@pytest.fixture
def stretch(tmp_path: Path) -> Arguments:
    """download_image.py's arguments over a volume of 6 sections, with what a test changes."""
    volume = image_layer(tmp_path)

    return lambda **changes: stretch_arguments(volume, made_folder(tmp_path / "out"), **changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"z_start": 4}, "--z_start 4 is not before --z_end 4"),
        ({"z_start": 5}, "--z_start 5 is not before --z_end 4"),
        ({"patch_sizes": "32 16"}, "--mips and --patch_sizes have 1 and 2 values"),
        ({"mips": "0 1"}, "--mips and --patch_sizes have 2 and 1 values"),
    ],
)
def test_55_no_sections_or_lists_of_different_length(
    change: dict[str, object], said: str, stretch: Arguments, refused: Refused, tmp_path: Path
) -> None:
    assert said in refused("download_image.py", *stretch(**change))
    assert not list((tmp_path / "out").iterdir())


def test_56_the_section_before_the_first_is_outside(stretch: Arguments, refused: Refused, tmp_path: Path) -> None:
    assert "pairs[0].tgt, section -1: box wholly outside" in refused("download_image.py", *stretch(z_start=0))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("axis", "offset"), [("x", 17), ("y", 34)])
def test_57_an_offset_off_the_grid(axis: str, offset: int, stretch: Arguments, refused: Refused) -> None:
    line = refused("download_image.py", *stretch(mips="2", **{f"{axis}_offset": offset}))
    assert f"--{axis}_offset {offset} is not a multiple of 2^2 = 4" in line


# Everywhere


def test_58_without_asserts_everything_is_the_same(script: Script, tmp_path: Path) -> None:
    spec = put_json(tmp_path / "spec.json", spec_of(image_layer(tmp_path), field_layer(tmp_path)))
    made = []
    for optimised in ("", "1"):
        out = made_folder(tmp_path / f"out{optimised}")
        done = script("make_dataset.py", *dataset_arguments(spec, out), PYTHONOPTIMIZE=optimised)
        made.append((done.returncode, {path.name: contents(path) for path in out.iterdir()}))
    assert made[0][0] == 0
    assert len(made[0][1]) == 2
    assert made[0] == made[1]


def test_58_no_assert_stands_in_the_code() -> None:
    paths = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] in ("curation", path.name)]
    assert len(paths) > 20
    for path in paths:
        code = ast.parse(path.read_text(encoding="utf-8"))
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(code)), path


def test_59_paths_with_spaces_and_unicode(script: Script, command: Command, tmp_path: Path) -> None:
    folder = made_folder(tmp_path / "Schnitte für α β, 1%")
    template = spec_of(image_layer(folder), field_layer(folder), pairs=[])
    put_json(folder / "template.json", template)
    (folder / "points.csv").write_text("x0,y0,z0\n0,0,5\n")
    made_folder(folder / "shards")
    pyramid_of(folder, ONES)
    images, prior = folder / "x0_y0_z5_MIP0.h5", folder / "field_0_x0_y0_z5_MIP0.h5"
    stretch = ["--z_start", 1, "--z_end", 3, "--x_offset", 0, "--y_offset", 0, "--mip", 0, "--patch_size", 16]
    for name, *arguments in [
        ("create_spec.py", *spec_arguments(folder)),
        ("make_dataset.py", *dataset_arguments(folder / "spec.json", folder)),
    ]:
        alone = script(name, *arguments)  # a process of its own, which decodes its arguments
        assert alone.returncode == 0, alone.stderr
    for name, *arguments in [
        ("download_image.py", "--cv_path", f"file://{folder}/image", "--dst_folder", folder, *stretch),
        ("concat_fields.py", "--temp_dir", folder / "shards", "--dst_path", folder / "füll.h5"),
        ("verify_dataset.py", images, prior, folder / "füll.h5"),
    ]:
        if name == "concat_fields.py":
            module = folder / "pyramid" / "0_mip3in_small"
            module.rename(module.with_name("0_mip0in_ein Modül"))
            run = fields_arguments(folder, images, prior, src_mip=0, dst_mip=0)
            done = command("generate_fields.py", *run)
            assert done.code == 0, done.stderr
        done = command(name, *arguments)
        assert done.code == 0, done.stderr + done.stdout


@pytest.mark.parametrize("text", ["\0", '"', "x0,y0,z0\n" + "9" * 5000, '{"layers": 1}', "\ud800"])
def test_60_nonsense_is_refused_without_a_traceback(text: str, refused: Refused, tmp_path: Path) -> None:
    """Nonsense that nobody has thought of is made in test_fuzz.py."""
    put_json(tmp_path / "template.json", spec_of("file:///image", pairs=[]))
    for name in ("points.csv", "spec.json"):
        (tmp_path / name).write_bytes(text.encode(errors="surrogatepass"))
    assert "points.csv: " in refused("create_spec.py", *spec_arguments(tmp_path, "--overwrite"))
    assert "spec.json: " in refused("make_dataset.py", *dataset_arguments(tmp_path / "spec.json", tmp_path))
    assert len(list(tmp_path.iterdir())) == 3
