"""Runs that are killed: the same call again ends with what an undisturbed run makes."""

import os
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from crashing import Nursery, dying
from small_jobs import differing, leftovers
from steps import AT_WORK, PAIRS, Inputs, Step, alive, each_step, finishes, new_folder, sweep, waited

KILLS = 20  # make torture has 500
UNLINKING = "curation.steps.generate_fields.Path.unlink"
RENAMING = "curation.datasets.writer.publish"
NEW_PAIRS = 6  # of those that an update runs


def was_moved_aside(path: Path, *_: Any) -> bool:
    return path.name.startswith(".before_")


@each_step
def test_killed_at_any_moment_the_same_call_ends_as_if_undisturbed(
    step: Step, nursery: Nursery, tmp_path: Path
) -> None:
    kills = list(sweep(nursery, step, tmp_path, KILLS))
    assert [kill for kill in kills if kill.faults] == []
    assert any(kill.hit and kill.resumed > 0 for kill in kills)


@pytest.mark.parametrize("step", ["update_dataset", "update_fields"], indirect=True)
def test_an_update_that_is_killed_at_any_moment_ends_as_if_undisturbed(
    step: Step, nursery: Nursery, tmp_path: Path
) -> None:
    kills = list(sweep(nursery, step, tmp_path, KILLS // 2))
    assert [kill for kill in kills if kill.faults] == []
    assert any(kill.hit and kill.resumed > 0 for kill in kills)


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["curation.steps.field_shards.os.rename", AT_WORK["update_fields"], UNLINKING])
def test_an_update_that_is_killed_makes_no_field_twice(
    name: str, at: int, after: bool, nursery: Nursery, inputs: Inputs, steps: dict[str, Step], out: Path
) -> None:
    step = steps["update_fields"]
    when = was_moved_aside if name == UNLINKING else None
    call = step.call(out)
    assert nursery.run(call.after(partial(dying, name, at, after, when))).killed
    ended = nursery.finish(call)
    if name == AT_WORK["update_fields"]:
        assert ended.resumed == at + after
    assert ended.kept is None or ended.matched.pairs - ended.resumed - ended.kept <= NEW_PAIRS
    assert step.faults(out) == []


@each_step
def test_killed_again_and_again_it_gets_there(step: Step, nursery: Nursery, out: Path) -> None:
    call = step.call(out)
    for _ in range(5):
        assert nursery.run(
            call.after(partial(dying, AT_WORK.get(step.name, "curation.datasets.writer.Writer.put"), 3))
        ).killed
    assert finishes(nursery, step, call, out) == []


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize(
    "name", ["curation.steps.pair_quality.measure", "curation.datasets.writer.seal_finished", RENAMING]
)
def test_killed_while_pairs_are_measured_or_the_numbers_are_written_it_goes_on(
    name: str, at: int, nursery: Nursery, inputs: Inputs, tmp_path: Path, out: Path
) -> None:
    reference = new_folder(tmp_path / "reference")
    nursery.finish(inputs.make_dataset(reference, quality=True))
    call = inputs.make_dataset(out, quality=True)
    assert nursery.run(call.after(partial(dying, name, at))).killed
    ended = nursery.finish(call)
    assert ended.resumed == (2 * PAIRS)
    assert leftovers(out) == []
    for path in reference.iterdir():
        assert differing(out / path.name, path) == []


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
