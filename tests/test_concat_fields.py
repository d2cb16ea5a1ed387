"""Joining shards: every pair exactly once, bit for bit."""

import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from curation.datasets.chunks import encode
from curation.datasets.layout import Layout
from curation.datasets.shard_store import CloudStore, fetched
from curation.datasets.shards import JOB_FILE
from curation.datasets.writer import Writer, write_whole
from curation.errors import UsageError, WorkError
from curation.files import Existing
from curation.steps.concat_fields import concat_fields

X, Y = 6, 4


def values(first: int, last: int) -> np.ndarray:
    """Fields of pairs [first, last), the same for a pair in whichever shard; some vectors are not finite."""
    main = np.stack([np.random.default_rng(pair).normal(size=(2, X, Y)) for pair in range(first, last)])
    main[:, 0, 0, 0] = np.nan
    main[:, 1, 0, 1] = np.inf
    return main.astype(np.float32)


def shard(
    folder: Path, first: int, last: int, pairs: int = 10, shape: tuple[int, int] = (X, Y), **provenance: Any
) -> Path:
    main = values(first, last)[:, :, : shape[0], : shape[1]]
    start = np.arange(first, last)[:, None, None] + np.zeros((1, 2, 3), np.int64)
    attributes = {"mip": 2, "pairs": pairs, "first": first, "last": last - 1}
    layout = Layout(main.shape, 1, {"start": start}, (), {"module": "one", **provenance}, attributes)
    write_whole(folder / f"{first}_{last}.h5", layout, [encode(field) for field in main])
    return folder / f"{first}_{last}.h5"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "shards"
    made.mkdir()
    return made


@pytest.fixture
def join(folder: Path, tmp_path: Path) -> Callable[[], h5py.File]:
    def run() -> h5py.File:
        concat_fields(str(folder), str(tmp_path / "joined.h5"))
        return h5py.File(tmp_path / "joined.h5")

    return run


def test_shards_are_joined_bit_for_bit(folder: Path, join: Callable[[], h5py.File]) -> None:
    for first, last in [(8, 10), (0, 3), (3, 8)]:
        shard(folder, first, last)
    with join() as file:
        assert file["main"][:].tobytes() == values(0, 10).tobytes()
        assert file["start"][:, 0, 0].tolist() == list(range(10))
        assert file.attrs["mip"] == 2
        assert "first" not in file.attrs
        with h5py.File(folder / "3_8.h5") as one:
            stored = one["main"].id.read_direct_chunk((1, 0, 0, 0))
            assert file["main"].id.read_direct_chunk((4, 0, 0, 0)) == stored
            assert file["crc32"][4] == one["crc32"][1]


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([], r"no shards there"),
        ([(0, 3), (5, 10)], r"pairs 3 to 4 are missing: no shard before .*5_10.h5"),
        ([(2, 10)], r"pairs 0 to 1 are missing"),
        ([(0, 8)], r"pairs 8 to 9 are missing: no shard after .*0_8.h5"),
        ([(0, 6), (4, 10)], r"pairs 4 to 5 are there twice: in .*0_6.h5 and .*4_10.h5"),
        ([(0, 10), (3, 4)], r"pairs 3 to 3 are there twice"),
        ([(0, 10), (10, 12)], r"ends at pair 11, but there are 10 pairs"),
    ],
)
def test_every_pair_must_be_there_exactly_once(
    ranges: list[tuple[int, int]], message: str, folder: Path, join: Callable[[], h5py.File], tmp_path: Path
) -> None:
    for first, last in ranges:
        shard(folder, first, last)
    with pytest.raises(UsageError, match=message):
        join()
    assert not (tmp_path / "joined.h5").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (X, Y - 1)}, r"differ in shape"),
        ({"module": "two"}, r"differ in provenance"),
        ({"pairs": 11}, r"differ in pairs: 10 and 11"),
    ],
)
def test_shards_of_another_origin_are_refused(
    change: dict[str, Any], message: str, folder: Path, join: Callable[[], h5py.File]
) -> None:
    shard(folder, 0, 3)
    shard(folder, 3, 10, **change)
    with pytest.raises(UsageError, match=f"0_3.h5 and .*3_10.h5 {message}"):
        join()


def test_a_file_joined_of_the_same_shards_is_not_touched(folder: Path, tmp_path: Path) -> None:
    shard(folder, 0, 10)
    joined = tmp_path / "joined.h5"
    concat_fields(str(folder), str(joined))
    before = joined.stat().st_ino, joined.stat().st_mtime_ns, tmp_path.stat().st_mtime_ns
    assert "done already: 10 pairs from 1 shards" in str(concat_fields(str(folder), str(joined)))
    assert (joined.stat().st_ino, joined.stat().st_mtime_ns, tmp_path.stat().st_mtime_ns) == before


@pytest.mark.parametrize("existing", [Existing.UPDATED, Existing.REPLACED])
def test_a_file_of_other_shards_is_replaced_where_that_is_asked_for(
    existing: Existing, folder: Path, tmp_path: Path
) -> None:
    shard(folder, 0, 10)
    joined = tmp_path / "joined.h5"
    concat_fields(str(folder), str(joined))
    shard(folder, 0, 10, pairs=10, module="two")
    with pytest.raises(UsageError, match=r"joined.h5 is there already, made with another origin, shards: --update"):
        concat_fields(str(folder), str(joined))
    concat_fields(str(folder), str(joined), existing)
    with h5py.File(joined) as file:
        assert '\\"module\\": \\"two\\"' in file.attrs["provenance"]


def test_there_may_be_more_shards_than_files_that_a_process_may_have_open(
    folder: Path, join: Callable[[], h5py.File], limit_open_files: Callable[[int], None]
) -> None:
    for pair in range(60):
        shard(folder, pair, pair + 1, pairs=60)
    limit_open_files(20)
    with join() as file:
        assert file["main"][:].tobytes() == values(0, 60).tobytes()


@pytest.fixture
def limit_open_files() -> Iterator[Callable[[int], None]]:
    """Lets this process open only so many more files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit(more: int) -> None:
        highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + more, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_shard_that_changes_while_shards_are_joined_is_named(
    folder: Path, join: Callable[[], h5py.File], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(folder, 0, 10)

    def changing(path: Path, layout: Layout) -> Writer:
        shard(folder, 0, 10, module="two")
        return Writer(path, layout)

    monkeypatch.setattr("curation.steps.concat_fields.Writer", changing)
    with pytest.raises(WorkError, match=r"0_10.h5: changed while it was joined"):
        join()
    assert not (tmp_path / "joined.h5").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "/", "out"])
def test_a_folder_as_the_destination_is_refused_before_anything_is_joined(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(folder, 0, 10)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"is a folder: want a file's name"):
        concat_fields(str(folder), name, Existing.REPLACED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "shards"]


def test_copies_of_shards_of_an_earlier_job_are_not_kept(tmp_path: Path) -> None:
    """A fetch that was interrupted leaves them, and a shard that is made otherwise may be just as long."""
    store, beside = CloudStore("mem://bucket/shards"), tmp_path / "field.h5"
    for job in ("one", "two"):
        for name in (JOB_FILE, "0_4.h5", "4_8.h5"):
            store.put_text(name, job)
        with suppress(KeyboardInterrupt), fetched(store.path, beside) as folder:
            assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(store.names(), job)
            raise KeyboardInterrupt
        store.delete("4_8.h5")
        with suppress(KeyboardInterrupt), fetched(store.path, beside) as folder:
            assert sorted(path.name for path in folder.iterdir()) == ["0_4.h5", JOB_FILE]
            raise KeyboardInterrupt
