"""Arrays of results that workers lend: they come whole, stay whole while they are used, and nothing of them is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ROOT

from curation import result_memory, runner
from curation.result_memory import LARGEST_SLOT, ResultMemory

Units = Iterator[tuple[int, int]]

LENT = 2**16  # bytes
SIZES = [0, 1, 7, LENT // 4, LENT // 4, LENT, LENT - 1, LENT + 1, 3 * LENT, 5, LENT]
RUNS = [[size] for size in SIZES]
OF_TWO = [[LENT, 100, LENT], [LENT], [LENT]]

linux = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the system has no such memory")


def content(number: int, size: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)


def arrays(worker: int, units: Units) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Two arrays a unit, of as many bytes together as it says."""
    for number, size in units:
        made = content(number, size)
        yield number, [made[: size // 3], made[size // 3 :]]


def process_ids(worker: int, units: Units) -> Iterator[tuple[int, tuple[int, np.ndarray]]]:
    for number, size in units:
        yield number, (os.getpid(), content(number, size))


def checked(work: Any, runs: list[list[int]], pause_s: float = 0.0) -> list[int]:
    """The numbers of the results, in order, each of them as it should be also when the worker has gone on."""
    numbers = []
    sizes = [size for run in runs for size in run]
    for number, made in runner.run(work, runs, 2, lent_bytes=LENT):
        time.sleep(pause_s)
        np.testing.assert_array_equal(np.concatenate(made), content(number, sizes[number]))
        numbers.append(number)
    return sorted(numbers)


def test_arrays_of_any_size_come_whole() -> None:
    assert checked(arrays, RUNS) == list(range(len(SIZES)))


def test_arrays_stay_as_they_are_until_the_next_result_is_asked_for() -> None:
    runs = [[1000] * 12, [LENT] * 12]
    assert checked(arrays, runs, pause_s=0.01) == list(range(24))


@linux
def test_arrays_that_fit_do_not_go_through_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_all_of", lambda view, move: pytest.fail("an array went through the pipe"))
    assert checked(arrays, [[1], [LENT], [LENT // 2]]) == [0, 1, 2]


def test_without_such_memory_arrays_go_through_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(result_memory.os, "memfd_create", raising=False)
    assert checked(arrays, RUNS) == list(range(len(SIZES)))


def test_no_memory_is_made_where_nothing_is_lent() -> None:
    assert result_memory.result_memory(0) is None


@linux
def test_a_slot_has_a_largest_size() -> None:
    memory = result_memory.result_memory(100 * LARGEST_SLOT)
    assert memory is not None
    assert not memory.put([memoryview(bytes(1))] * 2 + [memoryview(np.zeros(LARGEST_SLOT, np.uint8))])
    memory.close()


# Deaths


@dataclass(frozen=True)
class DiesStoring:
    """The first worker that stores an array kills itself when half of it is stored."""

    markers: Path

    def __call__(self, worker: int, units: Units) -> Iterator[tuple[int, list[np.ndarray]]]:
        put = ResultMemory.put

        def put_half(memory: ResultMemory, views: list[memoryview]) -> bool:
            try:
                (self.markers / "first").touch(exist_ok=False)
            except FileExistsError:
                return put(memory, views)
            put(memory, [view[: view.nbytes // 2] for view in views])
            os.kill(os.getpid(), signal.SIGKILL)
            return True

        ResultMemory.put = put_half  # type: ignore[method-assign, assignment]
        yield from arrays(worker, units)


@dataclass(frozen=True)
class DiesAfterwards:
    """The worker that has the second unit kills itself as soon as it has sent the first one's result."""

    markers: Path

    def __call__(self, worker: int, units: Units) -> Iterator[tuple[int, list[np.ndarray]]]:
        for number, made in arrays(worker, units):
            yield number, made
            if number == 0 and not (self.markers / "died").exists():
                (self.markers / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", [DiesStoring, DiesAfterwards])
def test_a_killed_worker_costs_nothing(kind: Any, tmp_path: Path) -> None:
    assert checked(kind(tmp_path), OF_TWO, pause_s=0.05) == list(range(5))
    if hasattr(os, "memfd_create"):
        assert len(list(tmp_path.iterdir())) == 1


@linux
def test_nothing_is_left_open(tmp_path: Path) -> None:
    checked(arrays, RUNS)
    before = sorted(os.listdir("/proc/self/fd"))
    checked(DiesAfterwards(tmp_path), OF_TWO)
    results = runner.run(arrays, RUNS, 2, lent_bytes=LENT)
    next(results)
    results.close()
    del results
    assert sorted(os.listdir("/proc/self/fd")) == before


MAIN = """
import time
from curation import runner
from test_result_memory import process_ids

if __name__ == "__main__":
    for number, (worker, _) in runner.run(process_ids, [[10] * 50, [10] * 50], 2, lent_bytes=1000):
        print(worker, flush=True)
        time.sleep(300)
"""


@linux
def test_a_worker_that_waits_for_room_ends_with_a_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(MAIN)
    path = f"{ROOT}:{ROOT / 'tests'}"
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "job.py")], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        worker = int(process.stdout.readline())  # type: ignore[union-attr]
        time.sleep(0.2)  # by now it waits: of 50 results, room is for a few
        assert Path(f"/proc/{worker}/exe").exists()
        process.kill()
    until = time.monotonic() + 30
    while Path(f"/proc/{worker}/exe").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path(f"/proc/{worker}/exe").exists()
