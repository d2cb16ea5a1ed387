"""Damaged HDF5 files are looked at where they can do no harm."""

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from curation.datasets import probe
from curation.datasets.probe import check_undamaged, is_readable, limited
from curation.errors import UsageError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as made:
        made.create_dataset("main", data=np.ones((4, 2, 8, 8), np.float32), chunks=(1, 1, 8, 8), compression="gzip")
        made["start"] = np.zeros((4, 2, 3), np.int64)
        made.attrs["spec"] = "{}" * 200
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


# What ends the child is a fault of the file that it looks at


def crash(path: Path) -> Iterator[str]:
    yield f"{path}: seen"
    if path.name == "bad.h5":
        os.kill(os.getpid(), signal.SIGSEGV)


def exhaust(path: Path) -> Iterator[str]:
    yield str(bytearray(2**40))


def fail(path: Path) -> Iterator[str]:
    yield f"{path}: one\ntwo \udca2"
    raise KeyError("no such thing")


def test_a_crash_is_a_fault_of_the_file_that_causes_it() -> None:
    lines = list(limited(crash, "good.h5", "bad.h5", "other.h5"))
    assert lines == ["good.h5: seen", "bad.h5: seen", "bad.h5: damaged: reading it ends in SIGSEGV"]


def test_no_memory_is_a_fault() -> None:
    assert list(limited(exhaust, "bad.h5")) == ["bad.h5: damaged: MemoryError"]


def test_an_error_is_a_fault_and_the_next_file_is_looked_at() -> None:
    lines = list(limited(fail, "bad.h5", "other.h5"))
    assert lines[:2] == ["bad.h5: one two \\udca2", "bad.h5: damaged: 'no such thing'"]
    assert len(lines) == 4


def test_of_a_child_that_is_not_waited_for_nothing_is_left() -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()  # of other tests
    faults = limited(crash, "good.h5")
    next(faults)
    assert children.read_text() != before
    faults.close()
    assert children.read_text() == before


def test_a_damaged_input_is_refused(file: Path) -> None:
    check_undamaged(file)
    with h5py.File(file, "r+") as made:
        made["crc32"] = np.zeros((4, 2), np.uint32)  # as if this toolkit had made it
    with pytest.raises(UsageError, match=r"file.h5: damaged: its seal is missing"):
        check_undamaged(file, file)
