"""Box jobs: a part of a job cuts the same boxes as the whole, and boxes of two versions do not end in one file."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import Command
from small_jobs import (
    NAME,
    SHAPE,
    Refused,
    contents,
    dataset_arguments,
    field_layer,
    image_layer,
    made_folder,
    pair,
    put_json,
    spec_of,
    stretch_arguments,
    voxels,
)
from volumes_made import make_layer

from curation import provenance
from curation.datasets.partial import partial_path
from curation.datasets.shards import Shard
from curation.files import Existing
from curation.spec import read_spec
from curation.steps.box_job import BoxJob, run_box_jobs
from curation.steps.make_dataset import MakeDatasetOptions, box_job


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    pairs = [pair(x, 32, z) for z in (5, 4, 3) for x in (0, 48)]
    return put_json(tmp_path / "spec.json", spec_of(image_layer(tmp_path), field_layer(tmp_path), pairs))


def job_of(spec: Path, out: Path) -> BoxJob:
    return box_job(read_spec(spec), MakeDatasetOptions(str(spec), str(out), parallel=1))


def stored(path: Path) -> list[tuple[int, bytes]]:
    """The chunks of `main`, as they are stored, in the samples' order."""
    with h5py.File(path) as file:
        main = file["main"]
        offsets = [main.id.get_chunk_info(index).chunk_offset for index in range(main.id.get_num_chunks())]
        return [main.id.read_direct_chunk(offset) for offset in sorted(offsets)]


def test_shards_of_a_job_hold_what_its_whole_file_holds(spec: Path, tmp_path: Path) -> None:
    whole = job_of(spec, made_folder(tmp_path / "whole"))
    run_box_jobs([whole], parallel=1, existing=Existing.REFUSED)
    shards = [job_of(spec, tmp_path / "parts").of_shard(shard) for shard in (Shard(0, 4), Shard(4, 6))]
    for shard in shards:
        for file in shard.files():
            file.path.parent.mkdir(parents=True, exist_ok=True)
    run_box_jobs(shards, parallel=1, existing=Existing.REFUSED)
    for number, file in enumerate(whole.files()):
        parts = [shard.files()[number].path for shard in shards]
        assert [part.name for part in parts] == ["0_4.h5", "4_6.h5"]
        assert sum(map(stored, parts), []) == stored(file.path)  # noqa: RUF017
        with h5py.File(file.path) as made, h5py.File(parts[0]) as first, h5py.File(parts[1]) as second:
            for name in set(made) - {"main"}:
                np.testing.assert_array_equal(made[name], np.concatenate([first[name], second[name]]))
            assert (second.attrs["first"], second.attrs["last"], second.attrs["pairs"]) == (4, 5, 6)


def test_a_shard_whose_images_were_finished_first_is_finished(spec: Path, tmp_path: Path) -> None:
    """A crash between the two files: the pairs of the image file decide, by their numbers in the spec."""
    shard = job_of(spec, tmp_path / "parts").of_shard(Shard(4, 6))
    for file in shard.files():
        file.path.parent.mkdir(parents=True)
    run_box_jobs([shard], parallel=1, existing=Existing.REFUSED)
    field = shard.files()[1].path
    expected = contents(field)
    field.unlink()
    run_box_jobs([shard], parallel=1, existing=Existing.REFUSED)
    assert contents(field) == expected


def test_boxes_of_another_format_are_not_kept(
    spec: Path, command: Command, refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = made_folder(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "FORMAT", provenance.FORMAT - 1)
        patch.setattr("curation.steps.box_job.COMMIT_BYTES", 1)
        patch.setattr("curation.steps.box_job.BoxFiles.put", interrupted)
        assert command("make_dataset.py", *dataset_arguments(spec, out)).code == 130
    line = refused("make_dataset.py", *dataset_arguments(spec, out))
    formats = f"(format {provenance.FORMAT - 1}; this one makes format {provenance.FORMAT})"
    assert f"begun with another version of the toolkit {formats}; " in line
    assert line.endswith("give the same, or --update to give up what was begun")


def test_a_partial_file_of_toolkit_0_1_is_of_another_version(
    spec: Path, command: Command, refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = made_folder(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("curation.steps.box_job.BoxFiles.put", interrupted)
        assert command("make_dataset.py", *dataset_arguments(spec, out)).code == 130
    with h5py.File(partial_path(job_of(spec, out).images.path), "r+") as file:
        del file.attrs["provenance"], file.attrs["seal"]
        file.attrs["identity"] = '{"spec_sha256": "0"}'
    assert "(format unknown; this one makes" in refused("make_dataset.py", *dataset_arguments(spec, out))


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_stretch_of_whole_numbers_that_float32_cannot_hold_is_refused(refused: Refused, tmp_path: Path) -> None:
    large = make_layer(tmp_path / "segments", {0: np.full((64, 64, 4), 2**40 + 1, np.uint64)})
    line = refused("download_image.py", *stretch_arguments(large, made_folder(tmp_path / "out"), mips="0"))
    assert "image: " in line
    assert "holds uint64: want grey values, 8 or 16 bit or float" in line


def test_the_plan_of_a_stretch_counts_boxes(command: Command, tmp_path: Path) -> None:
    """Of 4 boxes, each read from an image and a defect volume that it leaves, 4 are partly outside: not 8."""
    path = image_layer(tmp_path)
    arguments = stretch_arguments(
        path, made_folder(tmp_path / "out"), x_offset=112, mips="0", cv_path_defects=path, mask_val=300
    )
    done = command("download_image.py", *arguments, "--dry_run")
    assert done.code == 0, done.stderr
    assert "distinct boxes   4, 4 of them partly outside the image's volume" in done.stdout


def test_a_box_that_its_field_brings_into_the_image_is_cut(command: Command, tmp_path: Path) -> None:
    """The image lies 10,240 voxels from the boxes, and the field of every pair leads there."""
    image = image_layer(tmp_path, voxel_offset=(10240, 0, 0))
    vectors = np.zeros((SHAPE[0] // 4, SHAPE[1] // 4, SHAPE[2], 2), np.float32) + np.float32([0, 10240])
    spec = put_json(tmp_path / "spec.json", spec_of(image, field_layer(tmp_path, vectors)))
    out = made_folder(tmp_path / "out")
    done = command("make_dataset.py", *dataset_arguments(spec, out))
    assert done.code == 0, done.stderr
    with h5py.File(out / NAME) as file:
        assert (file["translation"][...] == (10240, 0)).all()
        assert (file["outside"][:] == 0).all()
        mean, std = file["mean"][0, 0], file["std"][0, 0]
        np.testing.assert_allclose(file["main"][0, 0] * std + mean, voxels()[:32, :16, 5], atol=1e-3)


def test_a_box_whose_field_lies_outside_is_refused(refused: Refused, tmp_path: Path) -> None:
    spec = spec_of(image_layer(tmp_path, voxel_offset=(10240, 0, 0)), field_layer(tmp_path), [pair(1024, 0, 5)])
    line = refused("make_dataset.py", *dataset_arguments(put_json(tmp_path / "spec.json", spec), tmp_path))
    assert "pairs[0].src, section 5: box wholly outside the volume of field: " in line
