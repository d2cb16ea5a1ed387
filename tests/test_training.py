"""Datasets as a training program reads them: items, workers, crops, splits, locks, and files that do not fit."""

import doctest
import fcntl
import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from small_jobs import field_layer, image_layer, made_folder, pair, put_json, put_main, spec_of
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from curation import training
from curation.datasets.facts import BOX_FACTS, QUALITY_FACTS
from curation.datasets.partial import partial_path
from curation.errors import UsageError, WorkError
from curation.steps.make_dataset import MakeDatasetOptions, make_dataset
from curation.training import Item, PairDataset, collate, in_threads

PAIRS = [pair(0, 0, 5), pair(16, 32, 4), pair(64, 64, 3), pair(32, 0, 3), pair(0, 48, 2)]
X, Y = 32, 16
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images.h5 and field_0_images.h5 of five pairs, with the numbers of pairs."""
    folder = tmp_path_factory.mktemp("made")
    spec = put_json(folder / "spec.json", spec_of(image_layer(folder), field_layer(folder), PAIRS))
    make_dataset(MakeDatasetOptions(str(spec), str(folder), parallel=1, name="images", quality=True))
    return folder


@pytest.fixture
def images(made: Path) -> Path:
    return made / "images.h5"


@pytest.fixture
def fields(made: Path) -> Path:
    return made / "field_0_images.h5"


def main_of(path: Path, name: str = "main") -> np.ndarray:
    with h5py.File(path) as file:
        return np.asarray(file[name][:])


def noise(count: int, seed: int = 3, shape: tuple[int, int] = (8, 6)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 2, *shape)).astype(np.float32)


def starts(first: int, last: int) -> np.ndarray:
    return np.arange(first * 6, last * 6).reshape(-1, 2, 3)


def assert_same(one: Item, other: Item) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values.dtype == other[name].dtype
        np.testing.assert_array_equal(values.numpy(), other[name].numpy(), err_msg=name)


# Items


def test_an_item_holds_what_the_files_hold(images: Path, fields: Path) -> None:
    dataset = PairDataset(images, fields)
    assert len(dataset) == len(PAIRS)
    for index, item in enumerate(dataset[number] for number in range(len(dataset))):
        both = torch.cat([item["source"], item["target"]])
        np.testing.assert_array_equal(both.numpy(), main_of(images)[index])
        np.testing.assert_array_equal(item["prior"].numpy(), main_of(fields)[index])
        for name in ("start", *BOX_FACTS):
            np.testing.assert_array_equal(item[name].numpy(), main_of(images, name)[index])
        for name in QUALITY_FACTS:
            np.testing.assert_array_equal(item[name].numpy(), main_of(fields, name)[index])
        assert int(item["pair"]) == int(item["index"]) == index


def test_shapes_and_types_are_as_the_class_says(images: Path, fields: Path) -> None:
    item = PairDataset(images, fields)[0]
    assert {name: (tuple(values.shape), values.dtype) for name, values in item.items()} == {
        **dict.fromkeys(("source", "target"), ((1, X, Y), torch.float32)),
        **dict.fromkeys(("source_valid", "target_valid"), ((1, X, Y), torch.bool)),
        "prior": ((2, X, Y), torch.float32),
        **dict.fromkeys(("index", "pair"), ((), torch.int64)),
        "start": ((2, 3), torch.int64),
        "translation": ((2, 2), torch.int64),
        **dict.fromkeys(("mean", "std", "valid", "masked", "outside"), ((2,), torch.float32)),
        "missing_chunks": ((2,), torch.int32),
        **dict.fromkeys(("chunks_by_volume", "missing_by_volume"), ((2, 5), torch.int32)),
        **dict.fromkeys(("zero_variance", "no_vector"), ((2,), torch.bool)),
        **dict.fromkeys(QUALITY_FACTS, ((), torch.float32)),
    }


def test_pixels_of_0_and_pixels_that_are_no_number_are_not_valid(tmp_path: Path) -> None:
    main = noise(1)
    main[0, 0, 1, 2], main[0, 0, 3, 4], main[0, 1, 5, 0] = 0, np.nan, -np.inf
    item = PairDataset(put_main(tmp_path / "images.h5", main))[0]
    assert np.argwhere(~item["source_valid"].numpy()[0]).tolist() == [[1, 2], [3, 4]]
    assert np.argwhere(~item["target_valid"].numpy()[0]).tolist() == [[5, 0]]
    assert item["source"][0, 3, 4].isnan()


def test_files_of_older_tools_have_fewer_keys(tmp_path: Path) -> None:
    images = put_main(tmp_path / "images.h5", noise(3), mip=None)
    fields = put_main(tmp_path / "fields.h5", noise(3, 4), mip=None)
    assert set(PairDataset(images)[0]) == {"source", "target", "source_valid", "target_valid", "pair", "index"}
    item = PairDataset(images, fields)[2]
    np.testing.assert_array_equal(item["prior"].numpy(), noise(3, 4)[2])
    assert int(item["pair"]) == 2


def test_a_transform_gives_the_item(images: Path) -> None:
    dataset = PairDataset(images, transform=lambda item: int(item["index"]) * 10)
    assert dataset[3] == 30
    assert dataset[-1] == 40
    with pytest.raises(IndexError):
        dataset[5]


def test_an_error_of_a_transform_names_file_and_pair(images: Path) -> None:
    dataset = PairDataset(images, transform=lambda item: item["missing"])
    with pytest.raises(KeyError) as caught:
        dataset[2]
    assert caught.value.__notes__ == [f"in the transform of {images}: pair 2"]


def test_the_example_of_the_class_runs(images: Path, fields: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for path, name in ((images, "images.h5"), (fields, "fields.h5")):
        (tmp_path / name).symlink_to(path)
    results = doctest.testmod(training)
    assert (results.failed, results.attempted) == (0, 6)


# Workers


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork"), (4, "fork"), (2, "forkserver"), (2, "spawn")])
def test_all_workers_give_the_same_items_in_every_epoch(
    workers: int, method: str | None, images: Path, fields: Path
) -> None:
    dataset = PairDataset(images, fields, crop=(8, 4))
    dataset[0]  # so that a forked worker inherits open files
    loader = DataLoader(
        dataset, batch_size=2, num_workers=workers, multiprocessing_context=method, persistent_workers=workers > 0
    )
    by_epoch = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        found = [
            {name: values[place] for name, values in batch.items()}
            for batch in loader
            for place in range(2)
            if place < len(batch["index"])
        ]
        alone = PairDataset(images, fields, crop=(8, 4))
        alone.set_epoch(epoch)
        for index, item in enumerate(found):
            assert_same(item, alone[index])
        by_epoch.append([item["crop_start"].tolist() for item in found])
    assert len(by_epoch[0]) == len(PAIRS)
    assert by_epoch[0] != by_epoch[1]


def _of_many_shapes(item: Item) -> Any:
    return {"index": torch.zeros(int(item["index"]))}


def _of_halves(item: Item) -> Any:
    return {"index": item["index"], "source": item["source"].to(torch.bfloat16).transpose(1, 2)}


def _of_words(item: Item) -> Any:
    return {"index": item["index"], "name": f"pair {item['pair']}"}


def test_collate_leaves_what_is_no_item_to_the_default(images: Path) -> None:
    def batches(transform: Callable[[Item], Any]) -> Any:
        dataset = PairDataset(images, transform=transform)
        return list(
            DataLoader(dataset, batch_size=3, collate_fn=collate, num_workers=1, multiprocessing_context="fork")
        )

    assert batches(_of_halves)[1]["source"].dtype == torch.bfloat16
    np.testing.assert_array_equal(
        batches(_of_halves)[1]["source"][0].float(), _of_halves(PairDataset(images)[3])["source"].float()
    )
    assert batches(_of_words)[1]["name"] == ["pair 3", "pair 4"]
    with pytest.raises(RuntimeError, match="equal size"):
        batches(_of_many_shapes)


@pytest.mark.parametrize("batch_size", [2, None])
def test_threads_give_what_the_loader_gives(batch_size: int | None, images: Path, fields: Path) -> None:
    loader = DataLoader(PairDataset(images, fields), batch_size=batch_size)
    for threads in (1, 3):
        for found, expected in zip(in_threads(loader, threads), loader, strict=True):
            assert_same(found, expected)


def test_threads_read_at_the_same_time_and_not_too_far_ahead(images: Path) -> None:
    both, begun = threading.Barrier(2, timeout=30), []

    def transform(item: Item) -> Item:
        begun.append(int(item["index"]))
        if item["index"] < 2:
            both.wait()  # each of the first two waits until the other is being read
        return item

    loader = DataLoader(PairDataset([images] * 4, transform=transform))
    batches = in_threads(loader, 2)
    next(batches)
    assert len(begun) <= 4
    assert len(list(batches)) == 4 * len(PAIRS) - 1


def test_an_error_in_a_thread_reaches_the_training(images: Path) -> None:
    loader = DataLoader(PairDataset(images, transform=lambda item: item["missing"]))
    with pytest.raises(KeyError, match="missing"):
        next(in_threads(loader))


@pytest.mark.parametrize("how", [{"num_workers": 1}, {"pin_memory": True}])
def test_threads_want_a_loader_without_workers(how: dict[str, Any], images: Path) -> None:
    with pytest.raises(UsageError, match="in_threads wants a DataLoader with num_workers=0 and pin_memory=False"):
        in_threads(DataLoader(PairDataset(images), **how))
    with pytest.raises(UsageError, match="threads is 0: want 1 or more"):
        in_threads(DataLoader(PairDataset(images)), 0)


@pytest.mark.parametrize("strategy", ["file_descriptor", "file_system"])
@pytest.mark.parametrize("workers", [0, 1])
def test_collate_gives_what_the_default_gives(
    workers: int, strategy: str, images: Path, fields: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "get_sharing_strategy", lambda: strategy)
    dataset = PairDataset(images, fields, crop=(7, 5))
    how: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
    found = list(DataLoader(dataset, batch_size=3, collate_fn=collate, **how))
    assert [len(batch["pair"]) for batch in found] == [3, 2]
    for batch, expected in zip(found, DataLoader(dataset, batch_size=3), strict=True):
        assert_same(batch, expected)
    alone = next(iter(DataLoader(dataset, batch_size=1, collate_fn=collate, **how)))
    assert_same(alone, next(iter(DataLoader(dataset, batch_size=1))))
    pieces = {values.untyped_storage().data_ptr() for values in found[0].values()}
    assert (len(pieces) == 1) == (workers == 1 and strategy == "file_descriptor")


def test_replicas_share_the_items_without_overlap(images: Path) -> None:
    dataset = PairDataset(images)
    found: list[int] = []
    for rank in range(2):
        sampler: DistributedSampler[Item] = DistributedSampler(dataset, 2, rank, drop_last=True)
        found += [int(index) for batch in DataLoader(dataset, sampler=sampler) for index in batch["index"]]
    assert len(found) == len(set(found)) == len(PAIRS) // 2 * 2


def test_a_pickled_dataset_is_small_and_gives_the_same(images: Path, fields: Path) -> None:
    dataset = PairDataset(images, fields, crop=(8, 4), seed=7)
    dataset.set_epoch(3)
    expected = dataset[1]
    content = pickle.dumps(dataset)
    assert len(content) < main_of(images).nbytes / 2
    assert_same(pickle.loads(content)[1], expected)


def in_child(work: Callable[[], None]) -> "multiprocessing.process.BaseProcess":
    child = FORK.Process(target=work)
    child.start()
    return child


def test_a_forked_process_opens_its_own_files(images: Path) -> None:
    dataset = PairDataset(images)
    dataset[0]
    mine = dataset._opened

    def reads() -> None:
        dataset[1]
        assert dataset._opened is not mine
        dataset.close()

    child = in_child(reads)
    child.join()
    assert child.exitcode == 0
    assert is_locked(images)  # the child has not given up what is its parent's
    dataset.close()


# Locks


def is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_files_are_open_only_between_the_first_item_and_close(images: Path, fields: Path) -> None:
    dataset = PairDataset(images, fields)
    assert not is_locked(images) and not is_locked(fields)
    dataset[0]
    assert is_locked(images) and is_locked(fields)
    dataset.close()
    assert not is_locked(images) and not is_locked(fields)
    dataset[0]
    dataset.close()


def test_a_killed_training_leaves_nothing_locked(images: Path) -> None:
    dataset = PairDataset(images)
    has_read = FORK.Event()

    def trains() -> None:
        dataset[0]
        has_read.set()
        time.sleep(60)

    child = in_child(trains)
    assert has_read.wait(30)
    assert is_locked(images)
    child.kill()
    child.join()
    assert not is_locked(images)


def test_the_workers_of_a_killed_training_end_and_leave_nothing_locked(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.utils.data._utils.worker, "MP_STATUS_CHECK_INTERVAL", 0.1)  # else 5 seconds
    dataset = PairDataset(images)
    has_read = FORK.Event()

    def trains() -> None:
        dataset[0]  # its workers inherit the lock
        for _ in DataLoader(dataset, num_workers=2, multiprocessing_context="fork"):
            has_read.set()
            time.sleep(60)

    child = in_child(trains)
    assert has_read.wait(30)
    child.kill()
    child.join()
    deadline = time.monotonic() + 30
    while is_locked(images) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_locked(images)


def test_a_killed_worker_is_an_error_and_leaves_nothing_locked(images: Path) -> None:
    dataset = PairDataset(images, transform=_die_at_the_last)

    def trains() -> None:
        list(DataLoader(dataset, num_workers=1, multiprocessing_context="fork"))

    child = in_child(trains)
    child.join()
    assert child.exitcode == 1
    assert not is_locked(images)


def _die_at_the_last(item: Item) -> Item:
    if item["index"] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


# Files


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Fields of pairs 0 to 9 in three shards, beside images.h5."""
    folder = made_folder(tmp_path / "shards")
    put_main(tmp_path / "images.h5", noise(10), start=starts(0, 10))
    for first, last in ((0, 4), (4, 9), (9, 10)):
        put_main(folder / f"{first}_{last}.h5", noise(10, 4)[first:last], start=starts(first, last))
    return folder


def test_fields_may_lie_in_shards(shards: Path) -> None:
    dataset = PairDataset(shards.parent / "images.h5", shards)
    for index in range(10):
        np.testing.assert_array_equal(dataset[index]["prior"].numpy(), noise(10, 4)[index])


def test_fields_belong_to_pairs_by_their_starts(tmp_path: Path) -> None:
    images = put_main(tmp_path / "images.h5", noise(4), start=starts(2, 6))
    fields = put_main(tmp_path / "fields.h5", noise(8, 4)[::-1], start=starts(0, 8)[::-1])
    dataset = PairDataset(images, fields)
    for index in range(4):
        np.testing.assert_array_equal(dataset[index]["prior"].numpy(), noise(8, 4)[index + 2])


def test_pairs_without_a_field_are_refused(shards: Path) -> None:
    (shards / "4_9.h5").unlink()
    with pytest.raises(UsageError, match=r"shards has no field of 5 of 10 pairs of .*images.h5, pairs 4-8"):
        PairDataset(shards.parent / "images.h5", shards)


def test_several_files_follow_one_another(tmp_path: Path) -> None:
    paths = [put_main(tmp_path / f"{seed}.h5", noise(2 + seed, seed), start=starts(0, 2 + seed)) for seed in (0, 1)]
    priors = [
        put_main(tmp_path / f"field_{seed}.h5", noise(2 + seed, 5 + seed), start=starts(0, 2 + seed)) for seed in (0, 1)
    ]
    dataset = PairDataset(paths, priors)
    found = [dataset[index] for index in range(len(dataset))]
    assert [int(item["pair"]) for item in found] == [0, 1, 0, 1, 2]
    np.testing.assert_array_equal(found[3]["source"].numpy(), noise(3, 1)[1, :1])
    np.testing.assert_array_equal(found[3]["prior"].numpy(), noise(3, 6)[1])
    assert dataset.name_of(3) == f"{paths[1]}: pair 1"


def _of_another_size(folder: Path) -> dict[str, Any]:
    return {"images": [folder / "images.h5", put_main(folder / "other.h5", noise(2, shape=(6, 8)), start=starts(0, 2))]}


def _of_another_mip(folder: Path) -> dict[str, Any]:
    return {"images": [folder / "images.h5", put_main(folder / "other.h5", noise(2), 2, start=starts(0, 2))]}


def _of_other_keys(folder: Path) -> dict[str, Any]:
    return {"images": [folder / "images.h5", put_main(folder / "other.h5", noise(2))]}


def _fields_of_another_mip(folder: Path) -> dict[str, Any]:
    return {"fields": put_main(folder / "other.h5", noise(4), 2, start=starts(0, 4))}


def _fields_for_images(folder: Path) -> dict[str, Any]:
    path = put_main(folder / "other.h5", noise(4), start=starts(0, 4))
    with h5py.File(path, "r+") as file:
        file.attrs["decimals"] = 2
    return {"images": path}


def _too_few_fields(folder: Path) -> dict[str, Any]:
    return {"images": [folder / "images.h5"] * 2, "fields": [folder / "images.h5"]}


def _unfinished(folder: Path) -> dict[str, Any]:
    entries = np.array([[1, 1], [1, 0]], np.uint64)
    put_main(partial_path(folder / "new.h5"), noise(2), crc32=np.zeros((2, 2), np.uint32), checksum=entries)
    return {"images": folder / "new.h5"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (_of_another_size, r"images.h5 and .*other.h5 are of \(8, 6\) and \(6, 8\) pixels: want the same size"),
        (_of_another_mip, r"are of MIP 3 and MIP 2: want the same MIP"),
        (_of_other_keys, r"only one holds start: want files that hold the same"),
        (_fields_of_another_mip, r"other.h5 is of MIP 2, .*images.h5 of MIP 3"),
        (_fields_for_images, r"other.h5: field file, where image file is wanted"),
        (_too_few_fields, r"2 image files and 1 field files: want one for each"),
        (_unfinished, r"new.h5: still being made, 1 of 2 pairs are missing"),
        (lambda folder: {"images": []}, r"0 image files and 0 field files"),
        (lambda folder: {"images": folder / "no.h5"}, r"no.h5: no such file"),
        (lambda folder: {"crop": (9, 6)}, r"crop is \(9, 6\), and the images of .*images.h5 are \(8, 6\)"),
        (lambda folder: {"crop": (8, 0)}, r"crop is \(8, 0\)"),
        (lambda folder: {"seed": -1}, r"seed is -1: want 0 or more"),
        (lambda folder: {"part": "train"}, r"split and part go together"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(
    given: Callable[[Path], dict[str, Any]], told: str, tmp_path: Path
) -> None:
    put_main(tmp_path / "images.h5", noise(4), start=starts(0, 4))
    with pytest.raises(UsageError, match=told) as caught:
        PairDataset(**{"images": tmp_path / "images.h5", **given(tmp_path)})
    assert len(str(caught.value).splitlines()) == 1
    assert not is_locked(tmp_path / "images.h5")


def test_a_file_that_has_changed_since_is_refused(tmp_path: Path) -> None:
    dataset = PairDataset(put_main(tmp_path / "images.h5", noise(4)))
    put_main(tmp_path / "images.h5", noise(5))
    with pytest.raises(UsageError, match=r"images.h5 or its fields have changed since the PairDataset was made"):
        dataset[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pair_that_cannot_be_read_is_named(workers: int, tmp_path: Path, images: Path) -> None:
    content = bytearray(images.read_bytes())
    with h5py.File(images) as file:
        info = file["main"].id.get_chunk_info_by_coord((3, 1, 0, 0))
    content[info.byte_offset + info.size // 2] ^= 0x10
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(content)
    loader = DataLoader(PairDataset(damaged), num_workers=workers, multiprocessing_context="fork" if workers else None)
    with pytest.raises(WorkError, match=r"damaged.h5: pair 3 cannot be read: "):
        list(loader)


# Crops


def test_a_crop_cuts_the_same_pixels_of_images_and_prior(images: Path, fields: Path) -> None:
    dataset, whole = PairDataset(images, fields, crop=(12, 5)), PairDataset(images, fields)
    for index in range(len(dataset)):
        item = dataset[index]
        x, y = item["crop_start"].tolist()
        assert 0 <= x <= X - 12 and 0 <= y <= Y - 5
        for name in ("source", "target", "prior", "source_valid", "target_valid"):
            np.testing.assert_array_equal(item[name], whole[index][name][:, x : x + 12, y : y + 5])
            assert item[name].shape[1:] == (12, 5)


def crops(dataset: PairDataset, epoch: int) -> list[list[int]]:
    dataset.set_epoch(epoch)
    return [dataset[index]["crop_start"].tolist() for index in range(len(dataset))]


def test_crops_depend_on_seed_epoch_and_index(images: Path) -> None:
    one, same, other = (PairDataset(images, crop=(8, 4), seed=seed) for seed in (0, 0, 1))
    assert crops(one, 0) == crops(same, 0)
    assert crops(one, 0) != crops(one, 1)
    assert crops(one, 0) != crops(other, 0)
    assert len({tuple(start) for start in crops(one, 0)}) > 1
    assert crops(PairDataset(images, crop=(X, Y)), 0) == [[0, 0]] * len(PAIRS)
    with pytest.raises(UsageError, match="epoch is -1"):
        one.set_epoch(-1)


# Splits


@pytest.fixture
def split(tmp_path: Path) -> Iterator[Path]:
    """Pairs 3 and 1 to train, and one that is in no file; pair 2 to validate; one that is in no file to test."""
    parts = {"train": [PAIRS[3], PAIRS[1], pair(9, 9, 9)], "validation": [PAIRS[2]], "test": [pair(7, 7, 7)]}
    content = {"parts": [{"name": name, "pairs": pairs} for name, pairs in parts.items()], "seed": 0}
    yield put_json(tmp_path / "split.json", content)


def test_a_part_of_a_split_is_what_of_it_is_in_the_files(images: Path, fields: Path, split: Path) -> None:
    dataset = PairDataset(images, fields, split=split, part="train")
    assert [int(dataset[index]["pair"]) for index in range(len(dataset))] == [1, 3]
    assert [int(dataset[index]["index"]) for index in range(len(dataset))] == [0, 1]
    np.testing.assert_array_equal(dataset[1]["prior"].numpy(), main_of(fields)[3])
    assert dataset[1]["folded"] == main_of(fields, "folded")[3]
    assert len(PairDataset([images, images], split=split, part="validation")) == 2


def test_only_pairs_of_the_part_want_a_field(tmp_path: Path) -> None:
    images = put_main(tmp_path / "images.h5", noise(4), start=starts(0, 4))
    fields = put_main(tmp_path / "fields.h5", noise(1), start=starts(1, 2))
    ((source, target),) = starts(1, 2).tolist()
    names = ("x_start", "y_start", "z_start")
    listed = {"src": dict(zip(names, source, strict=True)), "tgt": dict(zip(names, target, strict=True))}
    split = put_json(tmp_path / "split.json", {"parts": [{"name": "train", "pairs": [listed]}]})
    assert len(PairDataset(images, fields, split=split, part="train")) == 1


@pytest.mark.parametrize(
    ("part", "content", "told"),
    [
        ("test", None, r"split.json: no pair of part test is in .*images.h5"),
        ("tests", None, r"split.json: no part tests in the split: want one of train, validation, test"),
        ("train", "{", r"split.json: not a split, as split_pairs.py"),
        ("train", json.dumps([PAIRS[0]]), r"split.json: not a split, as split_pairs.py"),
        ("train", json.dumps({"parts": []}), r"its parts are none"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(
    part: str, content: str | None, told: str, images: Path, split: Path
) -> None:
    if content is not None:
        split.write_text(content)
    with pytest.raises(UsageError, match=told):
        PairDataset(images, split=split, part=part)


def test_a_split_wants_files_with_starts(tmp_path: Path, split: Path) -> None:
    with pytest.raises(UsageError, match=r"images.h5: it holds no starts"):
        PairDataset(put_main(tmp_path / "images.h5", noise(2)), split=split, part="train")
