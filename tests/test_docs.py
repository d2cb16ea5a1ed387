"""The pages hold what they promise: their code runs, their examples are read, their links and options exist."""

import argparse
import doctest
import importlib.util
import json
import re
import subprocess
import xml.etree.ElementTree
from collections.abc import Callable
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec
import pytest
from commands import ROOT, Command
from pages import DOCS, PAGES, Block, Walk, anchors, blocks, languages, links, prose, tables, text_of
from small_jobs import image_layer, put_json, spec_of

from curation.boxes import snap
from curation.spec import Spec, check_levels, parse_spec, read_spec
from curation.splits import read_split

pytest_plugins = ["walked"]

YOUR_VOLUME = ROOT / "docs" / "your-volume.md"
SPEC_PAGE = ROOT / "docs" / "spec-and-files.md"
SCRIPTS = sorted(ROOT.glob("*.py"))
OPTION = re.compile(r"(?<![\w-])--[a-z]\w*")
KNOWN = {"sh", "python", "json", "csv", "text", "console"}
NAMES = [page.name for page in PAGES]


# Code runs


Run = Callable[[Path], list[str]]


@pytest.fixture(scope="module")
def run(walk: Walk) -> Run:
    """Run the commands and the Python of a page, once, block by block, and give what each block prints."""
    return cache(lambda page: [_printed(block, walk.project) for block in blocks(page, "sh", "python")])


def _printed(block: Block, project: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", f". .venv/bin/activate; set -e\n{_command(block, project)}"],
        cwd=project,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{block.where}: {done.stdout}{done.stderr}"
    return done.stdout


def _command(block: Block, project: Path) -> str:
    """The block as a command; a Python block that begins with a comment that is a path is a file, saved there first."""
    if block.language == "sh":
        return block.text
    first = block.text.partition("\n")[0]
    path = project / (first.removeprefix("# ") if first.startswith("# walk/") else "block.py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")
    return f"PYTHONDONTWRITEBYTECODE=1 python '{path}'"


def _is_as_shown(shown: str, printed: str) -> bool:
    """Whether the text is the same: `...` stands for anything, and processors differ in the last digits."""
    if doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS):
        return True
    words = list(zip_longest(shown.split(), printed.split(), fillvalue=""))
    return all(one == other or _is_near(one, other) for one, other in words)


def _is_near(one: str, other: str) -> bool:
    are_fractions = all(re.fullmatch(r"\d+\.\d+", word) for word in (one, other))
    return are_fractions and abs(float(one) - float(other)) < 0.1


@pytest.mark.parametrize("page", DOCS, ids=[page.name for page in DOCS])
def test_the_code_of_a_page_runs_and_prints_what_it_shows(page: Path, run: Run) -> None:
    for block, printed in zip(blocks(page, "sh", "python"), run(page), strict=True):
        if block.printed is not None:
            assert _is_as_shown(block.printed, printed), f"{block.where} prints\n{printed}"


def test_the_example_aligners_do_what_the_page_says(run: Run) -> None:
    page = next(page for page in DOCS if page.name == "aligners.md")
    (table,) = (printed for printed in run(page) if "median (px)" in printed)
    adapted, gradient, *exported = (float(line.split()[7]) for line in table.splitlines()[-5:])
    (prior,) = re.findall(r"That of the prior was (\d+\.\d+)", text_of(page))
    assert gradient < float(prior) / 2
    assert f" {prior} " in text_of(PAGES[0])
    assert adapted < float(prior)
    assert exported == [gradient] * 3


# Examples are read


@pytest.mark.parametrize("block", [b for page in PAGES for b in blocks(page, "json")], ids=lambda block: block.where)
def test_an_example_in_json_is_what_it_looks_like(block: Block, command: Command, tmp_path: Path) -> None:
    example = json.loads(block.text)
    if "image" in example:
        check_levels(parse_spec(block.text.encode()))
        assert read_spec(put_json(tmp_path / "spec.json", example), template=True).max_mip == example["max_mip"]
        return
    if "parts" in example:
        assert [part.name for part in read_split(put_json(tmp_path / "split.json", example)).parts] == ["train", "test"]
        return
    template = put_json(tmp_path / "template.json", spec_of(_wide_layer(tmp_path), pairs=[]))
    if "layers" in example:
        done = _create_spec(command, template, "--points_path", put_json(tmp_path / "state.json", example))
        assert "1 point and 1 line" in done
    elif isinstance(example["pairs"][0], list):
        whole = {**spec_of(image_layer(tmp_path)), **example}
        assert parse_spec(json.dumps(whole).encode()).pairs[0].src.x_start == 512 - 16
    else:
        points = tmp_path / "points.csv"
        points.write_text("x,y,z\n153,179,5\n")
        rejected = put_json(tmp_path / "rejected.json", example)
        done = _create_spec(command, template, "--points_path", points, "--exclude", rejected)
        assert done.startswith("spec.json: 0 pairs")


def _wide_layer(folder: Path) -> str:
    """A layer that says that it holds all places of the examples; nothing is read from it."""
    path = image_layer(folder)
    info = json.loads((folder / "image" / "info").read_text())
    info["scales"][0]["size"] = [4096, 4096, 64]
    put_json(folder / "image" / "info", info)
    return path


@pytest.mark.parametrize("block", [b for page in PAGES for b in blocks(page, "csv")], ids=lambda block: block.where)
def test_an_example_of_a_table_is_read(block: Block, command: Command, tmp_path: Path) -> None:
    template = put_json(tmp_path / "template.json", spec_of(_wide_layer(tmp_path), pairs=[]))
    points = tmp_path / "points.csv"
    points.write_text(block.text, encoding="utf-8")
    collections = block.text.count("Line Strip")
    annotations = len(block.text.splitlines()) - 1 - collections
    counted = re.findall(r"(\d+) (?:point|line|ellipsoid|bounding box)", _create_spec(command, template, points=points))
    assert sum(map(int, counted)) == annotations


def _create_spec(command: Command, template: Path, *arguments: object, points: Path | None = None) -> str:
    """The summary that create_spec prints."""
    given = [] if points is None else ["--points_path", points]
    done = command(
        "create_spec.py",
        "--src_spec_path",
        template,
        "--dst_spec_path",
        "spec.json",
        "--offsets",
        -1,
        *given,
        *arguments,
    )
    assert done.code == 0, done.stderr
    return done.stdout


def test_every_key_of_a_spec_is_explained() -> None:
    explained = {key for table in tables(SPEC_PAGE) for row in table for key in re.findall(r"`([a-z_.]+)`", row[0])}
    template = json.loads((ROOT / "spec_template.json").read_text())
    keys = {*template, *template["image"], *template["image"]["reference"], *template["masks"][0]}
    assert keys - {"reference"} | {"image.reference", "field.reference"} <= explained
    assert {"src", "tgt", "note", "x_start", "y_start", "z_start"} <= explained
    assert read_spec(ROOT / "spec_template.json", template=True).pairs == ()


# The worked example of your-volume.md


def _worked_specs() -> tuple[Spec, Spec]:
    coarse, fine = (parse_spec(block.text.encode()) for block in blocks(YOUR_VOLUME, "json"))
    return coarse, fine


def _number(cell: str) -> int:
    return int(cell.replace(",", ""))


def test_the_worked_table_is_that_of_the_worked_templates() -> None:
    (table,) = (table for table in tables(YOUR_VOLUME) if table[0] == ["key", "coarse", "fine"])
    rows = {row[0]: row[1:] for row in table[1:]}
    assert len(rows) == len(table) - 1
    specs = _worked_specs()
    fields_at = [spec.dst_mip for spec in (*specs[1:], specs[-1])]  # a stage gives the fields that the next one takes
    for stage, (spec, written) in enumerate(zip(specs, fields_at, strict=True)):
        assert spec.image.reference is not None and spec.field is not None and spec.field.reference is not None
        image, field = spec.image.reference, spec.field.reference
        expected: dict[str, Any] = {
            "`dst_mip`": spec.dst_mip,
            "a pixel is, in nm": f"{4 << spec.dst_mip} x {4 << spec.dst_mip}",
            "`x_size`, `y_size`": spec.x_size,
            "the box spans, in MIP-0 voxels": spec.box_size()[0],
            "`max_mip`": spec.max_mip,
            "starts are multiples of": 1 << spec.max_mip,
            "`image.src_mip`": spec.image.src_mip,
            "`image.reference.dst_mip`": image.dst_mip,
            "`image.reference.x_size`, `y_size`": image.x_size,
            "the image's reference spans, in MIP-0 voxels": image.x_size << image.dst_mip,
            "`field.src_mip`": spec.field.src_mip,
            "`field.reference.dst_mip`": field.dst_mip,
            "`field.reference.x_size`, `y_size`": field.x_size,
            "the field's reference spans, in MIP-0 voxels": field.x_size << field.dst_mip,
            "translations are multiples of": 1 << field.src_mip,
            "`generate_fields.py --stage`": stage,
            "`generate_fields.py --src_mip`": spec.dst_mip,
            "`generate_fields.py --dst_mip`": written,
        }
        shown = {key: cells[stage] if " x " in cells[stage] else _number(cells[stage]) for key, cells in rows.items()}
        assert shown == expected


def test_the_worked_templates_differ_in_two_numbers() -> None:
    coarse, fine = _worked_specs()
    image = msgspec.structs.replace(coarse.image, src_mip=fine.image.src_mip)
    assert msgspec.structs.replace(coarse, image=image, dst_mip=fine.dst_mip) == fine


def test_the_worked_starts_are_those_that_create_spec_makes(command: Command, tmp_path: Path) -> None:
    (table,) = (table for table in tables(YOUR_VOLUME) if table[0][0] == "point")
    rows = [[tuple(map(int, re.findall(r"\d+", cell))) for cell in row] for row in table[1:]]
    points = tmp_path / "points.csv"
    points.write_text("x,y,z\n" + "".join(f"{x},{y},{z}\n" for x, y, z in (row[0] for row in rows)))
    for spec, column in zip(_worked_specs(), (2, 3), strict=True):
        text = spec.text().replace("gs://BUCKET", f"file://{tmp_path}")  # nothing is there, and nothing is read
        (tmp_path / "template.json").write_text(text)
        _create_spec(command, tmp_path / "template.json", "--overwrite", points=points)
        made = read_spec(tmp_path / "spec.json")
        x_size, y_size = made.box_size()
        assert [tuple(start) for start in made.starts()[:, 0].tolist()] == [row[1] for row in rows]
        assert [(x + x_size, y + y_size) for x, y, _ in (row[1] for row in rows)] == [row[column] for row in rows]


def test_the_start_of_another_max_mip_and_the_sizes_are_as_told() -> None:
    text = text_of(YOUR_VOLUME)
    coarse, _ = _worked_specs()
    assert f"With a `max_mip` of 6 in the fine dataset, its first box would start at x = {snap(58321, 6)}" in text
    assert f"and not at {snap(58321, coarse.max_mip)}" in text
    assert f"take up to {1000 * 2 * 1024 * 1024 * 4 / 2**30:.1f} GiB" in text.replace("\n", " ")


def test_the_figure_shows_the_worked_example() -> None:
    figure = (ROOT / "docs" / "figures" / "boxes.svg").read_text()
    coarse, fine = _worked_specs()
    assert coarse.image.reference is not None
    start = tuple(snap(value, coarse.max_mip) for value in (58321, 41207))
    reference = coarse.image.reference.x_size << coarse.image.reference.dst_mip
    for text in (f"start {start}", "(58321, 41207)", f"{coarse.box_size()[0]:,} voxels", f"{reference:,} voxels"):
        assert text in figure
    assert f"{fine.box_size()[0]:,} voxels" in figure
    # Its boxes are to scale, and share their start.
    drawn = dict(re.findall(r'<rect class="(coarse|reference|fine)" x="100" y="110" width="(\d+)"', figure))
    assert {name: int(width) * coarse.box_size()[0] // 320 for name, width in drawn.items()} == {
        "coarse": coarse.box_size()[0],
        "reference": reference,
        "fine": fine.box_size()[0],
    }


# Links, options, blocks


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link).resolve() for link in links(PAGES[0]) if "://" not in link}
    assert set(DOCS) <= linked


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_block_is_of_a_kind_that_is_tested(page: Path) -> None:
    assert languages(page) <= KNOWN
    for block in blocks(page, "console"):
        assert re.fullmatch(r"(make (demo|test|bench|slurm)\b.*\n)+", block.text), block.where


def _parser(script: Path) -> argparse.ArgumentParser:
    spec = importlib.util.spec_from_file_location(f"parser_of_{script.stem}", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: argparse.ArgumentParser = module.parser()
    return made


def _options() -> dict[str, set[str]]:
    """The long options of each script."""
    return {
        script.name: {
            option for action in _parser(script)._actions for option in action.option_strings if len(option) > 2
        }
        for script in SCRIPTS
    }


def test_every_option_is_on_some_page() -> None:
    mentioned = {option for page in PAGES for option in OPTION.findall(text_of(page))}
    for script, options in _options().items():
        assert options <= mentioned, script


def test_every_option_on_a_page_exists() -> None:
    known = set().union(*_options().values())
    for page in PAGES:
        assert set(OPTION.findall(prose(page))) <= known, page.name


def test_no_page_names_folders_of_one_machine() -> None:
    for page in PAGES:
        assert not re.findall(r"/(?:home|root|work|tmp|Users)\b", text_of(page)), page.name


@pytest.mark.parametrize("figure", sorted((ROOT / "docs" / "figures").glob("*.svg")), ids=lambda path: path.name)
def test_a_figure_has_colours_for_light_and_for_dark(figure: Path) -> None:
    light, _, dark = figure.read_text(encoding="utf-8").partition("@media (prefers-color-scheme: dark)")
    page, text = (re.compile(pattern) for pattern in (r"\.page \{ fill: (#\w+)", r"\btext \{.*?fill: (#\w+)"))
    for colour in (page, text):
        assert colour.findall(light) != colour.findall(dark)
        assert len(colour.findall(light)) == len(colour.findall(dark)) == 1
    assert xml.etree.ElementTree.parse(figure).getroot().get("role") == "img"
