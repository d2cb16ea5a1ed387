"""Folders of shards, on a disk or in an object store: what is in one, and files that appear in it whole.

Nothing here locks: a shard that is made twice has the same bytes twice, so whoever comes last changes nothing.
"""

import base64
import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .. import runner
from ..errors import UsageError, WorkError
from ..files import check_destination, make_folder, process_name, write_bytes_whole
from ..progress import progress
from .partial import has_ended, stale_partials
from .shards import BESIDE_SHARDS, JOB_FILE, Shard, shard_named

if TYPE_CHECKING:
    from cloudfiles import CloudFiles

Answer = TypeVar("Answer")

_TEXT = re.compile(r"\..+\.(json|txt)\.(?P<host>[A-Za-z0-9-]+)\.(?P<process>\d+)\.tmp")
_TEMPORARY = re.compile(r"shard-(?P<host>[A-Za-z0-9-]+)\.(?P<process>\d+)-\w+")


class ShardStore(Protocol):
    """A folder of shards. path: where it is, as users write it."""

    path: str

    def names(self) -> list[str]:
        """The names of all files in it; none where the folder is missing."""
        ...

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        ...

    def changed_at(self, name: str) -> float | None:
        """When a file was written, in seconds since the epoch; None where the store does not say."""
        ...

    def text(self, name: str) -> str | None:
        """A text file; None where it is not there."""
        ...

    def put_text(self, name: str, text: str) -> None:
        """Write a text file, which appears whole."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def begin(self) -> None:
        """Make the folder if it is missing, and see that it can be written to."""
        ...

    def tidy(self) -> None:
        """Remove what dead processes of this machine have left."""
        ...

    def place(self, name: str) -> Any:
        """A context manager: where to make a file, a path on a disk. It is in the folder when the block ends."""
        ...


def shard_store(path: str) -> ShardStore:
    """The folder at a path, or at a cloud path (`gs://`, `s3://`); `file://` is a path on this machine."""
    if path.startswith("file://"):
        return LocalStore(path.removeprefix("file://"))
    return CloudStore(path) if "://" in path else LocalStore(path)


def stored_shards(store: ShardStore) -> list[Shard]:
    """The shards that a folder holds, in order."""
    return sorted(filter(None, map(shard_named, store.names())), key=lambda shard: shard.first)


def _upload(name: str, path: Path, files: "CloudFiles") -> None:
    with open(path, "rb") as file:
        files.put(name, file, compress=None)


class LocalStore:
    """A folder of a file system, which may be one that many machines share."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._folder = Path(path)

    def names(self) -> list[str]:
        """The names of all files in it; none where the folder is missing."""
        with suppress(FileNotFoundError):
            return [path.name for path in self._folder.iterdir()]
        return []

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return (self._folder / name).exists()

    def changed_at(self, name: str) -> float | None:
        """When a file was written, in seconds since the epoch; None where it is not there."""
        with suppress(OSError):
            return (self._folder / name).stat().st_mtime
        return None

    def text(self, name: str) -> str | None:
        """A text file; None where it is not there."""
        try:
            return (self._folder / name).read_bytes().decode("utf-8", "replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(f"{self._folder / name}: {error.strerror or error}") from None

    def put_text(self, name: str, text: str) -> None:
        """Write a text file, which appears whole."""
        write_bytes_whole(self._folder / name, text.encode())

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self._folder / name).unlink(missing_ok=True)

    def begin(self) -> None:
        """Make the folder if it is missing, and see that it can be written to."""
        for folder in (self._folder.absolute().parent, self._folder):
            check_destination(folder)
            make_folder(folder)

    def tidy(self) -> None:
        """Remove what dead processes of this machine have left."""
        texts = [
            path for path in self._folder.glob(".*.tmp") if (match := _TEXT.fullmatch(path.name)) and has_ended(match)
        ]
        for path in (*stale_partials(self._folder), *texts):
            path.unlink(missing_ok=True)

    @contextmanager
    def place(self, name: str) -> Iterator[Path]:
        """Where to make a file: in the folder itself, since a dataset file appears there whole by itself."""
        yield self._folder / name


class CloudStore:
    """A path in an object store, through cloud-files. Objects appear whole, once they were uploaded."""

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/")

    def names(self) -> list[str]:
        """The names of all objects in it, but not of those below."""
        return [name for name in self._ask(lambda files: list(files.list(flat=True))) if "/" not in name]

    def has(self, name: str) -> bool:
        """Whether an object is there."""
        return bool(self._ask(lambda files: files.exists(name)))

    def sizes(self) -> dict[str, int]:
        """The names of all objects in it, but not of those below, and how many bytes each has."""
        found = self._ask(lambda files: list(files.list(flat=True, size=True)))
        return {name: int(size) for name, size in found if "/" not in name}

    def fetch(self, name: str, folder: Path) -> None:
        """Copy an object into a folder, where it appears whole."""
        content = self._ask(lambda files: files.get(name))
        if content is None:
            raise WorkError(f"{self.path}/{name}: was there, and is gone")
        write_bytes_whole(folder / name, content)

    def changed_at(self, name: str) -> float | None:
        """None: asking for each object would be a request each."""
        return None

    def text(self, name: str) -> str | None:
        """A text object; None where it is not there."""
        content = self._ask(lambda files: files.get(name))
        return None if content is None else content.decode("utf-8", "replace")

    def put_text(self, name: str, text: str) -> None:
        """Write a text object."""
        self._ask(lambda files: files.put(name, text.encode(), compress=None))

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        self._ask(lambda files: files.delete(name))

    def begin(self) -> None:
        """Nothing: folders are a part of the objects' names. Whether the store can be reached shows as it is read."""

    def tidy(self) -> None:
        """Remove the temporary folders of dead processes of this machine; in the store is nothing of theirs."""
        for folder in Path(tempfile.gettempdir()).glob("shard-*"):
            if (match := _TEMPORARY.fullmatch(folder.name)) and has_ended(match):
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def place(self, name: str) -> Iterator[Path]:
        """Where to make a file: in a temporary folder, from which it is uploaded, and looked at, as the block ends."""
        with tempfile.TemporaryDirectory(prefix=f"shard-{process_name()}-") as folder:
            path = Path(folder) / name
            yield path
            self._ask(partial(_upload, name, path))
            self._check(name, path)

    def _check(self, name: str, path: Path) -> None:
        """Hold what the store has against what it was given. S3 was given a checksum too, and refuses other bytes."""
        found = self._ask(lambda files: files.head(name)) or {}
        wrong = found.get("Content-Length") not in (None, path.stat().st_size)
        if md5 := found.get("Content-Md5"):
            with open(path, "rb") as file:
                wrong |= base64.b64decode(md5) != hashlib.file_digest(file, "md5").digest()
        if wrong or not found:
            self.delete(name)
            raise WorkError(f"{self.path}/{name}: what the store holds is not what was uploaded; it was deleted again")

    def _ask(self, question: "Callable[[CloudFiles], Answer]") -> Answer:
        from cloudfiles import CloudFiles
        from cloudfiles.exceptions import UnsupportedProtocolError

        from .. import stores

        stores.install()
        try:
            return stores.Patience().ask(lambda: question(CloudFiles(self.path, progress=False, num_threads=1)))
        except UnsupportedProtocolError as error:
            raise UsageError(f"{self.path}: {error}") from None
        except Exception as error:
            if isinstance(error, ValueError) or stores.is_denied(error) or stores.lacks_credentials(error):
                raise UsageError(f"{self.path}: {stores.reason(error)}") from None
            if not stores.is_from_store(error):
                raise
            raise WorkError(f"{self.path}: {stores.reason(error)}") from error


FETCHED_AHEAD = 2  # objects, each of which is in memory while it is copied


@contextmanager
def fetched(path: str, beside: Path) -> Iterator[Path]:
    """A folder with copies of the shards at a cloud path, in a hidden folder beside a file that they are to make.

    Copies that are there from an earlier run are kept, if they are of the same job. The folder is removed once the
    block has ended well.
    """
    store = CloudStore(path)
    sizes = {name: size for name, size in store.sizes().items() if shard_named(name) or name in BESIDE_SHARDS}
    if not any(map(shard_named, sizes)):
        raise UsageError(f"{path}: no shards there: want the path of a folder with FIRST_LAST.h5 files")
    folder = beside.with_name(f".{beside.name}.shards")
    make_folder(folder)
    of_same_job = LocalStore(str(folder)).text(JOB_FILE) == store.text(JOB_FILE)
    for copy in folder.iterdir():
        if not of_same_job or sizes.get(copy.name) != copy.stat().st_size or copy.name in BESIDE_SHARDS:
            copy.unlink()
    if JOB_FILE in sizes:
        store.fetch(JOB_FILE, folder)  # the first, since it says what the copies are of
    missing = [name for name in sizes if not (folder / name).exists()]
    with progress(len(missing), "shards fetched", "file") as bar:
        for _ in runner.ahead(lambda name: store.fetch(name, folder), missing, FETCHED_AHEAD):
            bar.update()
    yield folder
    for copy in folder.iterdir():
        copy.unlink()
    folder.rmdir()
