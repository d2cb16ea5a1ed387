"""Shared by the crash tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from crashing import Nursery
from steps import Inputs, Step, make_steps, new_folder


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("inputs")).make()


@pytest.fixture(scope="session")
def steps(nursery: Nursery, inputs: Inputs) -> dict[str, Step]:
    return make_steps(nursery, inputs)


@pytest.fixture
def step(request: pytest.FixtureRequest, steps: dict[str, Step]) -> Step:
    return steps[request.param]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The destination folder."""
    return new_folder(tmp_path / "out")
