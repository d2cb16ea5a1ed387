"""Working off a queue of units on one machine, beside any number of other machines.

This process takes units from the queue for its worker processes, renews their leases while they are worked on, and
takes them out of the queue when their shards are there. However it ends, no unit is lost: those that it cannot give
back itself come back when their leases run out. A unit that is done twice, at once or in turn, gives the same bytes.
"""

import random
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass

import msgspec
from tqdm import tqdm

from .. import runner
from ..errors import UsageError, WorkError
from ..progress import progress
from ..queues import Leased, UnitQueue
from .devices import FLOAT32, Workers, cores_each, find_workers
from .report import table
from .unit_work import UnitResult, UnitWork, failure_of
from .units import Unit, UnitFailure

ATTEMPTS = 3  # for a unit that fails, before it is set aside
IN_A_ROW = 30  # failures, without a unit that is done: then this machine, or the job, is at fault
AGAIN_AFTER_S = 2  # times the number of failures: what is at fault may pass
LONGEST_WAIT_S = 10.0  # between two looks into a queue that has had nothing
EMPTY_LOOKS = 3  # in a row, before a queue is taken for empty: SQS knows its length only about
EMPTY_WAIT_S = 1.0  # between two of them; a folder is read a part at a time, so one look may miss a unit that moves
MANY = 10**6  # units: as many as are never known to be left


@dataclass(frozen=True)
class RunWorkerOptions:
    """run_worker's arguments. gpu: as in generate_fields. parallel: worker processes, on the CPU.

    lease: seconds for which a unit is taken, and taken again while it is worked on.
    """

    queue: str
    gpu: tuple[int, ...] | None = None
    parallel: int | None = None
    lease: int = 300
    exit_when_empty: bool = False


@dataclass(frozen=True)
class WorkedOff:
    """What a run has done, for the summary."""

    queue: str
    done: int
    given_back: int
    set_aside: int

    def __str__(self) -> str:
        lines = [("queue", self.queue), ("units done", str(self.done))]
        if self.given_back:
            lines.append(("given back", f"{self.given_back} times, as a unit had failed"))
        if self.set_aside:
            lines.append(("set aside", f"{self.set_aside} units that failed (--failed lists them)"))
        return table(lines)


def run_worker(options: RunWorkerOptions) -> WorkedOff:
    """Work off a queue; without `exit_when_empty`, until the process is told to end."""
    queue = UnitQueue(options.queue, begin=False)
    workers = _workers(options)
    runner.warm_up("cloudvolume", "h5py", "isal", "msgspec", threads=workers.cores)
    source = LeasedUnits(queue, options.lease, options.exit_when_empty)
    with (
        closing(source),
        progress(0, "units", "unit") as bar,
        closing(runner.serve(UnitWork(workers), source, len(workers.devices))) as results,
    ):
        for number, result in results:
            source.finish(number, result)
            bar.update()
    return source.summary()


def _workers(options: RunWorkerOptions) -> Workers:
    if options.parallel is not None and options.gpu is None:  # without torch, which units of boxes do not need
        return Workers(("cpu",) * options.parallel, cores_each(options.parallel, MANY), MANY)
    return find_workers(options.gpu, options.parallel, FLOAT32, MANY)


class LeasedUnits:
    """The units that this process has taken from a queue. A `runner.Source`, and a context to be closed."""

    def __init__(self, queue: UnitQueue, lease_s: int, exit_when_empty: bool) -> None:
        self._queue = queue
        self._lease_s = lease_s
        self._exits = exit_when_empty
        self._failed: UnitQueue | None = None
        self._held: dict[int, tuple[Leased, Unit]] = {}
        self._suspects: deque[int] = deque()  # held units that may be what a worker has died of
        self._alone: set[int] = set()  # those of them that a worker has
        self._lock = threading.Lock()  # a lease must not be renewed once its unit was taken out of the queue
        self._taken = self._done = self._given_back = self._set_aside = 0
        self._in_a_row = 0
        self._wait_s = 0.0
        self._next_look = 0.0
        self._empty_looks = 0
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="renew leases", daemon=True)
        self._renewing.start()

    @property
    def over(self) -> bool:
        """Whether the queue is empty, and that ends the work."""
        return self._empty_looks >= EMPTY_LOOKS

    def take(self, in_hand: Mapping[int, Unit]) -> list[tuple[int, Unit]] | None:
        """A unit from the queue; None where there is none now. One that has failed before is given out alone.

        So when a worker dies that had several, those that did nothing wrong are done, and the others are known.
        """
        if self._alone & in_hand.keys():
            return None
        if not self._suspects and not self._lease_one():
            return None
        if self._suspects:
            if in_hand:
                return None
            number = self._suspects.popleft()
            self._alone.add(number)
        else:
            number = self._taken
        return [(number, self._held[number][1])]

    def _lease_one(self) -> bool:
        """Lease a unit, if there is one now."""
        if time.monotonic() < self._next_look or self.over:
            return False
        leased = self._queue.lease(self._lease_s)
        while leased is not None:
            unit = self._checked(leased)
            if unit is not None:
                self._wait_s = self._empty_looks = 0
                self._taken += 1
                with self._lock:
                    self._held[self._taken] = leased, unit
                if unit.failures:
                    self._suspects.append(self._taken)
                return True
            leased = self._queue.lease(self._lease_s)
        self._look_later()
        return False

    def _look_later(self) -> None:
        """Wait longer before each further look, and not just as long as others: a queue may have many workers."""
        self._wait_s = min(max(0.25, 2 * self._wait_s), LONGEST_WAIT_S)
        if self._exits and not self._held:
            empty = self._queue.is_empty()
            self._empty_looks = self._empty_looks + 1 if empty else 0
            if empty:
                self._wait_s = EMPTY_WAIT_S / 4 if self._queue.is_file_queue else EMPTY_WAIT_S
        self._next_look = time.monotonic() + random.uniform(0.5, 1.0) * self._wait_s

    def lost(self, units: Mapping[int, Unit], cause: str) -> None:
        """Count the death of a worker as a failure of the unit that it had; of several, do each again alone."""
        if len(units) > 1:
            self._suspects.extend(units)
            return
        for number in list(units):
            self.finish(number, UnitResult(failure_of(cause, "")))

    def finish(self, number: int, result: UnitResult) -> None:
        """Take a unit out of the queue, or give it back with why it failed, or set it aside."""
        with self._lock:
            leased, unit = self._held.pop(number)
        self._alone.discard(number)
        if result.failure is None:
            self._done += 1
            self._in_a_row = 0
        else:
            self._in_a_row += not result.is_final
            self._fail(msgspec.structs.replace(unit, failures=(*unit.failures, result.failure)), result.is_final)
        self._queue.delete(leased)
        if result.failure is not None and self._in_a_row >= IN_A_ROW:
            raise WorkError(
                f"{self._queue.url}: {IN_A_ROW} times in a row, a unit has failed here, so this worker ends and leaves "
                f"the others to other machines; the last: {result.failure.message}"
            )

    def _fail(self, unit: Unit, is_final: bool) -> None:
        failures = len(unit.failures)
        last = unit.failures[-1].message
        if is_final:
            tqdm.write(f"{unit}: {last}; it is set aside", file=sys.stderr)
            self._put_aside(msgspec.to_builtins(unit))
            return
        if failures < ATTEMPTS:
            tqdm.write(f"{unit}: {last}; it is given back", file=sys.stderr)
            self._queue.insert([msgspec.to_builtins(unit)], delay_s=AGAIN_AFTER_S * failures)
            self._given_back += 1
            return
        tqdm.write(f"{unit}: {last}; it has failed {failures} times, and is set aside", file=sys.stderr)
        self._put_aside(msgspec.to_builtins(unit))

    def _put_aside(self, unit: Mapping[str, object]) -> None:
        if self._failed is None:
            self._failed = self._queue.failed(begin=True)
        if self._failed is not None:
            self._failed.insert([unit])
        self._set_aside += 1

    def _checked(self, leased: Leased) -> Unit | None:
        """The unit that a message holds. One that holds none is set aside: nothing that it names is imported."""
        try:
            if leased.content is None:
                raise msgspec.ValidationError("its code would have to be imported")
            return msgspec.convert(leased.content, Unit)
        except msgspec.ValidationError as error:
            message = f"not a unit of this version of the toolkit: {error}"
            tqdm.write(f"{self._queue.url}: {message}: {leased.text[:200]}; it is set aside", file=sys.stderr)
            failure = msgspec.to_builtins(failure_of(message, ""))
            self._put_aside({"refused": leased.text, "failures": [failure]})
            self._queue.delete(leased)
            return None

    def _renew(self) -> None:
        """Renew all leases before they run out, for as long as their units are worked on."""
        while not self._ended.wait(self._lease_s / 3):
            for number in list(self._held):
                with self._lock, suppress(WorkError, UsageError):  # of a unit that another worker has done meanwhile
                    if number in self._held:
                        self._queue.renew(self._held[number][0], self._lease_s)

    def close(self) -> None:
        """Give back what is in hand, for others to have at once."""
        self._ended.set()
        with self._lock:
            for leased, _ in self._held.values():
                with suppress(WorkError, UsageError):
                    self._queue.give_back(leased)
            self._held.clear()

    def summary(self) -> WorkedOff:
        """What was done."""
        return WorkedOff(self._queue.url, self._done, self._given_back, self._set_aside)


@dataclass(frozen=True)
class SetAside:
    """The units that were set aside, for the terminal. units: what each is, and its failures."""

    queue: str
    units: tuple[tuple[str, tuple[UnitFailure, ...]], ...]

    def __str__(self) -> str:
        if not self.units:
            return f"{self.queue}: no unit was set aside"
        return "\n\n".join(
            "\n".join([f"{what}: {failures[-1].message}", *_traces(failures)]) for what, failures in self.units
        )


def _traces(failures: tuple[UnitFailure, ...]) -> list[str]:
    last = failures[-1]
    lines = [f"    in {failure.worker}: {failure.message}" for failure in failures]
    return [*lines, *(f"    {line}" for line in last.trace.splitlines())]


def set_aside(url: str) -> SetAside:
    """The units of a queue that failed so often that they were set aside."""
    failed = UnitQueue(url, begin=False).failed(begin=False)
    return SetAside(url, tuple(map(_listed, failed or ())))


def _listed(leased: Leased) -> tuple[str, tuple[UnitFailure, ...]]:
    content = dict(leased.content or {})
    try:
        failures = msgspec.convert(content.get("failures", []), tuple[UnitFailure, ...])
        if failures and "refused" not in content:
            return str(msgspec.convert(content, Unit)), failures
    except msgspec.ValidationError:  # of another version of the toolkit
        failures = ()
    return str(content.get("refused", leased.text))[:200], failures or (failure_of("unknown", ""),)
