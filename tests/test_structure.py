"""The structure of the code: CONTRIBUTING.md's map is the folder as it is, and modules import what they may."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from commands import ROOT

PACKAGE = ROOT / "curation"
PAGE = (ROOT / "CONTRIBUTING.md").read_text()

PLUMBING = {
    "cli",
    "errors",
    "files",
    "provenance",
    "runner",
    "result_memory",
    "queues",
    "array_task",
    "progress",
    "stores",
    "machine",
}
ARITHMETIC = {"boxes", "fields", "quality", "samples", "tissue"}
SPEC = {"spec", "pair_selection", "splits"}
TRAINING = {"training"}

# What each part may import beside itself.
MAY_IMPORT: dict[str, set[str]] = {
    "plumbing": set(),
    "arithmetic": {"plumbing"},
    "spec": {"plumbing", "arithmetic"},
    "annotations": {"plumbing", "arithmetic", "spec"},
    "volumes": {"plumbing", "arithmetic", "spec"},
    "datasets": {"plumbing"},
    "aligners": {"plumbing"},
    "review": {"plumbing"},
    "training": {"plumbing", "arithmetic", "spec", "datasets"},
    "steps": {"plumbing", "arithmetic", "spec", "annotations", "volumes", "datasets", "aligners", "review"},
}

HEAVY = {"cloudfiles", "cloudvolume", "torch"}  # a second each
MAY_BE_HEAVY = ("volumes.", "aligners.", "stores", "training")  # at their top; all others where they use it


def modules() -> dict[str, Path]:
    """Every module by its name within the package, such as `volumes.extent`."""
    paths = (path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


def part_of(module: str) -> str:
    folder, dot, _ = module.partition(".")
    if dot:
        return folder
    parts = {"plumbing": PLUMBING, "arithmetic": ARITHMETIC, "training": TRAINING}
    return next((part for part, names in parts.items() if module in names), "spec")


def imported(module: str, path: Path, at_top: bool = False) -> Iterator[str]:
    """The modules that a module imports, anywhere in it or only at its top; ours by their name in the package."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if at_top else ast.walk(tree)
    known = modules()
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield (node.module or "").partition(".")[0]
                continue
            base = module.split(".")[: -node.level]
            target = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{target}.{alias.name}".lstrip(".") for alias in node.names]
            yield from (name if name in known else target for name in names if name in known or target)


def test_every_module_is_in_a_known_part() -> None:
    top = {name for name in modules() if "." not in name}
    assert top == PLUMBING | ARITHMETIC | SPEC | TRAINING
    assert {part_of(name) for name in modules()} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_what_it_may(module: str) -> None:
    part = part_of(module)
    ours = {name for name in imported(module, modules()[module]) if name in modules()}
    assert {part_of(name) for name in ours} - {part} <= MAY_IMPORT[part]


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {name: {other for other in imported(name, path) if other in modules()} for name, path in modules().items()}
    assert sum(map(len, graph.values())) > 100  # the imports are found
    TopologicalSorter(graph).prepare()  # CycleError


@pytest.mark.parametrize("module", sorted(modules()))
def test_what_takes_a_second_to_import_is_imported_where_it_is_used(module: str) -> None:
    if module in LIGHT or not module.startswith(MAY_BE_HEAVY):
        found = set(imported(module, modules()[module], at_top=True))
        assert not found & HEAVY
        assert not [name for name in found if name.startswith(MAY_BE_HEAVY) and name not in LIGHT]


# The first opens a local volume without CloudVolume; the others look at files, plan tiles, or use torch if it is there.
LIGHT = {"volumes.extent", "aligners.pyramid", "aligners.exported_files", "aligners.tiles", "aligners.memory"}


def test_the_map_is_the_folder() -> None:
    """Each line of the map names modules of one folder: `| `volumes/` | `stores`, ... |`."""
    lines = re.findall(r"^\| `(\w+)/` \| (.*?) \|", PAGE, re.MULTILINE)
    named = {
        f"{folder}.{name}" if folder != "curation" else name
        for folder, names in lines
        for name in re.findall(r"`(\w+)`", names)
    }
    assert named == set(modules())


def test_the_page_is_short() -> None:
    assert 30 <= len(PAGE.splitlines()) <= 60
