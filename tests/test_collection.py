"""Files, folders of shards, and files that are still being written, read as one."""

import os
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
from small_jobs import put_main

from curation.datasets import opened as opened_files
from curation.datasets.collection import open_collection
from curation.datasets.dataset import Dataset, open_dataset
from curation.datasets.partial import partial_path
from curation.errors import UsageError, WorkError


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, 2, 8, 6)).astype(np.float32)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Pairs 0 to 9 in three shards."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for first, last in ((0, 4), (4, 9), (9, 10)):
        starts = np.arange(first * 6, last * 6).reshape(-1, 2, 3)
        path = put_main(folder / f"{first}_{last}.h5", samples(10)[first:last], 3, start=starts)
        with h5py.File(path, "r+") as file:
            file.attrs["pairs"] = 10
    (folder / ".10_11.partial.h5").write_text("at work")
    return folder


def test_a_folder_of_shards_reads_as_one_file(shards: Path) -> None:
    with closing(open_collection(shards)) as opened:
        assert (opened.shape, opened.mip, opened.expected) == ((10, 2, 8, 6), 3, 10)
        for sample in (9, 0, 4, 3, 8):
            np.testing.assert_array_equal(opened.read(sample), samples(10)[sample])
        np.testing.assert_array_equal(opened.arrays["start"], np.arange(60).reshape(10, 2, 3))
        assert opened.numbers.tolist() == list(range(10)) and opened.done.all()
        assert opened.column("note") is None


def test_a_folder_may_lack_shards(shards: Path) -> None:
    (shards / "4_9.h5").unlink()
    with closing(open_collection(shards)) as opened:
        assert (opened.numbers.tolist(), opened.expected) == ([0, 1, 2, 3, 9], 10)
        np.testing.assert_array_equal(opened.read(4), samples(10)[9])


def _lies(folder: Path) -> None:
    (folder / "0_4.h5").rename(folder / "0_5.h5")


def _overlaps(folder: Path) -> None:
    put_main(folder / "2_4.h5", samples(2), 3)


def _differs(folder: Path) -> None:
    put_main(folder / "10_11.h5", samples(1)[:, :, :4], 3)


def _is_finer(folder: Path) -> None:
    put_main(folder / "10_11.h5", samples(1), 2)


def _is_empty(folder: Path) -> None:
    for path in folder.glob("*_*.h5"):
        path.unlink()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_lies, "0_5.h5: it holds 4 pairs, but its name says 5"),
        (_overlaps, "some shards hold the same pairs"),
        (_differs, "differ in shape or MIP"),
        (_is_finer, "differ in shape or MIP"),
        (_is_empty, "no shards in it"),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(
    shards: Path, change: Callable[[Path], None], told: str
) -> None:
    change(shards)
    with pytest.raises(UsageError, match=told):
        open_collection(shards)


def test_a_file_reads_as_it_is(tmp_path: Path) -> None:
    path = put_main(tmp_path / "images.h5", samples(3))
    with closing(open_collection(path)) as opened:
        np.testing.assert_array_equal(np.stack([opened.read(i) for i in range(3)]), samples(3))
        assert opened.arrays == {} and opened.done.all() and opened.provenance == "{}"


def test_of_an_unfinished_file_the_samples_that_are_done_are_told(tmp_path: Path) -> None:
    path = tmp_path / "images.h5"
    entries = np.array([[1, 1], [1, 0], [0, 0]], np.uint64)
    put_main(partial_path(path), samples(3), 3, crc32=np.zeros((3, 2), np.uint32), checksum=entries)
    with closing(open_collection(path)) as opened:
        assert opened.done.tolist() == [True, False, False]
    fields = tmp_path / "field.h5"
    put_main(partial_path(fields), samples(3), 3, crc32=np.zeros((3, 1), np.uint32), checksum=entries)
    with closing(open_collection(fields)) as opened:
        assert opened.done.tolist() == [True, True, False]


def test_a_finished_file_is_taken_before_an_unfinished_one(tmp_path: Path) -> None:
    path = put_main(tmp_path / "images.h5", samples(3))
    put_main(partial_path(path), samples(2), checksum=np.zeros((2, 2), np.uint64))
    with closing(open_collection(path)) as opened:
        assert opened.shape[0] == 3


def test_an_unfinished_file_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    path = tmp_path / "images.h5"
    partial_path(path).write_bytes(b"torn")
    with pytest.raises(UsageError, match="unfinished, and cannot be read now: try again later"):
        open_collection(path)
    assert len(slept) > 2


def test_a_name_of_very_many_pairs_is_refused(shards: Path) -> None:
    put_main(shards / "10_99999999999999.h5", samples(10)[:1], 3)
    with pytest.raises(UsageError, match="it holds 1 pairs, but its name says 99999999999989"):
        open_collection(shards)


def test_a_folder_may_hold_more_shards_than_a_process_may_open_at_first(tmp_path: Path) -> None:
    for first in range(150):
        put_main(tmp_path / f"{first}_{first + 1}.h5", samples(1), 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/dev/fd").iterdir())) + 60, hard))
    try:
        with closing(open_collection(tmp_path)) as opened:
            assert opened.shape[0] == 150
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_file_that_is_finished_while_it_is_opened_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = put_main(partial_path(tmp_path / "images.h5"), samples(2), 3)

    def finished(path: Path, is_written: bool = False) -> Dataset:
        if is_written:
            hidden.rename(tmp_path / "images.h5")
        return open_dataset(path, is_written)

    monkeypatch.setattr("curation.datasets.collection.open_dataset", finished)
    monkeypatch.setattr("curation.datasets.collection._PAUSE_S", 0)
    with closing(open_collection(tmp_path / "images.h5")) as opened:
        assert opened.done.all()


def test_shards_are_opened_and_closed_while_threads_read_them(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten shards two are kept open, and those that are read at the same time."""
    monkeypatch.setattr(opened_files, "MOST_OPEN", 2)
    for path in shards.glob("[0-9]*.h5"):
        path.unlink()
    for first in range(10):
        put_main(shards / f"{first}_{first + 1}.h5", samples(10)[first : first + 1], 3)
    with closing(open_collection(shards)) as opened, ThreadPoolExecutor(4) as threads:
        order = np.random.default_rng(0).integers(0, 10, 400).tolist()
        for sample, values in zip(order, threads.map(opened.read, order), strict=True):
            np.testing.assert_array_equal(values, samples(10)[sample])
        opened.read(0)
        assert open_in(shards) == 2
    assert open_in(shards) == 0


def open_in(folder: Path) -> int:
    """How many files in a folder this process has open."""
    return sum(Path(os.readlink(path)).parent == folder for path in Path("/proc/self/fd").iterdir() if path.exists())


def test_shards_are_found_from_another_working_folder(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards.parent)
    with closing(open_collection(shards.name)) as opened:
        monkeypatch.chdir("/")
        np.testing.assert_array_equal(opened.read(9), samples(10)[9])


def test_a_shard_that_changes_after_it_was_looked_at_is_named(shards: Path) -> None:
    with closing(open_collection(shards)) as opened:
        put_main(shards / "4_9.h5", samples(10)[:5] + 1, 3, start=np.zeros((5, 2, 3)), more=np.zeros(9))
        with pytest.raises(WorkError, match=r"4_9.h5: changed while it was read"):
            opened.read(5)
        (shards / "4_9.h5").unlink()
        with pytest.raises(WorkError, match=r"4_9.h5: cannot be opened again: .*No such file"):
            opened.read(5)
        np.testing.assert_array_equal(opened.read(9), samples(10)[9])


def test_notes_are_read_where_only_some_shards_hold_them(shards: Path) -> None:
    with h5py.File(shards / "4_9.h5", "r+") as file:
        file["note"] = np.array(["", "a fold", "", "", ""], object)
    with closing(open_collection(shards)) as opened:
        notes = opened.column("note")
        assert notes is not None
        assert [bool(note) for note in notes] == [place == 5 for place in range(10)]


def test_the_fingerprint_of_a_folder_is_of_all_of_its_shards(shards: Path) -> None:
    def found() -> str:
        with closing(open_collection(shards)) as opened:
            return opened.fingerprint

    before = found()
    assert found() == before
    data = open_dataset(shards / "0_4.h5")
    with data.file, closing(open_collection(shards / "0_4.h5")) as one:
        assert one.fingerprint == data.fingerprint != before
    with h5py.File(shards / "9_10.h5", "r+") as file:
        file["start"][0, 0, 0] += 1
    assert found() != before
