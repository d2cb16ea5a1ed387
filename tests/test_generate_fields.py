"""Aligner modules over a dataset: pyramids, shards, and joining them."""

import json
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from commands import ROOT, Command
from small_jobs import differing, leftovers, made_folder, put_main

from curation import fields
from curation.datasets.seal import seal_finished
from curation.datasets.shards import Shard, missing_shards, shard_size
from curation.errors import UsageError, WorkError
from curation.fields import BINARY
from curation.steps import field_work
from curation.steps.concat_fields import concat_fields
from curation.steps.devices import Threads, Workers
from curation.steps.field_inputs import FieldInputs
from curation.steps.field_work import FieldWork, GenerateFieldsOptions
from curation.steps.generate_fields import generate_fields
from curation.steps.kept_fields import KeptReader
from curation.steps.verify_dataset import faults

X, Y, PAIRS = 12, 8, 5

# A module that shifts its prior by a parameter, and can tell what it was called with.
SHIFTING = """
import neighbour

def create(checkpoint_name, step=1.0, finetune_iter=None):
    notes = open("note.txt").read()
    def forward(src_img, tgt_img, src_agg_field=None, train=True):
        assert notes == "beside" and not train and finetune_iter == 200 and checkpoint_name == "test"
        return neighbour.shifted(src_img, src_agg_field, step)
    return forward
"""
NEIGHBOUR = """
import torch

def shifted(image, prior, step):
    zeros = torch.zeros(1, 2, *image.shape[2:])
    return (zeros if prior is None else prior) + step
"""


def module(pyramid: Path, name: str = "1_mip3in_shift", create: str = SHIFTING) -> Path:
    folder = pyramid / name
    folder.mkdir(parents=True)
    (folder / "create.py").write_text(create)
    (folder / "neighbour.py").write_text(NEIGHBOUR)
    (folder / "note.txt").write_text("beside")
    return pyramid


def dataset(path: Path, main: np.ndarray, mip: int | None = 3, **arrays: np.ndarray) -> str:
    """The path of a file of images or fields, as options hold it."""
    return str(put_main(path, main, mip, **arrays))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(PAIRS, 2, X, Y)).astype(np.float32)


@pytest.fixture
def priors() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(PAIRS, 2, X, Y)).astype(np.float32)


@pytest.fixture
def options(tmp_path: Path, images: np.ndarray, priors: np.ndarray) -> Callable[..., GenerateFieldsOptions]:
    """generate_fields's options with the module, the images and the priors above, and what a test changes."""

    def make(**changes: Any) -> GenerateFieldsOptions:
        for name in ("shards", "pyramid"):
            (tmp_path / name).mkdir(exist_ok=True)
        if not any((tmp_path / "pyramid").iterdir()):
            module(tmp_path / "pyramid")
        given: dict[str, Any] = {
            "pyramid_path": str(tmp_path / "pyramid"),
            "image_path": dataset(tmp_path / "images.h5", images),
            "prev_field_path": dataset(tmp_path / "priors.h5", priors),
            "temp_dir": str(tmp_path / "shards"),
            "stage": 1,
            "checkpoint_name": "test",
            "src_mip": 3,
            "dst_mip": 3,
            "cpu_workers": 1,
            "decimals": None,
        }
        return GenerateFieldsOptions(**{**given, **changes})

    return make


def joined(options: GenerateFieldsOptions, tmp_path: Path) -> np.ndarray:
    generate_fields(options)
    concat_fields(options.temp_dir, str(tmp_path / "joined.h5"))
    with h5py.File(tmp_path / "joined.h5") as file:
        return file["main"][:]


def test_a_modelhouse_package_gets_what_it_takes(
    options: Callable[..., GenerateFieldsOptions], priors: np.ndarray, tmp_path: Path
) -> None:
    np.testing.assert_array_equal(joined(options(), tmp_path), priors + 1)


def test_model_params_override(
    options: Callable[..., GenerateFieldsOptions], priors: np.ndarray, tmp_path: Path
) -> None:
    np.testing.assert_array_equal(joined(options(model_params={"step": -2.0}), tmp_path), priors - 2)


def test_fields_are_rounded_unless_told(
    options: Callable[..., GenerateFieldsOptions], priors: np.ndarray, tmp_path: Path
) -> None:
    np.testing.assert_array_equal(joined(options(decimals=2), tmp_path), np.round(priors + 1, 2))


def test_fields_are_rounded_to_a_binary_grid(
    options: Callable[..., GenerateFieldsOptions], priors: np.ndarray, tmp_path: Path
) -> None:
    np.testing.assert_array_equal(joined(options(decimals=BINARY), tmp_path), np.round((priors + 1) * 256) / 256)
    with h5py.File(tmp_path / "joined.h5") as file:
        assert file.attrs["decimals"] == "binary"
    assert list(faults(tmp_path / "joined.h5")) == []
    with h5py.File(tmp_path / "shards" / "0_1.h5") as file:
        assert json.loads(file.attrs["provenance"])["field_decimals"] == "binary"


def test_stage_0_may_have_no_prior(options: Callable[..., GenerateFieldsOptions], tmp_path: Path) -> None:
    module(tmp_path / "pyramid", "0_mip3in_first")
    np.testing.assert_array_equal(joined(options(stage=0, prev_field_path=None), tmp_path), 1)


def test_a_torchscript_file(options: Callable[..., GenerateFieldsOptions], priors: np.ndarray, tmp_path: Path) -> None:
    class Doubling(torch.nn.Module):
        def forward(self, src_img: torch.Tensor, tgt_img: torch.Tensor, src_agg_field: torch.Tensor) -> torch.Tensor:
            return 2 * src_agg_field

    folder = tmp_path / "pyramid" / "1_mip3in_script"
    folder.mkdir(parents=True)
    torch.jit.script(Doubling()).save(str(folder / "test.pt"))
    np.testing.assert_array_equal(joined(options(), tmp_path), 2 * priors)


# Modules that keep what they return, or were given, and write to it at the next call; each returns the prior and 1.
KEEPING = {
    "the same buffer": """
        kept = keep(torch.empty_like(src_agg_field))
        torch.add(src_agg_field, 1, out=kept)
        return kept
    """,
    "a view of a numpy array": """
        kept = keep(numpy.empty(src_agg_field.shape, numpy.float32))
        kept[:] = src_agg_field.numpy() + 1
        return torch.from_numpy(kept)
    """,
    "a part of a larger buffer": """
        kept = keep(torch.empty(3, 2, *src_img.shape[2:]))
        kept[1:2] = src_agg_field + 1
        return kept[1:2]
    """,
    "a buffer of doubles": """
        kept = keep(torch.empty_like(src_agg_field, dtype=torch.float64))
        kept[:] = src_agg_field + 1
        return kept
    """,
    "the prior": """
        forget(src_agg_field)
        return src_agg_field.add_(1)
    """,
    "the prior and the images, changed": """
        field = src_agg_field + 1
        for given in (src_img, tgt_img, src_agg_field):
            given.fill_(7)
        return field
    """,
}
THE_SOURCE = """
        forget(src_img)
        return src_img.expand(1, 2, -1, -1)
"""
KEEPER = """
import numpy, torch

kept = []

def keep(made):
    kept.append(made)
    return kept[0]

def forget(made):
    for tensor in kept:
        tensor.zero_()
    kept[:] = [made]

def create():
    def forward(src_img, tgt_img, src_agg_field):BODY
    return forward
"""


@pytest.fixture
def encoded_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields are encoded when the next pair has run."""

    def late(*arguments: Any) -> np.ndarray:
        time.sleep(0.1)
        return fields.rescale(*arguments)

    monkeypatch.setattr("curation.steps.field_work.fields", SimpleNamespace(rescale=late, rounded=fields.rounded))


@pytest.mark.usefixtures("encoded_late")
@pytest.mark.parametrize("body", KEEPING.values(), ids=KEEPING)
def test_what_a_module_writes_to_later_is_not_what_is_stored(
    body: str, options: Callable[..., GenerateFieldsOptions], priors: np.ndarray, tmp_path: Path
) -> None:
    module(tmp_path / "pyramid", create=KEEPER.replace("BODY", body))
    np.testing.assert_array_equal(joined(options(), tmp_path), priors + 1)


@pytest.mark.usefixtures("encoded_late")
def test_an_image_that_a_module_returns_and_writes_to_later_is_stored_as_it_was(
    options: Callable[..., GenerateFieldsOptions], images: np.ndarray, tmp_path: Path
) -> None:
    module(tmp_path / "pyramid", create=KEEPER.replace("BODY", THE_SOURCE))
    np.testing.assert_array_equal(joined(options(), tmp_path), images[:, [0, 0]])


# Weights that are drawn as the model is made, and noise that is drawn for each pair.
RANDOM = """
import random
import numpy, torch

def create():
    weights = torch.randn(2)
    def forward(src_img, tgt_img, src_agg_field=None):
        noise = torch.rand(1, 2, *src_img.shape[2:]) + random.random() + numpy.random.random()
        return src_agg_field + weights[:, None, None] + noise
    return forward
"""


def test_random_numbers_are_the_same_whoever_runs_a_pair(
    options: Callable[..., GenerateFieldsOptions], tmp_path: Path
) -> None:
    module(tmp_path / "pyramid", create=RANDOM)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    alone = joined(options(), tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    (tmp_path / "shards" / "2_3.h5").unlink()
    np.testing.assert_array_equal(joined(options(), made_folder(tmp_path / "resumed")), alone)
    shards = made_folder(tmp_path / "shards_of_two")
    together = joined(options(temp_dir=str(shards), cpu_workers=2), made_folder(tmp_path / "together"))
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("crop", ["start", "center"])
def test_the_result_is_brought_to_a_finer_mip(
    crop: str, options: Callable[..., GenerateFieldsOptions], priors: np.ndarray, tmp_path: Path
) -> None:
    found = joined(options(dst_mip=1, crop=crop), tmp_path)
    # Times 2^3, bilinear up by 4, divided by 2^1; then X x Y pixels at the start corner, or in the middle.
    whole = fields.upsample((priors + 1) * 8, 4) / 2
    x, y = (0, 0) if crop == "start" else ((4 * X - X) // 2, (4 * Y - Y) // 2)
    np.testing.assert_allclose(found, whole[..., x : x + X, y : y + Y], rtol=1e-6)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("size", [(5, 8), (8, 5)])
def test_boxes_whose_centres_are_half_a_pixel_apart_are_refused(
    size: tuple[int, int], dry_run: bool, options: Callable[..., GenerateFieldsOptions], tmp_path: Path
) -> None:
    odd = np.ones((PAIRS, 2, *size), np.float32)
    paths = {
        "image_path": dataset(tmp_path / "odd.h5", odd),
        "prev_field_path": dataset(tmp_path / "odd_priors.h5", odd),
    }
    with pytest.raises(UsageError) as caught:
        generate_fields(options(**paths, dst_mip=1, crop="center", dry_run=dry_run))
    assert str(caught.value) == (
        "--crop center: 5 pixels around a centre begin half a pixel off those of MIP 3, at MIP 1: "
        "want an even number, or --dst_mip 0, or --crop start"
    )
    assert list((tmp_path / "shards").iterdir()) == []
    assert joined(options(**paths, dst_mip=0, crop="center"), tmp_path).shape == odd.shape
    assert joined(
        options(**paths, crop="center", temp_dir=str(made_folder(tmp_path / "same"))), tmp_path / "same"
    ).any()


@pytest.mark.parametrize("black", [0, 1])
def test_a_pair_with_a_black_image_is_not_run(
    black: int, options: Callable[..., GenerateFieldsOptions], images: np.ndarray, priors: np.ndarray, tmp_path: Path
) -> None:
    images[2, black] = 0
    found = joined(options(), tmp_path)
    np.testing.assert_array_equal(found[2], priors[2])
    np.testing.assert_array_equal(found[3], priors[3] + 1)


def test_what_is_not_finite_is_stored_and_counted(
    options: Callable[..., GenerateFieldsOptions], priors: np.ndarray, tmp_path: Path
) -> None:
    priors[1, 0, 3, 4] = np.nan
    priors[1, 1, 3, 5] = -np.inf
    changed = options(prev_field_path=dataset(tmp_path / "nan.h5", priors), decimals=2)
    assert generate_fields(changed).with_nonfinite == 1
    concat_fields(changed.temp_dir, str(tmp_path / "joined.h5"))
    with h5py.File(tmp_path / "joined.h5") as file:
        assert np.isnan(file["main"][1, 0, 3, 4])
        assert file["main"][1, 1, 3, 5] == -np.inf
        assert file["nonfinite"][:].tolist() == [0, 2, 0, 0, 0]


def identity(path: Path) -> tuple[int, int]:
    """Which file a path is, and when it was written; reading it may change only when it was read."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def test_the_same_command_again_does_what_is_left(
    options: Callable[..., GenerateFieldsOptions], tmp_path: Path
) -> None:
    many = np.ones((20, 2, X, Y), np.float32)
    changed = options(
        image_path=dataset(tmp_path / "many.h5", many), prev_field_path=dataset(tmp_path / "many_priors.h5", many)
    )
    generate_fields(changed)
    kept = identity(Path(changed.temp_dir) / "0_1.h5")
    (Path(changed.temp_dir) / "19_20.h5").unlink()
    assert generate_fields(changed).resumed == 19
    assert identity(Path(changed.temp_dir) / "0_1.h5") == kept
    concat_fields(changed.temp_dir, str(tmp_path / "joined.h5"))
    with h5py.File(tmp_path / "joined.h5") as file:
        np.testing.assert_array_equal(file["main"][:], 2)


TORCH_LOADED = """
import sys
from curation.steps.generate_fields import generate_fields
from curation.steps.field_work import GenerateFieldsOptions
print(generate_fields(eval(sys.argv[1])))
print("torch" in sys.modules)
"""


@pytest.mark.parametrize("dry_run", [False, True])
def test_the_same_command_again_when_all_is_done_touches_nothing(
    dry_run: bool, options: Callable[..., GenerateFieldsOptions], images: np.ndarray, priors: np.ndarray, tmp_path: Path
) -> None:
    images[2] = 0
    priors[3, 0, 0, 0] = np.nan
    changed = options(prev_field_path=dataset(tmp_path / "nan.h5", priors))
    folder = Path(changed.temp_dir)
    made = str(generate_fields(changed))
    assert "5, 0 of them found done" in made
    before = {path: path.stat() for path in (folder, *folder.iterdir())}
    again = generate_fields(replace(changed, dry_run=dry_run))
    assert str(again) == made.replace("0 of them found done", "done already")
    assert "1, an image being all 0" in made
    assert "1 fields with such vectors" in made
    after = {path: path.stat() for path in (folder, *folder.iterdir())}
    assert {path: (each.st_ino, each.st_mtime_ns) for path, each in after.items()} == {
        path: (each.st_ino, each.st_mtime_ns) for path, each in before.items()
    }


def test_a_command_whose_work_is_done_does_not_load_torch(options: Callable[..., GenerateFieldsOptions]) -> None:
    changed = options()
    generate_fields(changed)
    text = subprocess.run(
        [sys.executable, "-c", TORCH_LOADED, repr(changed)], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert "5, done already" in text
    assert text.endswith("False\n")


def test_what_a_killed_run_left_is_removed_though_all_is_done(options: Callable[..., GenerateFieldsOptions]) -> None:
    changed = options()
    generate_fields(changed)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    left = [Path(changed.temp_dir) / name for name in (f".3_4.{ended.pid}.partial.h5", ".shards.lock")]
    for path in left:
        path.touch()
    assert "5, done already" in str(generate_fields(replace(changed, dry_run=True)))
    assert all(path.exists() for path in left)
    assert "5, done already" in str(generate_fields(changed))
    assert not any(path.exists() for path in left)


def test_the_last_folder_is_made_but_not_by_a_dry_run(
    options: Callable[..., GenerateFieldsOptions], tmp_path: Path
) -> None:
    changed = options(temp_dir=str(tmp_path / "new"))
    plan = str(generate_fields(replace(changed, dry_run=True)))
    assert "are free there" in plan
    assert not (tmp_path / "new").exists()
    generate_fields(changed)
    assert len(list((tmp_path / "new").iterdir())) == PAIRS


def test_shards_of_other_arguments_are_not_mixed(options: Callable[..., GenerateFieldsOptions]) -> None:
    generate_fields(options())
    with pytest.raises(UsageError, match=r"h5: made with another model_params"):
        generate_fields(options(model_params={"step": 3.0}))


def test_shards_of_code_behind_a_link_that_changed_are_not_mixed(
    options: Callable[..., GenerateFieldsOptions], tmp_path: Path
) -> None:
    shared = made_folder(tmp_path / "shared")
    (shared / "weights.py").write_text("STEP = 1.0")
    folder = module(tmp_path / "pyramid") / "1_mip3in_shift"
    (folder / "net").symlink_to(shared)
    (shared / "again").symlink_to(shared)  # which must not be followed for ever
    (folder / "create.py").write_text(
        "from net.weights import STEP\n" + SHIFTING.replace("src_agg_field, step", "src_agg_field, STEP")
    )
    generate_fields(options())
    (shared / "weights.py").write_text("STEP = 2.0")
    with pytest.raises(UsageError, match=r"h5: made with another module"):
        generate_fields(options())


# Pairs and previous fields are matched by their start

PICKED = {"image_path": "images", "prev_field_path": "priors"}


def by_start(options: GenerateFieldsOptions, folder: Path, pairs: dict[str, Sequence[int]]) -> GenerateFieldsOptions:
    """The options with only some pairs of the images and of the priors, in an order, each with a start of its own."""
    paths = {}
    for key, name in PICKED.items():
        with h5py.File(str(getattr(options, key))) as file:
            main = file["main"][:]
        chosen = list(pairs[name])
        start = np.arange(PAIRS)[:, None, None] + np.int64([[0, 0, 1], [0, 0, 0]])
        translation = 8 * start[:, :, :2]
        arrays = {"start": start[chosen], "translation": translation[chosen], "pair": np.arange(len(chosen))}
        paths[key] = dataset(folder / f"picked_{name}.h5", main[chosen], **arrays)
    return replace(options, **paths)


def test_pairs_find_their_prior_by_its_start(
    options: Callable[..., GenerateFieldsOptions], priors: np.ndarray, tmp_path: Path
) -> None:
    # Pair 1 is there twice in both, 0 and 3 are not among the images.
    changed = by_start(options(), tmp_path, {"images": [4, 1, 2, 1], "priors": [0, 1, 2, 3, 4, 1]})
    plan, made = (str(generate_fields(replace(changed, dry_run=dry_run))) for dry_run in (True, False))
    for text in (plan, made):
        assert "passed over      2 previous fields, whose pairs are not among the images" in text
    concat_fields(changed.temp_dir, str(tmp_path / "joined.h5"))
    with h5py.File(tmp_path / "joined.h5") as file:
        np.testing.assert_array_equal(file["main"][:], priors[[4, 1, 2, 1]] + 1)
        assert file["start"][:, 0, 0].tolist() == [4, 1, 2, 1]
        assert file["pair"][:].tolist() == [0, 1, 2, 3]


def test_pairs_without_a_prior_are_refused_by_their_numbers(
    options: Callable[..., GenerateFieldsOptions], tmp_path: Path
) -> None:
    given = options()
    for chosen, said in (([1], "pairs 0, 2-4"), ([0, 1, 2, 4], "pair 3"), ([0, 1, 2, 3, 3], "pair 4")):
        changed = by_start(given, made_folder(tmp_path / said), {"images": range(5), "priors": chosen})
        with pytest.raises(UsageError) as caught:
            generate_fields(changed)
        assert str(caught.value) == (
            f"{changed.prev_field_path} has no field with the start of {said} of {changed.image_path}: "
            "make such fields, or take their prior for 0 with --missing_prior zero"
        )
    assert list(Path(changed.temp_dir).iterdir()) == []


def test_a_missing_prior_is_taken_for_0_where_that_is_asked_for(
    options: Callable[..., GenerateFieldsOptions], priors: np.ndarray, tmp_path: Path
) -> None:
    changed = by_start(options(missing_prior="zero"), tmp_path, {"images": range(5), "priors": [4, 1]})
    expected = priors.copy()
    expected[[0, 2, 3]] = 0
    np.testing.assert_array_equal(joined(changed, tmp_path), expected + 1)
    assert "prior of 0       3, there being no previous field (pairs 0, 2-3)" in str(generate_fields(changed))
    # What was made so is not taken for what needs a prior, and only those fields are made anew once there is one.
    with pytest.raises(UsageError, match="pairs 0, 2-3"):
        generate_fields(replace(changed, missing_prior="stop"))
    whole = by_start(options(update=True), tmp_path, {"images": range(5), "priors": range(5)})
    assert "fields           2 kept, 3 made" in str(generate_fields(whole))


def test_a_prior_that_was_moved_otherwise_is_refused(
    options: Callable[..., GenerateFieldsOptions], tmp_path: Path
) -> None:
    changed = by_start(options(), tmp_path, {"images": [3, 2, 1], "priors": [1, 2, 3]})
    with h5py.File(str(changed.prev_field_path), "r+") as file:
        file["translation"][1, 1, 0] = 64
    with pytest.raises(
        UsageError, match=r"pair 1: translation is \[\[16, 16], \[16, 16]] in .*images.h5 but \[\[16, 16], \[64"
    ):
        generate_fields(changed)


@pytest.mark.parametrize("which", [*PICKED])
def test_where_only_one_file_holds_starts_pairs_are_matched_by_order(
    which: str, options: Callable[..., GenerateFieldsOptions], priors: np.ndarray, tmp_path: Path
) -> None:
    changed = by_start(options(), tmp_path, {"images": range(5), "priors": [1, 0, 2, 3, 4]})
    with h5py.File(str(getattr(changed, which)), "r+") as file:
        for name in ("start", "translation", "pair"):
            del file[name]
    np.testing.assert_array_equal(joined(changed, tmp_path), priors[[1, 0, 2, 3, 4]] + 1)


# Reading, running and encoding go on beside one another


@pytest.fixture
def many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker in this process has several threads that read and encode, and takes a different time for each pair."""
    monkeypatch.setattr(Workers, "threads", Threads(reading=3, encoding=4))
    waited = iter([0.04, 0.0, 0.02] * 1000)
    encode, read = field_work.encode, FieldInputs.read

    def encode_late(*arguments: Any) -> Any:
        time.sleep(next(waited))
        return encode(*arguments)

    def read_late(*arguments: Any) -> Any:
        time.sleep(next(waited) / 4)
        return read(*arguments)

    monkeypatch.setattr(field_work, "encode", encode_late)
    monkeypatch.setattr(FieldInputs, "read", read_late)


def test_many_threads_make_the_same_shards_as_one(
    options: Callable[..., GenerateFieldsOptions], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    random = np.random.default_rng(3)
    paths = {
        "image_path": dataset(tmp_path / "many.h5", random.normal(size=(70, 2, X, Y)).astype(np.float32)),
        "prev_field_path": dataset(tmp_path / "many_priors.h5", random.normal(size=(70, 2, X, Y)).astype(np.float32)),
    }
    folders = [made_folder(tmp_path / name) for name in ("one", "many")]
    generate_fields(options(**paths, temp_dir=str(folders[0])))
    request.getfixturevalue("many_threads")
    generate_fields(options(**paths, temp_dir=str(folders[1])))
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == sorted(path.name for path in folders[1].iterdir())
    assert [what for name in names for what in differing(folders[0] / name, folders[1] / name)] == []


@pytest.mark.usefixtures("many_threads")
def test_a_pair_that_cannot_be_read_ends_the_run_after_the_shards_before_it(
    options: Callable[..., GenerateFieldsOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = FieldInputs.read

    def failing(inputs: FieldInputs, pair: int, *arguments: Any) -> Any:
        if pair == 3:
            raise WorkError("pair 3: the disk is gone")
        return read(inputs, pair, *arguments)

    monkeypatch.setattr(FieldInputs, "read", failing)
    changed = options()
    with pytest.raises(WorkError, match="the disk is gone"):
        generate_fields(changed)
    assert sorted(path.name for path in Path(changed.temp_dir).iterdir()) == ["0_1.h5", "1_2.h5", "2_3.h5"]


def test_only_so_many_fields_wait_to_be_encoded(
    options: Callable[..., GenerateFieldsOptions], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Workers, "threads", Threads(reading=1, encoding=2))
    made, encoded, most = [], [], []
    encode, field_of = field_work.encode, FieldWork.field_of

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.02)
        encoded.append(1)
        return encode(*arguments)

    def noted(*arguments: Any) -> Any:
        made.append(1)
        most.append(len(made) - len(encoded))
        return field_of(*arguments)

    monkeypatch.setattr(field_work, "encode", slowly)
    monkeypatch.setattr(FieldWork, "field_of", noted)
    many = np.ones((40, 2, X, Y), np.float32)
    paths = {
        "image_path": dataset(tmp_path / "many.h5", many),
        "prev_field_path": dataset(tmp_path / "many_priors.h5", many),
    }
    generate_fields(options(**paths))
    assert len(made) == 40
    assert max(most) <= 2 + 1 + 1 + 1  # under way, waiting, held by the worker, and the one that the module makes


# --update

# Adds 1 to the prior, notes each pair that it is called with by the first pixel of its source, and that it was loaded.
COUNTING = """
import pathlib

def create():
    note("loaded")
    def forward(src_img, tgt_img, src_agg_field):
        note(f"{float(src_img[0, 0, 0, 0]):g}")
        return src_agg_field + 1
    return forward

def note(line):
    with open("NOTES", "a") as file:
        print(line, file=file)
"""


class Counted:
    """Runs of a counting module over chosen pairs of one dataset; each pair's source begins with its number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        random = np.random.default_rng(5)
        self.images, self.priors = (random.normal(size=(30, 2, X, Y)).astype(np.float32) for _ in range(2))
        self.images[:, 0, 0, 0] = np.arange(30)
        self.notes = folder / "notes.txt"
        module(folder / "pyramid", create=COUNTING.replace("NOTES", str(self.notes)))

    def options(self, pairs: Sequence[int], shards: str = "shards", **changes: Any) -> GenerateFieldsOptions:
        chosen = list(pairs)
        start = np.arange(30)[:, None, None] + np.zeros((1, 2, 3), np.int64)
        arrays = {"start": start[chosen], "pair": np.arange(len(chosen))}
        known = changes.pop("known", False)
        self.folder.joinpath("files").mkdir(exist_ok=True)
        paths = []
        for name, values in (("images", self.images[chosen]), ("priors", self.priors[chosen])):
            checksums = {}
            if known:  # as the toolkit's own files do
                parts = values.reshape(-1, *values.shape[2:]) if name == "images" else values
                crc32 = [zlib.crc32(np.ascontiguousarray(part).tobytes()) for part in parts]
                checksums = {"crc32": np.array(crc32, np.uint32).reshape(len(chosen), -1)}
            path = self.folder / "files" / f"{name}_{len(list((self.folder / 'files').iterdir()))}.h5"
            paths.append(dataset(path, values, **arrays, **checksums))
            if known:
                with h5py.File(paths[-1], "r+") as file:
                    file.attrs["identity"] = "{}"
        given: dict[str, Any] = {"pyramid_path": str(self.folder / "pyramid"), "cpu_workers": 1, **changes}
        where = str(self.folder / shards)
        return GenerateFieldsOptions(
            given.pop("pyramid_path"), *paths, where, 1, "test", 3, given.pop("dst_mip", 3), **given
        )

    def called(self, options: GenerateFieldsOptions) -> list[str]:
        """What the module noted during a run."""
        self.notes.unlink(missing_ok=True)
        generate_fields(options)
        return self.notes.read_text().split() if self.notes.exists() else []

    def faults(self, options: GenerateFieldsOptions) -> list[str]:
        """What is not as in shards that are made from nothing."""
        other = replace(options, temp_dir=str(self.folder / "anew"), update=False)
        shutil.rmtree(other.temp_dir, ignore_errors=True)
        generate_fields(other)
        folders = [Path(each.temp_dir) for each in (options, other)]
        names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
        if names[0] != names[1]:
            return [f"{names[0]}, not {names[1]}"]
        return [f"{name}: {what}" for name in names[0] for what in differing(*(folder / name for folder in folders))]


@pytest.fixture
def counted(tmp_path: Path) -> Counted:
    return Counted(tmp_path)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_update_runs_only_the_pairs_whose_inputs_are_new(known: bool, workers: int, counted: Counted) -> None:
    counted.called(counted.options(range(10), known=known))
    changed = [9, 0, 1, 20, 21, 4, 3, 8]  # some removed, two inserted, two exchanged
    options = counted.options(changed, known=known, update=True, cpu_workers=workers)
    called = counted.called(options)
    assert sorted(called) == ["20", "21", *["loaded"] * called.count("loaded")]
    assert counted.faults(options) == []
    assert leftovers(Path(options.temp_dir)) == []


def test_a_module_that_is_loaded_while_others_read_and_write_does_not_lead_them_elsewhere(
    counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is the working directory meanwhile; the paths of a command may be relative."""
    monkeypatch.chdir(tmp_path)
    create = tmp_path / "pyramid" / "1_mip3in_shift" / "create.py"
    create.write_text(f"import time\ntime.sleep(0.3)\n{create.read_text()}")
    counted.called(replace(counted.options(range(10)), temp_dir="shards"))
    options = replace(counted.options([0, 1, 20, 3, 4], update=True), temp_dir="shards")
    assert counted.called(options) == ["loaded", "20"]
    assert counted.faults(options) == []


def test_an_update_that_keeps_all_loads_no_module(counted: Counted) -> None:
    counted.called(counted.options(range(10)))
    options = counted.options([7, 3, 4], update=True)
    assert counted.called(options) == []
    assert counted.faults(options) == []


def test_an_update_says_how_many_fields_it_kept(counted: Counted) -> None:
    generate_fields(counted.options(range(10)))
    options = counted.options([5, 6, 12], update=True)
    plan = str(generate_fields(replace(options, dry_run=True)))
    assert "3; 10 of another origin go, once the fields in them that are right were copied" in plan
    assert sorted(path.name for path in Path(options.temp_dir).iterdir())[0] == "0_1.h5"
    made = str(generate_fields(options))
    assert "3, 0 of them found done" in made
    assert "fields           2 kept, 1 made" in made
    assert "3, done already" in str(generate_fields(options))
    assert "3, done already" in str(generate_fields(replace(options, update=False)))


def test_a_changed_prior_or_image_is_run_anew(counted: Counted) -> None:
    counted.called(counted.options(range(6), known=True))
    counted.priors[2, 1, 3, 3] += 1
    counted.images[4, 1, 3, 3] += 1
    options = counted.options(range(6), known=True, update=True)
    assert counted.called(options) == ["loaded", "2", "4"]
    assert counted.faults(options) == []


def test_a_pair_that_lies_elsewhere_is_run_anew(counted: Counted) -> None:
    counted.called(counted.options(range(3)))
    options = counted.options(range(3), update=True)
    for path in (options.image_path, options.prev_field_path):
        with h5py.File(str(path), "r+") as file:
            file["start"][1] += 64
    assert counted.called(options) == ["loaded", "1"]


@pytest.mark.parametrize("changes", [{"decimals": 1}, {"decimals": 2}, {"dst_mip": 2}, {"crop": "center"}])
def test_fields_of_other_parameters_are_all_made_anew(changes: dict[str, Any], counted: Counted) -> None:
    counted.called(counted.options(range(3)))
    options = counted.options(range(3), update=True, **changes)
    assert counted.called(options) == ["loaded", "0", "1", "2"]
    assert counted.faults(options) == []


def test_a_kept_field_that_is_damaged_is_made_anew(counted: Counted) -> None:
    options = counted.options(range(4))
    counted.called(options)
    path = Path(options.temp_dir) / "2_3.h5"
    with h5py.File(path) as file:
        place = file["main"].id.get_chunk_info(0)
    with open(path, "r+b") as content:
        content.seek(place.byte_offset + place.size // 2)
        content.write(b"damaged")
    (Path(options.temp_dir) / "1_2.h5").write_bytes(b"torn")
    changed = counted.options([3, 2, 1, 0], update=True)
    assert counted.called(changed) == ["loaded", "2", "1"]
    assert counted.faults(changed) == []


def test_an_update_that_was_broken_off_goes_on_with_what_both_runs_made(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted.called(counted.options(range(6)))
    options = counted.options([5, 20, 4, 21, 3, 22], update=True)
    with monkeypatch.context() as patch:
        wrote = field_work.write_whole
        left = iter(range(2))

        def broken(*arguments: Any) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            wrote(*arguments)

        patch.setattr(field_work, "write_whole", broken)
        with pytest.raises(KeyboardInterrupt):
            generate_fields(options)
    assert len(list(Path(options.temp_dir).glob(".before_*"))) == 6
    # Without --update too: no shard of another origin is in the way any more.
    assert set(counted.called(replace(options, update=False))) == {"loaded", "21", "22"}
    assert counted.faults(options) == []


def test_updates_of_updates_that_were_broken_off_do_not_lose_fields(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = counted.options(range(4))
    counted.called(first)
    with monkeypatch.context() as patch:
        patch.setattr(KeptReader, "find", _interrupt)
        for other in ([4, 5, 6], [7, 8, 9]):
            with pytest.raises(KeyboardInterrupt):
                generate_fields(counted.options(other, update=True))
    generate_fields(counted.options([10, 11], shards="shards2"))
    for number in range(2):  # of an origin that is not wanted either, under names that were moved aside
        shutil.move(counted.folder / "shards2" / f"{number}_{number + 1}.h5", first.temp_dir)
    last = counted.options([11, 3, 0, 1], update=True)
    assert counted.called(last) == []
    assert counted.faults(last) == []


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_shards_of_other_inputs_are_refused_with_the_ways_on(counted: Counted) -> None:
    options = counted.options(range(3))
    generate_fields(options)
    for dry_run in (False, True):
        with pytest.raises(UsageError) as caught:
            generate_fields(counted.options([0, 2], dry_run=dry_run))
        assert str(caught.value) == (
            f"{options.temp_dir}/0_1.h5: made with another images, previous_fields; --update keeps the fields that are "
            "still right, or take another --temp_dir"
        )


def test_an_update_that_is_refused_moves_nothing(counted: Counted) -> None:
    options = counted.options(range(3))
    generate_fields(options)
    before = sorted(Path(options.temp_dir).iterdir())
    with pytest.raises(UsageError, match="--gpu 99"):
        generate_fields(counted.options([0, 2], update=True, gpu=(99,)))
    assert sorted(Path(options.temp_dir).iterdir()) == before


def test_the_checksums_of_inputs_are_stored_and_joined(counted: Counted, command: Command, tmp_path: Path) -> None:
    options = counted.options([3, 9])
    generate_fields(options)
    joined_path = tmp_path / "joined.h5"
    concat_fields(options.temp_dir, str(joined_path))
    with h5py.File(joined_path) as file:
        assert file["input_crc32"].dtype == np.uint32
        for found, pair in zip(file["input_crc32"][:].tolist(), (3, 9), strict=True):
            parts = (*counted.images[pair], counted.priors[pair])
            assert found == [zlib.crc32(part.tobytes()) for part in parts]
    assert command("verify_dataset.py", joined_path).code == 0


def test_without_a_prior_its_checksum_is_0(options: Callable[..., GenerateFieldsOptions], tmp_path: Path) -> None:
    module(tmp_path / "pyramid", "0_mip3in_first")
    changed = options(stage=0, prev_field_path=None)
    generate_fields(changed)
    with h5py.File(Path(changed.temp_dir) / "0_1.h5") as file:
        assert file["input_crc32"][0, 2] == 0 != file["input_crc32"][0, 1]


def test_a_shard_without_checksums_of_its_inputs_is_of_another_version(counted: Counted) -> None:
    options = counted.options(range(2))
    generate_fields(options)
    for path in Path(options.temp_dir).iterdir():
        with h5py.File(path, "r+") as file:
            del file["input_crc32"]
            seal_finished(file)
    with pytest.raises(UsageError, match=r"made with another version of the toolkit; --update"):
        generate_fields(options)
    assert counted.called(replace(options, update=True)) == ["loaded", "0", "1"]
    assert counted.faults(replace(options, update=True)) == []


def test_shards_depend_on_the_number_of_pairs_alone() -> None:
    assert missing_shards([], 3) == [Shard(0, 1), Shard(1, 2), Shard(2, 3)]
    assert [shard_size(pairs) for pairs in (1, 32, 63, 64, 320, 10**6)] == [1, 1, 1, 2, 10, 16]
    shards = missing_shards([], 1000)
    assert [shard.first for shard in shards] == list(range(0, 1000, 16))
    assert shards[-1] == Shard(992, 1000)


def test_missing_shards_fill_the_gaps() -> None:
    assert missing_shards([Shard(2, 6), Shard(6, 20)], 20) == [Shard(0, 1), Shard(1, 2)]
    assert missing_shards([Shard(0, 20)], 20) == []
    # Shards of another size end where they end; the others stay on the grid.
    assert missing_shards([Shard(0, 10), Shard(40, 48)], 640)[:4] == [
        Shard(10, 16),
        Shard(16, 32),
        Shard(32, 40),
        Shard(48, 64),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prev_field_path": None}, r"stage 1 .* --prev_field_path"),
        ({"image_path": "nowhere.h5"}, r"nowhere.h5: no such file"),
        ({"temp_dir": "nowhere/shards"}, r"nowhere/shards: no such folder, nor is there nowhere"),
        ({"gpu": (99,)}, r"--gpu 99: CUDA sees \d+ GPUs here; .* --cpu_workers"),
    ],
)
def test_wrong_arguments_are_refused(
    changes: dict[str, Any], message: str, options: Callable[..., GenerateFieldsOptions]
) -> None:
    with pytest.raises(UsageError, match=message):
        generate_fields(options(**changes))


def test_a_prior_of_other_boxes_is_refused(
    options: Callable[..., GenerateFieldsOptions], images: np.ndarray, priors: np.ndarray, tmp_path: Path
) -> None:
    start = np.arange(PAIRS)[:, None, None] + np.zeros((1, 2, 3), np.int64)
    moved = start.copy()
    moved[3, 1, 0] = 64
    changed = options(
        image_path=dataset(tmp_path / "here.h5", images, start=start),
        prev_field_path=dataset(tmp_path / "there.h5", priors, start=moved),
    )
    with pytest.raises(UsageError, match=r"there.h5 has no field with the start of pair 3 of .*here.h5"):
        generate_fields(changed)


def test_modules_with_neighbours_of_one_name_do_not_share_them(
    options: Callable[..., GenerateFieldsOptions], tmp_path: Path
) -> None:
    changed = options()
    generate_fields(changed)
    other = module(tmp_path / "pyramid2", "1_mip3in_shift")
    (other / "1_mip3in_shift" / "neighbour.py").write_text(NEIGHBOUR.replace("+ step", "- step"))
    (tmp_path / "shards2").mkdir()
    generate_fields(options(pyramid_path=str(other), temp_dir=str(tmp_path / "shards2")))
    with h5py.File(tmp_path / "shards" / "0_1.h5") as one, h5py.File(tmp_path / "shards2" / "0_1.h5") as two:
        np.testing.assert_allclose(one["main"][:] - two["main"][:], 2, atol=1e-6)


def test_image_and_field_files_the_wrong_way_round_are_refused(
    options: Callable[..., GenerateFieldsOptions], images: np.ndarray, priors: np.ndarray, tmp_path: Path
) -> None:
    image_path = dataset(tmp_path / "real_images.h5", images, mean=np.zeros((PAIRS, 2), np.float32))
    with h5py.File(dataset(tmp_path / "real_fields.h5", priors), "r+") as file:
        file.attrs["decimals"] = 2
    with pytest.raises(UsageError, match=r"real_fields.h5: field file, where image file is wanted"):
        generate_fields(options(image_path=str(tmp_path / "real_fields.h5")))
    with pytest.raises(UsageError, match=r"real_images.h5: image file, where field file is wanted"):
        generate_fields(options(prev_field_path=image_path))
