"""The seal of a dataset file: one checksum over all in it that is no image and no field.

Images and fields have checksums of their own, `crc32` and `checksum`. Whatever else a reader can see is under the
seal: names, types, shapes, filters and fill values, what attributes and arrays hold, and which chunks `main` has. The
seal is an attribute of the file. It covers that attribute too, all but the value.

A file is sealed twice: when it is begun, over what is known by then, so that a damaged provenance is not taken for that
of something else (`partial`), and when it is finished, over everything.
"""

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np

from ..errors import UsageError
from ..provenance import fingerprint
from .facts import BOX_FACTS, PAIR_FACTS

SEAL = "seal"
_LENGTH = 64  # hexadecimal digits of a SHA-256

GROWING = frozenset({"main", "crc32", "checksum", *BOX_FACTS, *PAIR_FACTS})
"""The datasets of which only the form is known when a file is begun."""

# What HDF5 tells of a type; not every type has all of it.
_OF_A_TYPE = (
    *("get_class", "get_size", "get_order", "get_precision", "get_offset", "get_pad", "get_sign"),
    *("get_fields", "get_ebias", "get_norm", "get_inpad", "get_cset", "get_strpad", "is_variable_str"),
)


def begun_seal(file: h5py.File) -> str:
    """A hash of what is known of a file from its beginning."""
    return fingerprint(_parts(file, GROWING))


def finished_seal(file: h5py.File) -> str:
    """A hash of everything in a file but its images and fields."""
    return fingerprint(_parts(file, ()))


def seal_begun(file: h5py.File) -> None:
    """Seal a file in which nothing is yet but what is known from the beginning."""
    _put_seal(file, begun_seal)


def seal_finished(file: h5py.File) -> None:
    """Seal a file to which nothing will be added any more."""
    _put_seal(file, finished_seal)


def _put_seal(file: h5py.File, seal_of: Callable[[h5py.File], str]) -> None:
    # The attribute is there when the seal is taken, and is then written in its place: assigning would make it anew.
    if SEAL not in file.attrs:
        file.attrs[SEAL] = np.bytes_("-" * _LENGTH)
    file.attrs.modify(SEAL, np.bytes_(seal_of(file)))


def stored_seal(file: h5py.File) -> str | None:
    """The seal that a file bears; None where there is none."""
    seal = file.attrs.get(SEAL)
    return seal.decode("ascii", "replace") if isinstance(seal, bytes) else None


def is_as_sealed(file: h5py.File) -> bool:
    """Whether a file that may not be finished is as it was sealed; those of toolkit 0.1 count as that."""
    seal = stored_seal(file)
    return not _wants_seal(file) if seal is None else seal in (begun_seal(file), finished_seal(file))


def seal_fault(file: h5py.File) -> str | None:
    """What is wrong with the seal of a finished file. Files of older tools, and of toolkit 0.1, need not have one."""
    seal = stored_seal(file)
    if seal is None:
        return "its seal is missing" if _wants_seal(file) else None
    if seal != finished_seal(file):
        return "not as it was sealed: its attributes, its arrays or its layout have changed"
    return None


def _wants_seal(file: h5py.File) -> bool:
    """Whether this toolkit made a file: damage may have taken one sign of that, but not all."""
    if "provenance" in file.attrs:
        return True
    return "identity" not in file.attrs and ("crc32" in file or "checksum" in file)  # toolkit 0.1 wrote an identity


class DamageError(ValueError):
    """Something in a file cannot be read; it says what."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Name what is read in whatever HDF5 and h5py raise of damage."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise DamageError(f"{what}: {str(error) or type(error).__name__}") from error


# What a reader can see


def _parts(file: h5py.File, growing: Container[str]) -> Iterator[bytes]:
    with reading("attributes"):
        yield from _attributes(file)
    for name in sorted(file):
        with reading(name):
            yield _text(name, type(file.get(name, getlink=True)).__name__)
            item = file[name]
            yield from _attributes(item)
            if isinstance(item, h5py.Dataset):
                yield _form(item)
                if name not in growing:
                    yield _chunk_index(item) if name == "main" else _bytes(item[()])


def _attributes(item: h5py.HLObject) -> Iterator[bytes]:
    for name in sorted(item.attrs):
        found = item.attrs.get_id(name)
        space = found.get_space()
        yield _text(name, _type(found), space.get_simple_extent_type(), space.get_simple_extent_dims(True))
        if name != SEAL:
            yield _bytes(item.attrs[name])


def _form(dataset: h5py.Dataset) -> bytes:
    made = dataset.id.get_create_plist()
    return _text(
        _type(dataset.id),
        *(dataset.shape, dataset.maxshape, dataset.chunks, made.get_layout(), made.get_external_count()),
        *(made.fill_value_defined(), made.get_fill_time(), made.get_alloc_time(), _bytes(dataset.fillvalue)),
        *(made.get_filter(index) for index in range(made.get_nfilters())),
    )


def _type(owner: h5py.h5d.DatasetID | h5py.h5a.AttrID) -> list[Any]:
    kind = owner.get_type()
    return [getattr(kind, name)() for name in _OF_A_TYPE if hasattr(kind, name)]


def _chunk_index(main: h5py.Dataset) -> bytes:
    """Which chunks there are, of what size, and the filters that they have not been through."""
    index = bytearray()
    if main.chunks:
        main.id.chunk_iter(lambda chunk: index.extend(_text(chunk.chunk_offset, chunk.size, chunk.filter_mask)))
    return _bytes(bytes(index))


def _bytes(value: Any) -> bytes:
    """A value and its length, so that the next one cannot be taken for its end."""
    values = np.asarray(value)
    content = repr(values.tolist()).encode() if values.dtype.kind in "OUS" else values.tobytes()
    return _text(len(content)) + content


def _text(*parts: Any) -> bytes:
    return repr(parts).encode()
