"""Aligner modules over a dataset: pyramids, shards, and joining them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from curation import fields
from curation.errors import UsageError, WorkError
from curation.inference import Options, generate_fields
from curation.joining import concat_fields
from curation.shards import Shard, missing_shards

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
    with h5py.File(path, "w") as file:
        file["main"] = main
        for name, values in arrays.items():
            file[name] = values
        if mip is not None:
            file.attrs["mip"] = mip
    return str(path)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(PAIRS, 2, X, Y)).astype(np.float32)


@pytest.fixture
def priors() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(PAIRS, 2, X, Y)).astype(np.float32)


@pytest.fixture
def options(tmp_path: Path, images: np.ndarray, priors: np.ndarray) -> Callable[..., Options]:
    """generate_fields's options with the module, the images and the priors above, and what a test changes."""

    def make(**changes: Any) -> Options:
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
        return Options(**{**given, **changes})

    return make


def joined(options: Options, tmp_path: Path) -> np.ndarray:
    generate_fields(options)
    concat_fields(options.temp_dir, str(tmp_path / "joined.h5"))
    with h5py.File(tmp_path / "joined.h5") as file:
        return file["main"][:]


def test_a_modelhouse_package_gets_what_it_takes(
    options: Callable[..., Options], priors: np.ndarray, tmp_path: Path
) -> None:
    np.testing.assert_array_equal(joined(options(), tmp_path), priors + 1)


def test_model_params_override(options: Callable[..., Options], priors: np.ndarray, tmp_path: Path) -> None:
    np.testing.assert_array_equal(joined(options(model_params={"step": -2.0}), tmp_path), priors - 2)


def test_fields_are_rounded_unless_told(options: Callable[..., Options], priors: np.ndarray, tmp_path: Path) -> None:
    np.testing.assert_array_equal(joined(options(decimals=2), tmp_path), np.round(priors + 1, 2))


def test_stage_0_may_have_no_prior(options: Callable[..., Options], tmp_path: Path) -> None:
    module(tmp_path / "pyramid", "0_mip3in_first")
    np.testing.assert_array_equal(joined(options(stage=0, prev_field_path=None), tmp_path), 1)


def test_a_torchscript_file(options: Callable[..., Options], priors: np.ndarray, tmp_path: Path) -> None:
    class Doubling(torch.nn.Module):
        def forward(self, src_img: torch.Tensor, tgt_img: torch.Tensor, src_agg_field: torch.Tensor) -> torch.Tensor:
            return 2 * src_agg_field

    folder = tmp_path / "pyramid" / "1_mip3in_script"
    folder.mkdir(parents=True)
    torch.jit.script(Doubling()).save(str(folder / "test.pt"))
    np.testing.assert_array_equal(joined(options(), tmp_path), 2 * priors)


@pytest.mark.parametrize("crop", ["start", "center"])
def test_the_result_is_brought_to_a_finer_mip(
    crop: str, options: Callable[..., Options], priors: np.ndarray, tmp_path: Path
) -> None:
    found = joined(options(dst_mip=1, crop=crop), tmp_path)
    # Times 2^3, bilinear up by 4, divided by 2^1; then X x Y pixels at the start corner, or in the middle.
    whole = fields.upsample((priors + 1) * 8, 4) / 2
    x, y = (0, 0) if crop == "start" else ((4 * X - X) // 2, (4 * Y - Y) // 2)
    np.testing.assert_allclose(found, whole[..., x : x + X, y : y + Y], rtol=1e-6)


@pytest.mark.parametrize("black", [0, 1])
def test_a_pair_with_a_black_image_is_not_run(
    black: int, options: Callable[..., Options], images: np.ndarray, priors: np.ndarray, tmp_path: Path
) -> None:
    images[2, black] = 0
    found = joined(options(), tmp_path)
    np.testing.assert_array_equal(found[2], priors[2])
    np.testing.assert_array_equal(found[3], priors[3] + 1)


def test_what_is_not_finite_is_stored_and_counted(
    options: Callable[..., Options], priors: np.ndarray, tmp_path: Path
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


def test_every_pair_once_however_many_workers(
    options: Callable[..., Options], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = np.random.default_rng(2).normal(size=(37, 2, X, Y)).astype(np.float32)
    changed = options(
        image_path=dataset(tmp_path / "many.h5", many),
        prev_field_path=dataset(tmp_path / "many_priors.h5", many),
        cpu_workers=2,
    )
    np.testing.assert_array_equal(joined(changed, tmp_path), many + 1)
    assert len(list(Path(changed.temp_dir).iterdir())) == 10  # of 4 pairs, and the last of 1


def test_the_same_command_again_does_what_is_left(options: Callable[..., Options], tmp_path: Path) -> None:
    many = np.ones((20, 2, X, Y), np.float32)
    changed = options(
        image_path=dataset(tmp_path / "many.h5", many), prev_field_path=dataset(tmp_path / "many_priors.h5", many)
    )
    generate_fields(changed)
    kept = (Path(changed.temp_dir) / "0_5.h5").stat()
    (Path(changed.temp_dir) / "15_20.h5").unlink()
    assert generate_fields(changed).resumed == 15
    assert (Path(changed.temp_dir) / "0_5.h5").stat() == kept
    concat_fields(changed.temp_dir, str(tmp_path / "joined.h5"))
    with h5py.File(tmp_path / "joined.h5") as file:
        np.testing.assert_array_equal(file["main"][:], 2)


def test_shards_of_other_arguments_are_not_mixed(options: Callable[..., Options]) -> None:
    generate_fields(options())
    with pytest.raises(UsageError, match=r"h5: made with another model_params"):
        generate_fields(options(model_params={"step": 3.0}))


def test_missing_shards_fill_the_gaps() -> None:
    assert missing_shards([], 20, workers=1) == [Shard(0, 5), Shard(5, 10), Shard(10, 15), Shard(15, 20)]
    assert missing_shards([], 200, workers=1)[0] == Shard(0, 16)
    assert missing_shards([], 3, workers=8) == [Shard(0, 1), Shard(1, 2), Shard(2, 3)]
    assert missing_shards([Shard(2, 6), Shard(6, 20)], 20, workers=1) == [Shard(0, 1), Shard(1, 2)]
    assert missing_shards([Shard(0, 20)], 20, workers=1) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": 2}, r"no module of stage 2; there is 1_mip3in_shift"),
        ({"src_mip": 4, "dst_mip": 4}, r"takes images of MIP 3, not src_mip 4"),
        ({"dst_mip": 4}, r"src_mip 3 is finer than dst_mip 4"),
        ({"prev_field_path": None}, r"stage 1 .* --prev_field_path"),
        ({"image_path": "nowhere.h5"}, r"nowhere.h5: no such file"),
        ({"temp_dir": "nowhere"}, r"nowhere: no such folder"),
        ({"gpu": (99,)}, r"--gpu 99: CUDA sees \d+ GPUs here; .* --cpu_workers"),
    ],
)
def test_wrong_arguments_are_refused(changes: dict[str, Any], message: str, options: Callable[..., Options]) -> None:
    with pytest.raises(UsageError, match=message):
        generate_fields(options(**changes))


def test_two_modules_of_one_stage_are_refused(options: Callable[..., Options], tmp_path: Path) -> None:
    changed = options()
    module(tmp_path / "pyramid", "1_mip3in_other")
    with pytest.raises(UsageError, match=r"more than one module of stage 1; there is 1_mip3in_other, 1_mip3in_shift"):
        generate_fields(changed)


def test_a_missing_checkpoint_is_refused(options: Callable[..., Options], tmp_path: Path) -> None:
    folder = tmp_path / "pyramid" / "1_mip3in_script"
    folder.mkdir(parents=True)
    (folder / "other.pt").write_bytes(b"")
    with pytest.raises(UsageError, match=r"no create.py and no test.pt; checkpoints there: other.pt"):
        generate_fields(options())


def test_a_corrupt_checkpoint_is_refused(options: Callable[..., Options], tmp_path: Path) -> None:
    folder = tmp_path / "pyramid" / "1_mip3in_script"
    folder.mkdir(parents=True)
    (folder / "test.pt").write_bytes(b"not a script")
    with pytest.raises(UsageError, match=r"test.pt: not a TorchScript file"):
        generate_fields(options())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"main": np.ones((4, 2, X, Y), np.float32)}, r"want the same shape"),
        ({"main": np.ones((5, 2, X, Y + 1), np.float32)}, r"want the same shape"),
        ({"mip": 2}, r"is of MIP 2, not src_mip 3"),
    ],
)
def test_a_prior_of_other_images_is_refused(
    other: dict[str, Any], message: str, options: Callable[..., Options], priors: np.ndarray, tmp_path: Path
) -> None:
    path = dataset(tmp_path / "other.h5", **{"main": priors, **other})
    with pytest.raises(UsageError, match=message):
        generate_fields(options(prev_field_path=path))


def test_a_prior_of_other_boxes_is_refused(
    options: Callable[..., Options], images: np.ndarray, priors: np.ndarray, tmp_path: Path
) -> None:
    start = np.zeros((PAIRS, 2, 3), np.int64)
    moved = start.copy()
    moved[3, 1, 0] = 64
    changed = options(
        image_path=dataset(tmp_path / "here.h5", images, start=start),
        prev_field_path=dataset(tmp_path / "there.h5", priors, start=moved),
    )
    with pytest.raises(UsageError, match=r"pair 3: start is"):
        generate_fields(changed)


@pytest.mark.parametrize(
    ("create", "message"),
    [
        ("raise RuntimeError('no weights')", r"1_mip3in_bad: could not be loaded: RuntimeError: no weights"),
        ("x = 1", r"create.py has no function create"),
        ("def create(): return 7", r"create returned int"),
        ("def create(): return lambda s, t: None", r"pair 0, 12 x 8 pixels: .*1_mip3in_bad: returned NoneType"),
        ("def create(): return lambda s, t: s", r"pair 0, .* returned torch.float32 of shape \(1, 1, 12, 8\)"),
        ("def create(): return lambda s, t: 1 / 0", r"5 of 5 pairs failed; .* pair 0, .* ZeroDivisionError"),
    ],
)
def test_a_bad_module_fails_and_is_named(
    create: str, message: str, options: Callable[..., Options], tmp_path: Path
) -> None:
    (tmp_path / "pyramid").mkdir()
    module(tmp_path / "pyramid", "1_mip3in_bad", create)
    with pytest.raises(WorkError, match=message):
        generate_fields(options())
    assert not list((tmp_path / "shards").glob("*.h5"))


def test_modules_with_neighbours_of_one_name_do_not_share_them(options: Callable[..., Options], tmp_path: Path) -> None:
    changed = options()
    generate_fields(changed)
    other = module(tmp_path / "pyramid2", "1_mip3in_shift")
    (other / "1_mip3in_shift" / "neighbour.py").write_text(NEIGHBOUR.replace("+ step", "- step"))
    (tmp_path / "shards2").mkdir()
    generate_fields(options(pyramid_path=str(other), temp_dir=str(tmp_path / "shards2")))
    with h5py.File(tmp_path / "shards" / "0_1.h5") as one, h5py.File(tmp_path / "shards2" / "0_1.h5") as two:
        np.testing.assert_allclose(one["main"][:] - two["main"][:], 2, atol=1e-6)


def test_image_and_field_files_the_wrong_way_round_are_refused(
    options: Callable[..., Options], images: np.ndarray, priors: np.ndarray, tmp_path: Path
) -> None:
    image_path = dataset(tmp_path / "real_images.h5", images, mean=np.zeros((PAIRS, 2), np.float32))
    with h5py.File(dataset(tmp_path / "real_fields.h5", priors), "r+") as file:
        file.attrs["decimals"] = 2
    with pytest.raises(UsageError, match=r"real_fields.h5: field file, where image file is wanted"):
        generate_fields(options(image_path=str(tmp_path / "real_fields.h5")))
    with pytest.raises(UsageError, match=r"real_images.h5: image file, where field file is wanted"):
        generate_fields(options(prev_field_path=image_path))
