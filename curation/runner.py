"""Worker processes: units in, one result a unit out, whatever happens to a worker.

A `Work` is called once in each worker with an iterator of numbered units, and yields numbered results; it may
look ahead in the iterator, to read while it computes. Units are handed out in runs (neighbours that share what
they read), to whichever worker asks first.

Each worker has a pipe of its own. A shared queue, as in concurrent.futures, deadlocks when a worker is killed while
it holds the queue's lock or has sent half a message; here that is an end of file, and its units go to others.
"""

import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from tqdm import tqdm

from .errors import UsageError, WorkError
from .machine import THREADS
from .result_memory import ResultMemory, result_memory

Unit = TypeVar("Unit")
Result = TypeVar("Result")
Work = Callable[[int, Iterator[tuple[int, Unit]]], Iterator[tuple[int, Result]]]

LONGEST_TMPDIR = 70  # bytes
POLL_S = 0.1  # between two looks for units, while a worker has none
DEATHS_ALLOWED = 2  # of workers, while any one unit is in their hands

# Not fork: a fork of a process with threads may inherit a locked lock, and would keep the other workers' pipes open,
# so that their ends would not show.
_CONTEXT = multiprocessing.get_context("forkserver")

_WANT, _RESULT, _FAILED, _SAID = "want", "result", "failed", "said"
_sending = threading.Lock()  # so that messages of several threads do not mix


def run(
    work: "Work[Unit, Result]",
    runs: Sequence[Sequence[Unit]],
    workers: int,
    hear: Callable[[int, Any], None] = lambda number, what: None,
    lent_bytes: int = 0,
) -> Generator[tuple[int, Result], None, None]:
    """Results as they come, each with its unit's number: its place among the units of all runs laid end to end.

    One worker is this process itself; more are processes of their own, which are given `work` pickled. `work`'s first
    argument is the worker's number. What `work` raises is raised here. hear: called with a worker's number and what it
    says beside its results (`say`); of one that has died, with None. lent_bytes: if given, what the arrays of a result
    take at most; they may then be used only until the next result is asked for, and cost the caller less
    (`result_memory`).
    """
    numbered = _number(runs)
    workers = min(workers, len(runs))
    if workers <= 1:
        before, _here.say = _here.say, partial(hear, 0)
        try:
            yield from work(0, (item for run in numbered for item in run))
        finally:
            _here.say = before  # this process may be a worker itself
    else:
        yield from _Pool(work, _Runs(numbered), workers, hear, lent_bytes).results()


class Source(Protocol[Unit]):
    """Where units come from that are not all known from the beginning."""

    @property
    def over(self) -> bool:
        """Whether there will be no more of them."""
        ...

    def take(self, in_hand: Mapping[int, Unit]) -> list[tuple[int, Unit]] | None:
        """Numbered units for a worker; None where there are none for it now. in_hand: those that it has."""
        ...

    def lost(self, units: Mapping[int, Unit], cause: str) -> None:
        """Hear that a worker has died that had these units. cause: of its death."""
        ...


def serve(work: "Work[Unit, Result]", source: Source[Unit], workers: int) -> Generator[tuple[int, Result], None, None]:
    """Results as they come, of units that come as they come, until there will be no more of them.

    Workers are processes of their own. `work` is called again and again in each: an iterator of units ends when there
    are none for a while, so that the results of those in hand do not wait for others.
    """
    yield from _Pool(work, source, workers, lambda number, what: None, 0, asks_again=True).results()


def say(what: Any) -> None:
    """Tell whoever runs this worker something beside its results; from any of its threads."""
    _here.say(what)


class _Here:
    """How this process, if it is a worker, says something."""

    say: Callable[[Any], None] = staticmethod(lambda what: None)


_here = _Here()


def warm_up(*modules: str, threads: int | None = None) -> None:
    """Start the process that workers are forked from. It imports `modules`, once for all, while this one goes on.

    threads: how many the libraries under numpy may have in each worker; the user's own setting, if it is less.
    """
    _CONTEXT.set_forkserver_preload(list(modules))
    before = {name: os.environ.get(name) for name in THREADS if threads is not None}
    try:
        for name, value in before.items():  # the server takes its environment over, and they look as they load
            os.environ[name] = str(min(threads or 1, int(value)) if value and value.isdecimal() else threads)
        _start_server()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start_server() -> None:
    """Start the process that workers are forked from, if it does not run. Ctrl-C never reaches it, nor the workers.

    The terminal sends it to the whole group of processes, but this one decides what it means. By itself the server
    ignores it only after its imports, and a worker not at all; a signal that is blocked here stays so in both.
    """
    _take_short_temporary_folder()
    resource_tracker.ensure_running()  # by itself: when it starts, it unblocks signals
    with _without(signal.SIGINT):
        forkserver.ensure_running()


def _take_short_temporary_folder() -> None:
    """Have the server's socket in a folder whose path is short enough for one, whatever TMPDIR says.

    The system takes 107 bytes for a socket's path (103 on macOS); multiprocessing adds 32 to the folder's.
    """
    if len(os.fsencode(tempfile.gettempdir())) <= LONGEST_TMPDIR:
        return
    before, tempfile.tempdir = tempfile.tempdir, "/tmp"
    try:
        util.get_temp_dir()  # makes it, once for this process
    finally:
        tempfile.tempdir = before


@contextmanager
def _without(*signals: signal.Signals) -> Iterator[None]:
    """Signals wait until this is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _number(runs: Sequence[Sequence[Unit]]) -> list[list[tuple[int, Unit]]]:
    numbers = iter(range(sum(map(len, runs))))
    return [[(next(numbers), unit) for unit in run] for run in runs]


def ahead(function: Callable[[Unit], Result], units: Iterable[Unit], depth: int) -> Iterator[tuple[Unit, Result]]:
    """Each unit with `function` of it, in order, computed in threads for up to `depth` further units meanwhile."""
    if depth == 0:
        for unit in units:
            yield unit, function(unit)
        return
    pool = ThreadPoolExecutor(depth)
    try:
        under_way: deque[tuple[Unit, Future[Result]]] = deque()
        for unit in units:
            under_way.append((unit, pool.submit(function, unit)))
            if len(under_way) > depth:
                first, future = under_way.popleft()
                yield first, future.result()
        for unit, future in under_way:
            yield unit, future.result()
    finally:  # not waited for where the work is broken off: it may be waiting for a store itself
        pool.shutdown(wait=False, cancel_futures=True)


class _Runs(Generic[Unit]):
    """Units that are all known from the beginning, in runs."""

    def __init__(self, runs: list[list[tuple[int, Unit]]]) -> None:
        self._waiting = deque(runs)
        self._deaths: dict[int, int] = {}

    @property
    def over(self) -> bool:
        return not self._waiting

    def take(self, in_hand: Mapping[int, Unit]) -> list[tuple[int, Unit]]:
        return self._waiting.popleft() if self._waiting else []

    def lost(self, units: Mapping[int, Unit], cause: str) -> None:
        """Put a dead worker's units back, for others."""
        for number in units:
            self._deaths[number] = self._deaths.get(number, 0) + 1
        if any(self._deaths[number] > DEATHS_ALLOWED for number in units):
            raise WorkError(cause)
        self._waiting.appendleft(list(units.items()))


class _Pool(Generic[Unit, Result]):
    def __init__(
        self,
        work: "Work[Unit, Result]",
        source: Source[Unit],
        workers: int,
        hear: Callable[[int, Any], None],
        lent_bytes: int,
        asks_again: bool = False,
    ) -> None:
        self._work = work
        self._lent_bytes = lent_bytes
        self._hear = hear
        self._source = source
        self._asks_again = asks_again
        self._workers = workers
        self._members: dict[Connection, _Member[Unit]] = {}
        self._idle: list[_Member[Unit]] = []  # they have asked, and there were no units

    def results(self) -> Iterator[tuple[int, Result]]:
        try:
            for number in range(self._workers):
                self._start(number)
            while not self._source.over or any(member.units for member in self._members.values()):
                for pipe in wait(list(self._members), POLL_S if self._idle else None):
                    yield from self._listen(pipe)  # type: ignore[arg-type]
                idle, self._idle = self._idle, []
                for member in idle:
                    self._give(member)
        finally:
            for member in self._members.values():
                member.stop()

    def _start(self, number: int) -> None:
        ours, theirs = _CONTEXT.Pipe()
        memory = result_memory(self._lent_bytes)
        given = (theirs, memory, number, self._work, self._asks_again)
        process = _CONTEXT.Process(target=_serve, args=given, daemon=True)
        _start_server()
        with _without(signal.SIGINT, signal.SIGTERM):  # a worker that is half started would end with a traceback
            process.start()
            self._members[ours] = _Member(number, process, ours, memory)
        theirs.close()  # so that the worker's death closes the pipe

    def _listen(self, pipe: Connection) -> Iterator[tuple[int, Result]]:
        member = self._members[pipe]
        try:
            kind, *content = _receive(pipe, member.memory)
            if kind == _WANT:
                self._give(member)
        except (EOFError, OSError):  # OSError: it died amid a message
            self._replace_dead(member)
            return
        if kind == _FAILED:
            raise content[0]
        if kind == _SAID:
            self._hear(member.number, content[0])
        if kind == _RESULT:
            number, result = content
            if member.units.pop(number, None) is not None:
                member.has_worked = True
                yield number, result
            if member.memory is not None:
                member.memory.release()

    def _give(self, member: "_Member[Unit]") -> None:
        units = self._source.take(member.units)
        if units is None and not member.units:
            self._idle.append(member)
            return
        member.units.update(units or [])
        member.pipe.send(units or [])

    def _replace_dead(self, member: "_Member[Unit]") -> None:
        """Tell of a dead worker's units, and take on another in its place."""
        del self._members[member.pipe]
        self._idle = [each for each in self._idle if each is not member]
        member.close()
        member.process.join()
        self._hear(member.number, None)
        cause = f"a worker process ended by itself ({_cause(member.process.exitcode)}); out of memory?"
        if member.units:
            self._source.lost(member.units, cause)
        elif not member.has_worked:  # the next one would end as it starts, too
            raise WorkError(cause)
        self._start(member.number)


class _Member(Generic[Unit]):
    """A worker process, and the units in its hands."""

    def __init__(self, number: int, process: Any, pipe: Connection, memory: ResultMemory | None) -> None:
        self.number = number
        self.process = process
        self.pipe = pipe
        self.memory = memory
        self.units: dict[int, Unit] = {}
        self.has_worked = False

    def close(self) -> None:
        self.pipe.close()
        if self.memory is not None:
            self.memory.close()

    def stop(self) -> None:
        self.close()
        self.process.terminate()
        self.process.join()


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"


def _serve(
    pipe: Connection, memory: ResultMemory | None, number: int, work: "Work[Unit, Result]", asks_again: bool
) -> None:
    """Worker main loop; ends when the parent's pipe closes, so that no orphan outlives its parent."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tqdm.set_lock(threading.RLock())  # its own lock is a system semaphore, which an ended worker would leave behind
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _here.say = lambda what: _send(pipe, (_SAID, what))
    try:
        while True:
            for done, result in work(number, _units(pipe)):
                _send(pipe, (_RESULT, done, result), memory)
            if not asks_again:
                pipe.recv()
    except (EOFError, ConnectionError):
        pass
    except Exception as error:
        with suppress(OSError):
            _send(pipe, (_FAILED, _sendable(error)))
    os._exit(0)  # without waiting for threads that may still be reading


def _send(pipe: Connection, message: Any, memory: ResultMemory | None = None) -> None:
    """Send a message; the arrays in it go as they lie in memory (PEP 574), where pickling would copy them twice.

    They go through `memory`, if there is such and they fit, and else behind the message.
    """
    arrays: list[pickle.PickleBuffer] = []
    content = pickle.dumps(message, protocol=5, buffer_callback=arrays.append)
    views = [array.raw() for array in arrays]
    lent = memory is not None and memory.put(views)
    with _sending:
        pipe.send(([view.nbytes for view in views], lent, content))
        for view in [] if lent else views:
            _all_of(view, lambda part: os.writev(pipe.fileno(), [part]))


def _receive(pipe: Connection, memory: ResultMemory | None) -> Any:
    """The next message; `EOFError` at the end of the pipe, though it be amid a message."""
    sizes, lent, content = pipe.recv()
    if lent and memory is not None:
        return pickle.loads(content, buffers=memory.taken(sizes))
    arrays = [np.empty(size, np.uint8) for size in sizes]
    for array in arrays:
        _all_of(array.data, lambda part: os.readv(pipe.fileno(), [part]))
    return pickle.loads(content, buffers=arrays)


def _all_of(view: memoryview, move: Callable[[memoryview], int]) -> None:
    moved = 0
    while moved < view.nbytes:
        count = move(view[moved:])
        if count == 0:
            raise EOFError
        moved += count


def _end_with_parent() -> None:
    """End at once when the parent is killed: a worker amid a long unit does not look at its pipe, and would go on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)


def _units(pipe: Connection) -> Iterator[tuple[int, Any]]:
    while True:
        _send(pipe, (_WANT,))
        run = pipe.recv()
        if not run:
            return
        yield from run


def _sendable(error: Exception) -> Exception:
    """The error, or a plain one with its text where it may not survive pickling."""
    if isinstance(error, UsageError | WorkError):
        return type(error)(str(error))
    return WorkError(f"{type(error).__name__}: {error}")
