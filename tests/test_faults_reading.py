"""Faults 21 to 28 of docs/faults.md: chunks missing, refused, damaged or late, and volumes of something else."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import Command
from layers_served import Answer, Server, served
from small_jobs import (
    NAME,
    SHAPE,
    Refused,
    dataset_arguments,
    field_layer,
    image_layer,
    made_folder,
    put_json,
    spec_of,
    stretch_arguments,
    voxels,
)
from volumes_made import chunk_file, make_layer

from curation.stores import ATTEMPTS

CHUNK = "4_4_40/0-64_0-64_5-6"  # the first that the job reads of its first pair's source
MADE = "out/" + NAME


@pytest.fixture
def image(tmp_path: Path) -> str:
    return image_layer(tmp_path, compress=False)


@pytest.fixture
def server(image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The image, served."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served(tmp_path / "image") as server:
        yield server


Arguments = Callable[..., list[object]]


@pytest.fixture
def job(tmp_path: Path) -> Arguments:
    """make_dataset.py's arguments for a spec over an image and perhaps a field."""

    def arguments(image: str, field: str | None = None, *more: object) -> list[object]:
        spec = put_json(tmp_path / "spec.json", spec_of(image, field))
        return dataset_arguments(spec, made_folder(tmp_path / "out"), *more)

    return arguments


def test_21_a_chunk_not_found_is_black_and_counted(
    image: str, job: Arguments, command: Command, tmp_path: Path
) -> None:
    chunk_file(tmp_path / "image", 0, (0, 0, 5)).unlink()
    done = command("make_dataset.py", *job(image))
    assert done.code == 0
    assert f"missing chunks   1 of 6 of image {image} at MIP 0; read as black (pair 0 source)\n" in done.stdout
    with h5py.File(tmp_path / MADE) as file:
        assert not file["main"][0, 0].any()
        assert file["missing_chunks"][:].tolist() == [[1, 0], [0, 0], [0, 0]]


def test_21_a_chunk_not_found_fails_where_that_is_asked_for(
    image: str, job: Arguments, failed: Refused, command: Command, tmp_path: Path
) -> None:
    file = chunk_file(tmp_path / "image", 0, (0, 0, 5))
    file.rename(tmp_path / "away")
    assert "chunk at (0, 0, 5)" in failed("make_dataset.py", *job(image, None, "--missing", "fail"))
    assert not (tmp_path / MADE).exists()
    (tmp_path / "away").rename(file)
    assert command("make_dataset.py", *job(image, None, "--missing", "fail")).code == 0


@pytest.mark.parametrize("missing", [[], ["--missing", "fail"]])
@pytest.mark.parametrize("levels", [{1: voxels()[::2, ::2]}, {1: voxels()[::2, ::2], 3: voxels()[::8, ::8]}])
def test_21_an_image_of_which_no_chunk_is_there(
    levels: dict[int, np.ndarray], missing: list[str], job: Arguments, refused: Refused, tmp_path: Path
) -> None:
    image = make_layer(tmp_path / "coarse", levels)
    line = refused("make_dataset.py", *job(image, None, *missing))
    mips = ", ".join(map(str, levels))
    assert "image: " in line
    assert line.endswith(
        f"coarse at MIP 0 holds no data: of the chunks asked for none is there; there are some at MIP {mips}; "
        "--missing black takes them for black"
    )
    assert list((tmp_path / "out").iterdir()) == []


def test_21_a_field_of_which_no_chunk_is_there(image: str, job: Arguments, refused: Refused, tmp_path: Path) -> None:
    field = field_layer(tmp_path)
    for file in (tmp_path / "field").glob("*/*"):
        file.unlink()
    line = refused("make_dataset.py", *job(image, field))
    assert "field: " in line
    assert line.endswith(
        "field at MIP 2 holds no data: of the chunks asked for none is there; nor is there one at another MIP; "
        "--missing black takes them for black"
    )


def test_21_an_image_of_which_no_chunk_is_there_over_http(
    server: Server, job: Arguments, refused: Refused, tmp_path: Path
) -> None:
    server.otherwise = lambda file, nth: Answer(404 if "_40/" in file else 200)
    assert "holds no data" in refused("make_dataset.py", *job(server.url))


def test_21_boxes_of_which_no_chunk_is_there_in_a_volume_that_holds_others(
    image: str, job: Arguments, command: Command, tmp_path: Path
) -> None:
    for file in (tmp_path / "image").glob("*/*_[1-5]-*"):
        file.unlink()
    done = command("make_dataset.py", *job(image))
    assert done.code == 0, done.stderr
    assert f"missing chunks   6 of 6 of image {image} at MIP 0; read as black" in done.stdout


def test_21_an_image_of_which_no_chunk_is_there_is_black_where_that_is_said(
    image: str, job: Arguments, command: Command, tmp_path: Path
) -> None:
    for file in (tmp_path / "image").glob("*/*_*"):
        file.unlink()
    done = command("make_dataset.py", *job(image, None, "--missing", "black"))
    assert done.code == 0, done.stderr
    assert f"missing chunks   6 of 6 of image {image} at MIP 0; read as black" in done.stdout
    assert re.search(r"^valid +0.00% of the area$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("fault", [Answer(503), Answer(reset=True), Answer(sent=0.5)])
def test_22_a_passing_failure_is_waited_out(
    fault: Answer, server: Server, job: Arguments, command: Command, waits: list[float]
) -> None:
    server.answers[CHUNK] = [fault, fault]
    done = command("make_dataset.py", *job(server.url))
    assert (done.code, len(waits)) == (0, 2), done.stderr
    assert "retries          2" in done.stdout
    assert "missing chunks   0" in done.stdout


def test_22_a_lasting_failure_names_the_chunk_and_the_same_command_resumes(
    server: Server, job: Arguments, failed: Refused, command: Command, waits: list[float], tmp_path: Path
) -> None:
    server.answers[CHUNK] = [Answer(503)] * 1000
    line = failed("make_dataset.py", *job(server.url, None, "--retry_for", 100))
    assert "chunk at (0, 0, 5)" in line
    assert "503" in line
    assert sum(waits) == pytest.approx(100)
    assert not (tmp_path / MADE).exists()
    server.answers.clear()
    assert command("make_dataset.py", *job(server.url)).code == 0


@pytest.mark.parametrize("status", [401, 403])
def test_23_a_refusal_is_not_tried_again(
    status: int, server: Server, job: Arguments, failed: Refused, waits: list[float]
) -> None:
    server.answers[CHUNK] = [Answer(status)] * ATTEMPTS
    assert "chunk at (0, 0, 5): access was denied" in failed("make_dataset.py", *job(server.url))
    assert (server.times_asked(CHUNK), waits) == (1, [])


@pytest.mark.parametrize("kept", [0, 100])
def test_24_a_truncated_chunk_is_tried_again_and_never_black(
    kept: int, image: str, job: Arguments, failed: Refused, waits: list[float], tmp_path: Path
) -> None:
    file = chunk_file(tmp_path / "image", 0, (0, 0, 5))
    file.write_bytes(file.read_bytes()[:kept])
    assert "chunk at (0, 0, 5)" in failed("make_dataset.py", *job(image))
    assert len(waits) == ATTEMPTS - 1
    assert not (tmp_path / MADE).exists()


@pytest.mark.parametrize("torn", [lambda whole: whole + bytes(4), lambda whole: whole[: len(whole) // 2] + bytes(99)])
def test_24_a_torn_chunk_is_tried_again_and_never_black(
    torn: Callable[[bytes], bytes], job: Arguments, failed: Refused, waits: list[float], tmp_path: Path
) -> None:
    image = image_layer(tmp_path, compress="gzip")
    file = chunk_file(tmp_path / "image", 0, (0, 0, 5))
    file.write_bytes(torn(file.read_bytes()))
    assert "chunk at (0, 0, 5): DamagedError: " in failed("make_dataset.py", *job(image))
    assert len(waits) == ATTEMPTS - 1
    assert not (tmp_path / MADE).exists()


def test_25_an_image_of_several_channels(job: Arguments, refused: Refused, tmp_path: Path) -> None:
    image = make_layer(tmp_path / "two", {0: np.stack([voxels()] * 2, axis=-1)})
    assert "two at MIP 0 has 2 channels: want 1" in refused("make_dataset.py", *job(image))


@pytest.mark.parametrize(
    ("dtype", "channels", "said"), [(np.float32, 1, "has 1 channels"), (np.uint8, 2, "holds uint8")]
)
def test_25_a_field_that_is_none(
    dtype: type, channels: int, said: str, image: str, job: Arguments, refused: Refused, tmp_path: Path
) -> None:
    field = field_layer(tmp_path, np.ones((32, 32, SHAPE[2], channels), dtype))
    line = refused("make_dataset.py", *job(image, field))
    assert "field: " in line
    assert said in line
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("grey", [0, 7])
def test_26_zero_variance_is_named_and_no_nan_written(
    grey: int, job: Arguments, command: Command, tmp_path: Path
) -> None:
    values = voxels()
    values[:, :, 5] = grey
    done = command("make_dataset.py", *job(make_layer(tmp_path / "flat", {0: values})))
    assert "zero variance    1 (pair 0 source)" in done.stdout
    with h5py.File(tmp_path / MADE) as file:
        assert np.isfinite(file["main"][:]).all()
        assert not file["main"][0, 0].any()


def test_27_a_field_without_a_finite_vector_is_named(
    image: str, job: Arguments, command: Command, tmp_path: Path
) -> None:
    vectors = np.zeros((32, 32, SHAPE[2], 2), np.float32)
    vectors[:, :, 4] = np.nan
    done = command("make_dataset.py", *job(image, field_layer(tmp_path, vectors)))
    assert done.code == 0
    assert "no vector        2 (pair 0 target, pair 1 source)" in done.stdout
    with h5py.File(tmp_path / MADE) as file:
        assert np.isfinite(file["main"][:]).all()


def test_28_volumes_of_two_resolutions(image: str, job: Arguments, refused: Refused, tmp_path: Path) -> None:
    field = make_layer(tmp_path / "far", {2: np.zeros((32, 32, 6, 2), np.float32)}, resolution=(8, 8, 40))
    line = refused("make_dataset.py", *job(image, field))
    assert "8 x 8 x 40 nm" in line
    assert "4 x 4 x 40 nm" in line


@pytest.fixture
def isotropic(tmp_path: Path) -> str:
    """A volume whose levels halve z too: a grey value a section, those of MIP 1 of two sections each."""
    sections = np.arange(10, 130, 10, dtype=np.uint8)
    fine = np.broadcast_to(sections, (128, 128, 12)).copy()
    return make_layer(tmp_path / "cubes", {0: fine, 1: fine[::2, ::2, ::2]}, (8, 8, 8), factor=(2, 2, 2))


REFUSED = "cubes at MIP 1 has voxels of 16 x 16 x 16 nm"


@pytest.mark.parametrize("what", ["image", "reference", "mask", "field", "field reference"])
def test_28_a_volume_whose_levels_are_not_halved_in_x_and_y_alone(
    what: str, isotropic: str, image: str, job: Arguments, refused: Refused, tmp_path: Path
) -> None:
    spec = spec_of(image)
    at_mip_1 = {"path": isotropic, "src_mip": 1}
    reference = {**at_mip_1, "dst_mip": 1, "x_size": 16, "y_size": 16}
    if what == "image":
        spec["image"] = at_mip_1
    elif what == "reference":
        spec["image"]["reference"] = reference
    elif what == "mask":
        spec["masks"] = [{**at_mip_1, "threshold": 1}]
    elif what == "field":
        spec["field"] = at_mip_1
    else:
        spec["field"] = {"path": field_layer(tmp_path), "src_mip": 2, "reference": reference}
    path = put_json(tmp_path / "cubes.json", {**spec, "dst_mip": 1})
    for destination in (tmp_path / "out", f"file://{tmp_path}/layer"):
        made_folder(tmp_path / "out")
        assert REFUSED in refused("make_dataset.py", *dataset_arguments(path, destination))
    assert not (tmp_path / "layer").exists()


def test_28_a_stretch_or_its_defects_whose_levels_are_not_halved_in_x_and_y_alone(
    isotropic: str, refused: Refused, tmp_path: Path
) -> None:
    image = make_layer(tmp_path / "image", {0: voxels(), 1: voxels()[::2, ::2]})
    defects = {"cv_path_defects": isotropic, "mask_val": 1}
    assert REFUSED in refused("download_image.py", *stretch_arguments(isotropic, tmp_path, mips=1))
    assert REFUSED in refused("download_image.py", *stretch_arguments(image, tmp_path, mips=1, **defects))
