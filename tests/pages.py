"""The pages that people read, in pieces: code blocks, headings, links, tables."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from commands import ROOT

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS]

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$\s*", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Walk:
    """A copy of the project in which the README's commands have been run, and what they printed."""

    project: Path
    output: str


@dataclass(frozen=True)
class Block:
    """A code block: its language, its text, and where it begins.

    printed: the text block that follows it at once, if one does: what it prints, with `...` for what varies.
    """

    language: str
    text: str
    where: str
    printed: str | None


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> list[Block]:
    """The page's blocks in these languages, in order."""
    text = text_of(page)
    found = list(_BLOCK.finditer(text))
    made = []
    for match, after in zip(found, [*found[1:], None], strict=False):
        follows = after is not None and after[1] == "text" and after.start() == match.end()
        where = f"{page.name}, line {text.count(chr(10), 0, match.start()) + 1}"
        made.append(Block(match[1], match[2], where, after[2] if follows and after is not None else None))
    return [block for block in made if block.language in languages]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return _BLOCK.sub("\n", text_of(page))


def languages(page: Path) -> set[str]:
    """The languages of its blocks; an unmarked block is an empty one."""
    return set(re.findall(r"^```(\w*)\n.*?^```$", text_of(page), re.MULTILINE | re.DOTALL))


def anchors(page: Path) -> set[str]:
    """The names by which links find the page's headings, as GitHub makes them."""
    headings = _HEADING.findall(prose(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    return _LINK.findall(prose(page))


def tables(page: Path) -> Iterator[list[list[str]]]:
    """The cells of each table, row by row, the header first and the rule below it left out."""
    rows: list[list[str]] = []
    for line in [*prose(page).splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            yield [rows[0], *rows[2:]]
            rows = []
