"""What is said before a run (--dry_run) and after it (the table), against numbers counted by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import Command
from small_jobs import (
    NAME,
    ONES,
    Json,
    Refused,
    dataset_arguments,
    field_layer,
    fields_arguments,
    image_layer,
    made_folder,
    pair,
    put_json,
    put_main,
    pyramid_of,
    spec_of,
    tree,
    voxels,
)
from volumes_made import chunk_file, make_layer

from curation.datasets.partial import copy_stored
from curation.steps import box_job
from curation.steps.report import Plan


def table(text: str) -> dict[str, str]:
    """The lines of a plan or a report, by name."""
    return {line[:16].rstrip(): line[17:] for line in text.splitlines()}


Run = Callable[..., dict[str, str]]


@pytest.fixture
def dry(tmp_path: Path, command: Command) -> Run:
    """A dry run that must succeed and change nothing; gives its plan."""

    def run(name: str, *arguments: object) -> dict[str, str]:
        before = tree(tmp_path)
        done = command(name, *arguments, "--dry_run")
        assert (done.code, done.stderr) == (0, "")
        assert tree(tmp_path) == before
        return table(done.stdout)

    return run


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., list[object]]:
    """make_dataset.py's arguments for a spec, into `out`."""

    def arguments(spec: Json, *more: object) -> list[object]:
        return dataset_arguments(put_json(tmp_path / "spec.json", spec), made_folder(tmp_path / "out"), *more)

    return arguments


# Before: --dry_run

# Of chunks of 64 x 64 x 1: the second pair lies across two, the third leaves the volume, the fourth is the first.
PAIRS = [pair(0, 0, 5), pair(48, 0, 4), pair(112, 64, 3), pair(0, 0, 5)]


def test_the_plan_of_a_dataset(dry: Run, job: Any, tmp_path: Path) -> None:
    plan = dry("make_dataset.py", *job(spec_of(image_layer(tmp_path), field_layer(tmp_path), PAIRS)))
    assert plan["output"] == f"{tmp_path}/out/{NAME}, {tmp_path}/out/field_0_{NAME}"
    assert plan["pairs"] == "4, 1 of them repeated"
    assert plan["distinct boxes"] == "6, 2 of them partly outside the image's volume"
    # Image: 1 in section 5, 2 in section 4, those 2 and 1 of the third pair's in section 3, 1 in section 2. Field: 1
    # in each of these 4 sections.
    assert plan["chunks to read"].startswith("11, ")
    assert plan["output size"].startswith("up to 0.0 MiB; ")


def test_the_plan_of_a_dataset_without_repeats_or_a_field(dry: Run, job: Any, tmp_path: Path) -> None:
    plan = dry("make_dataset.py", *job(spec_of(image_layer(tmp_path), pairs=PAIRS[:2])))
    assert plan["pairs"] == "2"
    assert plan["distinct boxes"] == "4, 0 of them partly outside the image's volume"
    assert plan["chunks to read"].startswith("5, ")


def test_the_plan_says_how_much_is_written(dry: Run, job: Any, tmp_path: Path) -> None:
    spec = spec_of(image_layer(tmp_path), field_layer(tmp_path), PAIRS) | {"x_size": 4096, "y_size": 4096}
    # Images: 4 pairs x 2 x 4096 x 4096 pixels x 4 bytes = 0.5 GiB; as much of fields.
    assert dry("make_dataset.py", *job(spec))["output size"].startswith("up to 1.00 GiB; ")


def test_the_plan_of_a_stretch(dry: Run, tmp_path: Path) -> None:
    image = make_layer(tmp_path / "image", {0: voxels(), 1: voxels()[::2, ::2]})
    place = ["--z_start", 1, "--z_end", 4, "--x_offset", 48, "--y_offset", 0, "--mips", 0, 1, "--patch_sizes", 32, 16]
    out = made_folder(tmp_path / "out")
    plan = dry("download_image.py", "--cv_path", image, "--dst_folder", out, *place)
    assert plan["output"] == f"{out}/x48_y0_z1_MIP0.h5, {out}/x48_y0_z1_MIP1.h5"
    assert plan["pairs"] == "6"  # 3 at each MIP
    assert plan["distinct boxes"] == "8, 0 of them partly outside the image's volume"  # sections 0 to 3
    assert plan["chunks to read"].startswith("12, ")  # 2 a section at MIP 0, 1 at MIP 1


def test_the_plan_of_fields(dry: Run, command: Command, tmp_path: Path) -> None:
    images = put_main(tmp_path / "images.h5", np.ones((37, 2, 8, 8), np.float32))
    pyramid_of(tmp_path, ONES)
    shards = made_folder(tmp_path / "shards")
    arguments = fields_arguments(tmp_path, images, None)
    plan = dry("generate_fields.py", *fields_arguments(tmp_path, images, None, cpu_workers=2))
    assert plan["module"] == f"{tmp_path}/pyramid/0_mip3in_small"
    assert plan["workers"].startswith("2 on cpu; ")
    assert plan["precision"] == "float32"
    assert plan["pairs"] == "37, 0 of them found done"
    assert plan["shards to make"] == "37"  # of one pair each, as long as there are fewer than 64 pairs
    assert command("generate_fields.py", *arguments).code == 0
    for first in range(9):
        (shards / f"{first}_{first + 1}.h5").unlink()
    plan = dry("generate_fields.py", *arguments)
    assert plan["pairs"] == "37, 28 of them found done"
    assert plan["shards to make"] == "9"


def test_a_dry_run_refuses_what_the_run_would(
    job: Any, refused: Refused, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = spec_of(image_layer(tmp_path))
    outside = job(spec_of(spec["image"]["path"], pairs=[pair(256, 0, 5)]))
    assert refused("make_dataset.py", *outside, "--dry_run") == refused("make_dataset.py", *outside)
    arguments = job(spec)
    with monkeypatch.context() as patch:
        patch.setattr(box_job.BoxFiles, "put", put_then_interrupt(2))
        assert command("make_dataset.py", *arguments).code == 130
    other = [*arguments, "--field_decimals", "none"]
    assert refused("make_dataset.py", *other, "--dry_run") == refused("make_dataset.py", *other)
    assert command("make_dataset.py", *arguments).code == 0
    assert refused("make_dataset.py", *other, "--dry_run") == refused("make_dataset.py", *other)


def test_a_dry_run_of_a_stretch_or_fields_refuses_what_the_run_would(refused: Refused, tmp_path: Path) -> None:
    place = ["--z_start", 0, "--z_end", 4, "--x_offset", 0, "--y_offset", 0, "--mips", 0, "--patch_sizes", 32]
    stretch = ["--cv_path", image_layer(tmp_path), "--dst_folder", tmp_path, *place]
    assert refused("download_image.py", *stretch, "--dry_run") == refused("download_image.py", *stretch)
    images = put_main(tmp_path / "images.h5", np.ones((3, 2, 8, 8), np.float32))
    pyramid_of(tmp_path)
    made_folder(tmp_path / "shards")
    run = fields_arguments(tmp_path, images, None, stage=1)
    assert refused("generate_fields.py", *run, "--dry_run") == refused("generate_fields.py", *run)


# After: the table


@pytest.fixture
def blemished(tmp_path: Path) -> Json:
    """A spec over volumes with a blemish of each kind.

    Pair 0: the source's chunk is missing, and half of the target is masked. Pair 1: half of both boxes is outside, and
    the target has no variance. Pair 2: none. Pair 3: the source's field has no finite vector.
    """
    image = voxels()
    image[:, :, 2] = 9
    vectors = np.zeros((32, 32, 6, 2), np.float32)
    vectors[:, :, 1] = np.nan
    mask = np.zeros(image.shape, np.uint8)
    mask[0:32, 0:8, 4] = 1
    path = make_layer(tmp_path / "image", {0: image})
    chunk_file(tmp_path / "image", 0, (0, 0, 5)).unlink()
    pairs = [pair(0, 0, 5), pair(112, 64, 3), pair(16, 64, 5), pair(64, 0, 1)]
    spec = spec_of(path, field_layer(tmp_path, vectors), pairs)
    return {**spec, "masks": [{"path": make_layer(tmp_path / "mask", {0: mask}), "src_mip": 0, "threshold": 1}]}


def test_the_table_counts_and_names_what_was_amiss(blemished: Json, job: Any, command: Command) -> None:
    done = command("make_dataset.py", *job(blemished))
    found = table(done.stdout)
    assert found["pairs"] == "4"
    assert found["boxes"] == "8 distinct, of 8 images"
    image = f"image {blemished['image']['path']} at MIP 0"
    assert found["missing chunks"] == f"1 of 8 of {image}; read as black (pair 0 source)"
    assert (
        found["valid"] == "68.75% of the area"  # 5.5 of 8: one is missing, and three are half masked or outside
    )  # of 8 a missing one, a half that is masked, and 2 halves outside: 6/8
    assert found["outside"] == "12.50% of the area (pair 1 source, pair 1 target)"  # 2 halves of 8
    assert found["masked"] == "6.25% of the area (pair 0 target)"  # 1 half of 8
    assert found["zero variance"] == "2 (pair 0 source, pair 1 target)"
    assert found["no vector"] == "1 (pair 3 source)"
    assert found["retries"] == "0"
    assert "found done" not in found


def test_a_box_that_repeats_is_counted_once(blemished: Json, job: Any, command: Command) -> None:
    blemished["pairs"] = blemished["pairs"][:1] * 2
    found = table(command("make_dataset.py", *job(blemished)).stdout)
    assert found["boxes"] == "2 distinct, of 4 images"
    assert found["missing chunks"].endswith("; read as black (pair 0 source, pair 1 source)")
    assert found["missing chunks"].startswith("1 of 2 of image file://")
    assert found["masked"] == "25.00% of the area (pair 0 target, pair 1 target)"


def test_what_an_interrupted_run_did_is_found_done(
    blemished: Json, job: Any, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = job(blemished)
    with monkeypatch.context() as patch:
        patch.setattr(box_job.BoxFiles, "put", put_then_interrupt(5))
        assert command("make_dataset.py", *arguments).code == 130
    found = table(command("make_dataset.py", *arguments).stdout)
    assert found["found done"] == "5 of 8 images"
    assert found["zero variance"] == "2 (pair 0 source, pair 1 target)"  # whichever run cut them


def test_missing_chunks_fail_where_that_is_asked_for(
    blemished: Json, job: Any, failed: Refused, tmp_path: Path
) -> None:
    line = failed("make_dataset.py", *job(blemished, "--missing", "fail"))
    assert f"{blemished['image']['path']} at MIP 0: chunk at (0, 0, 5)" in line
    assert not list((tmp_path / "out").glob("x*"))


def test_what_was_read_as_black_is_not_kept_by_a_run_that_must_fail(
    blemished: Json, job: Any, refused: Refused, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(box_job.BoxFiles, "put", put_then_interrupt(5))
        assert command("make_dataset.py", *job(blemished)).code == 130
    assert "begun with another missing" in refused("make_dataset.py", *job(blemished, "--missing", "fail"))


def put_then_interrupt(count: int) -> Callable[..., None]:
    put, left = box_job.BoxFiles.put, iter(range(count))

    def put_some(sink: box_job.BoxFiles, *boxes: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        put(sink, *boxes)

    return put_some


# --min_valid


@pytest.mark.parametrize(("least", "kept"), [(0.5, [1, 2, 3]), (0.51, [2, 3]), (0, [0, 1, 2, 3])])
def test_pairs_below_the_least_valid_area_are_left_out(
    least: float, kept: list[int], blemished: Json, job: Any, command: Command, tmp_path: Path
) -> None:
    assert command("make_dataset.py", *job(blemished)).code == 0
    whole = made_folder(tmp_path / "whole")
    for path in (tmp_path / "out").iterdir():
        path.rename(whole / path.name)
    found = table(command("make_dataset.py", *job(blemished, "--min_valid", least)).stdout)
    left_out = sorted({0, 1, 2, 3} - set(kept))
    more = f"; {len(left_out)} left out, their valid area being below {least:g}" if left_out else ""
    assert found["pairs"] == f"{len(kept)}{more}"
    for name in (NAME, f"field_0_{NAME}"):
        with h5py.File(whole / name) as every, h5py.File(tmp_path / "out" / name) as some:
            assert some["pair"][:].tolist() == kept
            assert ("left_out" in some) == bool(left_out)
            assert not left_out or some["left_out"][:].tolist() == left_out
            assert set(some) - {"left_out"} == set(every)
            for dataset in every:
                assert some[dataset][:].tobytes() == every[dataset][:][kept].tobytes(), dataset


def test_no_pair_valid_enough_is_a_failure(
    blemished: Json, job: Any, failed: Refused, command: Command, tmp_path: Path
) -> None:
    blemished["pairs"] = blemished["pairs"][:2]
    line = failed("make_dataset.py", *job(blemished, "--min_valid", 0.9))
    assert "no pair has a valid area of 0.9 in both images" in line
    assert not list((tmp_path / "out").glob("[xf]*"))


def test_a_copy_of_the_pairs_that_are_kept_is_read_back(
    blemished: Json, job: Any, failed: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def copy_torn(src: h5py.File, dst: h5py.File, *more: Any) -> None:
        copy_stored(src, dst, *more)
        dst["mean"][0, 0] += 1  # as a disk might

    monkeypatch.setattr("curation.datasets.writer.copy_stored", copy_torn)
    line = failed("make_dataset.py", *job(blemished, "--min_valid", 0.5))
    assert "damaged, as it reads back; the same command makes it again" in line
    assert not list((tmp_path / "out").glob("x*"))


def test_verify_accepts_files_with_pairs_left_out(blemished: Json, job: Any, command: Command, tmp_path: Path) -> None:
    assert command("make_dataset.py", *job(blemished, "--min_valid", 0.6)).code == 0
    done = command("verify_dataset.py", *(tmp_path / "out").glob("*.h5"))
    assert (done.code, done.stdout) == (0, "")


def test_a_plan_says_when_the_disk_may_be_too_small() -> None:
    plan = Plan(("a.h5",), 1, 2, 0, 3, 0, kept=0, output_bytes=2**30, free_bytes=2**29)
    assert str(plan).endswith("up to 1.00 GiB; 512.0 MiB are free there, which may not be enough")
    assert "may not be enough" not in str(replace(plan, free_bytes=2**30))
