"""Writes that fail, tear or are lost, one after the other; disks that are full."""

import os
import pickle
import re
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from crashing import Nursery, limiting_files, recording, written
from small_jobs import differing
from steps import Inputs, Step, as_script, each_step, finishes, mounted, new_folder

from curation.errors import WorkError

EVERY = int(os.environ.get("CURATION_EVERY_WRITE", "8"))  # so-manieth write is met; 1 in `make torture`


@dataclass(frozen=True)
class Journal:
    """What one run writes: a step of one small file, and its writes in order."""

    step: Step
    writes: list[tuple[str, int, bytes]]

    def moments(self) -> list[int]:
        """The writes to meet with a fault: every so-manieth, and all of the last, which finish the file."""
        count = len(self.writes)
        return sorted({*range(0, count, EVERY), *range(count - 10, count)})


@pytest.fixture(scope="module")
def journal(nursery: Nursery, inputs: Inputs, steps: dict[str, Step]) -> Journal:
    reference = new_folder(inputs.folder / "reference" / "short")
    step = Step(
        "download_image", partial(inputs.download_image, sections=2), reference, steps["download_image"].resumed
    )
    path = inputs.folder / "journal"
    nursery.finish(step.call(reference).after(partial(recording, sys.maxsize, str(path))))
    return Journal(step, pickle.loads(path.read_bytes()))


def test_a_disk_that_is_full_from_any_write_on_is_a_failure(journal: Journal, nursery: Nursery, tmp_path: Path) -> None:
    for number in journal.moments():
        out = new_folder(tmp_path / f"full_{number}")
        call = journal.step.call(out)
        error = nursery.run(call.after(partial(recording, number))).error
        assert isinstance(error, WorkError), number
        reason = r"No space left on device|its length cannot be changed; is the disk full\?"
        assert re.fullmatch(rf"\S+\.partial\.h5: ({reason})", str(error)), number
        for path in out.glob("x*.h5"):
            assert differing(path, journal.step.reference / path.name) == [], number
        assert finishes(nursery, journal.step, call, out) == [], number


def test_writes_that_do_not_arrive_any_more_are_done_again(journal: Journal, nursery: Nursery, tmp_path: Path) -> None:
    for number in journal.moments():
        name, place, content = journal.writes[number]
        out = new_folder(tmp_path / f"lost_{number}")
        torn = [(name, place, content[: len(content) // 2])] if number % 2 and len(content) > 1 else []
        written(out, [*journal.writes[:number], *torn])
        assert finishes(nursery, journal.step, journal.step.call(out), out) == [], number


def test_writes_that_arrive_in_any_order_are_made_good(journal: Journal, nursery: Nursery, tmp_path: Path) -> None:
    """A power cut loses some of the last writes, not the last ones."""
    for seed in range(30):
        random = np.random.default_rng(seed)
        out = new_folder(tmp_path / f"cut_{seed}")
        kept = int(random.integers(len(journal.writes)))
        late = [write for write in journal.writes[kept : kept + 40] if random.random() < 0.5]
        written(out, [*journal.writes[:kept], *late])
        assert finishes(nursery, journal.step, journal.step.call(out), out) == [], seed


# Full disks


FREE = (0, 2, 8, 40)  # pages


@each_step
def test_a_full_disk_fails_and_with_room_made_the_same_command_finishes(
    step: Step, nursery: Nursery, tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk", "size=8m") as disk:
        for pages in FREE:
            out = new_folder(disk / f"out_{pages}")
            ballast(disk, pages * 4096)
            call = as_script(step.call(out))
            outcome = nursery.run(call)
            assert outcome.value == 1, outcome
            assert re.search(rf"{step.name}: failed: {out}/\S+: No space left on device\n", outcome.text), outcome
            (disk / "ballast").unlink()
            assert nursery.run(call).value == 0
            assert finished_beside(step, out, tmp_path / f"copy_{pages}") == []
            shutil.rmtree(out)


def ballast(disk: Path, free: int) -> None:
    """Fill a disk up to `free` bytes."""
    there = os.statvfs(disk)
    with open(disk / "ballast", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, there.f_bavail * there.f_frsize - free)


def finished_beside(step: Step, out: Path, copy: Path) -> list[str]:
    """The step's faults, looked for in a copy of its folder."""
    shutil.copytree(out, copy)
    return step.faults(copy)


@each_step
@pytest.mark.parametrize("size", [4_000, 30_000])
def test_a_file_that_may_not_grow_fails_and_then_finishes(size: int, step: Step, nursery: Nursery, out: Path) -> None:
    call = as_script(step.call(out))
    outcome = nursery.run(call.after(partial(limiting_files, size)))
    assert outcome.value == 1, outcome
    assert re.search(rf"{step.name}: failed: {out}/\S+: [Ff]ile too large\n", outcome.text), outcome
    assert nursery.run(call).value == 0
    assert step.faults(out) == []
