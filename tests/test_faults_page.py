"""docs/faults.md and the tests agree: each fault is listed once, and each test that is named for one stands with it."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import ROOT

TESTS = ROOT / "tests"
FAULTS = 60

HEADING = re.compile(r"^## .*\(`(\S+\.py)`\)$")
ROW = re.compile(r"^\| (\d+) \| (.+) \| (.+) \| (.+) \|$")
NAME = re.compile(r"`(?:(\S+\.py)::)?(test_\w+)`")


@dataclass(frozen=True)
class Row:
    """A fault. tests: each as FILE::NAME, with the file as it stands below tests/."""

    number: int
    happens: str
    does: str
    tests: tuple[str, ...]


def read_page(text: str) -> list[Row]:
    rows: list[Row] = []
    file = ""
    for line in text.splitlines():
        if heading := HEADING.match(line):
            file = heading[1]
        elif row := ROW.match(line):
            tests = tuple(f"{other or file}::{name}" for other, name in NAME.findall(row[4]))
            rows.append(Row(int(row[1]), row[2], row[3], tests))
    return rows


def names_in(path: Path) -> set[str]:
    """The names of a file's tests, as FILE::NAME."""
    code = ast.parse(path.read_text(encoding="utf-8"))
    found = [node.name for node in code.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {f"{path.relative_to(TESTS).as_posix()}::{name}" for name in found}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return read_page((ROOT / "docs" / "faults.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def names() -> set[str]:
    """All tests that there are, as FILE::NAME."""
    return set().union(*map(names_in, TESTS.rglob("test_*.py")))


def test_every_fault_is_listed_once_and_in_order(rows: list[Row]) -> None:
    assert [row.number for row in rows] == list(range(1, FAULTS + 1))


def test_every_fault_is_told_in_whole_sentences(rows: list[Row]) -> None:
    for row in rows:
        for text in (row.happens, row.does):
            assert re.match(r"[A-Z`].*[a-z0-9].*\.$", text), (row.number, text)


def test_every_test_on_the_page_is_there(rows: list[Row], names: set[str]) -> None:
    assert {name for row in rows for name in row.tests} - names == set()


def test_every_numbered_test_stands_with_its_fault(rows: list[Row], names: set[str]) -> None:
    numbered = {(int(found[1]), name) for name in names if (found := re.search(r"::test_(\d\d)_", name))}
    listed = {(row.number, name) for row in rows for name in row.tests if re.search(r"::test_\d\d_", name)}
    assert listed == numbered


def test_every_fault_has_a_test_of_its_number(rows: list[Row]) -> None:
    assert [row.number for row in rows if not any(f"::test_{row.number:02}_" in name for name in row.tests)] == []
