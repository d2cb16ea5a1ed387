"""The sample volume, the training-free aligner and the comparison with the truth, in examples/."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import torch

from curation.fields import to_level, warp

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
COARSE = EXAMPLES / "pyramid" / "0_mip3in_coarse"
FINE = EXAMPLES / "pyramid" / "1_mip2in_fine"


def load(path: Path) -> ModuleType:
    """A module by its file, its folder importable meanwhile, as the toolkit loads an aligner."""
    spec = importlib.util.spec_from_file_location(f"examples_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


make_sample_volume = load(EXAMPLES / "make_sample_volume.py")
compare_fields = load(EXAMPLES / "compare_fields.py")
coarse = load(COARSE / "create.py")
fine = load(FINE / "create.py")


# --- the sample volume


@pytest.fixture(scope="module")
def volume(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "volume"
    make_sample_volume.make_sample_volume(folder, size=512, sections=3, seed=3)
    return folder


def layer(volume: Path, name: str, mip: int) -> np.ndarray:
    """A whole layer, (X, Y, Z, C)."""
    from cloudvolume import CloudVolume

    return np.asarray(CloudVolume((volume / name).as_uri(), mip=mip, progress=False)[:])


def digest(volume: Path) -> dict[str, str]:
    """A hash of each decoded layer (compressed files carry a time stamp)."""
    mips = {"image": 0, "mask": 0, "truth": 3, "field": 4}
    return {name: hashlib.sha256(layer(volume, name, mip).tobytes()).hexdigest() for name, mip in mips.items()}


def test_same_seed_gives_the_same_volume(volume, tmp_path):
    make_sample_volume.make_sample_volume(tmp_path / "again", size=512, sections=3, seed=3)
    assert digest(tmp_path / "again") == digest(volume)


def test_another_seed_gives_another_volume(volume, tmp_path):
    make_sample_volume.make_sample_volume(tmp_path / "other", size=512, sections=3, seed=4)
    assert not set(digest(tmp_path / "other").values()) & set(digest(volume).values())


def test_layers_have_the_promised_shapes_and_types(volume):
    shapes = {
        (name, mip): (layer(volume, name, mip).shape, layer(volume, name, mip).dtype.name)
        for name, mip in (("image", 0), ("image", 4), ("mask", 0), ("mask", 4), ("truth", 3), ("field", 4))
    }
    assert shapes == {
        ("image", 0): ((512, 512, 3, 1), "uint8"),
        ("image", 4): ((32, 32, 3, 1), "uint8"),
        ("mask", 0): ((512, 512, 3, 1), "uint8"),
        ("mask", 4): ((32, 32, 3, 1), "uint8"),
        ("truth", 3): ((64, 64, 3, 2), "float32"),
        ("field", 4): ((32, 32, 3, 2), "float32"),
    }


def test_the_fold_alone_is_black_and_it_is_masked(volume):
    image, mask = layer(volume, "image", 0)[..., 0], layer(volume, "mask", 0)[..., 0]
    assert np.array_equal(image == 0, mask == 255)
    assert np.array_equal(np.unique(mask), [0, 255])
    share = (mask == 255).mean(axis=(0, 1))
    assert share[0] == share[2] == 0
    assert 0.02 < share[1] < 0.3


@pytest.mark.parametrize("mip", [1, 2, 3, 4])
def test_coarse_images_are_area_averages_and_coarse_masks_maxima(volume, mip):
    for name, reduce in (("image", np.mean), ("mask", np.max)):
        full, small = layer(volume, name, mip - 1)[..., 0], layer(volume, name, mip)[..., 0]
        n = len(small)
        expected = reduce(full.reshape(n, 2, n, 2, 3).astype(float), axis=(1, 3))
        assert np.abs(small - expected).max() <= 0.5


def test_the_prior_is_a_rough_inverse_of_the_truth(volume):
    """p(X) + d(X + p(X)) would be 0 for the inverse itself; ours is off by some voxels, but only by some."""
    truth = layer(volume, "truth", 3)[:, :, 0].transpose(2, 0, 1)
    prior = layer(volume, "field", 4)[:, :, 0].transpose(2, 0, 1)
    axis = make_sample_volume.centres(32, 4)
    back = make_sample_volume.sample(truth, axis[:, None] + prior[1], axis[None, :] + prior[0], mip=3)
    error = np.linalg.norm(prior + back, axis=0)[4:-4, 4:-4]
    assert 2 < np.median(error) < 40


def test_points_are_as_neuroglancer_exports_them(volume):
    raw = (volume / "points.csv").read_bytes()
    assert raw.startswith(
        b"Coordinate 1,Coordinate 2,Ellipsoid Dimensions,Tags,Description,Segment IDs,Parent ID,Type,ID\r\n"
    )
    assert raw.count(b"\r\n") == raw.count(b"\n") == 5
    rows = list(csv.DictReader(raw.decode().splitlines()))
    assert {row["Type"] for row in rows} == {"Point"}
    for row in rows:
        x, y, z = json.loads(row["Coordinate 1"].replace("(", "[").replace(")", "]"))
        assert 0 <= x <= 128 and 0 <= y <= 128 and z == 2  # the coarse box fits, and two sections lie below


def test_templates_share_size_max_mip_and_references(volume):
    templates = {name: json.loads((volume / f"{name}.json").read_text()) for name in ("coarse", "fine")}
    for template in templates.values():
        assert template["pairs"] == []
        assert template["field"]["src_mip"] >= template["dst_mip"]
        assert template["x_size"] == template["y_size"] == 48
        assert template["image"]["path"] == (volume / "image").as_uri()
        template.pop("dst_mip"), template.pop("masks"), template["image"].pop("src_mip")
    assert templates["coarse"] == templates["fine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "500"], "size is 500"),
        (["--size", "256"], "size is 256"),
        (["--sections", "2"], "sections is 2"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    assert make_sample_volume.main([str(tmp_path / "volume"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "volume").exists()


# --- the aligner


def texture(x: torch.Tensor, y: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A smooth random texture at any coordinates, mean 0, standard deviation 1, as (1, 1, X, Y)."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(torch.broadcast_shapes(x.shape, y.shape))
    for angle, length, phase in torch.rand(60, 3, generator=generator).tolist():
        kx, ky = (2 * np.pi / (8 + 22 * length) * f(np.pi * angle) for f in (np.cos, np.sin))
        total += torch.cos(kx * x + ky * y + 2 * np.pi * phase)
    return (total / 30**0.5)[None, None]


def grid(size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(size[0]).float()[:, None], torch.arange(size[1]).float()[None, :]


def smooth_field(size: tuple[int, int], amplitude: float) -> torch.Tensor:
    """A field (1, 2, X, Y) of a shift and one slow wave."""
    x, y = grid(size)
    along_y = 0.5 * amplitude + amplitude * torch.sin(2 * np.pi * x / 110) + 0 * y
    along_x = -0.7 * amplitude + amplitude * torch.cos(2 * np.pi * y / 130) + 0 * x
    return torch.stack([along_y, along_x])[None]


def noise(size: tuple[int, int], seed: int) -> torch.Tensor:
    return torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(seed))


def displaced_pair(field: torch.Tensor, noise_level: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    """A source and the target that `field` pulls it onto: target[x, y] = source[x + f1, y + f0]; noisy."""
    size = (field.shape[2], field.shape[3])
    x, y = grid(size)
    source = texture(x, y) + noise_level * noise(size, 1)
    target = texture(x + field[0, 1], y + field[0, 0]) + noise_level * noise(size, 2)
    return source, target


def median_error(found: torch.Tensor, true: torch.Tensor, margin: int = 12) -> float:
    inner = (found - true)[..., margin:-margin, margin:-margin]
    return float(inner.norm(dim=1).median())


def least_jacobian(field: torch.Tensor) -> float:
    """The smallest local change of area; a field that folds has it below 0."""
    along_x, along_y = field[0].diff(dim=1)[:, :, :-1], field[0].diff(dim=2)[:, :-1]
    return float(((1 + along_x[1]) * (1 + along_y[0]) - along_x[0] * along_y[1]).min())


@pytest.mark.parametrize(("size", "amplitude"), [((128, 128), 4), ((96, 150), 4), ((33, 64), 1.5)])
def test_coarse_recovers_a_smooth_displacement(size, amplitude):
    true = smooth_field(size, amplitude)
    source, target = displaced_pair(true)
    found = coarse.create()(source, target)
    assert found.shape == (1, 2, *size)
    assert median_error(found, true) < 0.5
    assert least_jacobian(found) > 0


def test_coarse_finds_a_large_shift():
    true = torch.tensor([21.0, -17.0]).view(1, 2, 1, 1).expand(1, 2, 160, 160)
    found = coarse.create()(*displaced_pair(true))
    assert median_error(found, true, margin=32) < 0.5


@pytest.mark.parametrize("create", [coarse.create, fine.create])
def test_a_negative_is_aligned_as_the_image_itself_is(create):
    source, target = displaced_pair(smooth_field((128, 128), amplitude=3))
    assert torch.equal(create()(-source, target), create()(source, target))


def test_what_is_out_of_reach_is_not_taken_for_a_negative():
    """Blocks find nothing but chance there, one way as well as the other."""
    registration = sys.modules[coarse.create().__class__.__module__]
    zeros = torch.zeros(1, 2, 160, 160)
    for seed in range(20):
        source, target = noise((160, 160), 2 * seed), noise((160, 160), 2 * seed + 1)
        assert registration.polarity(source, target, zeros) == 1


def test_autocast_does_not_make_the_field_coarser():
    source, target = displaced_pair(smooth_field((64, 64), amplitude=2))
    with torch.autocast("cpu", torch.bfloat16):
        found = fine.create()(source, target)
    assert torch.equal(found, fine.create()(source, target))


def test_fine_refines_its_prior():
    true = smooth_field((128, 128), amplitude=15)
    prior = true + smooth_field((128, 128), amplitude=1.5).flip(1)
    found = fine.create()(*displaced_pair(true), prior)
    assert median_error(prior, true) > 1.5
    assert median_error(found, true) < 0.5


def test_a_prior_stays_where_the_images_say_nothing():
    prior = smooth_field((64, 64), amplitude=3)
    black = torch.zeros(1, 1, 64, 64)
    for create in (coarse.create, fine.create):
        assert torch.allclose(create()(black, black, prior), prior, atol=0.05)
        assert torch.allclose(create()(black, black), torch.zeros_like(prior), atol=0.05)


def test_black_bands_take_no_part():
    true = smooth_field((160, 160), amplitude=4)
    source, target = displaced_pair(true)
    source[..., 50:66, :] = 0
    target[..., :, 90:110] = 0
    found = coarse.create()(source, target)
    assert torch.isfinite(found).all()
    assert median_error(found, true) < 0.5


def test_unknown_vectors_of_a_prior_are_filled():
    true = smooth_field((128, 128), amplitude=15)
    prior = true.clone()
    prior[..., 30:60, 40:90] = torch.nan
    prior[:, 0, 100:110] = torch.inf
    source, target = displaced_pair(true)
    found = fine.create()(source, target, prior)
    assert torch.isfinite(found).all()
    assert median_error(found, true) < 0.5
    nothing_known = torch.full_like(prior, torch.nan)
    assert torch.equal(fine.create()(source, target, nothing_known), fine.create()(source, target))


def test_pixels_that_are_not_finite_count_as_black():
    source, target = displaced_pair(smooth_field((64, 64), amplitude=1))
    black, unknown = source.clone(), source.clone()
    black[..., 20:30] = 0
    unknown[..., 20:30] = torch.nan
    assert torch.equal(fine.create()(unknown, target), fine.create()(black, target))


def test_the_same_images_give_the_same_field_in_any_gradient_mode():
    source, target = displaced_pair(smooth_field((64, 64), amplitude=2))
    prior = torch.zeros(1, 2, 64, 64)
    first = fine.create()(source, target, prior)
    with torch.no_grad():
        assert torch.equal(fine.create()(source, target, prior), first)
    with torch.inference_mode():
        assert torch.equal(fine.create()(source.clone(), target.clone(), prior.clone()), first)
    assert not first.requires_grad
    assert torch.equal(prior, torch.zeros_like(prior))  # the caller's data is the caller's


@pytest.mark.parametrize(
    ("source", "target", "prior", "message"),
    [
        ((1, 1, 64, 64), (1, 1, 64, 65), None, "want \\(1, 1, X, Y\\) twice"),
        ((1, 2, 64, 64), (1, 2, 64, 64), None, "want \\(1, 1, X, Y\\) twice"),
        ((1, 1, 31, 64), (1, 1, 31, 64), None, "at least 32"),
        ((1, 1, 64, 64), (1, 1, 64, 64), (1, 2, 32, 64), "need \\(1, 2, 64, 64\\)"),
    ],
)
def test_wrong_shapes_are_named(source, target, prior, message):
    field = None if prior is None else torch.zeros(prior)
    with pytest.raises(ValueError, match=message):
        fine.create()(torch.ones(source), torch.ones(target), field)


# --- the comparison


@pytest.fixture
def field_file(volume, tmp_path):
    """Writes a field file of one pair, source section 2, target section 1, MIP 2, 96 x 96 pixels."""

    def write(main: np.ndarray, **changes) -> Path:
        data = {
            "main": main,
            "start": np.array([[[64, 48, 2], [64, 48, 1]]]),
            "translation": np.array([[[16, -32], [0, 0]]]),
        } | changes
        path = tmp_path / "field.h5"
        with h5py.File(path, "w") as file:
            for name, value in data.items():
                if value is not None:
                    file[name] = value
            file.attrs["mip"] = 2
        return path

    return write


def true_main(volume: Path) -> np.ndarray:
    """The true field of the pair of `field_file`, (1, 2, 96, 96)."""
    section = compare_fields.section_reader(volume)
    start, translation = np.array([64, 48]), np.array([16, -32])
    true, _ = compare_fields.true_field(section(2), section(1), start, translation, (96, 96), 2, margin=8)
    return true[None]


def test_true_field_meets_its_definition(volume):
    """Source and target show the same content: Y + d_s(Y) = W, in the words of compare_fields.py."""
    truth = [layer(volume, "truth", 3)[:, :, z].transpose(2, 0, 1) for z in range(3)]
    prior = layer(volume, "field", 4)[:, :, 1].transpose(2, 0, 1)
    sample = make_sample_volume.sample
    x = (64 + make_sample_volume.centres(96, 2))[:, None] + np.zeros((1, 96), np.float32)
    y = (48 + make_sample_volume.centres(96, 2))[None, :] + np.zeros((96, 1), np.float32)
    p = sample(prior, x, y, 4)
    d = sample(truth[1], x + p[1], y + p[0], 3)
    target_shows = np.stack([y + p[0] + d[0], x + p[1] + d[1]])

    field = 4 * true_main(volume)[0]
    source_y, source_x = y - 32 + field[0], x + 16 + field[1]
    source_shows = np.stack([source_y, source_x]) + sample(truth[2], source_x, source_y, 3)
    assert np.abs(source_shows - target_shows).max() < 0.01


def test_errors_are_distances_from_the_truth(volume, field_file):
    main = true_main(volume)
    main[:, 0] += 3
    main[:, 1] -= 4
    main[0, 0, 50, 50] = np.nan
    fields = compare_fields.read_fields(field_file(main))
    errors = compare_fields.field_errors(volume, fields, margin=8)
    assert errors.shape == (1, 96, 96)
    assert np.isnan(errors[0, :8]).all() and np.isnan(errors[0, :, -8:]).all()
    known = errors[np.isfinite(errors)]
    assert known.size > 1000
    np.testing.assert_allclose(known, 5, atol=1e-3)


def test_true_fields_align_the_images(volume):
    """End to end: cut the source box and the pulled target from the volume; the truth aligns them."""
    image = layer(volume, "image", 2)[..., 0].astype(np.float32)
    prior = to_level(layer(volume, "field", 4)[:, :, 1].transpose(2, 0, 1), 4, 2, image.shape[:2], (0, 0)) / 4
    target = warp(image[:, :, 1], prior)[16:112, 12:108]
    source = image[20:116, 4:100, 2]  # the box at (64, 48) shifted by (16, -32) voxels, at MIP 2
    pulled = warp(source, true_main(volume)[0])
    inner = np.zeros(target.shape, bool)
    inner[16:-16, 16:-16] = True
    tissue = inner & (source != 0) & (pulled != 0) & (target != 0)
    before, after = (np.corrcoef(image[tissue], target[tissue])[0, 1] for image in (source, pulled))
    assert before < 0.3
    assert after > 0.4


def test_a_line_a_file(volume, field_file, capsys):
    path = field_file(true_main(volume))
    assert compare_fields.main([str(volume), str(path), str(path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    name, _, pairs, *size, mip, median, high, _ = printed[1].split()
    assert (name, pairs, "".join(size), mip, median, high) == ("field.h5", "1", "96x96", "2", "0.00", "0.00")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": None}, "no start"),
        ({"start": np.zeros((2, 2, 3), np.int64)}, "start is"),
        ({"start": np.full((1, 2, 3), 9)}, "section 9"),
        ({"main": np.zeros((1, 3, 8, 8))}, "fields are"),
        ({"mean": np.zeros((1, 2))}, "field.h5: this is an image file; want a field file"),
    ],
)
def test_bad_field_files_are_one_line_and_exit_code_2(volume, field_file, capsys, changes, message):
    main = changes.pop("main", np.zeros((1, 2, 96, 96), np.float32))
    path = field_file(main, **changes)
    assert compare_fields.main([str(volume), str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_help_promises_what_is_done(capsys):
    with pytest.raises(SystemExit):
        compare_fields.main(["--help"])
    described = capsys.readouterr().out
    assert "a line for each field file" in described
    for wrong in ("image.h5", "correlation", "for each pair"):
        assert wrong not in described


def test_missing_files_are_one_line_and_exit_code_2(volume, field_file, tmp_path, capsys):
    path = field_file(np.zeros((1, 2, 96, 96), np.float32))
    for arguments in ([volume, tmp_path / "none.h5"], [tmp_path, path], [volume, path, volume / "points.csv"]):
        assert compare_fields.main([str(argument) for argument in arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1
