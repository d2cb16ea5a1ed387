"""A plugin: what the tests of the pages share, and what takes long, once: `make demo`, then a newcomer who pastes.

Test modules ask for it with `pytest_plugins = ["walked"]`.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT
from pages import README, Walk, blocks

NO_PYTHON = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}  # an environment must be activated


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, in a folder whose name has a space, with a `.venv` that stands in for the one here."""
    copy = tmp_path_factory.mktemp("a copy") / "project"
    left_out = shutil.ignore_patterns(".*", "demo", "walk", "bench", "tests", "__pycache__")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=left_out)
    (copy / ".venv" / "bin").mkdir(parents=True)
    (copy / ".venv" / "bin" / "activate").write_text(f"PATH='{Path(sys.executable).parent}':$PATH\n")
    return copy


@pytest.fixture(scope="session")
def demo(project: Path) -> Walk:
    """What `make demo` does."""
    done = subprocess.run(
        [sys.executable, "examples/run_page.py", "README.md", "--folder", "demo"],
        cwd=project,
        env=NO_PYTHON,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Walk(project, done.stdout)


@pytest.fixture(scope="session")
def walk(demo: Walk) -> Walk:
    """What a newcomer does after `make demo`, and not for the first time: paste the README's commands, one by one."""
    (demo.project / "walk" / "sample").mkdir(parents=True)
    for left in ("sample/info", "coarse.json", "field_1.h5"):
        (demo.project / "walk" / left).write_text("left over from an earlier walk")
    lines = [line for block in blocks(README, "sh") for line in block.text.splitlines()]
    pasted = "".join(f'{line}\necho "exit code $?"\n' for line in lines)
    done = subprocess.run(
        ["bash"], input=pasted, cwd=demo.project, env=NO_PYTHON, capture_output=True, text=True, timeout=300
    )
    codes = [line for line in done.stdout.splitlines() if line.startswith("exit code")]
    failed = [line for line, code in zip(lines, codes, strict=True) if code != "exit code 0"]
    assert not failed, done.stdout + done.stderr
    return Walk(demo.project, done.stdout)
