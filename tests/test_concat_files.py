"""concat_fields.py --files: finished files joined into one, by stored bytes, each pair once."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import Command
from small_jobs import (
    Json,
    dataset_arguments,
    field_layer,
    fields_arguments,
    image_layer,
    pair,
    put_json,
    put_main,
    pyramid_of,
    spec_of,
)

from curation.datasets.facts import BOX_FACTS
from curation.steps.verify_dataset import faults

FIRST = [pair(0, 0, 5), pair(16, 32, 4)]
SECOND = [{**pair(64, 64, 3), "note": {"description": "a fold", "tags": ["fold"]}}, pair(0, 0, 5), pair(32, 0, 2)]
ALL = [*FIRST, SECOND[0], SECOND[2]]  # the second pair of SECOND is the first of FIRST

Made = Callable[[str, Sequence[Json]], Path]


@pytest.fixture
def made(command: Command, tmp_path: Path) -> Made:
    """Makes a dataset of some pairs, in a folder of a name."""
    spec = spec_of(image_layer(tmp_path), field_layer(tmp_path), [])

    def make(name: str, pairs: Sequence[Json], *arguments: object, **changes: object) -> Path:
        path = put_json(tmp_path / f"{name}.json", {**spec, **changes, "pairs": pairs})
        done = command("make_dataset.py", *dataset_arguments(path, tmp_path / name, "--name", "d", *arguments))
        assert done.code == 0, done.stderr
        return tmp_path / name

    return make


def chunks(path: Path) -> list[bytes]:
    with h5py.File(path) as file:
        main = file["main"].id
        return [main.read_direct_chunk(main.get_chunk_info(i).chunk_offset)[1] for i in range(main.get_num_chunks())]


@pytest.mark.parametrize("name", ["d.h5", "field_0_d.h5"])
def test_files_are_joined_as_one_run_would_have_made_them(
    command: Command, made: Made, tmp_path: Path, name: str
) -> None:
    """Of pairs that both hold, the first stays; only what says how the file came about differs."""
    parts = [made("one", FIRST) / name, made("two", SECOND) / name]
    whole = made("whole", ALL) / name
    joined = tmp_path / "joined.h5"
    done = command("concat_fields.py", "--files", *parts, "--dst_path", joined)
    assert done.code == 0, done.stderr
    assert done.stdout.startswith(f"{joined}: 4 pairs from 2 files; 1 doubled pairs left out")
    assert chunks(joined) == chunks(whole)
    with h5py.File(joined) as file, h5py.File(whole) as expected:
        assert set(file) == set(expected)
        for dataset in set(file) - {"main"}:
            np.testing.assert_array_equal(file[dataset][:], expected[dataset][:], err_msg=dataset)
        assert set(BOX_FACTS) <= set(file) or name != "d.h5"
        attributes = dict(file.attrs)
        assert {key for key in attributes if str(attributes[key]) != str(expected.attrs.get(key))} == {
            "parts",
            "provenance",
            "seal",
        }
        listed = json.loads(attributes["parts"])
        assert [(part["name"], part["first"], part["pairs"]) for part in listed] == [(name, 0, 2), (name, 2, 2)]
        for part, path in zip(listed, parts, strict=True):
            with h5py.File(path) as own:
                assert part["provenance"] == own.attrs["provenance"]
    assert list(faults(joined)) == []


def test_the_same_files_again_are_done_already_and_others_are_refused(
    command: Command, refused: Callable[..., str], made: Made, tmp_path: Path
) -> None:
    one, two = made("one", FIRST) / "d.h5", made("two", SECOND) / "d.h5"
    arguments = ["--dst_path", tmp_path / "joined.h5"]
    assert command("concat_fields.py", "--files", one, two, *arguments).code == 0
    before = (tmp_path / "joined.h5").read_bytes()
    assert "done already" in command("concat_fields.py", "--files", one, two, *arguments).stdout
    assert "made with another files" in refused("concat_fields.py", "--files", one, *arguments)
    assert (tmp_path / "joined.h5").read_bytes() == before
    assert command("concat_fields.py", "--files", one, *arguments, "--update").code == 0
    with h5py.File(tmp_path / "joined.h5") as file:
        assert len(file["main"]) == 2


def test_a_joined_file_is_joined_again(command: Command, made: Made, tmp_path: Path) -> None:
    parts = [made(name, [each]) / "d.h5" for name, each in zip("abc", ALL[:3], strict=True)]
    joined, again = tmp_path / "joined.h5", tmp_path / "again.h5"
    assert command("concat_fields.py", "--files", *parts[:2], "--dst_path", joined).code == 0
    done = command("concat_fields.py", "--files", joined, parts[2], "--dst_path", again)
    assert done.code == 0, done.stderr
    with h5py.File(again) as file:
        assert file["pair"][:].tolist() == [0, 1, 2]
        assert len(json.loads(file.attrs["spec"])["pairs"]) == 3


def test_fields_of_joined_images_are_made_and_joined_fields_fit_them(
    command: Command, made: Made, tmp_path: Path
) -> None:
    folders = [made("one", FIRST), made("two", SECOND)]
    for name in ("d.h5", "field_0_d.h5"):
        files = [folder / name for folder in folders]
        assert command("concat_fields.py", "--files", *files, "--dst_path", tmp_path / name).code == 0
    pyramid_of(tmp_path, name="0_mip0in_small")
    paths = [tmp_path / name for name in ("d.h5", "field_0_d.h5")]
    arguments = ["0" if str(part) == "3" else part for part in fields_arguments(tmp_path, *paths)]
    done = command("generate_fields.py", *arguments)
    assert done.code == 0, done.stderr


def test_files_of_older_tools_are_joined_one_after_the_other(command: Command, tmp_path: Path) -> None:
    main = np.random.default_rng(0).normal(size=(3, 2, 8, 6)).astype(np.float32)
    parts = [put_main(tmp_path / "a.h5", main[:2]), put_main(tmp_path / "b.h5", main[2:])]
    done = command("concat_fields.py", "--files", *parts, "--dst_path", tmp_path / "joined.h5")
    assert done.code == 0, done.stderr
    with h5py.File(tmp_path / "joined.h5") as file:
        np.testing.assert_array_equal(file["main"][:], main)


def test_files_that_do_not_belong_together_are_refused(refused: Callable[..., str], made: Made, tmp_path: Path) -> None:
    one = made("one", FIRST)
    arguments = ["--dst_path", tmp_path / "joined.h5", "--files", one / "d.h5"]
    assert "differ in" in refused("concat_fields.py", *arguments, one / "field_0_d.h5")
    smaller = made("smaller", [SECOND[0]], y_size=8)
    assert "differ in shape" in refused("concat_fields.py", *arguments, smaller / "d.h5")
    masked = made("masked", [SECOND[0]], "--missing", "fail")
    assert "differ in missing" in refused("concat_fields.py", *arguments, masked / "d.h5")
    assert "no such file" in refused("concat_fields.py", *arguments, tmp_path / "none.h5")
    assert "one of the files to be joined" in refused(
        "concat_fields.py", "--files", one / "d.h5", "--dst_path", one / "d.h5"
    )
    assert not (tmp_path / "joined.h5").exists()
