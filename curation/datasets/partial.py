"""Files that are not finished yet: telling what in them is intact, and taking up the work again.

Work goes to `.NAME.partial.h5` beside the target. What is known from the beginning is in it, under a seal (`seal`),
before any work is. Then chunks and facts are written and flushed, then their entries in `checksum`, then those are
flushed. An entry is a checksum of the stored chunk and the facts, so what a crash tore or a disk damaged is seen when
the work resumes, and is done again. The finished file is sealed, closed, checked as it reads back, flushed to the disk
and renamed (`writer`). `checksum` stays in it, for verify_dataset.py.

Damage that is seen in one place of HDF5's metadata may be in others too, unseen. So a file in which anything is off is
not written to again: its intact boxes are copied to a new file, which replaces it.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np
from isal import isal_zlib

from ..errors import UsageError, WorkError
from ..files import Existing, PathLike, process_name
from ..provenance import Provenance, as_text, before_joining, differences, parsed, stored_in
from .chunks import Chunk
from .dataset import open_dataset
from .facts import BOX_FACTS
from .layout import Layout
from .probe import check_undamaged, is_readable
from .seal import DamageError, begun_seal, is_as_sealed

_WRITTEN = 1 << 32  # set in an entry of `checksum`, whose low half is a CRC-32
_ROOM = 64 * 2**20  # bytes
_OWN = re.compile(r"\.\d+_\d+(\.(?P<host>[A-Za-z0-9-]+))?\.(?P<process>\d+)\.partial\.h5")
_RAISED = (OSError, RuntimeError, KeyError, ValueError)  # by HDF5 and the file system


def partial_path(target: PathLike) -> Path:
    """Where a file is while it is unfinished."""
    target = Path(target)
    return target.with_name(f".{target.name.removesuffix('.h5')}.partial.h5")


def own_partial_path(target: PathLike) -> Path:
    """Where a file is that no other process goes on with.

    The name tells this process from all others: another may make the same file at the same time, on another machine
    too, or may have outlived its dead run.
    """
    target = Path(target)
    return target.with_name(f".{target.name.removesuffix('.h5')}.{process_name()}.partial.h5")


def stale_partials(folder: Path) -> list[Path]:
    """The unfinished shards in a folder whose processes, of this machine, have ended."""
    return [path for path in folder.glob(".*.partial.h5") if (match := _OWN.fullmatch(path.name)) and has_ended(match)]


def has_ended(named: re.Match[str]) -> bool:
    """Whether the process, of this machine, in the name of a file has ended. named: with groups host and process."""
    if named["host"] not in (None, process_name().partition(".")[0]):
        return False
    with suppress(OSError, IndexError):  # a process that nobody has waited for is there, and has ended
        if Path(f"/proc/{named['process']}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
            return True
    try:
        os.kill(int(named["process"]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is somebody else's
        return False
    return False


def is_finished(target: PathLike, provenance: Provenance, existing: Existing) -> bool:
    """Whether the finished file is there, and is the one that would be made; it may have been joined of shards.

    With `Existing.REFUSED`, a finished or a partial file of another provenance is a `UsageError` that says what
    differs. With `Existing.REPLACED` no file is finished.
    """
    target = Path(target)
    found = None
    if existing is not Existing.REPLACED and target.exists():
        found = parsed(_finished_provenance(target))
        if "shards" not in provenance:
            found = before_joining(found)
        if as_text(found) == as_text(provenance):
            return True
    if existing is Existing.REFUSED:
        if found is not None:
            differ = differences(provenance, found)
            raise UsageError(
                f"{target} is there already, made with another {differ}: --update brings it up to date, or take "
                "another name"
            )
        if differ := of_another_origin(partial_path(target), provenance):
            raise UsageError(_begun_with_another(partial_path(target), differ))
    return False


def _finished_provenance(target: Path) -> str:
    try:
        check_undamaged(target)
        data = open_dataset(target)
    except UsageError as error:
        raise UsageError(f"{error}; --overwrite replaces it") from None
    with data.file:
        return data.provenance


def of_another_origin(partial: Path, provenance: Provenance) -> str:
    """What differs between the provenance of a partial file and another; "" if nothing does, or there is no file.

    Other faults are not told here, because `resumed` finds them.
    """
    try:
        if not partial.exists() or not is_readable(partial):
            return ""
        with h5py.File(partial, "r") as file:
            return _difference(file, provenance)
    except Exception:
        return ""


def created(path: Path, layout: Layout) -> h5py.File:
    """A new file that holds only what the layout knows from the beginning."""
    # The default libver: a file written with "latest" cannot be opened after its writer was killed.
    file = h5py.File(path, "w")
    layout.begin(file)
    file.flush()
    return file


def resumed(partial: Path, layout: Layout) -> h5py.File | None:
    """The partial file, opened, with only its intact boxes left. None if there is no file, or nothing in it is intact.

    Only a file that is in every way as it was begun is written to again: what is intact in any other goes to a new one.
    """
    if not partial.exists():
        return None
    try:
        if not _is_readable_with_room(partial):
            raise DamageError("HDF5 cannot read it")
        with h5py.File(partial, "r") as file:
            if differ := _difference(file, layout.provenance):
                raise UsageError(_begun_with_another(partial, differ))
            entries = file["checksum"][:]
            intact = intact_boxes(file)
            good = (intact == (entries != 0)).all() and is_sound(file, entries)
            if not good or begun_seal(file) != layout.begun_seal():
                _salvage(partial, file, layout, entries * intact)
        return h5py.File(partial, "r+")
    except (UsageError, WorkError, BlockingIOError, PermissionError):  # not damaged: made anew, it would be emptied
        raise
    except Exception as error:  # whatever HDF5 and h5py say of what damage has made of it
        _say(partial, f"damaged ({error}), so the work begins anew")
        return None


@contextmanager
def failing(path: Path, kinds: tuple[type[Exception], ...] = _RAISED) -> Iterator[None]:
    """Name the file in what HDF5 and the file system raise, or only in some kinds of that."""
    try:
        yield
    except (UsageError, WorkError):
        raise
    except kinds as error:
        raise WorkError(f"{path}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """HDF5 buries the system's reason in its own words: `... (errno = 28, error message = '...', ...`."""
    text = str(error)
    if "truncate request failed" in text:  # of which HDF5 does not tell the system's reason
        return "its length cannot be changed; is the disk full?"
    found = re.search(r"error message = '([^']*)'", text)
    return found[1] if found else getattr(error, "strerror", None) or text


def _say(path: Path, what: str) -> None:
    print(f"{path}: {' '.join(what.split())}", file=sys.stderr)


def _is_readable_with_room(partial: Path) -> bool:
    """Whether the file can be read. It is lengthened by `_ROOM` if it cannot be read as it is.

    A crash during a flush can leave a file that is shorter than its header says. HDF5 opens it once it is longer, and
    the checksums then show which boxes are intact.
    """
    if is_readable(partial):
        return True
    os.truncate(partial, partial.stat().st_size + _ROOM)
    return is_readable(partial)


def _difference(file: h5py.File, provenance: Provenance) -> str:
    """What differs between a file's provenance and another; `DamageError` where damage hides what shaped the file."""
    found = stored_in(file.attrs)
    if found == as_text(provenance):
        return ""
    if not is_as_sealed(file):
        raise DamageError("what it was begun with cannot be told")
    return differences(provenance, json.loads(found))


def _begun_with_another(partial: Path, differ: str) -> str:
    return f"{partial}: begun with another {differ}; give the same, or --update to give up what was begun"


# Checksums


def entry_of(chunk: Chunk | None, row: bytes) -> int:
    """The entry of a box in `checksum`: `_WRITTEN`, and the CRC-32 of its stored chunk, facts and filter mask."""
    stored_crc32, skipped = (0, 0) if chunk is None else (chunk.stored_crc32, chunk.skipped)
    return _WRITTEN | isal_zlib.crc32(row + skipped.to_bytes(4, "little"), stored_crc32)


def row_of(facts: Mapping[str, np.ndarray], crc32: np.ndarray, sample: int, role: int) -> bytes:
    """The facts of a box, as bytes. crc32: (N, 2), or (N, 1) in a field file, where a target has none."""
    known = [values[sample, role] for _, values in sorted(facts.items())]
    return b"".join(np.asarray(value).tobytes() for value in [*known, crc32[sample, role : role + 1]])


def intact_boxes(file: h5py.File) -> np.ndarray:
    """(N, 2) bool: the boxes whose chunk and facts are stored as `checksum` says."""
    entries = file["checksum"][:]
    crc32 = file["crc32"][:]
    facts = {name: file[name][:] for name in BOX_FACTS if name in file}
    intact = np.zeros(entries.shape, bool)
    for sample, role in np.argwhere(entries).tolist():
        with suppress(OSError, RuntimeError, KeyError):
            chunk = None
            if role < crc32.shape[1]:
                skipped, stored = file["main"].id.read_direct_chunk((sample, role, 0, 0))
                chunk = Chunk(np.frombuffer(stored, np.uint8), int(crc32[sample, role]), skipped)
            entry = entry_of(chunk, row_of(facts, crc32, sample, role))
            intact[sample, role] = entry == entries[sample, role]
    return intact


def is_sound(file: h5py.File, entries: np.ndarray) -> bool:
    """Whether the index of chunks can be walked, and each chunk without an entry in `entries`, (N, 2), can be read.

    After a crash during a flush the index may name chunks beyond the end of the file. HDF5 cannot replace those.
    """
    main = file["main"].id
    places: list[tuple[int, ...]] = []
    with suppress(OSError, RuntimeError, IndexError):
        main.chunk_iter(lambda chunk: places.append(chunk.chunk_offset))
        for sample, role, *rest in places:
            if not entries[sample, role]:
                main.read_direct_chunk((sample, role, *rest))
        return True
    return False


# Taking over what is intact


def _salvage(partial: Path, damaged: h5py.File, layout: Layout, entries: np.ndarray) -> None:
    """Replace a damaged partial file by a new one that holds its intact boxes."""
    salvage = partial.with_name(partial.name.replace(".partial.", ".salvage.partial."))
    try:
        # Whatever is read here was read before: if an error of the system's comes, it is of writing.
        with failing(partial, (OSError,)), created(salvage, layout) as file:
            copy_stored(damaged, file, layout, np.arange(len(entries)), entries)
            entries = entries * intact_boxes(file)  # facts whose type was damaged may not be what they were any more
            file["checksum"][...] = entries
        os.replace(salvage, partial)
    finally:
        salvage.unlink(missing_ok=True)
    _say(
        partial,
        f"damaged, or of another version; {np.count_nonzero(entries)} of {entries.size} boxes are intact, and kept",
    )


def copy_stored(src: h5py.File, dst: h5py.File, layout: Layout, samples: np.ndarray, entries: np.ndarray) -> None:
    """Copy `samples`, (M,), to a new file of M samples, without decoding.

    A box without an entry in `entries`, (M, 2), stays empty.
    """
    for place, role in np.argwhere(entries[:, : layout.chunk_roles]).tolist():
        skipped, stored = src["main"].id.read_direct_chunk((samples[place], role, 0, 0))
        dst["main"].id.write_direct_chunk((place, role, 0, 0), stored, skipped)
    for name in (*layout.facts, "crc32"):
        values = src[name][:][samples]
        values[entries[:, : values.shape[1]] == 0] = 0
        dst[name][...] = values
    dst["checksum"][...] = entries
