"""A finished dataset file of each kind, small, made by the steps."""

from pathlib import Path

import h5py
import numpy as np
from small_jobs import (
    NAME,
    PLUS_ONE,
    changed,
    field_layer,
    made_folder,
    pair,
    put_json,
    put_main,
    pyramid_of,
    spec_of,
    voxels,
)
from volumes_made import make_layer

from curation.steps.concat_fields import concat_fields
from curation.steps.download_image import DownloadImageOptions, download_image
from curation.steps.field_work import GenerateFieldsOptions
from curation.steps.generate_fields import generate_fields
from curation.steps.make_dataset import MakeDatasetOptions, make_dataset

SEALED = ("image", "field", "shard", "joined", "stretch", "kept")
KINDS = (*SEALED, "older", "toolkit 0.1")


def whole_files(folder: Path) -> dict[str, Path]:
    """A file of each of KINDS by its kind. "kept" is an image file of two pairs, as --min_valid left out a third.

    Those of the first version of this toolkit, and of older tools, have no seal; the latter hold nothing but `main`.
    """
    image = voxels()
    image[64:96, 64:80] = 0
    path = make_layer(folder / "image", {0: image})
    vectors = np.random.default_rng(0).normal(1, 2, (32, 32, 6, 2)).astype(np.float32)
    pairs = [pair(0, 0, 5), {**pair(16, 32, 4), "note": {"id": "a-1", "description": "a fold"}}, pair(64, 64, 3)]
    spec = spec_of(path, field_layer(folder, vectors), pairs)
    make_dataset(MakeDatasetOptions(str(put_json(folder / "spec.json", spec)), str(folder), 1))
    files = {"image": folder / NAME, "field": folder / f"field_0_{NAME}"}
    pyramid = pyramid_of(folder, PLUS_ONE, "0_mip0in_small")
    shards = made_folder(folder / "shards")
    images, prior = map(str, files.values())
    generate_fields(GenerateFieldsOptions(str(pyramid), images, prior, str(shards), 0, "none", 0, 0, cpu_workers=1))
    files["shard"] = shards / "0_1.h5"
    files["joined"] = folder / "joined.h5"
    concat_fields(str(shards), str(files["joined"]))
    download_image(DownloadImageOptions(path, str(folder), 1, 4, 32, 32, (0,), (32,)))
    files["stretch"] = folder / "x32_y32_z1_MIP0.h5"
    plain = put_json(folder / "plain.json", changed(spec, {("field",): None}))
    make_dataset(MakeDatasetOptions(str(plain), str(made_folder(folder / "kept")), 1, min_valid=0.9))
    files["kept"] = folder / "kept" / NAME
    files["older"] = put_main(folder / "older.h5", np.ones((3, 2, 8, 8), np.float32), None)
    files["toolkit 0.1"] = folder / "first.h5"
    files["toolkit 0.1"].write_bytes(files["image"].read_bytes())
    with h5py.File(files["toolkit 0.1"], "r+") as file:
        file.attrs["identity"] = file.attrs["provenance"]
        for name in ("provenance", "seal"):
            file.attrs.pop(name, None)
    return files
