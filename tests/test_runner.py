"""Worker processes: every unit's result comes once, whatever happens to a worker."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT

from curation.errors import UsageError, WorkError
from curation.runner import DEATHS_ALLOWED, ahead, run

PATIENCE_S = 120  # then a test that hangs fails

Units = Iterator[tuple[int, Any]]

RUNS = [["a", "b", "c"], ["d"], ["e", "f"]]
EXPECTED = dict(enumerate("ABCDEF"))  # numbered through all runs


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Interrupt a test that waits for ever."""

    def interrupt(signum: int, frame: object) -> None:
        raise TimeoutError(f"still waiting after {PATIENCE_S} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(PATIENCE_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    """Whatever a test does with workers, they end with it."""
    others = multiprocessing.active_children()
    yield
    assert multiprocessing.active_children() == others


def results(work: Any, runs: Sequence[Sequence[Any]], workers: int) -> dict[int, Any]:
    """All results by number; one that comes twice is an error."""
    found: dict[int, Any] = {}
    for number, result in run(work, runs, workers):
        assert number not in found
        found[number] = result
    return found


# What workers do: at the top of the module, where their processes find it.


def upper(worker: int, units: Units) -> Iterator[tuple[int, str]]:
    for number, unit in units:
        yield number, unit.upper()


def upper_reading_ahead(worker: int, units: Units) -> Iterator[tuple[int, str]]:
    for (number, _), result in ahead(lambda item: item[1].upper(), units, depth=2):
        yield number, result


def upper_out_of_order(worker: int, units: Units) -> Iterator[tuple[int, str]]:
    for number, unit in reversed(list(units)):
        yield number, unit.upper()


def worker_number(worker: int, units: Units) -> Iterator[tuple[int, int]]:
    for number, _ in units:
        yield number, worker


def process_id(worker: int, units: Units) -> Iterator[tuple[int, int]]:
    for number, _ in units:
        yield number, os.getpid()


def megabytes(worker: int, units: Units) -> Iterator[tuple[int, bytes]]:
    for number, unit in units:
        yield number, unit.encode() * 2**22


@dataclass(frozen=True)
class Dies:
    """Upper case, but a worker that takes `unit` kills itself, as long as there are fewer than `times` markers."""

    unit: str
    times: int
    markers: Path

    def __call__(self, worker: int, units: Units) -> Iterator[tuple[int, str]]:
        for number, unit in units:
            if unit == self.unit and len(list(self.markers.iterdir())) < self.times:
                (self.markers / str(os.getpid())).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield number, unit.upper()


@dataclass(frozen=True)
class DiesIdle:
    """The worker of unit "a" kills itself when it has no more units; the others' unit takes until after that."""

    markers: Path

    def __call__(self, worker: int, units: Units) -> Iterator[tuple[int, str]]:
        seen = []
        for number, unit in units:
            seen.append(unit)
            (self.markers / unit).touch()
            while not (self.markers / {"a": "b", "b": "dies"}[unit]).exists():
                time.sleep(0.01)
            if unit == "b":
                time.sleep(0.3)
            yield number, unit.upper()
        if seen == ["a"]:
            (self.markers / "dies").touch()
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class DiesSending:
    """Megabytes, but the first worker that sends some kills itself when half of them are sent."""

    markers: Path

    def is_first(self) -> bool:
        """Whether no other worker has claimed the marker: two may ask at the same time."""
        try:
            (self.markers / "first").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def __call__(self, worker: int, units: Units) -> Iterator[tuple[int, bytes]]:
        send = Connection._send  # type: ignore[attr-defined]

        def send_half(pipe: Connection, content: memoryview) -> None:
            if len(content) > 2**20 and self.is_first():
                send(pipe, content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            send(pipe, content)

        Connection._send = send_half  # type: ignore[attr-defined]
        yield from megabytes(worker, units)


@dataclass(frozen=True)
class Raises:
    """Raises an error at unit "d"."""

    error: Exception

    def __call__(self, worker: int, units: Units) -> Iterator[tuple[int, str]]:
        for number, unit in units:
            if unit == "d":
                raise self.error
            yield number, unit.upper()


class UnpicklableError(ValueError):
    def __init__(self) -> None:
        super().__init__("caught by a lock")
        self.lock = threading.Lock()


def raises_unpicklable(worker: int, units: Units) -> Iterator[tuple[int, str]]:
    raise UnpicklableError
    yield  # makes it a generator


# Results


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("work", [upper, upper_reading_ahead, upper_out_of_order])
def test_every_unit_has_its_result_once(work: Any, workers: int) -> None:
    assert results(work, RUNS, workers) == EXPECTED


@pytest.mark.parametrize("runs", [[], [[]], [[], []]])
@pytest.mark.parametrize("workers", [1, 2])
def test_no_units_have_no_results(runs: list[list[str]], workers: int) -> None:
    assert results(upper, runs, workers) == {}


def test_one_worker_is_this_process() -> None:
    assert set(results(process_id, RUNS, 1).values()) == {os.getpid()}


def test_more_workers_are_processes_of_their_own() -> None:
    assert os.getpid() not in results(process_id, RUNS, 2).values()


def test_there_are_no_more_workers_than_runs() -> None:
    assert set(results(worker_number, [["a"], ["b"]], 100).values()) <= {0, 1}
    assert results(process_id, [["a", "b"]], 100) == {0: os.getpid(), 1: os.getpid()}


def test_units_of_a_run_stay_with_one_worker() -> None:
    by_number = results(process_id, RUNS, 2)
    assert by_number[0] == by_number[1] == by_number[2]
    assert by_number[4] == by_number[5]


def test_large_results_come_whole() -> None:
    assert results(megabytes, [["a"], ["b"], ["c"]], 2) == {
        number: b"abc"[number : number + 1] * 2**22 for number in range(3)
    }


def test_workers_end_when_results_are_no_longer_wanted() -> None:
    first = run(upper, RUNS, 2)
    next(first)
    first.close()  # type: ignore[attr-defined]


# Deaths


@pytest.mark.parametrize("unit", ["a", "b", "f"])
def test_units_of_a_killed_worker_are_done_by_others(tmp_path: Path, unit: str) -> None:
    assert results(Dies(unit, times=1, markers=tmp_path), RUNS, 2) == EXPECTED
    assert len(list(tmp_path.iterdir())) == 1


def test_a_worker_killed_amid_sending_a_large_result_is_survived(tmp_path: Path) -> None:
    runs = [["a"], ["b"], ["c"]]
    assert results(DiesSending(tmp_path), runs, 2) == results(megabytes, runs, 2)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_worker_that_dies_while_it_has_no_units_costs_nothing(tmp_path: Path) -> None:
    assert results(DiesIdle(tmp_path), [["a"], ["b"]], 2) == {0: "A", 1: "B"}


def test_as_many_deaths_as_are_allowed_cost_nothing(tmp_path: Path) -> None:
    assert results(Dies("b", times=DEATHS_ALLOWED, markers=tmp_path), RUNS, 2) == EXPECTED
    assert len(list(tmp_path.iterdir())) == DEATHS_ALLOWED


def test_unit_that_kills_every_worker_is_an_error_not_a_hang(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"a worker process ended by itself \(SIGKILL\)"):
        results(Dies("b", times=1000, markers=tmp_path), RUNS, 2)
    assert len(list(tmp_path.iterdir())) == DEATHS_ALLOWED + 1


# Errors


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", [UsageError("spec.json: wrong"), WorkError("chunk lost")])
def test_what_work_raises_is_raised_here(error: Exception, workers: int) -> None:
    with pytest.raises(type(error), match=f"^{error}$"):
        results(Raises(error), RUNS, workers)


def test_other_errors_of_a_worker_are_failures_at_work_with_their_kind() -> None:
    with pytest.raises(WorkError, match=r"^KeyError: 'mip'$"):
        results(Raises(KeyError("mip")), RUNS, 2)


def test_errors_that_cannot_be_pickled_are_told_all_the_same() -> None:
    with pytest.raises(WorkError, match=r"^UnpicklableError: caught by a lock$"):
        results(raises_unpicklable, RUNS, 2)


# Ctrl-C, which reaches the whole group, while workers begin

SLOW = """
import pathlib, time
pathlib.Path({marker!r}).touch()
time.sleep(1)
"""

MAIN = """
import time
from curation import cli, runner

class Work:
    def __reduce__(self):
        return __import__, ({unpickled!r},)

def main(args):
    runner.warm_up({imported!r})
    {then}

if __name__ == "__main__":
    cli.run(cli.parser(None), main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("imported", "unpickled", "then"),
    [
        ("slow", "sys", "time.sleep(60)"),  # the main process is busy, as with imports of its own
        ("slow", "sys", "list(runner.run(Work(), [[1], [2]], 2))"),  # it waits for its first worker
        ("sys", "slow", "list(runner.run(Work(), [[1], [2]], 2))"),  # a worker has begun, but does no work yet
    ],
    ids=["server imports", "first worker is awaited", "worker imports"],
)
def test_an_interrupt_while_workers_begin_is_told_in_one_line(
    number: signal.Signals, imported: str, unpickled: str, then: str, tmp_path: Path
) -> None:
    marker = tmp_path / "importing"
    (tmp_path / "slow.py").write_text(SLOW.format(marker=str(marker)))
    (tmp_path / "job.py").write_text(MAIN.format(imported=imported, unpickled=unpickled, then=then))
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "job.py")],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not marker.exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.2)
    os.killpg(process.pid, number)
    _, said = process.communicate()
    word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
    assert said == f"job: {word}; the same command goes on from here\n"
    assert process.returncode == 128 + number


# Looking ahead


@pytest.mark.parametrize("depth", [0, 1, 3, 10])
def test_ahead_keeps_order_though_the_first_takes_longest(depth: int) -> None:
    def slow_at_first(unit: int) -> int:
        time.sleep(0.05 if unit == 0 else 0)
        return 10 * unit

    assert list(ahead(slow_at_first, range(5), depth)) == [(0, 0), (1, 10), (2, 20), (3, 30), (4, 40)]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_ahead_takes_no_more_units_than_its_depth(depth: int) -> None:
    taken: list[int] = []

    def units() -> Iterator[int]:
        for unit in range(6):
            taken.append(unit)
            yield unit

    looked = ahead(str, units(), depth)
    assert next(looked) == (0, "0")
    assert taken == list(range(depth + 1))


def test_ahead_computes_the_next_while_the_first_is_in_use() -> None:
    computed = threading.Event()
    units = ahead(lambda unit: computed.set() if unit == 1 else None, range(3), depth=1)
    next(units)
    assert computed.wait(PATIENCE_S / 2)


@pytest.mark.parametrize("depth", [0, 2])
def test_ahead_raises_what_the_function_raises_in_its_turn(depth: int) -> None:
    looked = ahead(lambda unit: 1 / unit, [2, 1, 0], depth)
    assert [next(looked), next(looked)] == [(2, 0.5), (1, 1)]
    with pytest.raises(ZeroDivisionError):
        next(looked)
