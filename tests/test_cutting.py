"""Whole datasets from small volumes, against expectations computed pixel by pixel."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cloudvolume import CloudVolume
from one_sample import Sample, Volume, sample
from volumes_made import make_layer

from curation.errors import UsageError, WorkError
from curation.steps.box_tasks import BoxTask, Slot, box_tasks, runs_of
from curation.steps.make_dataset import MakeDatasetOptions, make_dataset
from curation.steps.verify_dataset import faults

# Image at MIP 0 and 1, field at MIP 2, mask at MIP 1; boxes at MIP 1 of 12 x 8 pixels = 24 x 16 voxels.
OFFSET = (16, -32, 3)  # voxels at MIP 0
SIZE = (96, 80, 4)


@dataclass(frozen=True)
class Made:
    image: np.ndarray  # (X, Y, Z, 1) at MIP 1
    mask: np.ndarray
    field: np.ndarray  # (X, Y, Z, 2) at MIP 2
    spec: dict[str, Any]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A volume with an offset, black spots, masked spots and a vector that is not finite."""
    random = np.random.default_rng(7)
    image = random.integers(1, 255, (SIZE[0] // 2, SIZE[1] // 2, SIZE[2], 1), dtype=np.uint8)
    image[20:23, 15:30] = 0
    mask = np.zeros(image.shape, np.uint8)
    mask[25:27, 10:20] = 200
    field = random.normal(3, 5, (SIZE[0] // 4, SIZE[1] // 4, SIZE[2], 2)).astype(np.float32)
    field[..., 0] -= 9
    field[9, 11, 1] = np.nan
    paths = {
        name: make_layer(tmp_path / name, {mip: volume}, voxel_offset=OFFSET, chunk=(16, 16, 2))
        for name, mip, volume in [("image", 1, image), ("mask", 1, mask), ("field", 2, field)]
    }
    spec = {
        "image": {
            "path": paths["image"],
            "src_mip": 1,
            "reference": {"path": paths["image"], "src_mip": 1, "dst_mip": 1, "x_size": 16, "y_size": 10},
        },
        "field": {
            "path": paths["field"],
            "src_mip": 2,
            "reference": {"path": paths["field"], "src_mip": 2, "dst_mip": 2, "x_size": 6, "y_size": 5},
        },
        "masks": [{"path": paths["mask"], "src_mip": 1, "threshold": 200}],
        "max_mip": 3,
        "dst_mip": 1,
        "x_size": 12,
        "y_size": 8,
        "pairs": [pair((48, 0, 4), (48, 0, 3)), pair((48, 0, 3), (48, 0, 4)), pair((32, -16, 6), (40, -8, 5))],
    }
    return Made(image, mask, field, spec)


def pair(src: tuple[int, int, int], tgt: tuple[int, int, int]) -> dict[str, dict[str, int]]:
    return {
        role: dict(zip(("x_start", "y_start", "z_start"), start, strict=True))
        for role, start in (("src", src), ("tgt", tgt))
    }


def cut(spec: dict[str, Any], folder: Path, parallel: int = 1, **options: Any) -> tuple[Path, Path]:
    """make_dataset in a new folder; the image file's path and the field file's."""
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps(spec))
    dst = folder / "out"
    dst.mkdir()
    make_dataset(MakeDatasetOptions(str(folder / "spec.json"), str(dst), parallel, **options))
    x, y, z = spec["pairs"][0]["src"].values()
    name = f"x{x}_y{y}_z{z}_MIP{spec['dst_mip']}.h5"
    return dst / name, dst / f"field_0_{name}"


def expected_sample(made: Made, start: tuple[int, int, int]) -> Sample:
    """What the contract makes of one box."""
    at_mip1, at_mip2 = ((OFFSET[0] >> mip, OFFSET[1] >> mip, OFFSET[2]) for mip in (1, 2))
    chunk = (16, 16, 2)
    volumes = {
        (made.spec["image"]["path"], 1): Volume(made.image, at_mip1, chunk),
        (made.spec["masks"][0]["path"], 1): Volume(made.mask, at_mip1, chunk),
        (made.spec["field"]["path"], 2): Volume(made.field, at_mip2, chunk),
    }
    return sample(made.spec, volumes, start)


def test_every_rule_of_one_sample(made: Made, tmp_path: Path) -> None:
    image_path, field_path = cut(made.spec, tmp_path / "job", decimals=None)
    with h5py.File(image_path) as images, h5py.File(field_path) as fields:
        assert images["main"].shape == (3, 2, 12, 8)
        assert images["main"].chunks == (1, 1, 12, 8)
        assert fields["main"].shape == (3, 2, 12, 8)
        assert fields["main"].chunks == (1, 2, 12, 8)
        for index, boxes in enumerate(made.spec["pairs"]):
            source = expected_sample(made, tuple(boxes["src"].values()))
            np.testing.assert_allclose(images["main"][index, 0], source.image, atol=1e-5)
            np.testing.assert_allclose(fields["main"][index], source.residual, atol=1e-5)
            assert tuple(images["translation"][index, 0]) == source.translation
            target = expected_sample(made, tuple(boxes["tgt"].values()))
            np.testing.assert_allclose(images["main"][index, 1], target.warped, atol=1e-4)
            assert tuple(images["translation"][index, 1]) == target.translation
            np.testing.assert_array_equal(fields["translation"][index], images["translation"][index])
            np.testing.assert_array_equal(
                images["start"][index], [list(boxes["src"].values()), list(boxes["tgt"].values())]
            )


def test_the_small_volume_tries_what_it_is_for(made: Made) -> None:
    samples = [expected_sample(made, tuple(box.values())) for boxes in made.spec["pairs"] for box in boxes.values()]
    assert any(not np.isfinite(box.residual).all() for box in samples)
    assert any((box.image == 0).any() for box in samples)
    assert all(box.translation != (0, 0) for box in samples)


def test_fields_are_rounded(made: Made, tmp_path: Path) -> None:
    with h5py.File(cut(made.spec, tmp_path / "exact", decimals=None)[1]) as file:
        exact = file["main"][:]
        assert file.attrs["decimals"] == "none"
    with h5py.File(cut(made.spec, tmp_path / "rounded")[1]) as file:
        np.testing.assert_array_equal(file["main"][:], np.round(exact * 256) / 256)
        assert file.attrs["decimals"] == "binary"
    with h5py.File(cut(made.spec, tmp_path / "decimal", decimals=2)[1]) as file:
        np.testing.assert_array_equal(file["main"][:], np.round(exact, 2))
        assert file.attrs["decimals"] == 2


def test_image_step_rounds_warped_targets_alone(made: Made, tmp_path: Path) -> None:
    step = 1 / 64
    with h5py.File(cut(made.spec, tmp_path / "exact")[0]) as file:
        exact = file["main"][:]
        assert "image_step" not in file.attrs
        assert "image_step" not in json.loads(file.attrs["provenance"])
    image_path, field_path = cut(made.spec, tmp_path / "rounded", image_step=step)
    with h5py.File(image_path) as file:
        rounded = file["main"][:]
        assert file.attrs["image_step"] == step
    np.testing.assert_array_equal(rounded[:, 0], exact[:, 0])
    np.testing.assert_array_equal(rounded[:, 1] == 0, exact[:, 1] == 0)
    np.testing.assert_array_equal(rounded[:, 1] / step, np.rint(rounded[:, 1] / step))
    assert 0 < np.abs(rounded - exact).max() < step
    for path in (image_path, field_path):
        assert list(faults(path)) == []
    with pytest.raises(UsageError, match="made with another image_step"):
        make_dataset(MakeDatasetOptions(str(tmp_path / "rounded" / "spec.json"), str(image_path.parent), 1))


def test_image_step_is_of_targets_that_a_field_has_warped(made: Made, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(made.spec))
    layer = MakeDatasetOptions(str(tmp_path / "spec.json"), f"file://{tmp_path}/layer", 1, image_step=0.5)
    with pytest.raises(UsageError, match=r"--image_step .* a layer is not rounded"):
        make_dataset(layer)
    del made.spec["field"]
    with pytest.raises(UsageError, match=r"--image_step .* this spec has no field"):
        cut(made.spec, tmp_path / "job", image_step=0.5)
    assert list((tmp_path / "job" / "out").iterdir()) == []


def test_without_a_field_both_images_are_stored_as_they_are(made: Made, tmp_path: Path) -> None:
    del made.spec["field"]
    image_path, field_path = cut(made.spec, tmp_path / "job")
    assert not field_path.exists()
    with h5py.File(image_path) as images:
        np.testing.assert_array_equal(images["main"][0], images["main"][1][::-1])  # the same two boxes, swapped
        np.testing.assert_array_equal(images["translation"][:], 0)


def test_without_a_reference_the_sample_is_its_own(made: Made, tmp_path: Path) -> None:
    del made.spec["image"]["reference"]
    del made.spec["masks"]
    with h5py.File(cut(made.spec, tmp_path / "job")[0]) as images:
        source = images["main"][0, 0]
        tissue = source[source != 0]
        assert tissue.mean() == pytest.approx(0, abs=1e-5)
        assert tissue.std(ddof=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("parallel", [2, 5])
def test_workers_make_what_one_process_makes(made: Made, tmp_path: Path, parallel: int) -> None:
    alone = cut(made.spec, tmp_path / "alone")
    together = cut(made.spec, tmp_path / "together", parallel)
    for one, other in zip(alone, together, strict=True):
        with h5py.File(one) as first, h5py.File(other) as second:
            assert set(first) == set(second)
            for name in first:
                assert first[name][:].tobytes() == second[name][:].tobytes()


def test_a_cloud_path_gets_the_warped_images_as_a_layer(made: Made, tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    job.write_text(json.dumps(made.spec))
    path = f"file://{tmp_path}/out/layer"
    make_dataset(MakeDatasetOptions(str(job), path, 1))
    layer = CloudVolume(path)
    assert layer.dtype == "float32"
    assert tuple(layer.chunk_size) == (12, 8, 1)
    assert tuple(layer.shape) == (12, 8, 6, 1)
    stored = np.moveaxis(np.asarray(layer[:, :, :])[..., 0], -1, 0)
    for index, boxes in enumerate(made.spec["pairs"]):
        for role, box in enumerate(boxes.values()):
            expected = expected_sample(made, tuple(box.values()))
            np.testing.assert_allclose(stored[2 * index + role], expected.warped, atol=1e-4)


def test_the_file_says_what_it_is(made: Made, tmp_path: Path) -> None:
    image_path, _ = cut(made.spec, tmp_path / "job")
    with h5py.File(image_path) as images:
        assert json.loads(images.attrs["spec"])["pairs"] == made.spec["pairs"]
        assert images.attrs["mip"] == 1
        assert images.attrs["anchor"] == "start"
        assert images["main"].compression == "gzip"
        assert images["main"].shuffle
        # Of the first source, 12 x 8 pixels: none but black and masked ones are missing from what is valid.
        source = expected_sample(made, (48, 0, 4))
        assert images["valid"][0, 0] == pytest.approx((source.image != 0).mean())


def test_a_suffix_marks_the_field_file(made: Made, tmp_path: Path) -> None:
    image_path, field_path = cut(made.spec, tmp_path / "job", suffix="test")
    assert image_path.exists()
    assert field_path.with_name("field_0_x48_y0_z4_MIP1_test.h5").exists()


@pytest.mark.parametrize("suffix", ["a/b", "../b", "/"])
def test_a_suffix_that_leads_to_another_folder_is_refused(suffix: str, made: Made, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--suffix .*: want a tag of the field file's name, without /"):
        cut(made.spec, tmp_path / "job", suffix=suffix)
    assert not list((tmp_path / "job").glob("*.h5"))


def test_a_box_shifted_out_of_its_volume_fails(made: Made, tmp_path: Path) -> None:
    far = np.full(made.field.shape, 4000, np.float32)
    made.spec["field"]["path"] = make_layer(tmp_path / "far", {2: far}, voxel_offset=OFFSET, chunk=(16, 16, 2))
    made.spec["field"]["reference"]["path"] = made.spec["field"]["path"]
    with pytest.raises(WorkError, match=r"wholly outside its volume"):
        cut(made.spec, tmp_path / "job")


def test_a_distinct_box_is_planned_once() -> None:
    a, b = (0, 0, 5), (0, 0, 4)
    starts = np.array([[a, b], [b, a]])
    assert box_tasks(starts, np.zeros((2, 2), bool)) == [
        BoxTask(b, (Slot(0, 1), Slot(1, 0))),
        BoxTask(a, (Slot(0, 0), Slot(1, 1))),
    ]
    assert box_tasks(starts, np.array([[True, False], [True, True]])) == [BoxTask(b, (Slot(0, 1),))]


def test_boxes_over_one_another_are_given_to_one_worker() -> None:
    starts = np.array([[(0, 0, z), (64, 0, z)] for z in range(8)])
    boxes = box_tasks(starts, np.zeros((8, 2), bool))
    runs = runs_of(boxes, workers=1)
    assert [{box.start[0] for box in run} for run in runs] == [{0}, {0}, {64}, {64}]
    assert [box for run in runs for box in run] == boxes
