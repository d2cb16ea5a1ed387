"""Images in tiles: how they are divided and blended, and that the field is that of the whole image."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from commands import ROOT, Command
from small_jobs import Refused, contents, fields_arguments, made_folder, put_main, pyramid_of

from curation import fields
from curation.aligners.tiles import Tiling, in_tiles, spans

X, Y = 90, 71


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# The plan


@pytest.mark.parametrize("length", [1, 30, 64, 65, 100, 127, 128, 513, 1000])
@pytest.mark.parametrize(("size", "overlap"), [(64, 8), (64, 0), (64, 31), (33, 16), (30, 1), (1, 0), (512, 64)])
def test_tiles_have_one_size_and_their_weights_are_1_in_all(length: int, size: int, overlap: int) -> None:
    tiling = Tiling(size, overlap)
    total = np.zeros(length)
    found = spans(length, tiling)
    assert (found[0].start, found[-1].stop) == (0, length)
    for span in found:
        assert span.stop - span.start == min(size, length)
        total[span.start : span.stop] += span.weights
        counting = span.weights[span.counting]
        assert counting.size and (counting > 0).all() and np.count_nonzero(span.weights) == counting.size
        # Nothing counts that is nearer to a cut edge than the overlap.
        assert span.start == 0 or not span.weights[:overlap].any()
        assert span.stop == length or not span.weights[span.stop - span.start - overlap :].any()
    np.testing.assert_allclose(total, 1, rtol=1e-12)
    for one, other in pairwise(found):
        assert one.start < other.start
        assert one.stop - other.start >= 2 * overlap + tiling.band


def test_the_weights_change_smoothly() -> None:
    for span in spans(1000, Tiling(256, 32)):
        assert np.abs(np.diff(span.weights)).max() < np.pi / 2 / 32
        assert np.abs(np.diff(span.weights, 2)).max() < 0.01


def test_tiles_begin_where_a_network_that_halves_sees_the_same_blocks() -> None:
    assert all(span.start % 64 == 0 for span in spans(2048, Tiling(512, 64)))


# The field


class Blurring:
    """A model of a known reach: convolutions of both images and of the prior. Notes the shapes that it is given."""

    def __init__(self, reach: int) -> None:
        self.reach = reach
        self.shapes: list[tuple[int, ...]] = []
        random = torch.Generator().manual_seed(0)
        self.weights = torch.randn(2, 4, 2 * reach + 1, 2 * reach + 1, generator=random) / (2 * reach + 1)

    def __call__(self, source: np.ndarray, target: np.ndarray, prior: np.ndarray | None) -> np.ndarray:
        self.shapes.append(target.shape)
        channels = np.concatenate(
            [[source, target], np.zeros((2, *source.shape), np.float32) if prior is None else prior]
        )
        made = torch.nn.functional.conv2d(torch.from_numpy(channels)[None], self.weights, padding=self.reach)
        return made[0].numpy()


@pytest.mark.parametrize(("size", "overlap"), [(40, 8), (40, 9), (17, 8), (64, 24), (80, 8)])
@pytest.mark.parametrize("with_prior", [False, True])
def test_the_field_of_a_model_that_reaches_no_farther_than_the_overlap_is_that_of_the_whole(
    size: int, overlap: int, with_prior: bool
) -> None:
    source, target = noise(2, X, Y)
    prior = noise(2, X, Y, seed=1) if with_prior else None
    model = Blurring(8)
    whole = model(source, target, prior)
    tiled = in_tiles(model, source, target, prior, Tiling(size, overlap))
    assert len(model.shapes) > 2
    assert set(model.shapes[1:]) == {(min(size, X), min(size, Y))}
    np.testing.assert_allclose(tiled, whole, atol=2e-5)


def test_a_model_that_reaches_farther_is_not_that_of_the_whole() -> None:
    source, target = noise(2, X, Y)
    model = Blurring(8)
    tiled = in_tiles(model, source, target, None, Tiling(40, 4))
    assert np.abs(tiled - model(source, target, None)).max() > 0.01


def test_an_image_that_is_no_larger_than_a_tile_is_given_as_it_is() -> None:
    source, target = noise(2, X, Y)
    given = []

    def model(*arrays: np.ndarray | None) -> np.ndarray:
        given.extend(arrays)
        return np.zeros((2, X, Y), np.float32)

    in_tiles(model, source, target, None, Tiling(X, 8))
    assert given[0] is source and given[1] is target


def test_a_model_that_writes_to_what_it_is_given_spoils_no_other_tile() -> None:
    source, target, *prior = noise(4, X, Y)
    model = Blurring(8)

    def writing(source: np.ndarray, target: np.ndarray, prior: np.ndarray | None) -> np.ndarray:
        made = model(source, target, prior)
        for array in (source, target, prior):
            if array is not None:
                array.fill(7)
        return made

    whole = model(source, target, np.array(prior))
    np.testing.assert_allclose(in_tiles(writing, source, target, np.array(prior), Tiling(40, 8)), whole, atol=2e-5)


def test_of_a_tile_whose_image_is_all_0_the_field_is_the_prior() -> None:
    source, target = np.ones((2, 300, 40), np.float32)
    source[:100] = 0
    target[200:] = 0
    prior = noise(2, 300, 40)

    def model(source: np.ndarray, target: np.ndarray, prior: np.ndarray | None) -> np.ndarray:
        assert source.any() and target.any()
        return np.full((2, *source.shape), 5, np.float32) if prior is None else prior + 5

    tiling = Tiling(50, 8)
    added = in_tiles(model, source, target, prior, tiling) - prior
    np.testing.assert_allclose(
        added[:, [20, 150, 280]], np.array([0, 5, 0])[None, :, None].repeat(2, 0).repeat(40, 2), atol=1e-5
    )
    without = in_tiles(model, source, target, None, tiling)
    assert (without[:, 20].max(), without[:, 150].min(), without[:, 280].max()) == (0, 5, 0)


def textured(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A pattern that no shift takes to itself, at pixels (x, y)."""
    return (2 + np.sin(x / 7) + np.sin(y / 5) + np.sin(x * y / 900)).astype(np.float32)


@pytest.mark.parametrize("vector", [(0.0, 37.0), (-40.5, 3.0), (25.0, -61.25)])
def test_a_prior_that_points_out_of_the_tile_takes_the_source_from_where_it_points(
    vector: tuple[float, float],
) -> None:
    """The model says how far source, pulled through the prior, is from the target: nothing, if the prior is right."""
    x, y = np.meshgrid(np.arange(300.0), np.arange(280.0), indexing="ij")
    source = textured(x, y)
    target = textured(x + vector[1], y + vector[0])
    prior = np.float32(vector)[:, None, None].repeat(300, 1).repeat(280, 2)

    def model(source: np.ndarray, target: np.ndarray, prior: np.ndarray | None) -> np.ndarray:
        assert prior is not None
        return prior + np.abs(fields.warp(source, prior) - target)

    tiled = in_tiles(model, source, target, prior, Tiling(64, 8))
    inside = slice(70, 200)
    assert np.abs(tiled - prior)[:, inside, inside].max() < 0.05
    np.testing.assert_allclose(tiled, model(source, target, prior), atol=0.05)


def test_what_is_not_finite_stays_where_it_is() -> None:
    source, target = np.ones((2, 100, 100), np.float32)
    prior = np.full((2, 100, 100), 60, np.float32)
    prior[:, 50, 50] = np.nan
    prior[1, 20, 30] = np.inf

    def model(source: np.ndarray, target: np.ndarray, prior: np.ndarray | None) -> np.ndarray:
        assert prior is not None
        return prior

    tiled = in_tiles(model, source, target, prior, Tiling(40, 8))
    np.testing.assert_allclose(tiled, prior)
    lost = np.full_like(prior, np.nan)
    assert np.isnan(in_tiles(model, source, target, lost, Tiling(40, 8))).all()
    huge = np.full_like(prior, 1e38)
    np.testing.assert_allclose(in_tiles(model, source, target, huge, Tiling(40, 8)), huge, rtol=1e-6)


@pytest.mark.parametrize("shape", [(300, 60), (60, 300)])
def test_an_image_that_is_long_along_one_axis_is_divided_along_that_one(shape: tuple[int, int]) -> None:
    source, target = noise(2, *shape)
    model = Blurring(8)
    whole = model(source, target, None)
    np.testing.assert_allclose(in_tiles(model, source, target, None, Tiling(64, 8)), whole, atol=2e-5)
    assert {min(shape) for shape in model.shapes} == {60}


# The script

CONVOLUTION = """
import torch
class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(2, 2, 9, padding=4)
    def forward(self, s, t, src_agg_field):
        if s.shape[-1] > LARGEST:
            raise RuntimeError("CUDA out of memory")
        return src_agg_field + self.layer(torch.cat([s, t], 1))
def create(): return Network()
"""


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., list[object]]:
    """generate_fields.py's arguments over two pairs, with a network that fails on images above some size."""

    def arguments(*more: object, largest: int = 1000, **changes: object) -> list[object]:
        made_folder(tmp_path / "shards")
        pyramid_of(tmp_path, CONVOLUTION.replace("LARGEST", str(largest)))
        images = put_main(tmp_path / "images.h5", noise(2, 2, 72, 72))
        prior = put_main(tmp_path / "prior.h5", noise(2, 2, 72, 72, seed=1))
        return fields_arguments(tmp_path, images, prior, *more, **{"field_decimals": "none", **changes})

    return arguments


def field_of(folder: Path) -> np.ndarray:
    with h5py.File(folder / "0_1.h5") as file:
        return file["main"][0]


def test_tiles_make_the_field_of_the_whole_where_memory_is_short(
    run_of: Callable[..., list[object]], command: Command, tmp_path: Path
) -> None:
    assert command("generate_fields.py", *run_of()).code == 0
    whole = field_of(tmp_path / "shards")
    tiled = made_folder(tmp_path / "tiled")
    done = command("generate_fields.py", *run_of("--tile", 40, "--overlap", 4, largest=40, temp_dir=tiled))
    assert done.code == 0, done.stderr
    np.testing.assert_allclose(field_of(tiled), whole, atol=1e-5)


def test_images_that_are_no_larger_than_a_tile_get_the_same_field_bit_for_bit(
    run_of: Callable[..., list[object]], command: Command, refused: Refused, tmp_path: Path
) -> None:
    assert command("generate_fields.py", *run_of()).code == 0
    shard = tmp_path / "shards" / "0_1.h5"
    whole = contents(shard)
    with h5py.File(shard) as file:
        assert not {"tile", "overlap"} & set(json.loads(file.attrs["provenance"]))
    line = refused("generate_fields.py", *run_of("--tile", 72))
    assert "made with another overlap, tile; --update" in line
    assert command("generate_fields.py", *run_of("--tile", 72, "--update")).code == 0
    with h5py.File(shard) as file:
        made_of = json.loads(file.attrs["provenance"])
    assert (made_of["tile"], made_of["overlap"]) == (72, 9)  # an eighth
    of_origin = {"attribute provenance", "attribute seal"}
    assert {name for name, value in contents(shard).items() if value != whole[name]} == of_origin


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--overlap", 8], "--overlap is of tiles: want --tile SIZE with it"),
        (
            ["--tile", 32, "--overlap", 32],
            "--tile 32 leaves no pixel that is 32 from all edges, as --overlap says: want a",
        ),
        (["--tile", 32, "--overlap", 16], "want a tile of more than 32 pixels, or a smaller overlap"),
    ],
)
def test_tiles_in_which_nothing_counts_are_refused(
    given: list[object], said: str, run_of: Callable[..., list[object]], refused: Refused, tmp_path: Path
) -> None:
    assert said in refused("generate_fields.py", *run_of(*given))
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_dry_run_says_how_many_tiles_there_are(run_of: Callable[..., list[object]], command: Command) -> None:
    plan = command("generate_fields.py", *run_of("--tile", 40, "--overlap", 4, "--dry_run")).stdout
    assert "tiles            9 a pair, of 40 x 40 pixels: 2.8 times the pixels of the pair" in plan
    plan = command("generate_fields.py", *run_of("--tile", 72, "--dry_run")).stdout
    assert "tiles            none: each pair is run whole" in plan


def test_the_aligner_of_the_examples_finds_in_tiles_what_it_finds_in_the_whole(
    command: Command, tmp_path: Path
) -> None:
    """A smooth displacement of up to 3 pixels, in images of noise that is blurred a little."""
    random = np.random.default_rng(0)
    side = 192
    image = torch.nn.functional.avg_pool2d(
        torch.from_numpy(random.normal(size=(1, 1, side, side)).astype(np.float32)), 5, 1, 2
    )[0, 0].numpy()
    x, y = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    truth = np.stack([2 * np.sin(x / 40), 1.5 * np.cos(y / 35)]).astype(np.float32)
    pair = np.stack([image, fields.warp(image, truth)])[None] * 5
    images = put_main(tmp_path / "images.h5", pair.astype(np.float32))
    found = []
    for name, more in (("whole", []), ("tiled", ["--tile", 128, "--overlap", 32])):
        shards = made_folder(tmp_path / name)
        arguments = fields_arguments(
            tmp_path, images, None, *more, pyramid_path=ROOT / "examples" / "pyramid", temp_dir=shards
        )
        done = command("generate_fields.py", *arguments)
        assert done.code == 0, done.stderr
        found.append(field_of(shards))
    inner = slice(16, -16)
    whole, tiled = (field[:, inner, inner] for field in found)
    assert np.abs(whole - truth[:, inner, inner]).mean() < 0.05
    assert np.abs(tiled - whole).max() < 0.05
