"""Every package that is imported is pinned where it is needed: a dataset made twice is the same twice."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from commands import ROOT
from packaging.requirements import Requirement

from curation import __version__
from curation.provenance import FORMAT

RUNNING = ("requirements.txt",)
TESTING = ("requirements.txt", "requirements-dev.txt")
TIMING = ("requirements.txt", "benchmarks/requirements.txt")

# Where the code is, and the files by which `pip install -r` gives all that it imports.
# What is optional is imported where it is used; it is pinned for the tests.
OPTIONAL = {"curation": {"onnxruntime", "task-queue"}, "examples": {"scikit-image", "scipy"}}
NEEDS = {".": RUNNING, "curation": RUNNING, "examples": RUNNING, "tests": TESTING, "benchmarks": TIMING}


def modules(folder: str) -> list[Path]:
    """The code of a folder; of the root, the scripts alone."""
    return sorted(ROOT.glob("*.py") if folder == "." else (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The top-level packages that a module imports anywhere in it, but relatively."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def own() -> set[str]:
    """The names by which this repository's own is imported: the package, and whatever stands beside what runs."""
    return {"curation"} | {path.stem for folder in NEEDS if folder != "curation" for path in modules(folder)}


def lines(file: str) -> Iterator[str]:
    """What a file of requirements asks for, without comments and other files."""
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        asked = line.partition("#")[0].strip()
        if asked and not asked.startswith("-r "):
            yield asked


def plain(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(files: tuple[str, ...]) -> set[str]:
    return {plain(line.partition("==")[0]) for file in files for line in lines(file)}


def test_the_package_asks_for_what_the_scripts_are_pinned_to() -> None:
    """A trainer that installs the package gets the same packages, in ranges that hold the pinned versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = {plain(asked.name): asked.specifier for asked in map(Requirement, project["dependencies"])}
    versions = dict(line.split("==") for line in lines("requirements.txt"))
    assert set(ranges) == set(map(plain, versions))
    assert [name for name, version in versions.items() if version not in ranges[plain(name)]] == []


def test_what_is_optional_is_pinned_for_the_tests_in_ranges_that_the_package_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [Requirement(asked) for group in project["optional-dependencies"].values() for asked in group]
    assert {plain(asked.name) for asked in optional} == set().union(*OPTIONAL.values())
    versions = dict(line.split("==") for line in lines("requirements-dev.txt"))
    assert all(versions[asked.name] in asked.specifier for asked in optional)
    assert not {plain(asked.name) for asked in optional} & pinned(RUNNING)


def test_the_newest_entry_of_the_changelog_is_this_version_and_format() -> None:
    newest = re.search(r"^## (\S+), format (\d+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest.groups() == (__version__, str(FORMAT))


@pytest.mark.parametrize("folder", NEEDS)
def test_every_package_that_is_imported_is_pinned(folder: str) -> None:
    distributions = packages_distributions()
    known = pinned(NEEDS[folder]) | OPTIONAL.get(folder, set())
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules(folder)
        for name in imported(path) - own() - sys.stdlib_module_names
        if not known & set(map(plain, distributions.get(name, [name])))
    }
    assert modules(folder)
    assert missing == set()


@pytest.mark.parametrize("file", sorted({*TESTING, *TIMING}))
def test_every_requirement_is_one_exact_version(file: str) -> None:
    assert [line for line in lines(file) if not re.fullmatch(r"[A-Za-z0-9._-]+==\d+(\.\d+)*", line)] == []


def test_what_is_needed_for_tests_holds_all_that_is_needed_to_run() -> None:
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text().splitlines()
