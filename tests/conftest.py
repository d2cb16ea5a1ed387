"""What the tests share: running scripts as a user does, and finding the extra data that a checkout may lie beside."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Run a top-level script in the test's own folder: `script("create_spec.py", "--help")`."""

    def run(
        name: str, *arguments: object, timeout: float = 300, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, ROOT / name, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def fails(script: Script) -> Callable[..., str]:
    """Run a script that must leave with `code` and one line on stderr, after its progress bars; gives that line."""

    def run(code: int, name: str, *arguments: object) -> str:
        done = script(name, *arguments)
        line = done.stderr.replace("\r", "\n").strip().splitlines()[-1]
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert line.startswith(f"{Path(name).stem}: ")
        assert done.stdout == ""
        return line

    return run


@pytest.fixture
def golden() -> Path:
    """The folder of golden inputs and outputs."""
    return _shared("golden")


@pytest.fixture
def isbi() -> Path:
    """The folder of thirty real sections."""
    return _shared("data/isbi2012")


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"the data of {name} does not lie beside this checkout")
    return folder
