"""review_dataset.py: what it says, the table, the contact sheet, and the folder that the page shows."""

import csv
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import Command
from PIL import Image
from small_jobs import (
    NAME,
    Json,
    changed,
    dataset_arguments,
    field_layer,
    fields_arguments,
    image_layer,
    put_json,
    put_main,
    put_older_fields,
    pyramid_of,
    spec_of,
)

from curation.annotations.viewer_states import read_link
from curation.datasets.partial import partial_path
from curation.quality import measure

Review = dict[str, Any]


def smooth(size: tuple[int, int], seed: int, amplitude: float = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(size[0] // 8, size[1] // 8)).astype(np.float32)
    return amplitude * coarse.repeat(8, axis=0).repeat(8, axis=1)


def some_pairs(count: int = 4, size: tuple[int, int] = (96, 64)) -> np.ndarray:
    """Pairs whose images are less and less alike, with a black corner."""
    pairs = np.stack([np.stack([smooth(size, 2 * i)] * 2) for i in range(count)])
    for i in range(count):
        pairs[i, 1] += 0.3 * i * smooth(size, 100 + i)
    pairs += np.float32(0.001)
    pairs[:, 0, :10, :20] = 0
    return pairs


def some_fields(count: int = 4, size: tuple[int, int] = (96, 64)) -> np.ndarray:
    return np.stack([np.stack([smooth(size, 50 + i, 0.4), smooth(size, 70 + i, 0.4)]) for i in range(count)])


def starts_of(count: int) -> np.ndarray:
    """Pair 2i + 1 is pair 2i the other way round."""
    first = np.arange(count) // 2 * 64
    starts = np.zeros((count, 2, 3), np.int64)
    starts[:, :, 0] = first[:, None]
    starts[:, 0, 2] = 5 - np.arange(count) % 2
    starts[:, 1, 2] = 4 + np.arange(count) % 2
    return starts


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """An image file and a field file as an older tool leaves them, with starts."""
    starts = starts_of(4)
    images = put_main(tmp_path / "images.h5", some_pairs(), 2, start=starts)
    return images, put_main(tmp_path / "field.h5", some_fields(), 2, start=starts)


def arguments_for(images: Path, *fields: Path) -> list[object]:
    return ["--image_path", images, *(["--field_path", *fields] if fields else []), "--parallel", 1]


def said_in(path: Path) -> tuple[list[Any], str]:
    """The arguments of the call that a script of the page consists of, and the name of the function."""
    text = path.read_text(encoding="utf-8")
    name, _, rest = text.partition("(")
    return json.loads(f"[{rest.rstrip().removesuffix(');')}]"), name


def data_of(folder: Path) -> Review:
    (data,), name = said_in(folder / "data.js")
    assert name == "review.load"
    return dict(data)


def detail_of(folder: Path, place: int) -> Review:
    (number, detail), name = said_in(folder / "pairs" / f"{place:06}" / "detail.js")
    assert (name, number) == ("review.detail", place)
    return dict(detail)


# The terminal and the table


def test_without_a_folder_a_table_and_histograms_are_printed(command: Command, files: tuple[Path, Path]) -> None:
    done = command("review_dataset.py", *arguments_for(*files))
    assert done.code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["pairs", "4"]
    assert any(line.startswith("least alike      pair ") for line in lines)
    for label in ("correlation before", "correlation after", "windows, worst after", "displacement, median", "section"):
        (line,) = [line for line in lines if line.startswith(label)]
        assert "|" in line
    (section,) = [line for line in lines if line.startswith("section")]
    assert section.split() == ["section", "4", f"|█{' ' * 38}█|".split()[0], "█|", "5"]


def test_numbers_are_those_of_measure(command: Command, files: tuple[Path, Path], tmp_path: Path) -> None:
    done = command("review_dataset.py", *arguments_for(*files), "--csv", tmp_path / "table.csv")
    assert done.code == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [row["pair"] for row in rows] == ["0", "1", "2", "3"]
    for place, row in enumerate(rows):
        expected = measure(*some_pairs()[place], some_fields()[place])
        for name, value in vars(expected).items():
            assert float(row[name]) == pytest.approx(value, rel=1e-5), name
        assert [int(row[f"target_{axis}"]) for axis in "xyz"] == starts_of(4)[place, 1].tolist()
        assert float(row["valid"]) == pytest.approx(1 - 200 / (96 * 64), rel=1e-5)


def test_the_numbers_of_several_fields_have_their_names(
    command: Command, files: tuple[Path, Path], tmp_path: Path
) -> None:
    images, field = files
    other = put_main(tmp_path / "other.h5", some_fields() * 0, 2, start=starts_of(4))
    done = command("review_dataset.py", *arguments_for(images, field, other), "--csv", tmp_path / "table.csv")
    assert done.code == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert float(rows[0]["displacement_max_other"]) == 0 < float(rows[0]["displacement_max_field"])
    assert "displacement, largest        0.00 px of all pairs" in done.stdout


def test_without_fields_the_numbers_before_are_told(command: Command, files: tuple[Path, Path]) -> None:
    done = command("review_dataset.py", *arguments_for(files[0]))
    assert done.code == 0, done.stderr
    assert "without a field (median of the pairs)" in done.stdout
    assert "after" not in done.stdout


# The folder


@pytest.fixture
def made(command: Command, files: tuple[Path, Path], tmp_path: Path) -> Path:
    done = command("review_dataset.py", *arguments_for(*files), "--dst_path", tmp_path / "review")
    assert done.code == 0, done.stderr
    return tmp_path / "review"


def test_the_folder_holds_the_page_and_what_it_shows(made: Path) -> None:
    data = data_of(made)
    assert (data["mip"], data["size"], data["picture"], data["fields"]) == (2, [96, 64], [96, 64], ["field"])
    assert data["columns"]["start"] == starts_of(4).tolist()
    assert (data["unfinished"], data["columns"]["state"]) == (0, [""] * 4)
    names = [measure["name"] for measure in data["measures"]]
    assert names[0] == "correlation_after" and {"valid", "section", "folded", "roughness"} <= set(names)
    for name, values in data["numbers"][0].items():
        percent = 100 if name == "folded" else 1
        expected = [percent * getattr(measure(*some_pairs()[i], some_fields()[i]), name) for i in range(4)]
        assert values == pytest.approx(expected, rel=1e-5)
    page = Path(__file__).parent.parent / "curation" / "review" / "page"
    for path in page.iterdir():
        assert (made / path.name).read_bytes() == path.read_bytes()


def test_pictures_show_x_to_the_right_and_mask_what_is_invalid(made: Path) -> None:
    own = made / "pairs" / "000001"
    source = np.asarray(Image.open(own / "source.jpg"), np.float32)
    assert source.shape == (64, 96)
    image = some_pairs()[1, 0].T
    assert np.corrcoef(source[25:].ravel(), image[25:].ravel())[0, 1] > 0.95
    mask = np.asarray(Image.open(own / "source_invalid.png").convert("RGBA"))[..., 3]
    np.testing.assert_array_equal(mask == 255, image == 0)
    assert not (own / "target_invalid.png").exists()
    assert detail_of(made, 1)["invalid"] == [True, False]


def test_a_pair_in_full_has_its_numbers_beside_it(made: Path) -> None:
    detail = detail_of(made, 2)
    (field,) = detail["fields"]
    assert (field["after"]["nx"], field["after"]["ny"]) == (3, 2)
    assert detail["before"]["values"][4] == pytest.approx(
        np.corrcoef(some_pairs()[2, 0, 32:64, 32:].ravel(), some_pairs()[2, 1, 32:64, 32:].ravel())[0, 1], abs=0.006
    )
    arrows = field["arrows"]
    at = arrows["step"] // 2 + 3 * arrows["step"], arrows["step"] // 2 + 2 * arrows["step"]
    vector = some_fields()[2][:, at[0], at[1]]
    entry = 2 * arrows["nx"] + 3
    assert (arrows["y"][entry], arrows["x"][entry]) == pytest.approx(vector.tolist(), abs=0.006)
    assert field["scale"] >= 0.4
    assert detail["rows"] == [["start (MIP-0 voxels)", "64, 0, 5", "64, 0, 4"]]


def test_large_pictures_are_made_smaller(command: Command, files: tuple[Path, Path], tmp_path: Path) -> None:
    done = command("review_dataset.py", *arguments_for(*files), "--dst_path", tmp_path / "r", "--size", 40)
    assert done.code == 0, done.stderr
    assert data_of(tmp_path / "r")["picture"] == [32, 22]
    for name in ("source.jpg", "pulled_0.jpg", "source_invalid.png"):
        assert Image.open(tmp_path / "r" / "pairs" / "000000" / name).size == (32, 22)


def test_folds_are_marked(command: Command, tmp_path: Path) -> None:
    fields = np.zeros((1, 2, 96, 64), np.float32)
    fields[0, 1, 40:50] = -np.arange(0, 20, 2, dtype=np.float32)[:, None]
    images = put_main(tmp_path / "images.h5", some_pairs(1))
    field = put_main(tmp_path / "field.h5", fields)
    done = command("review_dataset.py", *arguments_for(images, field), "--dst_path", tmp_path / "r")
    assert done.code == 0, done.stderr
    assert detail_of(tmp_path / "r", 0)["fields"][0]["folds"] == [[1, 0], [1, 1]]
    marked = np.asarray(Image.open(tmp_path / "r" / "pairs" / "000000" / "folds_0.png").convert("RGBA"))[..., 3] > 0
    assert np.flatnonzero(marked.any(axis=0)).tolist() == list(range(40, 49))
    assert not marked[-1].any() and marked[:-1, 40].all()


def test_the_size_is_told_before_anything_is_written(
    command: Command,
    refused: Callable[..., str],
    files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = command("review_dataset.py", *arguments_for(*files), "--dst_path", tmp_path / "r")
    first, *_, size = [line for line in done.stdout.splitlines() if "MiB" in line]
    assert first.startswith(f"{tmp_path / 'r'} will take about 0.") and size.startswith("size ")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    line = refused("review_dataset.py", *arguments_for(*files), "--dst_path", tmp_path / "other")
    assert "0.0 MiB are free there" in line
    assert not (tmp_path / "other").exists()


def test_workers_make_the_same_review(command: Command, tmp_path: Path) -> None:
    images = put_main(tmp_path / "images.h5", some_pairs(20))
    field = put_main(tmp_path / "field.h5", some_fields(20))
    made = []
    for parallel in (1, 2):
        folder = tmp_path / f"review_{parallel}"
        arguments = ["--image_path", images, "--field_path", field, "--parallel", parallel]
        assert command("review_dataset.py", *arguments, "--dst_path", folder).code == 0
        paths = [path for path in folder.rglob("*") if path.is_file()]
        made.append({path.relative_to(folder): path.read_bytes() for path in paths})
    assert made[0] == made[1] and len(made[0]) > 100


# What is there already


def test_a_review_is_replaced_only_if_that_is_asked_for(
    command: Command, refused: Callable[..., str], made: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    arguments = ["--dst_path", made]
    assert "--overwrite replaces it" in refused("review_dataset.py", *arguments_for(*files), *arguments)
    (made / "rejected.json").write_text("[]")
    fewer = put_main(tmp_path / "fewer.h5", some_pairs()[:2], 2)
    assert command("review_dataset.py", *arguments_for(fewer), *arguments, "--overwrite").code == 0
    assert sorted(path.name for path in (made / "pairs").iterdir()) == ["000000", "000001"]
    assert not (made / "pairs" / "000000" / "pulled_0.jpg").exists()
    assert (made / "rejected.json").read_text() == "[]"


def test_a_folder_of_something_else_is_left_alone(
    refused: Callable[..., str], files: tuple[Path, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    line = refused("review_dataset.py", *arguments_for(*files), "--dst_path", other, "--overwrite")
    assert "holds thesis.txt and is no review" in line
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


def test_a_folder_of_pairs_of_something_else_is_left_alone(
    refused: Callable[..., str], files: tuple[Path, Path], tmp_path: Path
) -> None:
    mine = tmp_path / "mine" / "pairs" / "000000"
    mine.mkdir(parents=True)
    (mine / "source.jpg").write_text("mine")
    for name, content in ((".gitignore", "*"), ("data.js", "let mine = 1;")):
        (tmp_path / "mine" / name).write_text(content)
        arguments = ["--dst_path", tmp_path / "mine", "--overwrite"]
        assert "is no review" in refused("review_dataset.py", *arguments_for(*files), *arguments)
    assert (mine / "source.jpg").read_text() == "mine"


def test_what_is_not_of_the_review_stays_in_its_folder(command: Command, made: Path, files: tuple[Path, Path]) -> None:
    (made / "pairs" / "mine").mkdir()
    assert command("review_dataset.py", *arguments_for(*files), "--dst_path", made, "--overwrite").code == 0
    assert (made / "pairs" / "mine").exists()


def test_a_review_that_was_killed_is_made_anew(
    command: Command, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*arguments_for(*files), "--dst_path", tmp_path / "r"]
    with monkeypatch.context() as patched:
        patched.setattr("curation.steps.review_dataset.finish_review", lambda *arguments: 1 / 0)
        assert command("review_dataset.py", *arguments).code == 1
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["data.js", "pairs"]
    assert command("review_dataset.py", *arguments).code == 0
    assert data_of(tmp_path / "r")["columns"]["place"] == [0, 1, 2, 3]


def test_no_table_and_no_sheet_replaces_a_dataset(
    refused: Callable[..., str], files: tuple[Path, Path], tmp_path: Path
) -> None:
    images, field = files
    before = field.read_bytes()
    for option in ("--csv", "--sheet"):
        assert "HDF5 file, which would be replaced" in refused(
            "review_dataset.py", *arguments_for(images, field), option, field
        )
    both = ["--csv", tmp_path / "both", "--sheet", tmp_path / "both"]
    assert "want two names" in refused("review_dataset.py", *arguments_for(images), *both)
    assert field.read_bytes() == before


def test_a_review_that_was_interrupted_is_made_anew(command: Command, made: Path, files: tuple[Path, Path]) -> None:
    (made / "index.html").unlink()
    assert command("review_dataset.py", *arguments_for(*files), "--dst_path", made).code == 0
    assert (made / "index.html").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda files: ["--image_path", "none.h5"], "none.h5: no such file"),
        (lambda files: ["--image_path", files[0], "--field_path", files[0].parent], "no shards in it"),
        (lambda files: ["--image_path", files[0], "--size", 0], None),
        (lambda files: ["--image_path", files[0], "--size", 65501], None),
        (lambda files: ["--image_path", files[0], "--sheet", "sheet.png", "--sheet_rows", 201], None),
        (lambda files: ["--image_path", files[0], "--sheet", files[0].parent], "is a folder"),
        (lambda files: ["--image_path", files[0], "--csv", "none/deeper/table.csv"], "no such folder"),
    ],
)
def test_wrong_arguments_are_one_line(
    command: Command, files: tuple[Path, Path], change: Callable[[Any], list[object]], told: str | None
) -> None:
    done = command("review_dataset.py", *change(files), "--parallel", 1)
    assert done.code == 2 and done.stdout == ""
    if told is not None:
        assert done.stderr.count("\n") == 1
        assert told in done.stderr


def test_files_that_do_not_belong_together_are_refused(
    refused: Callable[..., str], files: tuple[Path, Path], tmp_path: Path
) -> None:
    images, _ = files
    finer = put_main(tmp_path / "finer.h5", some_fields(), 1, start=starts_of(4))
    assert "want the same MIP" in refused("review_dataset.py", *arguments_for(images, finer))
    other = put_main(tmp_path / "other.h5", some_fields()[:, :, :48], 2, start=starts_of(4))
    assert "want the same shape" in refused("review_dataset.py", *arguments_for(images, other))
    elsewhere = put_main(tmp_path / "elsewhere.h5", some_fields(), 2, start=starts_of(4) + 999)
    assert "no pair is there yet with all of its fields" in refused(
        "review_dataset.py", *arguments_for(images, elsewhere)
    )


# Files of all kinds


def test_files_of_the_older_tool_are_reviewed(command: Command, tmp_path: Path) -> None:
    images = put_main(tmp_path / "images.h5", some_pairs(), None)
    put_older_fields(tmp_path / "fields.h5", some_fields())
    arguments = arguments_for(images, tmp_path / "fields.h5")
    done = command("review_dataset.py", *arguments, "--dst_path", tmp_path / "r", "--sheet", tmp_path / "s.png")
    assert done.code == 0, done.stderr
    data = data_of(tmp_path / "r")
    assert data["mip"] is None and data["columns"]["start"] is None
    assert "does not say which volume" in data["no_link"]
    assert detail_of(tmp_path / "r", 0)["link"] is None


def test_images_without_tissue_and_fields_of_nan_are_shown(command: Command, tmp_path: Path) -> None:
    pairs, fields = some_pairs(), some_fields()
    pairs[0] = 0
    pairs[1, 1] = 7
    fields[2] = np.nan
    fields[3, 0, 5:, 5:] = np.inf
    images, field = put_main(tmp_path / "images.h5", pairs), put_main(tmp_path / "field.h5", fields)
    arguments = arguments_for(images, field)
    done = command("review_dataset.py", *arguments, "--dst_path", tmp_path / "r", "--sheet", tmp_path / "s.png")
    assert done.code == 0, done.stderr
    data = data_of(tmp_path / "r")
    assert data["numbers"][0]["correlation_after"][:3] == [None, None, None]
    assert data["general"]["valid"][0] == 0
    assert detail_of(tmp_path / "r", 2)["fields"][0]["arrows"]["x"][0] is None


def test_values_at_the_ends_of_float32_are_shown(command: Command, tmp_path: Path) -> None:
    pairs, fields = some_pairs(5).astype(np.float64), some_fields(5).astype(np.float64)
    pairs[0] *= 1e300  # older files may be float64
    pairs[1] *= 1e38
    pairs[2] *= 1e-42
    pairs[3] = 1e-45
    fields[0] *= 1e30
    fields[1] *= 1e38
    fields[2] *= 1e-44
    fields[3] = 3e38
    images, field = put_main(tmp_path / "images.h5", pairs), put_main(tmp_path / "field.h5", fields)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = command("review_dataset.py", *arguments_for(images, field), "--dst_path", tmp_path / "r")
    assert done.code == 0, done.stderr
    # It is as visible as an image of usual values.
    assert np.asarray(Image.open(tmp_path / "r" / "pairs" / "000001" / "target.jpg")).std() > 40


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1), (7, 5), (200, 30)])
def test_images_of_unusual_sizes_are_shown(command: Command, tmp_path: Path, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    images = put_main(tmp_path / "images.h5", rng.normal(size=(2, 2, *size)).astype(np.float32))
    field = put_main(tmp_path / "field.h5", rng.normal(size=(2, 2, *size)).astype(np.float32))
    arguments = [*arguments_for(images, field), "--dst_path", tmp_path / "r", "--sheet", tmp_path / "s.png"]
    done = command("review_dataset.py", *arguments, "--size", 100)
    assert done.code == 0, done.stderr
    with Image.open(tmp_path / "r" / "pairs" / "000000" / "pulled_0.jpg") as picture:
        assert list(picture.size) == data_of(tmp_path / "r")["picture"]


def test_a_name_that_is_not_utf_8_is_shown(command: Command, files: tuple[Path, Path], tmp_path: Path) -> None:
    odd = files[0].rename(tmp_path / os.fsdecode(b"odd \xff.h5"))
    arguments = ["--dst_path", tmp_path / "r", "--sheet", tmp_path / "s.png", "--csv", tmp_path / "t.csv"]
    done = command("review_dataset.py", *arguments_for(odd, files[1]), *arguments)
    assert done.code == 0, done.stderr
    assert data_of(tmp_path / "r")["name"] == r"odd \xff.h5"


def test_a_damaged_pair_is_named(command: Command, dataset: Path, tmp_path: Path) -> None:
    with h5py.File(dataset / NAME) as file:
        chunk = file["main"].id.get_chunk_info_by_coord((0, 1, 0, 0))
    content = bytearray((dataset / NAME).read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    (dataset / NAME).write_bytes(content)
    for arguments in ([], ["--dst_path", tmp_path / "r"]):
        done = command("review_dataset.py", *arguments_for(dataset / NAME), *arguments)
        assert done.code == 1
        assert f"{dataset / NAME}: pair 0 or its field cannot be read or shown" in done.stderr
    assert not (tmp_path / "r").exists()


def test_a_folder_of_shards_is_reviewed_as_far_as_it_is_there(command: Command, tmp_path: Path) -> None:
    images = put_main(tmp_path / "images.h5", some_pairs())
    pyramid_of(tmp_path)
    prior = put_main(tmp_path / "prior.h5", some_fields())
    assert command("generate_fields.py", *fields_arguments(tmp_path, images, prior)).code == 0
    shards = tmp_path / "shards"
    whole = command("review_dataset.py", *arguments_for(images, shards), "--csv", tmp_path / "whole.csv")
    assert whole.code == 0, whole.stderr
    (shards / "1_2.h5").unlink()
    part = command("review_dataset.py", *arguments_for(images, shards), "--csv", tmp_path / "part.csv")
    assert "3; 1 more are not there yet, or lack a field" in part.stdout
    lines = (tmp_path / "whole.csv").read_text().splitlines()
    assert (tmp_path / "part.csv").read_text().splitlines() == [*lines[:2], *lines[3:]]
    assert len(lines) == 5


@contextmanager
def open_for_writing(path: Path) -> Iterator[None]:
    """Another process holds the file open, as its writer does."""
    code = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"
    writer = subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if writer.stdout is not None:
            writer.stdout.readline()
        yield
    finally:
        writer.communicate()


@pytest.fixture
def dataset(command: Command, tmp_path: Path) -> Path:
    """A dataset of three pairs with a field and notes."""
    spec = spec_of(image_layer(tmp_path), field_layer(tmp_path))
    noted: Json = changed(
        spec, {("pairs", 0, "note"): {"description": '<script>alert("x")</script>' * 40, "tags": ["fold", "<b>"]}}
    )
    path = put_json(tmp_path / "spec.json", noted)
    assert command("make_dataset.py", *dataset_arguments(path, tmp_path / "out")).code == 0
    return tmp_path / "out"


def test_a_dataset_that_is_still_being_written_is_reviewed_as_far_as_it_is_there(
    command: Command, dataset: Path, tmp_path: Path
) -> None:
    for path in (dataset / NAME, dataset / f"field_0_{NAME}"):
        with h5py.File(path, "r+") as file:
            file["checksum"][1, 0] = 0
            file["translation"][1] = 0 if path.name == NAME else 999  # as it is before it is flushed
        path.rename(partial_path(path))
    arguments = arguments_for(dataset / NAME, dataset / f"field_0_{NAME}")
    with open_for_writing(partial_path(dataset / NAME)), open_for_writing(partial_path(dataset / f"field_0_{NAME}")):
        done = command("review_dataset.py", *arguments, "--dst_path", tmp_path / "r")
    assert done.code == 0, done.stderr
    data = data_of(tmp_path / "r")
    assert (data["columns"]["pair"], data["unfinished"]) == ([0, 2], 1)


def test_a_dataset_of_which_nothing_is_done_yet_is_refused(refused: Callable[..., str], dataset: Path) -> None:
    for path in (dataset / NAME, dataset / f"field_0_{NAME}"):
        with h5py.File(path, "r+") as file:
            file["checksum"][...] = 0
        path.rename(partial_path(path))
    line = refused("review_dataset.py", *arguments_for(dataset / NAME, dataset / f"field_0_{NAME}"))
    assert "no pair is there yet with all of its fields" in line


def test_notes_facts_and_a_link_stand_beside_a_pair(command: Command, dataset: Path, tmp_path: Path) -> None:
    arguments = arguments_for(dataset / NAME, dataset / f"field_0_{NAME}")
    done = command("review_dataset.py", *arguments, "--dst_path", tmp_path / "r")
    assert done.code == 0, done.stderr
    data = data_of(tmp_path / "r")
    hostile = '<script>alert("x")</script>'
    assert data["columns"]["tags"] == [["fold", "<b>"], [], []]
    assert data["columns"]["note"][0] == (hostile * 40)[:300]
    assert data["serve"][0].startswith("python -c ")
    detail = detail_of(tmp_path / "r", 0)
    assert detail["note"] == hostile * 40
    rows = {name: of for name, *of in detail["rows"]}
    assert rows["translation (MIP-0 voxels)"] == ["8, 4", "8, 4"]
    assert rows["valid area"] == ["100.0%", "100.0%"]
    with h5py.File(dataset / NAME) as file:
        for place in range(3):
            annotations = read_link(detail_of(tmp_path / "r", place)["link"])
            assert len(annotations.shapes) == 1
            np.testing.assert_array_equal(np.floor(annotations.coordinates[0, 0]), file["start"][place, 0])


def test_a_dataset_without_its_volume_has_no_links(command: Command, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "image" / "info").unlink()
    done = command("review_dataset.py", *arguments_for(dataset / NAME), "--dst_path", tmp_path / "r")
    assert done.code == 0, done.stderr
    assert "no links         the voxel size of the volume cannot be read" in done.stdout
    assert detail_of(tmp_path / "r", 0)["link"] is None


# The contact sheet


@pytest.mark.parametrize("order", ["worst", "best", "spread"])
def test_the_sheet_shows_pairs_in_order(
    command: Command, files: tuple[Path, Path], tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def draw(title: str, headings: Any, rows: Any, scale: Any) -> Image.Image:
        drawn.extend(row.lines[0] for row in rows)
        return real(title, headings, rows, scale)

    from curation.steps import review_outputs

    real = review_outputs.draw_sheet
    monkeypatch.setattr(review_outputs, "draw_sheet", draw)
    sheet = tmp_path / "sheet.png"
    arguments = ["--sheet", sheet, "--sheet_rows", 3, "--sheet_order", order]
    done = command("review_dataset.py", *arguments_for(*files), *arguments)
    assert done.code == 0, done.stderr
    after = [measure(*some_pairs()[i], some_fields()[i]).correlation_after for i in range(4)]
    worst = np.argsort(after)
    wanted = {"worst": worst[:3], "best": worst[::-1][:3], "spread": worst[[0, 1, 3]]}[order]
    assert drawn == [f"pair {place}" for place in wanted]
    width, height = Image.open(sheet).size
    assert width > 4 * 96 and height > 3 * 64


def test_the_bytes_of_a_sheet_are_a_png(command: Command, files: tuple[Path, Path], tmp_path: Path) -> None:
    assert command("review_dataset.py", *arguments_for(files[0]), "--sheet", tmp_path / "s.png").code == 0
    with Image.open(io.BytesIO((tmp_path / "s.png").read_bytes())) as picture:
        assert picture.format == "PNG"
        colours = picture.convert("RGB").getcolors(1 << 24)
        assert colours is not None and len(colours) > 100
