"""--update of make_dataset and download_image: the boxes of earlier files that are still right are kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from commands import Command
from small_jobs import (
    NAME,
    Json,
    Refused,
    contents,
    dataset_arguments,
    differing,
    field_layer,
    image_layer,
    leftovers,
    made_folder,
    pair,
    put_json,
    spec_of,
    stretch_arguments,
    voxels,
)
from volumes_made import make_layer

from curation.volumes.box_reader import BoxReader

FIELD = f"field_0_{NAME}"
OLD = [pair(0, 0, 5), pair(16, 32, 4), pair(64, 64, 3)]
MORE = pair(80, 16, 2)

Read = list[tuple[int, int, int]]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """The boxes that were read, by their starts, of everything that the test runs."""
    starts: Read = []
    original = BoxReader.read

    def noted(reader: BoxReader, start: tuple[int, int, int]) -> Any:
        starts.append(start)
        return original(reader, start)

    monkeypatch.setattr(BoxReader, "read", noted)
    return starts


@pytest.fixture
def spec(tmp_path: Path) -> Json:
    """A spec with a field, of the pairs OLD."""
    return spec_of(image_layer(tmp_path), field_layer(tmp_path), OLD)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return made_folder(tmp_path / "out")


Make = Callable[..., str]


@pytest.fixture
def make(command: Command, tmp_path: Path, out: Path) -> Make:
    """Run make_dataset on a spec, into `out` unless a folder is given; what it prints."""

    def run(spec: Json, *more: object, folder: Path = out) -> str:
        done = command("make_dataset.py", *dataset_arguments(put_json(tmp_path / "spec.json", spec), folder, *more))
        assert done.code == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def as_from_nothing(make: Make, out: Path, tmp_path: Path) -> Callable[..., None]:
    """Compare the files in `out` with those that a run makes in an empty folder, byte for byte of what they hold."""

    def check(spec: Json, *more: object) -> None:
        fresh = made_folder(tmp_path / "fresh")
        make(spec, *more, folder=fresh)
        names = {path.name for path in fresh.iterdir()}
        assert {path.name for path in out.iterdir()} == names
        assert [fault for name in names for fault in differing(out / name, fresh / name)] == []

    return check


def starts_of(pairs: list[Json]) -> Read:
    return sorted({tuple(box[f"{axis}_start"] for axis in "xyz") for each in pairs for box in each.values()})  # type: ignore[misc]


@pytest.mark.parametrize(
    ("pairs", "kept"),
    [
        ([OLD[0], MORE, *OLD[1:]], 6),
        ([OLD[0], OLD[2]], 4),
        ([OLD[0], OLD[2], OLD[1]], 6),
        ([OLD[0], MORE, OLD[2], OLD[0]], 6),
    ],
    ids=["added", "removed", "reordered", "all of it, and one repeated"],
)
def test_only_boxes_that_are_new_are_cut(
    pairs: list[Json], kept: int, spec: Json, make: Make, as_from_nothing: Callable[..., None], read: Read
) -> None:
    make(spec)
    read.clear()
    text = make({**spec, "pairs": pairs}, "--update")
    assert sorted(read) == (starts_of([MORE]) if MORE in pairs else [])
    assert f"kept             {kept} of {2 * len(pairs)} images, as they were stored" in text
    as_from_nothing({**spec, "pairs": pairs})


def test_another_first_pair_names_the_files_anew_and_still_keeps_boxes(
    spec: Json, make: Make, read: Read, out: Path
) -> None:
    make(spec)
    read.clear()
    text = make({**spec, "pairs": [MORE, *OLD]}, "--update")
    assert sorted(read) == starts_of([MORE])
    assert (out / "x80_y16_z2_MIP0.h5").exists()
    assert f"left there       {out}/{FIELD}, {out}/{NAME}: named for another first pair" in text


def test_a_name_of_ones_own_stays_whatever_the_first_pair_is(
    spec: Json, make: Make, as_from_nothing: Callable[..., None], out: Path
) -> None:
    make(spec, "--name", "train")
    assert sorted(path.name for path in out.iterdir()) == ["field_0_train.h5", "train.h5"]
    make({**spec, "pairs": [MORE, *OLD]}, "--name", "train", "--update")
    as_from_nothing({**spec, "pairs": [MORE, *OLD]}, "--name", "train")


@pytest.mark.parametrize("name", ["a/b", "train.h5", "", ".hidden"])
def test_a_name_that_is_none_is_refused(name: str, spec: Json, refused: Refused, out: Path, tmp_path: Path) -> None:
    arguments = dataset_arguments(put_json(tmp_path / "spec.json", spec), out, "--name", name)
    assert f"--name {name}: want a file's name" in refused("make_dataset.py", *arguments)


@pytest.mark.parametrize("change", [{"x_size": 16}, {"max_mip": 3}], ids=["size", "level"])
def test_nothing_is_kept_of_another_spec(
    change: Json, spec: Json, make: Make, as_from_nothing: Callable[..., None], read: Read
) -> None:
    make(spec)
    read.clear()
    assert "kept " not in make({**spec, **change}, "--update")
    assert sorted(read) == starts_of(OLD)
    as_from_nothing({**spec, **change})


@pytest.mark.parametrize("more", [["--field_decimals", "2"], ["--missing", "fail"]])
def test_nothing_is_kept_of_other_options(
    more: list[str], spec: Json, make: Make, as_from_nothing: Callable[..., None], read: Read
) -> None:
    make(spec)
    read.clear()
    make(spec, *more, "--update")
    assert sorted(read) == starts_of(OLD)
    as_from_nothing(spec, *more)


def test_pairs_that_min_valid_left_out_come_back_with_a_lower_one(
    spec: Json, make: Make, as_from_nothing: Callable[..., None], read: Read
) -> None:
    spec = {**spec, "pairs": [*OLD, pair(112, 64, 5)]}  # half of which is outside
    make(spec, "--min_valid", 0.9)
    read.clear()
    make(spec, "--min_valid", 0.1, "--update")
    assert sorted(read) == starts_of([pair(112, 64, 5)])
    as_from_nothing(spec, "--min_valid", 0.1)


def test_a_damaged_box_is_cut_again(
    spec: Json, make: Make, as_from_nothing: Callable[..., None], read: Read, out: Path
) -> None:
    make(spec)
    with h5py.File(out / NAME) as file:
        place = file["main"].id.get_chunk_info_by_coord((1, 0, 0, 0))
    content = bytearray((out / NAME).read_bytes())
    content[place.byte_offset + place.size // 2] ^= 1
    (out / NAME).write_bytes(content)
    read.clear()
    make({**spec, "pairs": OLD[:2]}, "--update")
    assert read == [(16, 32, 4)]
    as_from_nothing({**spec, "pairs": OLD[:2]})


def test_without_new_boxes_no_volume_is_opened(spec: Json, make: Make, tmp_path: Path, out: Path) -> None:
    make(spec)
    (tmp_path / "image").rename(tmp_path / "away")
    make({**spec, "pairs": OLD[:2]}, "--update")
    with h5py.File(out / NAME) as file:
        assert len(file["main"]) == 2


def test_the_plan_of_an_update_counts_what_is_left(spec: Json, make: Make, out: Path) -> None:
    make(spec)
    before = {path.name: contents(path) for path in out.iterdir()}
    text = make({**spec, "pairs": [*OLD, MORE]}, "--update", "--dry_run")
    assert "kept             6 of 8 images, as they are stored\ndistinct boxes   2, " in text
    assert {path.name: contents(path) for path in out.iterdir()} == before


@pytest.mark.parametrize("option", ["--update", "--overwrite"])
def test_work_that_was_begun_otherwise_is_given_up_all_of_it(
    option: str,
    spec: Json,
    make: Make,
    as_from_nothing: Callable[..., None],
    command: Command,
    out: Path,
    tmp_path: Path,
) -> None:
    path = put_json(tmp_path / "spec.json", spec)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("curation.steps.box_job.BoxFiles.put", interrupted)
        assert command("make_dataset.py", *dataset_arguments(path, out)).code == 130
    assert len(leftovers(out)) == 2
    make({**spec, "pairs": OLD[:2]}, option)
    as_from_nothing({**spec, "pairs": OLD[:2]})


def test_a_longer_stretch_keeps_the_sections_of_the_shorter(
    command: Command, read: Read, out: Path, tmp_path: Path
) -> None:
    image = image_layer(tmp_path)
    assert command("download_image.py", *stretch_arguments(image, out)).code == 0
    again = command("download_image.py", *stretch_arguments(image, out))
    assert "3, done already" in again.stdout
    read.clear()
    done = command("download_image.py", *stretch_arguments(image, out, z_end=6), "--update")
    assert done.code == 0, done.stderr
    assert read == [(16, 32, 4), (16, 32, 5)]
    fresh = made_folder(tmp_path / "fresh")
    assert command("download_image.py", *stretch_arguments(image, fresh, z_end=6)).code == 0
    (name,) = [path.name for path in fresh.iterdir()]
    assert differing(out / name, fresh / name) == []


@pytest.mark.parametrize("option", [[], ["--update"]])
def test_a_level_that_is_finished_is_neither_planned_nor_read_again(
    option: list[str], command: Command, read: Read, out: Path, tmp_path: Path
) -> None:
    image = make_layer(tmp_path / "image", {0: voxels(), 1: voxels()[::2, ::2]})
    assert command("download_image.py", *stretch_arguments(image, out)).code == 0
    read.clear()
    both = [*stretch_arguments(image, out, mips="0 1", patch_sizes="32 16"), *option]
    planned = command("download_image.py", *both, "--dry_run")
    assert "kept             6 of 12 images, as they are stored\ndistinct boxes   4, " in planned.stdout
    assert command("download_image.py", *both).code == 0
    assert len(read) == 4
