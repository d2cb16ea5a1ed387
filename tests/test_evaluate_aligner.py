"""Judging aligners without ground truth, in examples/evaluate_aligner.py."""

from pathlib import Path

import numpy as np
import pytest
from test_examples import EXAMPLES, load

from curation import fields

evaluate = load(EXAMPLES / "evaluate_aligner.py")

NOTHING = """
import torch

def create():
    return lambda src_img, tgt_img: torch.zeros(1, 2, *src_img.shape[2:])
"""


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A volume of random, smooth tissue, 4 sections of 200 x 180 pixels."""
    from cloudvolume import CloudVolume
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(0).normal(size=(200, 180, 4)), (3, 3, 1))
    grey = np.clip(128 + 40 * noise / noise.std(), 1, 255).astype(np.uint8)
    folder = tmp_path_factory.mktemp("volume")
    CloudVolume.from_numpy(
        grey[..., None], folder.as_uri(), resolution=(4, 4, 40), chunk_size=(64, 64, 1), layer_type="image",
        progress=False,
    )  # fmt: skip
    return folder.as_uri()


def pyramid(folder: Path, *modules: str) -> str:
    for module in modules:
        (folder / module).mkdir(parents=True)
        (folder / module / "create.py").write_text(NOTHING)
    return str(folder)


@pytest.fixture
def pair() -> evaluate.Pair:
    x, y = np.meshgrid(np.arange(160.0), np.arange(140.0), indexing="ij")
    wave = (128 + 60 * np.sin(x / 7) * np.cos(y / 5)).astype(np.float32)
    return evaluate.Pair(wave, wave, noise_seed=1)


def test_the_error_of_the_right_field_is_zero(pair) -> None:
    """The source is the target: the right field is what was put onto the target."""
    known = pair.displacement(8)
    moved = pair.displaced(known)
    inner = (slice(40, -40), slice(40, -40))
    np.testing.assert_allclose(fields.warp(pair.source, known)[inner], moved.target[inner], atol=1.5)
    assert evaluate.error(known, known, np.zeros_like(known)).max() < 1e-5


def test_the_error_of_doing_nothing_is_the_displacement(pair) -> None:
    known = pair.displacement(8)
    nothing = np.zeros_like(known)
    found = evaluate.error(nothing, known, nothing)
    np.testing.assert_allclose(found, np.linalg.norm(known, axis=0)[40:-40, 40:-40], rtol=1e-5)


def test_the_field_before_is_composed_with_what_is_known(pair) -> None:
    """A field that grows along x by 0.1 a pixel, looked up 5 pixels farther, is 0.5 larger there."""
    before = np.zeros((2, 160, 140), np.float32)
    before[1] = 0.1 * np.arange(160)[:, None]
    known = np.zeros_like(before)
    known[1] = 5
    composed = known + before
    composed[1] += 0.5
    assert evaluate.error(composed, known, before).max() < 1e-4


def test_the_largest_component_is_the_amplitude(pair) -> None:
    assert np.abs(pair.displacement(12)).max() == pytest.approx(12)


def test_stages_run_from_coarse_to_fine_and_hand_on_their_fields(tmp_path: Path) -> None:
    """Stage 0 at half the resolution finds 1 pixel; stage 1 adds 1 to what it is given, which is 2 of its own."""
    adding = NOTHING.replace("src_img, tgt_img:", "src_img, tgt_img, src_agg_field=None: 1 +").replace(
        "torch.zeros(1, 2, *src_img.shape[2:])",
        "(src_agg_field if src_agg_field is not None else torch.zeros(1, 2, *src_img.shape[2:]))",
    )
    folder = pyramid(tmp_path / "pyramid", "0_mip3in_a", "1_mip2in_b")
    for module in Path(folder).iterdir():
        (module / "create.py").write_text(adding)
    image = np.random.default_rng(0).uniform(1, 255, (64, 48)).astype(np.float32)
    found = evaluate.PyramidAligner(folder, "none", "cpu")(image, image)
    np.testing.assert_array_equal(found, np.full((2, 64, 48), 3, np.float32))


def test_a_table_and_a_picture_are_made(volume: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "fields.png"
    arguments = [pyramid(tmp_path / "pyramid", "0_mip0in_zero"), volume, "--size", "128", "--pairs", "1"]
    assert evaluate.main([*arguments, "--png", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line[:32].strip() for line in lines]
    assert names[1:10] == ["pyramid", "TV-L1", "ILK"] * 3
    assert names[11:16] == [*evaluate.DAMAGES, "the section between is missing"]
    nothing_found = [float(line.split()[2]) for line in lines[1:10:3]]
    assert nothing_found == sorted(nothing_found) and nothing_found[0] > 0.5
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "80"], "--size 80: nothing is left 40 pixels from the border"),
        (["--size", "500"], "200 x 180 pixels at MIP 0: want at least --size 500"),
        (["--size", "127"], "--size 127: want a multiple of 2, for the coarsest stage"),
        (["--mip", "7"], "has no MIP 7: it has [0]"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(
    volume: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    folder = pyramid(tmp_path / "pyramid", "0_mip1in_zero", "1_mip0in_zero")
    assert evaluate.main([folder, volume, *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


@pytest.mark.parametrize("scale", [1, 1 / 255])
def test_damage_and_displacement_keep_what_is_tissue(pair, scale: float) -> None:
    """Whatever the grey values are, only what was black is 0, and what is displaced stays between its extremes."""
    image = (pair.target * scale).astype(np.float32)
    image[:9] = 0
    damaged = evaluate.DAMAGES["contrast inverted"](image), evaluate.DAMAGES["contrast halved"](image)
    for made in damaged:
        np.testing.assert_array_equal(made == 0, image == 0)
    tissue = image != 0
    assert np.corrcoef(damaged[0][tissue], image[tissue])[0, 1] == pytest.approx(-1, abs=1e-5)
    assert damaged[1][tissue].std() == pytest.approx(image[tissue].std() / 2, rel=1e-4)
    moved = evaluate.Pair(image, image, 1).displaced(pair.displacement(4)).target
    assert moved[moved != 0].min() >= image[tissue].min()
    assert (moved[20:] != 0).all() and (moved[:3] == 0).any()


def test_a_volume_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pyramid(tmp_path / "pyramid", "0_mip0in_zero")
    assert evaluate.main([folder, (tmp_path / "none").as_uri()]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_pyramid_that_is_none_is_one_line(volume: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(tmp_path), volume]) == 2
    assert capsys.readouterr().err.count("\n") == 1
