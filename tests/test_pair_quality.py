"""The numbers of pairs in files: stored by the steps that write fields, measured of any others, and their table."""

import math
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, astuple
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import Command
from small_jobs import (
    NAME,
    contents,
    dataset_arguments,
    differing,
    field_layer,
    fields_arguments,
    image_layer,
    leftovers,
    pair,
    put_json,
    put_main,
    pyramid_of,
    spec_of,
    voxels,
)
from volumes_made import make_layer

from curation.datasets.collection import open_collection
from curation.datasets.facts import QUALITY_FACTS
from curation.datasets.seal import seal_finished
from curation.errors import UsageError
from curation.quality import PairQuality, measure
from curation.steps import pair_quality
from curation.steps.field_inputs import open_inputs
from curation.steps.pair_quality import Measured, QualityTable, QualityWork, measured
from curation.steps.verify_dataset import faults

FIELD_NAME = f"field_0_{NAME}"


def numbers_in(path: Path) -> list[PairQuality]:
    """The numbers that a field file holds, by pair."""
    with h5py.File(path) as file:
        columns = [file[name] for name in QUALITY_FACTS]
        assert {column.dtype for column in columns} == {np.dtype("<f4")}
        return [PairQuality(*map(float, row)) for row in zip(*columns, strict=True)]


def same(one: PairQuality, other: PairQuality) -> bool:
    return np.array_equal(np.float32(astuple(one)), np.float32(astuple(other)), equal_nan=True)


def of_all(images: Path, fields: Path | None) -> list[Measured]:
    """The numbers of all pairs of two files."""
    with ExitStack() as stack:
        opened = [stack.enter_context(closing(open_collection(path))) for path in (images, fields) if path]
        return list(measured(opened[0], opened[1] if fields else None, range(opened[0].shape[0])))


def random_pairs(count: int, size: int = 40) -> np.ndarray:
    return np.random.default_rng(1).normal(3, 1, (count, 2, size, size)).astype(np.float32)


def random_fields(count: int, size: int = 40) -> np.ndarray:
    return np.random.default_rng(2).normal(0, 1, (count, 2, size, size)).astype(np.float32)


# generate_fields and concat_fields

FAILS_ON_3 = """
def create():
    def model(s, t, src_agg_field):
        if float(s[0, 0, 0, 0]) == 3:
            raise ValueError("three")
        return src_agg_field + 1
    return model
"""


@pytest.mark.parametrize("failed", ["nan", "prior"])
def test_shards_hold_the_numbers_of_what_the_module_returned(command: Command, tmp_path: Path, failed: str) -> None:
    """Of pairs that were not run, or failed, the field is the one that is stored. Fields are finer than the images."""
    images, prior = random_pairs(4), random_fields(4)
    images[1, 0] = 0
    images[2, 0, 0, 0] = 3
    pyramid_of(tmp_path, FAILS_ON_3)
    paths = [put_main(tmp_path / f"{name}.h5", main) for name, main in (("images", images), ("prior", prior))]
    arguments = fields_arguments(tmp_path, *paths, "--failed", failed, dst_mip=2)
    done = command("generate_fields.py", *arguments)
    assert done.code == 0, done.stderr
    returned = prior + 1
    returned[1], returned[2] = prior[1], prior[2] if failed == "prior" else np.nan
    expected = [measure(*images[index], returned[index], prior[index]) for index in range(4)]
    assert expected[0].displacement_median == pytest.approx(math.sqrt(2), rel=1e-6)
    assert math.isnan(expected[1].correlation_before)
    for index in range(4):
        (found,) = numbers_in(tmp_path / "shards" / f"{index}_{index + 1}.h5")
        assert same(found, expected[index])
    joined = command("concat_fields.py", "--temp_dir", tmp_path / "shards", "--dst_path", tmp_path / "joined.h5")
    assert joined.code == 0
    assert all(map(same, numbers_in(tmp_path / "joined.h5"), expected))
    assert list(faults(tmp_path / "joined.h5")) == []
    for text in (done.stdout, joined.stdout):
        known = 3 if failed == "prior" else 2
        assert f"after (median of {known} of 4 pairs)" in text
        assert "least alike" in text


WRITES_TO_ITS_INPUTS = """
def create():
    def model(src_img, tgt_img, src_agg_field):
        src_img.zero_()
        tgt_img *= -1
        src_agg_field += 1
        return src_agg_field
    return model
"""


def test_what_a_module_does_to_its_inputs_does_not_change_the_numbers(command: Command, tmp_path: Path) -> None:
    images, prior = random_pairs(1), random_fields(1)
    pyramid_of(tmp_path, WRITES_TO_ITS_INPUTS)
    paths = put_main(tmp_path / "images.h5", images), put_main(tmp_path / "prior.h5", prior)
    assert command("generate_fields.py", *fields_arguments(tmp_path, *paths)).code == 0
    (found,) = numbers_in(tmp_path / "shards" / "0_1.h5")
    assert same(found, measure(*images[0], prior[0] + 1, prior[0]))


def test_fields_that_are_kept_keep_their_numbers(command: Command, tmp_path: Path) -> None:
    pyramid_of(tmp_path)
    images, prior = random_pairs(3), random_fields(3)
    images[0, 1] = 0  # whose correlations are NaN
    paths = [put_main(tmp_path / "images.h5", images), put_main(tmp_path / "prior.h5", prior)]
    assert command("generate_fields.py", *fields_arguments(tmp_path, *paths)).code == 0
    before = [numbers_in(tmp_path / "shards" / f"{index}_{index + 1}.h5")[0] for index in range(3)]
    paths = [put_main(tmp_path / "images.h5", images[::-1]), put_main(tmp_path / "prior.h5", prior[::-1])]
    done = command("generate_fields.py", *fields_arguments(tmp_path, *paths, "--update"))
    assert "3 kept, 0 made" in done.stdout
    after = [numbers_in(tmp_path / "shards" / f"{index}_{index + 1}.h5")[0] for index in range(3)]
    assert all(map(same, after, before[::-1]))


def test_shards_without_the_numbers_are_of_another_version(
    command: Command, refused: Callable[..., str], tmp_path: Path
) -> None:
    pyramid_of(tmp_path)
    paths = put_main(tmp_path / "images.h5", random_pairs(2)), put_main(tmp_path / "prior.h5", random_fields(2))
    assert command("generate_fields.py", *fields_arguments(tmp_path, *paths)).code == 0
    with h5py.File(tmp_path / "shards" / "0_1.h5", "r+") as file:
        del file["roughness"]
        seal_finished(file)
    assert "another version of the toolkit" in refused("generate_fields.py", *fields_arguments(tmp_path, *paths))


def test_verify_allows_nan_and_refuses_what_no_correlation_can_be(tmp_path: Path) -> None:
    path = put_main(tmp_path / "fields.h5", random_fields(2), folded=np.float32([np.nan, 0.5]))
    assert list(faults(path)) == []
    with h5py.File(path, "r+") as file:
        file["correlation_after"] = np.float32([np.nan, 1.5])
        file["failed"] = np.float32([np.nan, 0])
    found = list(faults(path))
    assert f"{path}: correlation_after of pair 1 is 1.5: want -1 to 1, or NaN" in found
    assert f"{path}: failed of pair 0 is nan: want 0 to 1" in found


# make_dataset --quality


def dataset_spec(folder: Path, name: str = "spec.json", pairs: object = None) -> Path:
    """Of a volume with a black part, and a field."""
    image = voxels()
    image[64:96, 64:80] = 0
    vectors = np.random.default_rng(0).normal(1, 2, (32, 32, 6, 2)).astype(np.float32)
    spec = spec_of(make_layer(folder / "image", {0: image}), field_layer(folder, vectors), pairs)  # type: ignore[arg-type]
    return put_json(folder / name, spec)


@pytest.mark.parametrize("parallel", [1, 2])
def test_make_dataset_stores_the_numbers_of_its_priors(command: Command, tmp_path: Path, parallel: int) -> None:
    out = tmp_path / "out"
    done = command(
        "make_dataset.py", *dataset_arguments(dataset_spec(tmp_path), out, "--quality", "--parallel", parallel)
    )
    assert done.code == 0, done.stderr
    with h5py.File(out / NAME) as images, h5py.File(out / FIELD_NAME) as fields:
        expected = [measure(*images["main"][index], fields["main"][index]) for index in range(3)]
        assert "roughness" not in images
    assert all(map(same, numbers_in(out / FIELD_NAME), expected))
    assert sum(math.isnan(quality.correlation_after) for quality in expected) == 1  # the last pair is black
    assert "after (median of 2 of 3 pairs)" in done.stdout
    assert [line for path in out.iterdir() for line in faults(path)] == []
    again = command("make_dataset.py", *dataset_arguments(tmp_path / "spec.json", out, "--quality"))
    assert "done already" in again.stdout
    assert "least alike" in again.stdout


def test_without_quality_the_files_are_as_they_were(command: Command, tmp_path: Path) -> None:
    spec = dataset_spec(tmp_path)
    for name, more in (("without", []), ("with", ["--quality"])):
        assert command("make_dataset.py", *dataset_arguments(spec, tmp_path / name, *more)).code == 0
    assert differing(tmp_path / "without" / NAME, tmp_path / "with" / NAME) == []
    ours, theirs = (contents(tmp_path / name / FIELD_NAME) for name in ("without", "with"))
    more = {name for fact in QUALITY_FACTS for name in (fact, f"{fact}, storage")}
    assert set(theirs) - set(ours) == more
    assert [name for name in ours if ours[name] != theirs[name]] == ["attribute provenance", "attribute seal"]


def test_the_numbers_follow_the_pairs_that_are_kept(command: Command, tmp_path: Path) -> None:
    pairs = [pair(64, 64, 3), pair(0, 0, 5), pair(16, 32, 4)]
    spec, out = dataset_spec(tmp_path, pairs=pairs), tmp_path / "out"
    arguments = dataset_arguments(spec, out, "--quality", "--min_valid", 0.5, "--name", "kept")
    done = command("make_dataset.py", *arguments)
    assert done.code == 0, done.stderr
    with h5py.File(out / "kept.h5") as images, h5py.File(out / "field_0_kept.h5") as fields:
        assert fields["pair"][:].tolist() == [1, 2]
        expected = [measure(*images["main"][index], fields["main"][index]) for index in range(2)]
    assert all(map(same, numbers_in(out / "field_0_kept.h5"), expected))
    assert not any(math.isnan(quality.correlation_after) for quality in expected)
    assert "pair 1 (" in done.stdout and "pair 0 (" not in done.stdout
    whole = contents(out / "field_0_kept.h5")
    (out / "field_0_kept.h5").unlink()  # as if killed between the two files
    assert command("make_dataset.py", *arguments).code == 0
    assert contents(out / "field_0_kept.h5") == whole


def test_an_update_adds_the_numbers_and_cuts_nothing(
    command: Command, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = dataset_spec(tmp_path), tmp_path / "out"
    assert command("make_dataset.py", *dataset_arguments(spec, tmp_path / "fresh", "--quality")).code == 0
    assert command("make_dataset.py", *dataset_arguments(spec, out)).code == 0
    images = (out / NAME).stat().st_ino
    assert "another quality: --update" in refused("make_dataset.py", *dataset_arguments(spec, out, "--quality"))
    monkeypatch.setattr("curation.steps.box_work.BoxWork.__call__", None)  # called, it would fail
    done = command("make_dataset.py", *dataset_arguments(spec, out, "--quality", "--update"))
    assert done.code == 0, done.stderr
    assert "kept             6 of 6 images" in done.stdout
    assert differing(out / FIELD_NAME, tmp_path / "fresh" / FIELD_NAME) == []
    assert (out / NAME).stat().st_ino == images


def test_a_run_that_ends_amid_measuring_goes_on(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = dataset_spec(tmp_path), tmp_path / "out"
    assert command("make_dataset.py", *dataset_arguments(spec, tmp_path / "fresh", "--quality")).code == 0
    calls = []

    def interrupted(*arrays: np.ndarray) -> PairQuality:
        calls.append(arrays)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arrays)

    monkeypatch.setattr(pair_quality, "measure", interrupted)
    assert command("make_dataset.py", *dataset_arguments(spec, out, "--quality")).code == 130
    assert len(leftovers(out)) == 2
    done = command("make_dataset.py", *dataset_arguments(spec, out, "--quality"))
    assert "found done       6 of 6 images" in done.stdout
    assert len(calls) == 2 + 3
    assert leftovers(out) == []
    for name in (NAME, FIELD_NAME):
        assert differing(out / name, tmp_path / "fresh" / name) == []


def test_quality_wants_a_field_file(refused: Callable[..., str], tmp_path: Path) -> None:
    spec = spec_of(image_layer(tmp_path))
    plain = put_json(tmp_path / "plain.json", spec)
    line = refused("make_dataset.py", *dataset_arguments(plain, tmp_path / "out", "--quality"))
    assert "--quality measures what the field makes of each pair, and this spec has no field" in line
    line = refused("make_dataset.py", *dataset_arguments(plain, f"file://{tmp_path}/layer", "--quality"))
    assert "--quality measures pairs for the field file; with a layer there is none" in line
    assert not (tmp_path / "out").exists()


# Any files


def test_files_that_hold_only_main_are_measured_by_place(tmp_path: Path) -> None:
    images, fields = random_pairs(3), random_fields(3)
    paths = put_main(tmp_path / "images.h5", images, None), tmp_path / "fields.h5"
    with h5py.File(paths[1], "w") as file:
        file["img"] = fields
    found = of_all(*paths)
    assert [(each.pair, each.place, each.is_stored) for each in found] == [(0, 0, False), (1, 1, False), (2, 2, False)]
    assert all(same(each.quality, measure(*images[each.pair], fields[each.pair])) for each in found)
    assert list(QualityWork(*paths)(0, iter([(7, 2)]))) == [(7, found[2])]


def test_without_a_field_the_numbers_before_are_given(tmp_path: Path) -> None:
    starts = np.arange(18).reshape(3, 2, 3)
    images, fields = random_pairs(3), random_fields(1)
    path = put_main(tmp_path / "images.h5", images, start=starts)
    (only,) = of_all(path, put_main(tmp_path / "fields.h5", fields, start=starts[1:2]))[1:2]
    assert (only.place, same(only.quality, measure(*images[1], fields[0]))) == (0, True)
    for each in (of_all(path, tmp_path / "fields.h5")[2], of_all(path, None)[2]):
        assert each.place == -1
        assert same(each.quality, measure(*images[2], None))


def test_numbers_that_are_stored_of_these_images_are_taken(command: Command, tmp_path: Path) -> None:
    """Also of images without checksums, and where the fields were brought to a finer MIP; not of changed images."""
    pyramid_of(tmp_path)
    images = random_pairs(3)
    path = put_main(tmp_path / "images.h5", images)
    prior = put_main(tmp_path / "prior.h5", random_fields(3))
    assert command("generate_fields.py", *fields_arguments(tmp_path, path, prior, dst_mip=2)).code == 0
    joined = tmp_path / "joined.h5"
    assert command("concat_fields.py", "--temp_dir", tmp_path / "shards", "--dst_path", joined).code == 0
    found = of_all(path, joined)
    assert all(each.is_stored for each in found)
    assert all(map(same, [each.quality for each in found], numbers_in(joined)))
    images[1, 0, 5, 5] += 1
    other = put_main(tmp_path / "other.h5", images, mip=2)
    assert [each.is_stored for each in of_all(other, joined)] == [True, False, True]
    with pytest.raises(UsageError, match=r"joined.h5 is of MIP 2, .*coarse.h5 of MIP 3: want the same MIP"):
        of_all(put_main(tmp_path / "coarse.h5", images), joined)


def test_numbers_of_make_dataset_are_taken_for_its_own_images_only(command: Command, tmp_path: Path) -> None:
    spec, out = dataset_spec(tmp_path), tmp_path / "out"
    assert command("make_dataset.py", *dataset_arguments(spec, out, "--quality")).code == 0
    assert all(each.is_stored for each in of_all(out / NAME, out / FIELD_NAME))
    with h5py.File(out / NAME) as file:
        other = put_main(tmp_path / "other.h5", file["main"][:], 0, start=file["start"][:])
    assert not any(each.is_stored for each in of_all(other, out / FIELD_NAME))


def test_measuring_streams(tmp_path: Path) -> None:
    path = put_main(tmp_path / "images.h5", random_pairs(2))
    with closing(open_collection(path)) as images:
        found = measured(images, None, iter([0, 99]))
        assert next(found).pair == 0  # pair 99, which is not there, is not read yet


# The table


def table_of(**numbers: list[float]) -> dict[str, str]:
    known = {name: np.float32(numbers.get(name, [math.nan] * 4)) for name in QUALITY_FACTS}
    return dict(QualityTable(known, np.array([10, 11, 12, 13])).lines())


def test_the_table_names_the_worst_pairs() -> None:
    found = table_of(
        correlation_before=[0.1, 0.2, 0.3, math.nan],
        correlation_after=[0.9, -0.5, 0.7, math.nan],
        cpc_median_before=[0, 0, 0, math.nan],
        cpc_median_after=[0.5, 0.6, 0.7, math.nan],
        cpc_low_before=[-0.5, -0.5, -0.5, math.nan],
        cpc_low_after=[0.25, 0.25, 0.25, math.nan],
        displacement_median=[1, 2, 3, math.nan],
        displacement_max=[10, 5, 5, math.nan],
        folded=[0, 0.25, 0.5, math.nan],
    )
    assert found == {
        "correlation": "0.20 before, 0.70 after (median of 3 of 4 pairs)",
        "by windows": "0.00 before, 0.60 after; 5th percentile -0.50 before, 0.25 after",
        "least alike": "pair 11 (-0.50), pair 12 (0.70), pair 10 (0.90)",
        "displacement": "2.00 px, the median; 10.00 at most",
        "folded": "2 fields: pair 12 (50.00%), pair 11 (25.00%)",
    }


def test_the_table_of_black_pairs_says_so() -> None:
    assert table_of() == {
        "correlation": "of no pair: none has pixels that are valid in both images",
        "folded": "0 fields",
    }


def test_files_without_numbers_have_no_table(tmp_path: Path) -> None:
    assert QualityTable.of_file(put_main(tmp_path / "fields.h5", random_fields(2))) is None
    prior = put_main(tmp_path / "prior.h5", random_fields(2))
    inputs = open_inputs(str(put_main(tmp_path / "images.h5", random_pairs(2))), str(prior), 3, "stop")
    facts = pair_quality.facts_of(inputs.read(1), random_fields(2)[0], not_run=False, failed=True)
    assert asdict(facts)["failed"]
