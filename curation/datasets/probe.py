"""Looking at an HDF5 file that may be damaged, where it can do no harm.

Damage in a file's HDF5 metadata (B-trees, heaps) can make the library crash, loop for ever, or ask for all memory there
is. So a file that a crash may have torn, or a disk damaged, is first looked at by a child process with limits on time
and memory.
"""

import faulthandler
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import h5py

from ..errors import UsageError
from ..files import PathLike
from .dataset import open_dataset
from .seal import finished_seal, seal_fault

CPU_S = 60  # far more than walking through the index of a million chunks takes
MORE_BYTES = 2 * 2**30  # beyond what this process has

_LOOKED, _GIVEN_UP, _IN_USE = 0, 1, 2
_NEXT = "\n"  # told after each file: no fault is an empty line


def is_readable(path: Path) -> bool:
    """Whether all of a file but its images and fields can be read, within limits; an error if it is in use."""
    return not list(limited(_walk, path))


def _walk(path: Path) -> Iterator[str]:
    with h5py.File(path, "r") as file:
        finished_seal(file)
    yield from ()


def check_undamaged(*paths: PathLike) -> None:
    """Refuse dataset files that are none, or not as they were sealed. No image or field is read."""
    for fault in limited(_input_faults, *paths):
        raise UsageError(fault)


def undamaged(paths: Sequence[PathLike]) -> list[int]:
    """Which of some dataset files are as they were sealed, by their places. No image or field is read."""
    try:
        check_undamaged(*paths)
    except UsageError:
        return [place for place, path in enumerate(paths) if not list(limited(_input_faults, path))]
    return list(range(len(paths)))


def _input_faults(path: Path) -> Iterator[str]:
    try:
        data = open_dataset(path)
    except UsageError as error:
        yield str(error)
        return
    with data.file as file:
        if data.main.chunks:
            data.main.id.get_num_chunks()  # which walks through their index
        if fault := seal_fault(file):
            yield f"{path}: damaged: {fault}"


# The child


def limited(look: Callable[[Path], Iterable[str]], *paths: PathLike) -> Iterator[str]:
    """The faults that `look`, called in a child process with limits, finds in files; and what ended the child, if so.

    An error if a file is in use.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        _live(look, [Path(path) for path in paths], theirs)
    os.close(theirs)
    looked = 0
    try:
        with open(ours, encoding="utf-8", newline="\n") as lines:
            for line in lines:
                if line == _NEXT:
                    looked += 1
                else:
                    yield line.removesuffix("\n")
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == _IN_USE:
        raise BlockingIOError(f"{paths[looked]}: in use, or not readable")
    if code != _LOOKED:
        yield f"{paths[looked]}: damaged: {_end_of_child(code)}"


def _end_of_child(code: int) -> str:
    if code == -signal.SIGXCPU:
        return f"what takes milliseconds to read is not read after {CPU_S} s"
    return f"reading it ends in {signal.Signals(-code).name if code < 0 else 'an error that cannot be told'}"


def lift_limits() -> None:
    """In the child: let it take the time and memory that a whole file of any size needs."""
    for limit in (resource.RLIMIT_CPU, resource.RLIMIT_AS):
        most = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (most, most))


def _live(look: Callable[[Path], Iterable[str]], paths: Sequence[Path], told: int) -> NoReturn:
    """In the child: look, and tell. Nothing may be raised here, past the fork."""
    code = _GIVEN_UP
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _limit_memory()
        _quieten()
        with open(told, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as lines:
            for path in paths:
                _limit_time()
                for line in _telling_errors(look, path):
                    print(" ".join(line.split()), file=lines, flush=True)
                lines.write(_NEXT)
        code = _LOOKED
    except (BlockingIOError, PermissionError):
        code = _IN_USE
    finally:
        os._exit(code)


def _telling_errors(look: Callable[[Path], Iterable[str]], path: Path) -> Iterator[str]:
    try:
        yield from look(path)
    except (BlockingIOError, PermissionError):
        raise
    except Exception as error:  # whatever HDF5 and h5py say of what damage has made of it
        yield f"{path}: damaged: {str(error) or type(error).__name__}"


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    if statm.exists():
        _limit(resource.RLIMIT_AS, int(statm.read_text().split()[0]) * resource.getpagesize() + MORE_BYTES)


def _limit_time() -> None:
    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + CPU_S)


def _limit(what: int, most: int) -> None:
    highest = resource.getrlimit(what)[1]
    resource.setrlimit(what, (most if highest == resource.RLIM_INFINITY else min(most, highest), highest))


def _quieten() -> None:
    """Keep from the user what the C library says of a crash, and h5py of files that do not close; not progress bars."""
    sys.stderr = open(os.dup(2), "w", buffering=1)  # noqa: SIM115
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    faulthandler.disable()
    sys.unraisablehook = lambda *_: None
