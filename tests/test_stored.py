"""Samples read and inflated outside of HDF5: what it reads, in several threads, and its errors."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from curation.datasets import stored
from curation.datasets.chunks import encode, encode_grey
from curation.datasets.stored import SampleReader

PAIRS, X, Y = 6, 40, 24


@pytest.fixture
def main() -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(PAIRS, 2, X, Y)).astype(np.float32)
    values[1, 0, 3, 4] = np.nan
    values[2, 1] = 0
    return values


def put(path: Path, main: np.ndarray, roles: int, encoded: Callable[[np.ndarray], Any] = encode) -> Path:
    """A file as the toolkit stores images (roles 1) or fields (roles 2)."""
    with h5py.File(path, "w") as file:
        chunks = (1, roles, X, Y)
        stored = file.create_dataset("main", main.shape, "<f4", chunks=chunks, shuffle=True, compression="gzip")
        for sample in range(PAIRS):
            for role in range(0, 2, roles):
                chunk = encoded(main[sample, role : role + roles])
                file["main"].id.write_direct_chunk((sample, role, 0, 0), chunk.data, chunk.skipped)
        assert stored.shape == main.shape
    return path


@pytest.fixture
def without_hdf5(monkeypatch: pytest.MonkeyPatch) -> None:
    """h5py reads no values."""

    def reading(*_: object) -> None:
        raise AssertionError("HDF5 reads")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", reading)


@pytest.mark.usefixtures("without_hdf5")
@pytest.mark.parametrize("roles", [1, 2])
@pytest.mark.parametrize("encoded", [encode, encode_grey])
def test_what_the_toolkit_stores_is_read_without_hdf5_in_many_threads(
    roles: int, encoded: Callable[[np.ndarray], Any], main: np.ndarray, tmp_path: Path
) -> None:
    path = put(tmp_path / "ours.h5", main, roles, encoded)
    with h5py.File(path) as file, ThreadPoolExecutor(4) as pool:
        reader = SampleReader(file.get("main"))
        for sample, found in enumerate(pool.map(reader, [*range(PAIRS)] * 20)):
            assert found.dtype == np.float32
            assert found.tobytes() == main[sample % PAIRS].tobytes()


@pytest.mark.usefixtures("without_hdf5")
@pytest.mark.parametrize("encoded", [encode, encode_grey])
@pytest.mark.parametrize(("read", "block"), [(1, 1000), (97, 64), (97, 961), (10**6, 959), (500, 10**6)])
def test_blocks_may_end_anywhere(
    read: int,
    block: int,
    encoded: Callable[[np.ndarray], Any],
    main: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stored, "_READ", read)
    monkeypatch.setattr(stored, "_BLOCK", block)
    with h5py.File(put(tmp_path / "ours.h5", main, 2, encoded)) as file:
        assert SampleReader(file.get("main"))(4).tobytes() == main[4].tobytes()


@pytest.mark.parametrize("kept", [slice(0, 200), slice(0, -1)])
def test_a_chunk_that_is_cut_short_is_an_error_of_hdf5(kept: slice, main: np.ndarray, tmp_path: Path) -> None:
    path = put(tmp_path / "cut.h5", main, 2)
    with h5py.File(path, "r+") as file:
        file["main"].id.write_direct_chunk((3, 0, 0, 0), encode(main[3]).data[kept])
    with h5py.File(path) as file, pytest.raises(OSError, match="filter"):
        SampleReader(file["main"])(3)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"chunks": (1, 1, X, Y)},
        {"chunks": (1, 1, X // 2, Y), "shuffle": True, "compression": "gzip"},
        {"chunks": (2, 2, X, Y), "shuffle": True, "compression": "gzip"},
        {"chunks": (1, 1, X, Y), "compression": "gzip"},
        {"chunks": (1, 1, X, Y), "compression": "lzf", "shuffle": True},
        {"chunks": (1, 1, X, Y), "shuffle": True, "compression": "gzip", "fletcher32": True},
        {"chunks": (1, 1, X, Y), "shuffle": True, "compression": "gzip", "dtype": "<f8"},
        {"chunks": (1, 1, X, Y), "shuffle": True, "compression": "gzip", "dtype": ">f4"},
    ],
)
def test_what_others_store_is_read_by_hdf5(how: dict[str, Any], main: np.ndarray, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "others.h5", "w") as file:
        file.create_dataset("main", data=main, **how)
    with h5py.File(tmp_path / "others.h5") as file:
        reader = SampleReader(file["main"])
        for sample in range(PAIRS):
            assert reader(sample).tobytes() == main[sample].tobytes()


def test_a_file_behind_a_user_block_and_a_chunk_that_was_never_written(main: np.ndarray, tmp_path: Path) -> None:
    how: dict[str, Any] = {"chunks": (1, 1, X, Y), "shuffle": True, "compression": "gzip"}
    with h5py.File(tmp_path / "block.h5", "w", userblock_size=512) as file:
        file.create_dataset("main", data=main, **how)
        file.create_dataset("empty", main.shape, "<f4", **how)
    with h5py.File(tmp_path / "block.h5") as file:
        assert SampleReader(file["main"])(4).tobytes() == main[4].tobytes()
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.create_dataset("main", main.shape, "<f4", fillvalue=3, **how)
    with h5py.File(tmp_path / "empty.h5") as file:
        assert (SampleReader(file["main"])(4) == 3).all()


@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_damaged_chunk_is_an_error_of_hdf5(place: float, main: np.ndarray, tmp_path: Path) -> None:
    path = put(tmp_path / "damaged.h5", main, 2)
    with h5py.File(path) as file:
        info = file["main"].id.get_chunk_info_by_coord((3, 0, 0, 0))
    content = bytearray(path.read_bytes())
    content[info.byte_offset + int(place * (info.size - 1))] ^= 0x10
    path.write_bytes(content)
    with h5py.File(path) as file:
        reader = SampleReader(file["main"])
        assert reader(2).tobytes() == main[2].tobytes()
        with pytest.raises(OSError, match="filter"):
            reader(3)


def test_it_reads_into_arrays_that_are_given(main: np.ndarray, tmp_path: Path) -> None:
    given = []

    def empty(shape: tuple[int, ...]) -> np.ndarray:
        given.append(np.full(shape, 7, np.float32))
        return given[-1]

    with h5py.File(put(tmp_path / "ours.h5", main, 1)) as file:
        found = SampleReader(file["main"])(5, empty)
    assert found is given[0]
    assert found.tobytes() == main[5].tobytes()
