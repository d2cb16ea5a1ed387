"""The whole chain as commands, on real sections."""

import json
from pathlib import Path

import h5py
import numpy as np
from commands import ROOT, Script
from PIL import Image
from volumes_made import make_layer

SECTIONS = 8
MARGIN = 24  # pixels: what the fields pull in from outside the box is no tissue


def average(level: np.ndarray) -> np.ndarray:
    x, y, z = level.shape
    return level.reshape(x // 2, 2, y // 2, 2, z).mean(axis=(1, 3))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    inner = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    return float(np.corrcoef(one[inner].ravel(), other[inner].ravel())[0, 1])


def ran(script: Script, name: str, **options: object) -> None:
    arguments = [part for key, value in options.items() for part in (f"--{key}", *str(value).split())]
    done = script(name, *arguments)
    assert done.returncode == 0, done.stderr


def test_warping_by_the_recovered_fields_brings_real_sections_together(
    isbi: Path, script: Script, tmp_path: Path
) -> None:
    # Rows are y and columns x in the files; volumes have x first.
    sections = [np.array(Image.open(isbi / f"{z:02d}.png").convert("L")).T for z in range(SECTIONS)]
    levels = {0: np.maximum(np.stack(sections, axis=-1), 1).astype(np.float64)}
    for mip in range(1, 4):
        levels[mip] = average(levels[mip - 1])
    image = make_layer(tmp_path / "image", {mip: level.astype(np.uint8) for mip, level in levels.items()})
    zeros = np.zeros((64, 64, SECTIONS, 2), np.float32)
    field = make_layer(tmp_path / "field", {3: zeros})
    for mip, size in ((1, 256), (0, 256)):
        spec = {
            "image": {"path": image, "src_mip": mip},
            "field": {"path": field, "src_mip": 3, "reference": _reference(field)},
            "max_mip": 3,
            "dst_mip": mip,
            "x_size": size,
            "y_size": size,
            "pairs": [],
        }
        (tmp_path / f"template_{mip}.json").write_text(json.dumps(spec))
    points = "\n".join(f"0,0,{z}" for z in range(1, SECTIONS))
    (tmp_path / "points.csv").write_text(f"x0,y0,z0\n{points}\n")
    for folder in ("mip1", "mip0", "shards0", "shards1"):
        (tmp_path / folder).mkdir()
    pyramid = tmp_path / "pyramid"
    pyramid.mkdir()
    for stage, mip in ((0, 1), (1, 0)):
        example = next((ROOT / "examples" / "pyramid").glob(f"{stage}_mip*"))
        (pyramid / f"{stage}_mip{mip}in_example").symlink_to(example)

    for mip in (1, 0):
        ran(
            script,
            "create_spec.py",
            src_spec_path=f"template_{mip}.json",
            dst_spec_path=f"spec_{mip}.json",
            points_path="points.csv",
            offsets="-1",
        )
        ran(script, "make_dataset.py", spec_path=f"spec_{mip}.json", dst_path=f"mip{mip}", parallel=2)
    name = "x0_y0_z1_MIP{}.h5"
    ran(
        script,
        "generate_fields.py",
        pyramid_path="pyramid",
        image_path=f"mip1/{name.format(1)}",
        prev_field_path=f"mip1/field_0_{name.format(1)}",
        temp_dir="shards0",
        stage=0,
        checkpoint_name="none",
        src_mip=1,
        dst_mip=0,
    )
    ran(script, "concat_fields.py", temp_dir="shards0", dst_path="field_1.h5")
    ran(
        script,
        "generate_fields.py",
        pyramid_path="pyramid",
        image_path=f"mip0/{name.format(0)}",
        prev_field_path="field_1.h5",
        temp_dir="shards1",
        stage=1,
        checkpoint_name="none",
        src_mip=0,
        dst_mip=0,
    )
    ran(script, "concat_fields.py", temp_dir="shards1", dst_path="field_2.h5")
    ran(
        script,
        "download_image.py",
        cv_path=image,
        dst_folder=tmp_path,
        z_start=1,
        z_end=SECTIONS,
        x_offset=0,
        y_offset=0,
        mip=0,
        patch_size=256,
    )

    from curation.fields import warp

    with h5py.File(tmp_path / name.format(0)) as images, h5py.File(tmp_path / "field_2.h5") as fields:
        pairs = list(zip(images["main"][:], fields["main"][:], strict=True))
    before = [correlation(source, target) for (source, target), _ in pairs]
    after = [correlation(warp(source, found), target) for (source, target), found in pairs]
    assert len(pairs) == SECTIONS - 1
    assert sum(late > early for early, late in zip(before, after, strict=True)) > len(pairs) // 2
    assert np.median(after) > np.median(before) + 0.05


def _reference(field: str) -> dict[str, object]:
    return {"path": field, "src_mip": 3, "dst_mip": 3, "x_size": 32, "y_size": 32}
