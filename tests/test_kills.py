"""Runs that are killed: the same call again ends with what an undisturbed run makes."""

from collections.abc import Iterator
from pathlib import Path

import crashing
import numpy as np
import pytest
from crashing import Inputs, Nursery, Step, sweep

STEPS = ("make_dataset", "download_image", "generate_fields", "concat_fields")
KILLS = 40


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


@pytest.fixture(scope="module")
def steps(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Step]:
    return crashing.steps(nursery, Inputs(tmp_path_factory.mktemp("inputs")).make())


@pytest.mark.parametrize("name", STEPS)
def test_killed_at_any_moment_the_same_call_ends_as_if_undisturbed(
    name: str, steps: dict[str, Step], nursery: Nursery, tmp_path: Path
) -> None:
    step = steps[name]
    longest = crashing.duration(nursery, step, tmp_path)
    kills = list(sweep(nursery, step, tmp_path, np.linspace(0, longest, KILLS).tolist()))
    assert [kill for kill in kills if kill.faults] == []
    assert sum(kill.hit for kill in kills) >= KILLS // 4
