"""Crashing runs on purpose: forked from a process that has everything imported, killed or made to fail, and compared.

Starting an interpreter takes seconds, a small run a tenth of one. So runs are forked, each into a process group of its
own, from a `Nursery` that has done the importing, and a kill meets the run, not its start-up.
"""

import errno
import importlib
import multiprocessing
import os
import pickle
import pkgutil
import resource
import runpy
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
from tqdm import tqdm

# Loaded in the nursery, so that runs, which are forked from it, begin with their work: scripts import these late.
LOADED = (
    "curation.aligners.aligner",
    "curation.steps.box_work",
    "curation.volumes.layer_writer",
    "curation.volumes.box_reader",
)

PATIENCE_S = 60  # then a run that hangs is a failure; disks that others use are slow

# Runs


@dataclass(frozen=True)
class Call:
    """A call to be made in another process, after what `prepare` does there to make it fail."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    prepare: tuple[Callable[[], None], ...] = ()

    def after(self, *prepare: Callable[[], None]) -> "Call":
        return Call(self.function, self.arguments, (*self.prepare, *prepare))

    def __call__(self) -> Any:
        for step in self.prepare:
            step()
        return self.function(*self.arguments)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: killed by a signal, or with a value or an error. text: what it printed, unless it was killed."""

    killed: bool
    value: Any = None
    error: BaseException | None = None
    text: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether it did its work."""
        return not self.killed and self.error is None


class Nursery:
    """Forks runs, one at a time, from a process that has everything imported. A context manager."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_fork_runs, args=(theirs,))
        self._process.start()
        theirs.close()

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()  # which ends it
        self._process.join()

    def start(self, call: Call) -> int:
        """Start a run; the id of its process, and of its process group. `end` must be asked for before the next."""
        self._pipe.send(call)
        group: int = self._pipe.recv()
        self._group = group
        return group

    def end(self) -> Outcome:
        """How the run that was started ended, once it has; `TimeoutError` if it hangs."""
        hangs = not self._pipe.poll(PATIENCE_S)
        if hangs:
            os.killpg(self._group, signal.SIGKILL)
        outcome: Outcome = self._pipe.recv()
        if hangs:
            raise TimeoutError(f"a run has not ended after {PATIENCE_S} s")
        return outcome

    def run(self, call: Call) -> Outcome:
        self.start(call)
        return self.end()

    def finish(self, call: Call) -> Any:
        """Run a call that must succeed; its value."""
        outcome = self.run(call)
        if outcome.error is not None:
            raise outcome.error
        assert not outcome.killed
        return outcome.value

    def kill(self, call: Call, delay: float) -> Outcome:
        """Start a run, and kill its process group after `delay` seconds, if it has not ended by then."""
        group = self.start(call)
        if not self._pipe.poll(delay):
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        return self.end()


def _fork_runs(pipe: Connection) -> None:
    tqdm.set_lock(threading.RLock())  # its own lock is a system semaphore, which a killed run would leave behind
    for name in LOADED:
        importlib.import_module(name)
    while True:
        try:
            call = pipe.recv()
        except EOFError:
            return
        ours, theirs = os.pipe()
        process = os.fork()
        if process == 0:
            os.setpgid(0, 0)
            pipe.close()
            _live(call, theirs)
        with suppress(OSError):
            os.setpgid(process, process)  # here too: whoever comes first, it is so before anyone is told
        os.close(theirs)
        pipe.send(process)
        with open(ours, "rb") as told:
            content = told.read()
        killed = os.WIFSIGNALED(os.waitpid(process, 0)[1])
        pipe.send(Outcome(killed) if killed else pickle.loads(content))


def _live(call: Call, told: int) -> None:
    with tempfile.TemporaryFile("w+b") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
        value = error = None
        try:
            value = call()
        except BaseException as raised:
            error = raised
        sys.stdout.flush()
        sys.stderr.flush()
        printed.seek(0)
        outcome = Outcome(False, value, error, printed.read().decode())
    with open(told, "wb") as file:
        file.write(pickle.dumps(outcome))
    os._exit(0)


def run_script(path: str, arguments: tuple[str, ...]) -> int:
    """Run a script as a command; its exit code."""
    sys.argv = [path, *arguments]
    setting("curation.cli._leave", sys.exit)  # the process has its outcome to tell yet
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as left:
        return int(left.code or 0)
    return 0


# Faults, to `prepare` a call with


def setting(name: str, value: Any) -> None:
    """Set what a dotted name names, such as `curation.steps.box_job.COMMIT_BYTES`."""
    owner, _, last = name.rpartition(".")
    setattr(pkgutil.resolve_name(owner), last, value)


def wrapping(name: str, act: Callable[[int, Callable[[], Any]], Any], when: Callable[..., bool] | None = None) -> None:
    """Have `act` called with the number, from 0, of each call of what a dotted name names, and the call itself.

    when: of the call's arguments, which calls count.
    """
    function = pkgutil.resolve_name(name)
    calls = iter(range(sys.maxsize))

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if when is not None and not when(*arguments):
            return function(*arguments, **named)
        return act(next(calls), lambda: function(*arguments, **named))

    setting(name, wrapped)


def failing(name: str, at: int, code: int, when: Callable[..., bool] | None = None) -> None:
    """Have calls of a name raise OSError from number `at` on."""

    def act(number: int, call: Callable[[], Any]) -> Any:
        if number >= at:
            raise OSError(code, os.strerror(code))
        return call()

    wrapping(name, act, when)


def dying(name: str, at: int, after: bool = False, when: Callable[..., bool] | None = None) -> None:
    """Kill the process before, or after, call number `at` of a name."""

    def act(number: int, call: Callable[[], Any]) -> Any:
        if number == at and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call()
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    wrapping(name, act, when)


def stopping(name: str, at: int) -> None:
    """Stop the process, until SIGCONT, before call number `at` of a name."""

    def act(number: int, call: Callable[[], Any]) -> Any:
        if number == at:
            os.kill(os.getpid(), signal.SIGSTOP)
        return call()

    wrapping(name, act)


def limiting_files(size: int) -> None:
    """Have writes beyond a size fail, as on a disk that is full there."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class RecordedFile:
    """A file object for HDF5's fileobj driver: it fails from write number `fails_at` on, and notes what is written."""

    def __init__(self, path: Path, mode: str, fails_at: int, journal: list[tuple[str, int, bytes]]) -> None:
        self._name = path.name
        self._file = open(path, {"w": "w+b", "r+": "r+b"}[mode])  # noqa: SIM115
        self._fails_at = fails_at
        self._journal = journal

    def write(self, content: Any) -> int:
        self._note(self._file.tell(), bytes(content))
        return self._file.write(content)

    def truncate(self, size: int | None = None) -> int:
        self._note(self._file.tell() if size is None else size, b"")
        return self._file.truncate(size)

    def _note(self, place: int, content: bytes) -> None:
        if len(self._journal) >= self._fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._journal.append((self._name, place, content))

    def flush(self) -> None:
        self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def recording(fails_at: int, journal_path: str | None = None) -> None:
    """Have `curation.writing` write through `RecordedFile`s; their journal goes to a file before each rename."""
    journal: list[tuple[str, int, bytes]] = []

    def recorded(path: Path, mode: str, **options: Any) -> h5py.File:
        if options or mode == "r":  # in memory, or only read
            return h5py.File(path, mode, **options)
        return h5py.File(RecordedFile(path, mode, fails_at, journal), mode, driver="fileobj")

    def keep(number: int, call: Callable[[], Any]) -> Any:
        if journal_path:
            Path(journal_path).write_bytes(pickle.dumps(journal))
        return call()

    for module in ("partial", "writer"):
        setting(f"curation.datasets.{module}.h5py", SimpleNamespace(**{**vars(h5py), "File": recorded}))
    wrapping("curation.files.os.replace", keep)


def written(folder: Path, journal: Iterable[tuple[str, int, bytes]]) -> None:
    """Do what a journal says, in a folder: the files as a crash after its last entry leaves them."""
    for name, place, content in journal:
        path = folder / name
        with open(path, "r+b" if path.exists() else "w+b") as file:
            if content:
                file.seek(place)
                file.write(content)
            else:
                file.truncate(place)
