"""Runs that are killed: the same call again ends with what an undisturbed run makes."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from crashing import Nursery
from steps import Inputs, Step, alive, duration, each_step, finishes, sweep, waited

KILLS = 40


@each_step
def test_killed_at_any_moment_the_same_call_ends_as_if_undisturbed(
    step: Step, nursery: Nursery, tmp_path: Path
) -> None:
    longest = duration(nursery, step, tmp_path)
    kills = list(sweep(nursery, step, tmp_path, np.linspace(0, longest, KILLS).tolist()))
    assert [kill for kill in kills if kill.faults] == []
    assert sum(kill.hit for kill in kills) >= KILLS // 2
    assert sum(kill.hit and kill.resumed > 0 for kill in kills) >= KILLS // 10


@each_step
def test_killed_again_and_again_it_gets_there(step: Step, nursery: Nursery, out: Path, tmp_path: Path) -> None:
    longest = duration(nursery, step, tmp_path, times=1)
    call = step.call(out)
    hits = [nursery.kill(call, longest * share).killed for share in np.linspace(0.3, 0.8, 8)]
    assert sum(hits) >= 3
    assert finishes(nursery, step, call, out) == []


@pytest.mark.parametrize("name", ["make_dataset", "generate_fields"])
def test_killed_with_its_workers_it_goes_on(
    name: str, nursery: Nursery, inputs: Inputs, steps: dict[str, Step], out: Path
) -> None:
    call = getattr(inputs, name)(out, 2)
    for files in (2, 9):  # some work, then some more
        group = nursery.start(call)
        assert waited(lambda files=files: progress(out) >= files)
        os.killpg(group, signal.SIGKILL)
        assert nursery.end().killed
        assert waited(lambda group=group: alive(group) == [], 10)
    resumed = steps[name].resumed(nursery.finish(call))
    assert resumed > 0
    assert steps[name].faults(out) == []


def progress(out: Path) -> int:
    """Shards, or a growing partial file in tens of KiB."""
    sizes = []
    for path in out.glob(".x*.partial.h5"):
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size // 20_000)
    return len(list(out.glob("[0-9]*.h5"))) + sum(sizes)
