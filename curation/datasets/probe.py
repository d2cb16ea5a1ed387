"""Looking at an HDF5 file that may be damaged, where it can do no harm.

Damage in a file's HDF5 metadata (B-trees, heaps) can make the library loop for ever, or ask for all memory there is.
So a file that a crash may have torn, or a disk damaged, is first walked through by a child process with limits on
both.
"""

import os
import resource
import signal
from pathlib import Path

import h5py

CPU_S = 60  # far more than walking through the index of a million chunks takes
MORE_BYTES = 2 * 2**30  # beyond what this process has

_WALKED, _DAMAGED, _IN_USE = 0, 1, 2


def is_readable(path: Path) -> bool:
    """Whether all of a file but its images and fields can be read, within limits; an error if it is in use."""
    child = os.fork()
    if child == 0:
        os._exit(_walk(path))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == _IN_USE:
        raise BlockingIOError(f"{path}: in use, or not readable")
    return code == _WALKED


def _walk(path: Path) -> int:
    """In the child: how far it got. Nothing may be raised here, past the fork."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        statm = Path("/proc/self/statm")
        if statm.exists():
            most = int(statm.read_text().split()[0]) * resource.getpagesize() + MORE_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        with h5py.File(path, "r") as file:
            dict(file.attrs)
            for name in file:
                if name != "main":
                    file[name][()]
            file["main"].id.chunk_iter(lambda chunk: None)
        return _WALKED
    except (BlockingIOError, PermissionError):
        return _IN_USE
    except BaseException:
        return _DAMAGED
