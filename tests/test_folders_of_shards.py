"""Folders of shards in place of one file: whatever reads pairs takes them, and gives what the joined file gives."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from commands import Command
from small_jobs import (
    Refused,
    contents,
    dataset_arguments,
    differing,
    field_layer,
    fields_arguments,
    image_layer,
    pair,
    put_json,
    put_shards,
    pyramid_of,
    spec_of,
    tree,
)

from curation.datasets.collection import open_collection
from curation.datasets.facts import QUALITY_FACTS
from curation.spec import read_spec
from curation.steps.field_work import GenerateFieldsOptions
from curation.steps.generate_fields import generate_fields
from curation.steps.make_dataset import MakeDatasetOptions, box_job, make_dataset
from curation.steps.pair_quality import PairMeasurer
from curation.steps.verify_dataset import faults
from curation.training import PairDataset

NOTE = {"note": {"description": "a fold", "tags": ["fold"]}}
PAIRS = [pair(0, 0, 5), pair(16, 32, 4), {**pair(64, 64, 3), **NOTE}, pair(32, 0, 3), pair(0, 48, 2)]
EDGES = (0, 2, 3, 5)  # of the shards: pair 2 has a note, and no other shard has notes

OF_THE_SHARDS = ("attribute provenance", "attribute seal")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with whole/d.h5 and whole/field_0_d.h5 of five pairs, and the same in shards in parts/."""
    folder = tmp_path_factory.mktemp("made")
    spec = put_json(folder / "spec.json", spec_of(image_layer(folder), field_layer(folder), PAIRS))
    whole = MakeDatasetOptions(str(spec), str(folder / "whole"), parallel=1, name="d", quality=True)
    make_dataset(whole)
    parts = MakeDatasetOptions(str(spec), str(folder / "parts"), parallel=1, name="d", quality=True)
    put_shards(box_job(read_spec(spec), parts), *EDGES)
    pyramid_of(folder, name="0_mip0in_small")
    return folder


@pytest.fixture
def parts(made: Path, tmp_path: Path) -> Path:
    """A copy of the folders of shards, d and field_0_d, that a test may damage."""
    return Path(shutil.copytree(made / "parts", tmp_path / "parts"))


def fields_of(made: Path, images: Path, prior: Path, out: Path, **changes: Any) -> dict[str, np.ndarray]:
    """What the shards that generate_fields makes of some images hold, joined by hand."""
    given = {"cpu_workers": 1, **changes}
    options = GenerateFieldsOptions(str(made / "pyramid"), str(images), str(prior), str(out), 0, "none", 0, 0, **given)
    generate_fields(options)
    with closing(open_collection(out)) as opened:
        with h5py.File(opened.paths[0]) as first:
            names = [name for name in first if name != "main"]
        columns = opened.columns(names)
        main = np.stack([opened.read(sample) for sample in range(opened.shape[0])])
    assert set(columns) == set(names)
    return {"main": main, **columns}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


# concat_fields.py


@pytest.mark.parametrize(("folder", "file"), [("d", "d.h5"), ("field_0_d", "field_0_d.h5")])
def test_joined_shards_are_what_one_run_makes(
    folder: str, file: str, made: Path, command: Command, tmp_path: Path
) -> None:
    joined = tmp_path / file
    done = command("concat_fields.py", "--temp_dir", made / "parts" / folder, "--dst_path", joined)
    assert done.code == 0, done.stderr
    assert "5 pairs from 3 shards" in done.stdout
    assert "left alone" not in done.stdout
    assert differing(joined, made / "whole" / file, OF_THE_SHARDS) == []
    assert list(faults(joined)) == []


def test_shards_without_any_note_are_joined_without_notes(command: Command, tmp_path: Path) -> None:
    spec = put_json(tmp_path / "spec.json", spec_of(image_layer(tmp_path)))
    arguments = dataset_arguments(spec, tmp_path / "whole", "--name", "d")
    assert command("make_dataset.py", *arguments).code == 0
    options = MakeDatasetOptions(str(spec), str(tmp_path / "parts"), parallel=1, name="d")
    (folder,) = put_shards(box_job(read_spec(spec), options), 0, 1, 3)
    assert command("concat_fields.py", "--temp_dir", folder, "--dst_path", tmp_path / "d.h5").code == 0
    assert differing(tmp_path / "d.h5", tmp_path / "whole" / "d.h5", OF_THE_SHARDS) == []
    assert "note" not in contents(tmp_path / "d.h5")


def test_a_spec_that_is_missing_or_another_is_refused(parts: Path, refused: Refused, tmp_path: Path) -> None:
    spec, arguments = parts / "d" / "spec.json", ["--temp_dir", parts / "d", "--dst_path", tmp_path / "d.h5"]
    spec.write_text(spec.read_text() + " ")
    assert f"{spec} is not the spec of the shards beside it: want the one whose SHA-256 is " in refused(
        "concat_fields.py", *arguments
    )
    spec.unlink()
    assert f"{spec}: no such file, and the shards beside it hold only the hash of their spec" in refused(
        "concat_fields.py", *arguments
    )
    assert not (tmp_path / "d.h5").exists()


def test_a_joined_dataset_is_done_already_for_make_dataset(
    made: Path, command: Command, refused: Refused, tmp_path: Path
) -> None:
    """It holds what make_dataset.py would make; other options are refused by their names."""
    for name in ("d", "field_0_d"):
        command("concat_fields.py", "--temp_dir", made / "parts" / name, "--dst_path", tmp_path / f"{name}.h5")
    before = tree(tmp_path)
    arguments = dataset_arguments(made / "spec.json", tmp_path, "--name", "d", "--quality")
    done = command("make_dataset.py", *arguments)
    assert done.code == 0, done.stderr
    assert "5, done already" in done.stdout
    assert refused("make_dataset.py", *arguments, "--missing", "fail").count("made with another missing: ") == 1
    assert tree(tmp_path) == before


def test_boxes_of_a_joined_dataset_are_kept_by_an_update(made: Path, command: Command, tmp_path: Path) -> None:
    command("concat_fields.py", "--temp_dir", made / "parts" / "d", "--dst_path", tmp_path / "d.h5")
    command("concat_fields.py", "--temp_dir", made / "parts" / "field_0_d", "--dst_path", tmp_path / "field_0_d.h5")
    content = json.loads((made / "spec.json").read_text())
    fewer = put_json(tmp_path / "fewer.json", {**content, "pairs": PAIRS[1:]})
    done = command("make_dataset.py", *dataset_arguments(fewer, tmp_path, "--name", "d", "--quality", "--update"))
    assert done.code == 0, done.stderr
    assert "8 of 8 images" in done.stdout


def test_folders_and_files_are_joined(made: Path, parts: Path, command: Command, tmp_path: Path) -> None:
    """A folder stands for the file that it would be joined into."""
    other = put_json(
        tmp_path / "other.json",
        {**json.loads((made / "spec.json").read_text()), "pairs": [pair(0, 0, 5), pair(48, 48, 5)]},
    )
    command("make_dataset.py", *dataset_arguments(other, tmp_path, "--name", "other", "--quality"))
    for folder, file in (("d", "other.h5"), ("field_0_d", "field_0_other.h5")):
        joined = []
        for first in (made / "whole" / f"{folder}.h5", parts / folder):
            joined.append(tmp_path / f"joined_{first.name}.h5")
            done = command("concat_fields.py", "--files", first, tmp_path / file, "--dst_path", joined[-1])
            assert done.code == 0, done.stderr
            assert "6 pairs from 2 files; 1 doubled pairs left out" in done.stdout
        assert differing(*joined, (*OF_THE_SHARDS, "attribute parts")) == []
        with h5py.File(joined[1]) as of_folder:
            (listed, _) = json.loads(of_folder.attrs["parts"])
            assert (listed["name"], listed["first"], listed["pairs"]) == (folder, 0, 5)
    assert list(faults(joined[1])) == []


def test_a_folder_that_lacks_shards_is_not_joined_with_files(
    made: Path, parts: Path, refused: Refused, tmp_path: Path
) -> None:
    (parts / "d" / "2_3.h5").unlink()
    arguments = ["--files", parts / "d", made / "whole" / "d.h5", "--dst_path", tmp_path / "joined.h5"]
    assert "pairs 2 to 2 are missing: no shard before" in refused("concat_fields.py", *arguments)


# generate_fields.py


@pytest.mark.parametrize("workers", [1, 2])
def test_fields_of_shards_are_those_of_the_file(workers: int, made: Path, tmp_path: Path) -> None:
    whole, parts = made / "whole", made / "parts"
    of_file = fields_of(made, whole / "d.h5", whole / "field_0_d.h5", tmp_path / "of_file")
    of_shards = fields_of(made, parts / "d", parts / "field_0_d", tmp_path / "of_shards", cpu_workers=workers)
    assert_same(of_shards, of_file)
    assert of_file["main"].any()
    # The next stage reads the fields from their shards, too.
    assert_same(
        fields_of(made, parts / "d", tmp_path / "of_shards", tmp_path / "next"),
        fields_of(made, whole / "d.h5", tmp_path / "of_file", tmp_path / "next_of_file"),
    )


def test_the_spec_goes_with_the_shards(made: Path, command: Command, tmp_path: Path) -> None:
    """Where images do not hold it, it lies beside their fields too, and in the joined file."""
    prior = made / "parts" / "field_0_d"
    fields_of(made, made / "parts" / "d", prior, tmp_path / "of_shards")
    fields_of(made, made / "whole" / "d.h5", prior, tmp_path / "of_file")
    spec = (made / "parts" / "d" / "spec.json").read_text()
    assert (tmp_path / "of_shards" / "spec.json").read_text() == spec
    assert not (tmp_path / "of_file" / "spec.json").exists()
    for name, holds in (("of_shards", False), ("of_file", True)):
        with h5py.File(tmp_path / name / "0_1.h5") as shard:
            assert ("spec" in shard.attrs) == holds
            assert "spec_sha256" in shard.attrs
        joined = tmp_path / f"{name}.h5"
        assert command("concat_fields.py", "--temp_dir", tmp_path / name, "--dst_path", joined).code == 0
        with h5py.File(joined) as file:
            assert file.attrs["spec"] == spec
    assert differing(tmp_path / "of_shards.h5", tmp_path / "of_file.h5", OF_THE_SHARDS) == []


def test_a_spec_that_was_lost_is_put_back(made: Path, command: Command, tmp_path: Path) -> None:
    images, prior = (made / "parts" / name for name in ("d", "field_0_d"))
    arguments = fields_arguments(made, images, prior, src_mip=0, dst_mip=0, temp_dir=tmp_path / "shards")
    assert command("generate_fields.py", *arguments).code == 0
    before = tree(tmp_path)
    (tmp_path / "shards" / "spec.json").unlink()
    assert "done already" in command("generate_fields.py", *arguments).stdout
    assert tree(tmp_path) == before


def test_fields_of_shards_are_kept_for_the_joined_file(made: Path, command: Command, tmp_path: Path) -> None:
    """It is another input, but of each pair the images and the prior are the same."""
    prior = made / "parts" / "field_0_d"
    of_shards = fields_of(made, made / "parts" / "d", prior, tmp_path / "shards")
    assert command("concat_fields.py", "--temp_dir", made / "parts" / "d", "--dst_path", tmp_path / "d.h5").code == 0
    more = {"src_mip": 0, "dst_mip": 0, "temp_dir": tmp_path / "shards"}
    arguments = fields_arguments(made, tmp_path / "d.h5", prior, **more)
    assert "made with another images" in command("generate_fields.py", *arguments).stderr
    done = command("generate_fields.py", *arguments, "--update")
    assert "fields           5 kept, 0 made" in done.stdout, done.stderr
    assert_same(fields_of(made, tmp_path / "d.h5", prior, tmp_path / "shards"), of_shards)


def _lacks_the_first(parts: Path) -> None:
    (parts / "d" / "0_2.h5").unlink()


def _lacks_the_last(parts: Path) -> None:
    (parts / "d" / "3_5.h5").unlink()


def _lacks_priors(parts: Path) -> None:
    (parts / "field_0_d" / "2_3.h5").unlink()


def _is_damaged(parts: Path) -> None:
    with h5py.File(parts / "d" / "3_5.h5", "r+") as file:
        file.attrs["mip"] = 7


def _has_another_spec(parts: Path) -> None:
    (parts / "d" / "spec.json").write_text("{}")


def _is_mixed(parts: Path) -> None:
    shutil.copy(parts / "field_0_d" / "3_5.h5", parts / "d" / "3_5.h5")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_lacks_the_first, "d: pairs 0 to 1 are missing: want the shards of all 5 pairs"),
        (_lacks_the_last, "d: pairs 3 to 4 are missing: want the shards of all 5 pairs"),
        (_lacks_priors, "field_0_d: pair 2 is missing: want the shards of all 5 pairs"),
        (_is_damaged, "d/3_5.h5: damaged: not as it was sealed"),
        (_has_another_spec, "d/spec.json is not the spec of the shards beside it"),
        (_is_mixed, "differ in provenance: want shards of one dataset"),
    ],
)
def test_shards_that_are_no_whole_dataset_are_refused(
    change: Callable[[Path], None], told: str, made: Path, parts: Path, refused: Refused, tmp_path: Path
) -> None:
    change(parts)
    more = {"src_mip": 0, "dst_mip": 0, "temp_dir": tmp_path / "shards"}
    line = refused("generate_fields.py", *fields_arguments(made, parts / "d", parts / "field_0_d", **more))
    assert told in line
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("name", ["d", "field_0_d"])
def test_a_folder_that_is_read_is_never_written_to(name: str, made: Path, parts: Path, refused: Refused) -> None:
    more = {"src_mip": 0, "dst_mip": 0, "temp_dir": parts / "." / name}
    before = tree(parts)
    arguments = fields_arguments(made, parts / "d", parts / "field_0_d", "--update", **more)
    assert "is read, and cannot be the --temp_dir too" in refused("generate_fields.py", *arguments)
    assert tree(parts) == before


# verify_dataset.py


def test_whole_folders_have_no_fault(made: Path, command: Command) -> None:
    done = command("verify_dataset.py", made / "parts" / "d", made / "parts" / "field_0_d")
    assert (done.code, done.stdout) == (0, ""), done.stderr


def test_each_fault_of_a_folder_is_told(parts: Path, command: Command) -> None:
    folder = parts / "d"
    with h5py.File(folder / "0_2.h5", "r+") as file:
        file["mean"][1, 0] += 1
    (folder / "2_3.h5").unlink()
    (folder / "spec.json").unlink()
    done = command("verify_dataset.py", folder)
    assert done.code == 1
    lines = done.stdout.splitlines()
    assert any(line.startswith(f"{folder}/0_2.h5: pair 1 source: its facts are not those") for line in lines)
    assert f"{folder}: pair 2 is missing of 5" in lines
    assert f"{folder}/spec.json: no such file, and the shards beside it hold only the hash of their spec" in lines


def _overlap(parts: Path) -> None:
    shutil.copy(parts / "d" / "2_3.h5", parts / "d" / "4_5.h5")


def _other_name(parts: Path) -> None:
    (parts / "d" / "2_3.h5").rename(parts / "d" / "2_4.h5")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_overlap, "d/4_5.h5: pairs 4 to 4 are in another shard too"),
        (_other_name, "d/2_4.h5: it holds 1 pairs, but its name says 2"),
        (_is_mixed, "d/3_5.h5: made with another quality"),
        (_has_another_spec, "d/spec.json is not the spec of the shards beside it"),
        (_lacks_the_last, "d: pairs 3 to 4 are missing of 5"),
    ],
)
def test_shards_that_do_not_belong_together_are_told(change: Callable[[Path], None], told: str, parts: Path) -> None:
    change(parts)
    assert any(told in line for line in faults(parts / "d"))


# Training, review and splits


def items_of(dataset: PairDataset, workers: int, context: str | None) -> Iterator[dict[str, torch.Tensor]]:
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=context)
    yield from loader


@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (2, "spawn")])
def test_a_training_reads_shards_as_it_reads_files(
    workers: int, context: str | None, made: Path, tmp_path: Path
) -> None:
    of_file = PairDataset(made / "whole" / "d.h5", made / "whole" / "field_0_d.h5")
    of_shards = PairDataset(made / "parts" / "d", made / "parts" / "field_0_d")
    of_shards[4]  # so that this process has files open, which workers must not use
    items = list(items_of(of_shards, workers, context))
    assert len(items) == len(of_file) == len(PAIRS)
    for item, expected in zip(items, (of_file[index] for index in range(len(of_file))), strict=True):
        assert_same(
            {name: values.numpy() for name, values in item.items()},
            {name: values.numpy() for name, values in expected.items()},
        )


def test_numbers_of_joined_shards_are_taken_as_they_are(made: Path, command: Command, tmp_path: Path) -> None:
    for name in ("d", "field_0_d"):
        command("concat_fields.py", "--temp_dir", made / "parts" / name, "--dst_path", tmp_path / f"{name}.h5")
    for images, fields in (
        (made / "parts" / "d", made / "parts" / "field_0_d"),
        (tmp_path / "d.h5", made / "parts" / "field_0_d"),
        (tmp_path / "d.h5", tmp_path / "field_0_d.h5"),
        (made / "whole" / "d.h5", tmp_path / "field_0_d.h5"),
    ):
        with closing(open_collection(images)) as one, closing(open_collection(fields)) as other:
            measurer = PairMeasurer(one, other)
            assert all(measurer.of(sample).is_stored for sample in range(5))
            with h5py.File(made / "whole" / "field_0_d.h5") as file:
                for name in QUALITY_FACTS:
                    assert getattr(measurer.of(4).quality, name) == file[name][4]


def test_a_review_shows_shards_as_it_shows_files(made: Path, command: Command, tmp_path: Path) -> None:
    tables = []
    for folder, ending in (("whole", ".h5"), ("parts", "")):
        images, fields = (made / folder / f"{name}{ending}" for name in ("d", "field_0_d"))
        arguments = ["--image_path", images, "--field_path", fields, "--parallel", 1]
        done = command(
            "review_dataset.py", *arguments, "--csv", tmp_path / "table.csv", "--dst_path", tmp_path / folder
        )
        assert done.code == 0, done.stderr
        assert "no links" not in done.stdout
        tables.append((tmp_path / "table.csv").read_text())
    assert tables[0] == tables[1]
    assert "a fold" in tables[0]
    one, other = (tree(tmp_path / folder) for folder in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} <= {"data.js", "pairs.js"}


def test_shards_are_divided_as_files_are(made: Path, parts: Path, command: Command, refused: Refused) -> None:
    made_of = []
    for images in (made / "whole" / "d.h5", parts / "d"):
        fields = images.parent / f"field_0_{images.name}"
        arguments = ["--image_path", images, "--field_path", fields, "--dst_path", parts / f"{images.name}.json"]
        arguments += ["--by", "point", "--fractions", 0.6, 0.4]
        done = command("split_pairs.py", *arguments)
        assert done.code == 0, done.stderr
        split = json.loads((parts / f"{images.name}.json").read_text())
        made_of.append((split["parts"], done.stdout.splitlines()[-2:]))
    assert made_of[0] == made_of[1]
    assert "µm²" in done.stdout
    _lacks_the_last(parts)
    assert "d: pairs 3 to 4 are missing: want the shards of all 5 pairs" in refused("split_pairs.py", *arguments)
