"""Dataset files opened to be read: this toolkit's, and those of older tools, which may hold nothing but `main`."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import UsageError
from ..files import PathLike
from ..provenance import fingerprint, stored_in
from .seal import DamageError, reading


@dataclass(frozen=True)
class Dataset:
    """An open dataset file, of this toolkit or an older one, which may hold nothing but `main` or `img`.

    main: (N, 2, X, Y). mip: None where the file does not say. arrays: `start`, `translation` and `pair`, if there.
    """

    path: Path
    file: h5py.File
    main: h5py.Dataset
    mip: int | None
    arrays: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any]

    @property
    def kind(self) -> str | None:
        """ "image" or "field"; None where an older file does not tell."""
        if "decimals" in self.attributes:
            return "field"
        return "image" if "mean" in self.file else None

    @property
    def chunk_roles(self) -> int:
        """What this toolkit stores a sample in: 2 images, or 1 field, as `crc32` tells."""
        return int(self.file["crc32"].shape[1]) if "crc32" in self.file else 1

    @property
    def provenance(self) -> str:
        """What shaped the file, as JSON; "{}" where it does not say."""
        with suppress(KeyError):
            return stored_in(self.attributes)
        return "{}"

    @property
    def fingerprint(self) -> str:
        """A hash of what tells this content from another's, without reading all of it."""
        return fingerprint(self._telling_parts())

    def _telling_parts(self) -> Iterator[bytes]:
        yield repr((self.main.shape, self.main.dtype.str, self.mip)).encode()
        yield str(self.attributes.get("spec_sha256")).encode()
        yield self.provenance.encode()
        for name in ("start", "translation", "crc32"):
            if name in self.file:
                yield self.file[name][:].tobytes()
        if "crc32" not in self.file:
            yield str(self.path.stat().st_size).encode()
            for sample in (0, self.main.shape[0] // 2, -1):  # without compression all files of a shape are of a size
                with suppress(OSError):  # of NaN, older tools may have made a chunk that cannot be read
                    yield self.main[sample].tobytes()


def open_dataset(path: PathLike, is_written: bool = False) -> Dataset:
    """Open an image or field file; anything else is a `UsageError`.

    is_written: another process may be writing the file, and holds HDF5's lock of it.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    if not path.is_file():  # of a pipe, HDF5 would wait for a writer for ever
        raise UsageError(f"{path}: not a file: want a dataset file, HDF5")
    try:
        file = h5py.File(path, "r", locking=False if is_written else None)
    except OSError as error:
        raise UsageError(f"{path}: not a readable HDF5 file ({error})") from None
    try:
        return _dataset(path, file)
    except DamageError as error:
        raise UsageError(f"{path}: damaged: {error}") from None


def _dataset(path: Path, file: h5py.File) -> Dataset:
    with reading("main"):
        names = list(file)
        named = [file[name] for name in ("main", "img") if name in names]
        main = next((item for item in named if isinstance(item, h5py.Dataset)), None)
    if main is None:
        raise UsageError(f"{path}: no dataset main or img in it; it holds {', '.join(names) or 'nothing'}")
    with reading("main"):
        if main.ndim != 4 or main.shape[1] != 2 or main.shape[0] == 0 or main.dtype.kind != "f":
            raise UsageError(f"{path}: {main.name} is {main.dtype} {main.shape}: want float (N, 2, X, Y), N at least 1")
    with reading("attributes"):
        attributes = dict(file.attrs)
        mip = None if "mip" not in attributes else int(attributes["mip"])
    arrays = {}
    for name in ("start", "translation", "pair"):
        with reading(name):
            if name in file:
                arrays[name] = file[name][:]
    return Dataset(path, file, main, mip, arrays, attributes)
