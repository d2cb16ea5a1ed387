"""The scripts on random small jobs, every stored number held against the judge of `one_sample`.

A test's name holds the seed of its job. `torture_differential.py` does thousands.
"""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import Command
from judging import half_a_step, judge_dataset, judge_finer, judge_stretch
from one_sample import brought_finer
from random_jobs import make_job, make_stretch
from small_jobs import fields_arguments, made_folder, put_main, pyramid_of
from volumes_made import make_layer

JOBS = range(60)
STRETCHES = range(16)

# The prior as it is given.
PRIOR = "def create(): return lambda s, t, src_agg_field: src_agg_field"


@pytest.mark.parametrize("seed", JOBS)
def test_make_dataset_is_what_the_contract_says(seed: int, command: Command, tmp_path: Path) -> None:
    job = make_job(seed, tmp_path)
    spec, out = tmp_path / "spec.json", made_folder(tmp_path / "out")
    spec.write_text(json.dumps(job.written))
    faults = judge_dataset(job, command("make_dataset.py", *job.arguments(spec, out)), out)
    assert not faults, _text(seed, faults)


@pytest.mark.parametrize("seed", STRETCHES)
def test_download_image_is_what_the_contract_says(seed: int, command: Command, tmp_path: Path) -> None:
    stretch = make_stretch(seed, tmp_path)
    out = made_folder(tmp_path / "out")
    faults = judge_stretch(stretch, command("download_image.py", *stretch.arguments(out)), out)
    assert not faults, _text(seed, faults)


@pytest.mark.parametrize("seed", range(24))
def test_generate_fields_brings_fields_to_their_level(seed: int, command: Command, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    dst_mip = int(random.integers(0, 3))
    src_mip = dst_mip + int(random.choice([0, 1, 1, 2, 3]))
    crop = str(random.choice(["start", "center"]))
    decimals: int | str | None = [None, 2, "binary"][int(random.integers(3))]
    shape = (int(random.integers(1, 4)), 2, int(random.integers(1, 20)), int(random.integers(1, 20)))
    images = random.integers(0, 9, shape).astype(np.float32)
    images[0, int(random.integers(2))] = 0  # such a pair is not run: the prior stands
    prior = random.normal(0, 30, shape).astype(np.float32)
    for value in (np.nan, np.inf, -np.inf):
        prior[random.random(shape) < random.choice([0, 0.02])] = value
    pyramid_of(tmp_path, PRIOR, f"0_mip{src_mip}in_small")
    shards = made_folder(tmp_path / "shards")
    done = command(
        "generate_fields.py",
        *fields_arguments(
            tmp_path,
            put_main(tmp_path / "images.h5", images, src_mip),
            put_main(tmp_path / "prior.h5", prior, src_mip),
            src_mip=src_mip,
            dst_mip=dst_mip,
            crop=crop,
            field_decimals="none" if decimals is None else decimals,
        ),
    )
    if brought_finer(prior[0].astype(np.float64), src_mip, dst_mip, crop) is None:
        assert (done.code, list(shards.glob("*.h5"))) == (2, []), done.stderr
        return
    assert done.code == 0, done.stderr
    paths = sorted(shards.glob("[0-9]*.h5"), key=lambda path: int(path.stem.split("_")[0]))
    found = np.concatenate([h5py.File(path)["main"][:] for path in paths])
    assert found.shape == shape
    for pair, coarse in enumerate(prior.astype(np.float64)):
        faults = judge_finer(found[pair], coarse, src_mip, dst_mip, crop, decimals)
        assert not faults, f"pair {pair}: {_text(seed, faults)}"


@pytest.mark.parametrize("decimals", [0, 2, 4, "binary"])
def test_rounding_is_never_off_by_more_than_half_a_step(decimals: int | str, command: Command, tmp_path: Path) -> None:
    step = 2 * half_a_step(decimals)
    random = np.random.default_rng(int(1 / step))
    values = random.uniform(-1, 1, (32, 48, 2, 2)) * 10 ** random.uniform(-3, 4, (32, 48, 2, 1))
    values[::5] = np.round(values[::5] / step) * step + step / 2  # half-way, as near as float32 comes
    vectors = values.astype(np.float32)
    nothing = np.full((4, 4, 2, 2), np.nan, np.float32)  # without a translation residuals stay large
    reference = {"path": make_layer(tmp_path / "nothing", {0: nothing}), "src_mip": 0, "dst_mip": 0}
    spec = {
        "image": {"path": make_layer(tmp_path / "image", {0: np.ones((32, 48, 2), np.uint8)}), "src_mip": 0},
        "field": {
            "path": make_layer(tmp_path / "field", {0: vectors}),
            "src_mip": 0,
            "reference": {**reference, "x_size": 4, "y_size": 4},
        },
        **{"max_mip": 0, "dst_mip": 0, "x_size": 32, "y_size": 48},
        "pairs": [{role: {"x_start": 0, "y_start": 0, "z_start": z} for role, z in (("src", 0), ("tgt", 1))}],
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    arguments = ["--spec_path", tmp_path / "spec.json", "--dst_path", made_folder(tmp_path / "out"), "--parallel", 1]
    assert command("make_dataset.py", *arguments, "--field_decimals", decimals).code == 0
    with h5py.File(tmp_path / "out" / "field_0_x0_y0_z0_MIP0.h5") as file:
        found = file["main"][0].astype(np.float64)
    expected = np.moveaxis(vectors[:, :, 0], -1, 0).astype(np.float64)
    # A step that float32 does not hold is stored as the number next to it, half the distance between two at most.
    error = np.abs(found - expected) - np.spacing(np.abs(found).astype(np.float32)) / 2
    worst = np.unravel_index(error.argmax(), error.shape)
    assert error.max() <= step / 2 * (1 + 1e-9), f"{expected[worst]!r} is stored as {found[worst]!r}"


def _text(seed: int, faults: list[str]) -> str:
    return "\n".join([f"seed {seed}: {len(faults)} disagreements", *faults[:10]])
