"""Damaged HDF5 files are looked at where they can do no harm."""

import fcntl
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from curation.datasets import probe
from curation.datasets.probe import is_readable


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as made:
        made.create_dataset("main", data=np.ones((4, 2, 8, 8), np.float32), chunks=(1, 1, 8, 8), compression="gzip")
        made["start"] = np.zeros((4, 2, 3), np.int64)
        made.attrs["provenance"] = "{}" * 200
    return path


def test_a_whole_file_is_walkable(file: Path) -> None:
    assert is_readable(file)


def test_a_truncated_file_is_not(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])
    assert not is_readable(file)


def test_wherever_a_byte_is_flipped_there_is_an_answer(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "CPU_S", 2)
    content = file.read_bytes()
    answers = set()
    for place in range(0, len(content), 61):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        answers.add(is_readable(file))
    assert answers == {True, False}


def test_one_that_takes_for_ever_is_given_up(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*arguments: object) -> None:
        while True:
            pass

    monkeypatch.setattr(probe, "CPU_S", 1)
    monkeypatch.setattr(h5py, "File", endless)
    started = time.process_time()
    assert not is_readable(file)
    assert time.process_time() - started < 1  # the time was the child's


def test_one_in_use_is_told_from_a_damaged_one(file: Path) -> None:
    with file.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # as HDF5 in another process does
        with pytest.raises(BlockingIOError):
            is_readable(file)
