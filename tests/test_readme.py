"""The README: what `make demo` makes of it, and what happens to a newcomer who pastes its commands."""

import re

import pytest
from commands import ROOT
from pages import DOCS, README, Walk, blocks, text_of

pytest_plugins = ["walked"]

TABLE = re.compile(r"^(\S+\.h5) +[\d.]+ +(\d+)  192 x 192 +2 +([\d.]+) ", re.MULTILINE)


def test_the_recovered_fields_are_within_a_pixel(demo: Walk) -> None:
    errors = {name: float(median) for name, pairs, median in TABLE.findall(demo.output) if pairs == "16"}
    prior, coarse, fine = errors.values()
    assert list(errors)[1:] == ["field_1.h5", "field_2.h5"]
    assert prior > 2
    assert fine < coarse < 1


def test_the_readme_shows_the_table_that_the_commands_print(demo: Walk) -> None:
    shown = TABLE.findall(text_of(README))
    for (name, pairs, median), (name_now, pairs_now, median_now) in zip(shown, TABLE.findall(demo.output), strict=True):
        assert (name, pairs) == (name_now, pairs_now)
        assert float(median) == pytest.approx(float(median_now), abs=0.03)  # processors differ in the last digits


def test_every_script_is_run(demo: Walk) -> None:
    """By the README's commands, or by those of another page, which a test of the pages runs."""
    scripts = {path.name for path in ROOT.glob("*.py")}
    run = set(re.findall(r"^\$ python (\S+)", demo.output, re.MULTILINE))
    for block in (block for page in DOCS for block in blocks(page, "sh")):
        run |= set(re.findall(r"^python (\S+)", block.text, re.MULTILINE))
    assert scripts <= run


def test_the_commands_can_be_pasted_after_the_demo_and_over_an_earlier_walk(walk: Walk) -> None:
    for folder in ("demo", "walk"):
        assert (walk.project / folder / "field_2.h5").is_file()
    assert len(TABLE.findall(walk.output)) == 3


def test_the_demo_leaves_what_the_walk_does_in_a_folder_of_its_own(walk: Walk) -> None:
    demo, own = (
        {path.relative_to(walk.project / folder) for path in (walk.project / folder).rglob("*")}
        for folder in ("demo", "walk")
    )
    assert demo <= own  # the walk's folder also has what other pages' commands have written
    assert "walk" not in {part for path in demo for part in path.parts}


def test_the_readme_is_short() -> None:
    assert len(text_of(README).splitlines()) <= 180


def test_the_loss_of_the_toy_falls(demo: Walk) -> None:
    losses = [float(loss) for loss in re.findall(r"^epoch \d+: off by ([\d.]+) px$", demo.output, re.MULTILINE)]
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]
