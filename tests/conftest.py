"""What the tests share: running scripts as a user does, and finding the extra data that a checkout may lie beside."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from commands import ROOT, Command, Outcome, Script

from curation import cli

SHARED = ROOT.parent / "shared"

# Files that take a minute or more: begun first, so that all processes end at about the same time.
LONG = ("test_docs", "test_readme", "test_kills", "test_chain_script", "test_resuming", "test_writes", "test_chain")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a file run in one process, as they share what it makes; so do those of the README and other pages."""
    items.sort(key=lambda item: item.path.stem not in LONG)
    for item in items:
        name = item.path.stem
        item.add_marker(pytest.mark.xdist_group("pages" if name in ("test_docs", "test_readme") else name))


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
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """As `script`, but in this process: the same parser, messages and exit codes without a new interpreter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_leave", sys.exit)  # this process goes on, with files open that are other tests'
    before = signal.getsignal(signal.SIGTERM)

    def run(name: str, *arguments: object) -> Outcome:
        spec = importlib.util.spec_from_file_location(f"script_{Path(name).stem}", ROOT / name)
        if spec is None or spec.loader is None:
            raise FileNotFoundError(name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.run(module.parser(), module.main)
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
        return Outcome(code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def refused(command: Command) -> Callable[..., str]:
    """Run a script that must find its input wrong: exit code 2, and one line in all, on stderr; gives that line."""

    def run(name: str, *arguments: object) -> str:
        done = command(name, *arguments)
        assert (done.code, done.stdout) == (2, ""), done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"{Path(name).stem}: error: ")
        return line

    return run


@pytest.fixture
def failed(command: Command) -> Callable[..., str]:
    """Run a script whose work must fail: exit code 1, one line on stderr after its progress bars; gives that line."""

    def run(name: str, *arguments: object) -> str:
        done = command(name, *arguments)
        assert (done.code, done.stdout) == (1, ""), done.stderr
        assert done.line.startswith(f"{Path(name).stem}: failed: ")
        assert "--debug shows where" not in done.line  # an error nobody has thought of
        return done.line

    return run


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been slept between attempts, by a job in this process with --parallel 1."""
    from curation.volumes import volume  # not above: it takes a second, which most tests do not need

    slept: list[float] = []
    clocked = partial(volume.Volumes, sleep=slept.append, clock=lambda: sum(slept))
    monkeypatch.setattr(volume, "Volumes", clocked)
    return slept


@pytest.fixture
def whole_golden() -> Path:
    """The folder of golden inputs and outputs, of which tests/data/golden holds a part."""
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
