"""Writing a dataset file so that it is finished or not there, and a crash loses little (`partial` says how)."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np

from ..errors import WorkError
from ..files import BackgroundSync, PathLike, publish
from .chunks import Chunk
from .layout import Layout
from .partial import (
    copy_stored,
    created,
    entry_of,
    failing,
    is_sound,
    own_partial_path,
    partial_path,
    resumed,
    row_of,
)
from .seal import begun_seal, seal_fault, seal_finished


class Writer:
    """A dataset file that is being written; `finish` puts it in its place.

    A context manager: if its block ends early, it still tries to commit what was put. partial: where the file is while
    it is unfinished; under the name of `partial_path`, any later process goes on with it.
    """

    def __init__(self, target: PathLike, layout: Layout, partial: Path | None = None) -> None:
        self.target = Path(target)
        self.layout = layout
        self._partial = partial or partial_path(target)
        with failing(self._partial), _quiet_hdf5():
            self._file = resumed(self._partial, layout) or created(self._partial, layout)
            self._entries = self._file["checksum"][:]
            self._crc32 = self._file["crc32"][:]
            self.facts = {name: self._file[name][:] for name in layout.facts}
            self._sync = BackgroundSync(self._partial)
        self._touched: set[int] = set()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the file so that it can be resumed. An error of this never hides the one that ended the block."""
        with closing(self._sync):
            if self._file:
                with _quiet_hdf5() if kind else nullcontext():
                    self._leave(suppress(WorkError) if kind else nullcontext())

    def _leave(self, errors: AbstractContextManager[None]) -> None:
        try:
            with errors:
                self.commit()
        finally:
            with suppress(OSError, RuntimeError):  # after a failed write HDF5 may not close in order either
                self._file.close()

    @property
    def done(self) -> np.ndarray:
        """(N, 2) bool: which boxes were put."""
        return np.asarray(self._entries != 0)

    def has(self, sample: int, role: int) -> bool:
        """Whether a box was put."""
        return bool(self._entries[sample, role])

    def put(self, sample: int, role: int, chunk: Chunk | None, facts: Mapping[str, Any]) -> None:
        """Store one box: its chunk, if it has one in this file, and those of its facts that the file holds."""
        if chunk is not None:
            with failing(self._partial):
                # `main` is opened anew for each chunk: HDF5 2.0 gives the filter mask of the chunk written last as 0
                # for as long as its dataset stays open, and what reads it then takes shuffled for unshuffled bytes.
                main = h5py.h5d.open(self._file.id, b"main")
                main.write_direct_chunk((sample, role, 0, 0), chunk.data, chunk.skipped)
            self._crc32[sample, role] = chunk.crc32
        for name in self.layout.facts:
            self.facts[name][sample, role] = facts[name]
        row = row_of(self.facts, self._crc32, sample, role)
        self._entries[sample, role] = entry_of(chunk, row)
        self._touched.add(sample)

    def commit(self) -> None:
        """Make all that was put so far survive a crash of this process."""
        if not self._touched:
            return
        rows = slice(min(self._touched), max(self._touched) + 1)
        with failing(self._partial):
            for name, values in [*self.facts.items(), ("crc32", self._crc32)]:
                self._file[name][rows] = values[rows]
            self._file.flush()
            self._file["checksum"][rows] = self._entries[rows]
            self._file.flush()
            self._sync.start()
        self._touched.clear()

    @contextmanager
    def readable(self) -> Iterator[Path]:
        """The unfinished file, closed meanwhile so that anybody can read it."""
        self.commit()
        with failing(self._partial):
            self._file.close()
        yield self._partial
        with failing(self._partial):
            self._file = h5py.File(self._partial, "r+")

    def finish(
        self, keep: np.ndarray | None = None, pair_facts: Mapping[str, np.ndarray] = MappingProxyType({})
    ) -> None:
        """Check the whole file, and move it into its place: all samples, or those of `keep`, (N,) bool.

        The boxes of the other samples need not be there. pair_facts: the values, (N,), of those that the layout names.
        """
        self.commit()
        with failing(self._partial):
            self._sync.wait()
        wanted_boxes = self.done if keep is None else self.done[keep]
        if not wanted_boxes.all():
            raise WorkError(f"{self._partial}: {np.sum(~wanted_boxes)} of {wanted_boxes.size} boxes are missing")
        with failing(self._partial):
            stored = self._file["main"].id.get_num_chunks()
            wanted = np.count_nonzero(self._entries[:, : self.layout.chunk_roles])
            if stored != wanted:
                raise WorkError(f"{self._partial}: holds {stored} chunks of {wanted}")
            of_pairs = {name: pair_facts[name] for name in self.layout.pair_facts}
            for name, values in of_pairs.items():
                self._file[name][...] = values
            known = {**self.facts, **of_pairs, "crc32": self._crc32, "checksum": self._entries}
            if keep is None or keep.all():
                seal_finished(self._file)
                self._file.close()
                self._check_reads_back(self._partial, self.layout, known)
                publish(self._partial, self.target)
            else:
                self._finish_some(keep, known)

    def _check_reads_back(self, path: Path, layout: Layout, known: Mapping[str, np.ndarray]) -> None:
        """Compare a closed file with what is known of its samples: damaged HDF5 metadata can hide until then."""
        with h5py.File(path, "r") as file:
            alike = begun_seal(file) == layout.begun_seal() and seal_fault(file) is None
            alike = alike and all(np.array_equal(file[name][:], known[name], equal_nan=True) for name in known)
            if not (alike and is_sound(file, known["checksum"])):
                raise WorkError(f"{path}: damaged, as it reads back; the same command makes it again")

    def _finish_some(self, keep: np.ndarray, known: Mapping[str, np.ndarray]) -> None:
        """Copy the samples that are kept to a new file, and publish that: HDF5 cannot drop samples from a file."""
        kept = np.flatnonzero(keep)
        layout = self.layout.of_samples(kept)
        layout = replace(layout, arrays={**layout.arrays, "left_out": self.layout.arrays["pair"][~keep]})
        copy = self._partial.with_name(self._partial.name.replace(".partial.", ".kept.partial."))
        with created(copy, layout) as file:
            copy_stored(self._file, file, layout, kept, self._entries[kept])
            for name in layout.pair_facts:
                file[name][...] = known[name][kept]
            seal_finished(file)
        self._file.close()
        self._check_reads_back(copy, layout, {name: values[kept] for name, values in known.items()})
        publish(copy, self.target)
        self._partial.unlink()


def write_whole(target: PathLike, layout: Layout, chunks: Sequence[Chunk]) -> None:
    """Write a small field file, a shard, at once: `chunks` in the samples' order. It appears whole or not at all."""
    target = Path(target)
    partial = own_partial_path(target)
    try:
        with failing(target), _quiet_hdf5(), h5py.File(partial, "w") as file:
            layout.create_main(file)
            for sample, chunk in enumerate(chunks):
                file["main"].id.write_direct_chunk((sample, 0, 0, 0), chunk.data, chunk.skipped)
            crc32 = np.array([[chunk.crc32] for chunk in chunks], "<u4")
            for name, values in {**layout.arrays, "crc32": crc32}.items():
                file.create_dataset(name, data=values)
            layout.set_attributes(file)
            seal_finished(file)
        with failing(target):
            publish(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _quiet_hdf5() -> Iterator[None]:
    """Silence h5py, whose objects report a failed write once more when they are destroyed."""
    hooks = sys.excepthook, sys.unraisablehook
    sys.excepthook, sys.unraisablehook = lambda *error: None, lambda error: None
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = hooks
