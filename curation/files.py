"""Files that are finished or not there: written beside their place, flushed to the disk, then renamed into it."""

import fcntl
import os
import re
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import TextIO

from .errors import UsageError, WorkError

_LONGEST_HOST = 40  # characters of a machine's name that go into a file's name

PathLike = str | os.PathLike[str]


class Existing(Enum):
    """What happens to output that is there already, but is not what the command would make."""

    REFUSED = "refused"  # the command is refused, and says what differs
    UPDATED = "updated"  # --update: what is still right in it is kept, the rest is made anew
    REPLACED = "replaced"  # --overwrite: all is made anew, also of output that is what the command would make


def check_name(path: PathLike) -> None:
    """Refuse a folder where a file is to be written."""
    if Path(path).is_dir():  # so is "", the folder one is in
        raise UsageError(f"{path or '.'} is a folder: want a file's name")


def shown(path: PathLike) -> str:
    """A path as a text that UTF-8 holds: a name may have any bytes, and those that are not UTF-8 become \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def shown_name(path: PathLike) -> str:
    """The name of a file or folder as a text that UTF-8 holds, also of "."."""
    return shown(os.path.basename(os.path.abspath(path)))


def check_destination(path: PathLike) -> None:
    """Refuse a folder that cannot be written to. One that is missing is fine if `make_folder` can make it."""
    folder = Path(path)
    if folder.exists() or folder.is_symlink():
        _check_writable(folder)
    elif not folder.absolute().parent.exists():
        raise UsageError(f"{folder}: no such folder, nor is there {folder.parent} to make it in; make that first")
    else:
        _check_writable(folder.absolute().parent)


def _check_writable(folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(f"{folder}: not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{folder}: cannot be written to")


def make_folder(path: PathLike) -> None:
    """Make a folder if it is missing; its parent must be there."""
    folder = Path(path)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise WorkError(f"{folder}: {error.strerror or error}") from error


def holds(path: PathLike, pieces: Iterable[str]) -> bool:
    """Whether a text file is there that holds just these pieces, end to end."""
    try:
        with open(path, "rb") as file:
            return all(
                file.read(len(piece)) == piece for piece in (text.encode() for text in pieces)
            ) and not file.read(1)
    except OSError:
        return False


@contextmanager
def written_whole(path: PathLike) -> Iterator[TextIO]:
    """A text file that appears under `path` whole when the block ends, and not at all if it raises."""
    with _appearing(Path(path)) as temporary, open(temporary, "x", encoding="utf-8", newline="\n") as file:
        yield file


def write_bytes_whole(path: PathLike, content: bytes) -> None:
    """Write a file that appears under `path` whole, or not at all."""
    with _appearing(Path(path)) as temporary:
        temporary.write_bytes(content)


def process_name() -> str:
    """What tells this process from all others, on other machines too, in the names of the files that it is writing."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:_LONGEST_HOST]
    return f"{host}.{os.getpid()}"


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """Where to write a file that is moved to `target` when the block ends, and deleted if it raises."""
    temporary = target.with_name(f".{target.name}.{process_name()}.tmp")
    try:
        yield temporary
        publish(temporary, target)
    except OSError as error:
        raise WorkError(f"{target}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def lock_path(target: PathLike) -> Path:
    """The file that says who holds a destination. It stays behind where its process was killed."""
    return Path(target).with_name(f".{Path(target).name}.lock")


@contextmanager
def locked(target: PathLike) -> Iterator[None]:
    """Hold a destination, so that no second run works on it; who holds it stands in `.NAME.lock` beside it.

    The lock is the system's (flock): it is gone with its process, however that ends. The file goes with the block.
    """
    lock = lock_path(target)
    try:
        file = _lock_file(lock, target)
    except OSError as error:
        raise WorkError(f"{lock}: {error.strerror or error}") from error
    with file:
        with suppress(OSError):  # on a full disk it holds all the same
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _lock_file(lock: Path, target: PathLike) -> TextIO:
    while True:
        file = lock.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise UsageError(f"{target}: {holder} is at work on it; wait for it, or end it") from None
        if _is_there(lock, file):
            return file
        file.close()  # its last holder has just removed it: take the new one


def _is_there(lock: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(lock.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def publish(temporary: Path, target: Path) -> None:
    """Move a written file into its place, so that a crash leaves the old file or the new one, never between.

    The data must be on the disk before the name is, and the name is on the disk once its folder is: without the
    two fsyncs a power cut can leave a renamed, empty file.
    """
    sync(temporary)
    os.replace(temporary, target)
    sync(target.parent)


class BackgroundSync:
    """Moves what is written of a growing file on to the disk in the background, a piece at a time.

    There is then little to wait for at the end, and little for the system to hold in memory: pages that the disk has
    are given back, to be written to again, which is several times cheaper than taking up fresh ones.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._thread = ThreadPoolExecutor(1)
        self._under_way: Future[None] | None = None

    def start(self) -> None:
        """Begin with what was written until now, unless earlier writing is under way yet; `OSError` if that failed."""
        if self._under_way is None or self._under_way.done():
            self.wait()
            self._under_way = self._thread.submit(self._sync)

    def wait(self) -> None:
        """Until what is under way is on the disk; `OSError` if it cannot be: the system tells of that once only."""
        if self._under_way is not None:
            self._under_way.result()

    def close(self) -> None:
        """Wait for what is under way, and let go of the file."""
        self._thread.shutdown()
        os.close(self._descriptor)

    def _sync(self) -> None:
        # macOS has neither of the two calls: fsync does the same there, and its pages are given back by themselves.
        getattr(os, "fdatasync", os.fsync)(self._descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
