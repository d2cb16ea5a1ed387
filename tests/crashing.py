"""Crashing runs on purpose: forked from a process that has everything imported, killed or made to fail, and compared.

Starting an interpreter takes seconds, a small run a tenth of one. So runs are forked, each into a process group of its
own, from a `Nursery` that has done the importing, and a kill meets the run, not its start-up.
"""

import errno
import json
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
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm
from volumes_made import make_layer

from curation import inference, making, stretch
from curation.inference import generate_fields
from curation.joining import concat_fields
from curation.making import make_dataset
from curation.stretch import download_image

SIZE, PAIRS = 64, 24

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
        """Whether it did its work, or found it done by a run that was killed after its last rename."""
        return not self.killed and (self.error is None or "is there already" in str(self.error))


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
    """Set what a dotted name names, such as `curation.cutting.COMMIT_BYTES`."""
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

    class Recorded:
        @staticmethod
        def File(path: Path, mode: str, **options: Any) -> h5py.File:  # noqa: N802
            if options or mode == "r":  # in memory, or only read
                return h5py.File(path, mode, **options)
            return h5py.File(RecordedFile(path, mode, fails_at, journal), mode, driver="fileobj")

    def keep(number: int, call: Callable[[], Any]) -> Any:
        if journal_path:
            Path(journal_path).write_bytes(pickle.dumps(journal))
        return call()

    setting("curation.writing.h5py", Recorded)
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


# Comparing


def contents(path: Path) -> dict[str, Any]:
    """All that an HDF5 file holds: each dataset's type, shape, values and stored chunks, byte for byte; attributes."""
    found: dict[str, Any] = {}
    with h5py.File(path, "r") as file:
        for name, dataset in file.items():
            found[name] = (dataset.dtype.str, dataset.shape, dataset.chunks, dataset[...].tobytes())
        main = file["main"].id
        for index in range(main.get_num_chunks()):
            offset = main.get_chunk_info(index).chunk_offset
            found[f"main at {offset}"] = main.read_direct_chunk(offset)
        found.update({f"attribute {name}": str(value) for name, value in file.attrs.items()})
    return found


def differing(path: Path, reference: Path, leaving_out: tuple[str, ...] = ()) -> list[str]:
    """The names of what differs between two HDF5 files."""
    ours, theirs = contents(path), contents(reference)
    names = [name for name in {**ours, **theirs} if name not in leaving_out]
    return [name for name in names if ours.get(name) != theirs.get(name)]


def left_behind(folder: Path) -> list[str]:
    """Files that a finished run has no business to leave."""
    return [path.name for path in folder.iterdir() if path.name.endswith((".partial.h5", ".lock", ".tmp"))]


# The steps that write


@dataclass(frozen=True)
class Step:
    """A writing function with its inputs made: how to call it for a destination folder."""

    name: str
    call: Callable[[Path], Call]
    reference: Path
    resumed: Callable[[Any], int] = field(repr=False)

    def faults(self, folder: Path) -> list[str]:
        """What is not as after an uninterrupted run."""
        folders = (folder, self.reference)
        names = [{path.name for path in each.glob("*.h5") if not path.name.startswith(".")} for each in folders]
        if self.name == "generate_fields":
            # How pairs fall into shards depends on those that are there, so the joined files are compared.
            joined = [each.with_name(f"{each.name}.joined.h5") for each in folders]
            for each, path in zip(folders, joined, strict=True):
                concat_fields(str(each), str(path), overwrite=True)
            return [*left_behind(folder), *differing(*joined, leaving_out=("attribute identity",))]
        if names[0] != names[1]:
            return [f"files {sorted(names[0])}, not {sorted(names[1])}", *left_behind(folder)]
        return [
            *left_behind(folder),
            *(fault for name in names[0] for fault in differing(folder / name, folders[1] / name)),
        ]


SHIFTING = """
def create(checkpoint_name):
    return lambda src_img, tgt_img, src_agg_field=None: src_agg_field + 1
"""

LONGEST_SHARD = "curation.inference.LONGEST_SHARD"

# So that a run of a tenth of a second has many moments: a commit after every box, a shard for every pair.
EVERY_BOX = (
    partial(setting, "curation.cutting.COMMIT_BYTES", 1),
    partial(setting, "curation.joining.COMMIT_PAIRS", 1),
    partial(setting, LONGEST_SHARD, 1),
)


@dataclass(frozen=True)
class Inputs:
    """What the steps read, in one folder."""

    folder: Path

    @property
    def image(self) -> str:
        return f"file://{self.folder / 'image'}"

    def make(self) -> "Inputs":
        random = np.random.default_rng(3)
        image = random.integers(1, 255, (4 * SIZE, 2 * SIZE, 10), dtype=np.uint8)
        image[70:90, 5:30] = 0
        make_layer(self.folder / "image", {0: image, 1: image[::2, ::2]}, compress="")
        vectors = random.normal(2, 3, (2 * SIZE, SIZE, 10, 2)).astype(np.float32)
        vectors[20, 3, 4] = np.nan
        make_layer(self.folder / "field", {1: vectors})
        self.write_spec("spec.json", self.pairs(PAIRS))
        self.write_spec("small.json", self.pairs(2))
        for name in ("images", "priors"):
            with h5py.File(self.folder / f"{name}.h5", "w") as file:
                file["main"] = random.normal(size=(PAIRS, 2, SIZE, SIZE)).astype(np.float32)
                file.attrs["mip"] = 3
        module = self.folder / "pyramid" / "1_mip3in_shift"
        module.mkdir(parents=True)
        (module / "create.py").write_text(SHIFTING)
        return self

    @staticmethod
    def pairs(count: int) -> list[list[dict[str, int]]]:
        """Neighbouring sections in three columns; each box but the last of a column is in two pairs."""
        at = [(SIZE * (index % 3), 0, 1 + index // 3) for index in range(count)]
        return [[{"x_start": x, "y_start": y, "z_start": z - less} for less in (0, 1)] for x, y, z in at]

    def write_spec(self, name: str, pairs: list[Any], image: str | None = None, **changes: Any) -> Path:
        """Write a spec with these pairs, and what else a test changes of it."""
        spec = {
            "image": {"path": image or self.image, "src_mip": 0},
            "field": {"path": f"file://{self.folder / 'field'}", "src_mip": 1},
            "max_mip": 3,
            "dst_mip": 0,
            "x_size": SIZE,
            "y_size": SIZE,
            "pairs": pairs,
        }
        path = self.folder / name
        path.write_text(json.dumps({**spec, **changes}))
        return path

    def make_dataset(self, folder: Path | str, parallel: int = 1, spec: str = "spec.json", **changes: Any) -> Call:
        options = making.Options(str(self.folder / spec), str(folder), parallel, **changes)
        return Call(make_dataset, (options,), EVERY_BOX)

    def download_image(self, folder: Path, parallel: int = 1, sections: int = 9, **changes: Any) -> Call:
        options = stretch.Options(self.image, str(folder), 1, 1 + sections, 0, 0, (0, 1), (SIZE, SIZE // 2), **changes)
        return Call(download_image, (options,), EVERY_BOX)

    def generate_fields(self, folder: Path, parallel: int = 1, **changes: Any) -> Call:
        given: Mapping[str, Any] = {
            "pyramid_path": str(self.folder / "pyramid"),
            "image_path": str(self.folder / "images.h5"),
            "prev_field_path": str(self.folder / "priors.h5"),
            "temp_dir": str(folder),
            "stage": 1,
            "checkpoint_name": "none",
            "src_mip": 3,
            "dst_mip": 3,
            "cpu_workers": parallel,
        }
        return Call(generate_fields, (inference.Options(**{**given, **changes}),), EVERY_BOX)

    def concat_fields(self, folder: Path, shards: str = "shards", overwrite: bool = False) -> Call:
        return Call(concat_fields, (str(self.folder / shards), str(folder / "joined.h5"), overwrite), EVERY_BOX)


def steps(nursery: Nursery, inputs: Inputs) -> dict[str, Step]:
    """The four steps, each with the outputs of an uninterrupted run as its reference."""
    made = {}
    (inputs.folder / "shards").mkdir()
    nursery.finish(inputs.generate_fields(inputs.folder / "shards").after(partial(setting, LONGEST_SHARD, 8)))
    for name, resumed in [
        ("make_dataset", lambda report: report.resumed),
        ("download_image", lambda downloaded: sum(report.resumed for report in downloaded.reports)),
        ("generate_fields", lambda generated: generated.resumed),
        ("concat_fields", lambda joined: joined.resumed),
    ]:
        reference = inputs.folder / "reference" / name
        reference.mkdir(parents=True)
        made[name] = Step(name, getattr(inputs, name), reference, resumed)
        nursery.finish(made[name].call(reference))
    return made


# Sweeps


@dataclass(frozen=True)
class Kill:
    """A kill, and the run that followed it. hit: it met a run at work. resumed: what was found done."""

    delay: float
    hit: bool
    resumed: int
    faults: tuple[str, ...]


def duration(nursery: Nursery, step: Step, folder: Path, times: int = 3) -> float:
    """The shortest time, in seconds, of an uninterrupted run."""
    taken = []
    for number in range(times):
        (folder / f"timed_{number}").mkdir()
        begin = time.monotonic()
        nursery.finish(step.call(folder / f"timed_{number}"))
        taken.append(time.monotonic() - begin)
    return min(taken)


def sweep(nursery: Nursery, step: Step, folder: Path, delays: Iterable[float]) -> Iterator[Kill]:
    """Kill a run after each delay, and have the same call finish what is left."""
    for number, delay in enumerate(delays):
        destination = folder / f"killed_{number}"
        destination.mkdir()
        call = step.call(destination)
        hit = nursery.kill(call, delay).killed
        outcome = nursery.run(call)
        faults = step.faults(destination) if outcome.is_finished else [repr(outcome.error)]
        resumed = step.resumed(outcome.value) if outcome.value else 0
        yield Kill(delay, hit, resumed, tuple(faults))


def stat(process: int) -> list[str]:
    """What the system says of a process: its state, its parent, its group, and so on. Empty state: it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return ["", "0", "0"]


def alive(group: int) -> list[int]:
    """The processes of a process group that have not ended."""
    numbers = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [number for number in numbers if stat(number)[2] == str(group) and stat(number)[0] not in ("", "Z")]
