"""The README's commands, as they stand."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT

from curation.spec import read_spec

TABLE = re.compile(r"^(\S+\.h5) +[\d.]+ +(\d+)  192 x 192 +2 +([\d.]+) ", re.MULTILINE)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What `make demo` prints, run in a copy of the project, and the folder that it fills."""
    copy = tmp_path_factory.mktemp("copy") / "project"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".*", "demo", "tests", "__pycache__"))
    bin_first = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        [sys.executable, "examples/run_readme.py", "README.md"],
        cwd=copy,
        env={"PATH": bin_first},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, copy / "demo"


def test_the_recovered_fields_are_within_a_pixel(demo: tuple[str, Path]) -> None:
    errors = {name: float(median) for name, pairs, median in TABLE.findall(demo[0]) if pairs == "16"}
    prior, coarse, fine = errors.values()
    assert list(errors)[1:] == ["field_1.h5", "field_2.h5"]
    assert prior > 2
    assert fine < coarse < 1


def test_the_readme_shows_the_table_that_the_commands_print(demo: tuple[str, Path]) -> None:
    shown = TABLE.findall((ROOT / "README.md").read_text())
    for (name, pairs, median), (name_now, pairs_now, median_now) in zip(shown, TABLE.findall(demo[0]), strict=True):
        assert (name, pairs) == (name_now, pairs_now)
        assert float(median) == pytest.approx(float(median_now), abs=0.03)  # processors differ in the last digits


def test_every_script_is_run(demo: tuple[str, Path]) -> None:
    scripts = {path.name for path in ROOT.glob("*.py")}
    assert scripts <= set(re.findall(r"^\$ python (\S+)", demo[0], re.MULTILINE))


def test_the_template_has_the_keys_that_the_readme_explains() -> None:
    template = json.loads((ROOT / "spec_template.json").read_text())
    page = (ROOT / "README.md").read_text()
    assert read_spec(ROOT / "spec_template.json", template=True).pairs == ()
    for key in {*template, *template["image"], *template["image"]["reference"], *template["masks"][0]}:
        assert f'"{key}"' in page
