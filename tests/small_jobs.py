"""Small jobs for the scripts: volumes, a spec over them, a pyramid, and the command lines that use them."""

import copy
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from volumes_made import make_layer

from curation.datasets.shards import Shard
from curation.files import Existing
from curation.steps.box_job import BoxJob, OutputFile, run_box_jobs
from curation.steps.verify_dataset import faults

Json = dict[str, Any]
DELETED = object()

SHAPE = (128, 128, 6)
NAME = "x0_y0_z5_MIP0.h5"  # what make_dataset calls the image file of `spec_of`

# A module for a pyramid: the prior and 1, or what a test puts in its place.
PLUS_ONE = "def create(): return lambda s, t, src_agg_field=None: 1 + (0 if src_agg_field is None else src_agg_field)"
ONES = "import torch\ndef create(): return lambda s, t: torch.ones(1, 2, *s.shape[2:])"


def voxels(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Grey values that are never 0."""
    return np.random.default_rng(0).integers(1, 255, shape, dtype=np.uint8)


def image_layer(folder: Path, **layer: Any) -> str:
    return make_layer(folder / "image", {0: voxels()}, **layer)


def field_layer(folder: Path, vectors: np.ndarray | None = None, name: str = "field") -> str:
    """Of MIP 2 over `voxels`, every vector (4.3, 9.7) unless given: (X, Y, Z, 2)."""
    if vectors is None:
        vectors = np.zeros((SHAPE[0] // 4, SHAPE[1] // 4, SHAPE[2], 2), np.float32) + np.float32([4.3, 9.7])
    return make_layer(folder / name, {2: vectors})


def start(x: int, y: int, z: int) -> dict[str, int]:
    return {"x_start": x, "y_start": y, "z_start": z}


def pair(x: int, y: int, z: int, target_z: int | None = None) -> Json:
    """A box and the same in the section before, or in another."""
    return {"src": start(x, y, z), "tgt": start(x, y, z - 1 if target_z is None else target_z)}


def spec_of(image: str, field: str | None = None, pairs: Iterable[Json] | None = None) -> Json:
    """32 x 16 pixels at MIP 0, of three pairs unless others are given."""
    spec: Json = {"image": {"path": image, "src_mip": 0}}
    if field:
        spec["field"] = {"path": field, "src_mip": 2}
    pairs = [pair(0, 0, 5), pair(16, 32, 4), pair(64, 64, 3)] if pairs is None else list(pairs)
    return {**spec, "max_mip": 4, "dst_mip": 0, "x_size": 32, "y_size": 16, "pairs": pairs}


def changed(spec: Json, changes: Mapping[tuple[str | int, ...], Any]) -> Json:
    """The spec with the values at some paths replaced, or deleted."""
    spec = copy.deepcopy(spec)
    for path, value in changes.items():
        place: Any = spec
        for key in path[:-1]:
            place = place[key]
        if value is DELETED:
            del place[path[-1]]
        else:
            place[path[-1]] = value
    return spec


def put_json(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def made_folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def dataset_arguments(spec: Path, out: Path, *more: object) -> list[object]:
    """make_dataset.py's, in one process unless `more` says otherwise."""
    parallel = [] if "--parallel" in more else ["--parallel", 1]
    return ["--spec_path", spec, "--dst_path", out, *parallel, *more]


def spec_arguments(folder: Path, *more: object) -> list[object]:
    """create_spec.py's: template.json and points.csv to spec.json, with offset -1 unless `more` says otherwise."""
    offsets = [] if "--offsets" in more else ["--offsets", -1]
    paths = {"src_spec_path": "template.json", "dst_spec_path": "spec.json", "points_path": "points.csv"}
    named = [part for name, file in paths.items() for part in (f"--{name}", folder / file)]
    return [*named, *offsets, *more]


def pyramid_of(folder: Path, create: str = PLUS_ONE, name: str = "0_mip3in_small") -> Path:
    module = folder / "pyramid" / name
    module.mkdir(parents=True, exist_ok=True)
    (module / "create.py").write_text(create)
    return folder / "pyramid"


def put_main(path: Path, main: np.ndarray, mip: int | None = 3, **arrays: np.ndarray) -> Path:
    """A dataset file as an older tool may have left it."""
    with h5py.File(path, "w") as file:
        file["main"] = main
        for name, values in arrays.items():
            file[name] = values
        if mip is not None:
            file.attrs["mip"] = mip
    return path


def put_older_fields(path: Path, main: np.ndarray, components: int = 1) -> Path:
    """As the older tool stored fields: LZF and scaleoffset, in chunks of one component or both, and only `main`."""
    with h5py.File(path, "w") as file:
        chunks = (1, components, *main.shape[2:])
        file.create_dataset("main", data=main, chunks=chunks, compression="lzf", scaleoffset=2)
    return path


def put_shards(job: BoxJob, *edges: int) -> list[Path]:
    """Makes the files of a job in shards between some edges, as make_dataset.py --shards does; gives their folders.

    The shards do not hold the spec, which lies beside them, and only those with notes hold notes.
    """
    folders = [file.path.with_suffix("") for file in job.files()]
    text = str(job.images.layout.attributes["spec"])
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spec.json").write_text(text)
        (folder / "job.json").write_text("{}")
    shards = [job.of_shard(Shard(first, last)) for first, last in itertools.pairwise(edges)]
    run_box_jobs([_of_shards(shard) for shard in shards], parallel=1, existing=Existing.REFUSED)
    return folders


def _of_shards(job: BoxJob) -> BoxJob:
    residuals = None if job.residuals is None else _without_spec(job.residuals)
    return replace(job, images=_without_spec(job.images), residuals=residuals)


def _without_spec(file: OutputFile) -> OutputFile:
    layout = file.layout
    attributes = {name: value for name, value in layout.attributes.items() if name != "spec"}
    arrays = {name: values for name, values in layout.arrays.items() if name != "note" or values.any()}
    return replace(file, layout=replace(layout, attributes=attributes, arrays=arrays))


def stretch_arguments(image: str, folder: Path, **changes: object) -> list[object]:
    """download_image.py's, in one process: sections 1 to 3 of 32 x 32 pixels at MIP 0, with what a test changes."""
    given = {"z_start": 1, "z_end": 4, "x_offset": 16, "y_offset": 32, "mips": "0", "patch_sizes": "32", **changes}
    options = [part for name, value in given.items() for part in (f"--{name}", *str(value).split())]
    return ["--cv_path", image, "--dst_folder", folder, *options, "--parallel", 1]


def point(*place: float, **more: Any) -> Json:
    """A point, as a viewer state holds it."""
    return {"type": "point", "point": list(place), **more}


def line(first: Sequence[float], second: Sequence[float], **more: Any) -> Json:
    """A line, as a viewer state holds it."""
    return {"type": "line", "pointA": list(first), "pointB": list(second), **more}


def fields_arguments(folder: Path, images: Path, prior: Path | None, *more: object, **changes: object) -> list[object]:
    """generate_fields.py's, stage 0 at MIP 3 on one CPU, into `shards`."""
    given: Json = {"pyramid_path": folder / "pyramid", "image_path": images, "prev_field_path": prior}
    given |= {"temp_dir": folder / "shards", "stage": 0, "checkpoint_name": "none", "src_mip": 3, "dst_mip": 3}
    given |= {"cpu_workers": 1, **changes}
    return [*(part for name, value in given.items() if value is not None for part in (f"--{name}", value)), *more]


def contents(path: Path) -> dict[str, Any]:
    """All that an HDF5 file holds: each dataset's form, values and stored chunks, byte for byte; attributes."""
    found: dict[str, Any] = {}
    with h5py.File(path, "r") as file:
        for name, data in file.items():
            strings = h5py.check_string_dtype(data.dtype)
            values = data[...].tolist() if strings else data[...].tobytes()
            found[name] = (data.dtype.str, strings, data.shape, data.maxshape, data.chunks, values)
            fill = data.fillvalue if strings else np.asarray(data.fillvalue).tobytes()
            filters = (data.compression, data.compression_opts, data.shuffle, data.fletcher32, data.scaleoffset)
            found[f"{name}, storage"] = (filters, fill)
            found.update({f"attribute {key} of {name}": _attribute(data, key) for key in data.attrs})
        main = file["main"].id
        for index in range(main.get_num_chunks()):
            info = main.get_chunk_info(index)
            found[f"main at {info.chunk_offset}"] = main.read_direct_chunk(info.chunk_offset)
        found.update({f"attribute {name}": _attribute(file, name) for name in file.attrs})
    return found


def _attribute(owner: h5py.HLObject, name: str) -> Any:
    kind = owner.attrs.get_id(name).dtype
    return (kind.str, h5py.check_string_dtype(kind), np.shape(owner.attrs[name]), str(owner.attrs[name]))


# What of a file says where its volumes are, or covers what does.
OF_THE_SPEC = ("attribute spec", "attribute spec_sha256", "attribute volumes", "attribute provenance", "attribute seal")


OF_STORED_BYTES = ("checksum", "attribute seal")


def differing(path: Path, reference: Path, leaving_out: tuple[str, ...] = ()) -> list[str]:
    """The names of what differs between two HDF5 files."""
    ours, theirs = contents(path), contents(reference)
    names = [name for name in {**ours, **theirs} if name not in leaving_out]
    names = [name for name in names if ours.get(name) != theirs.get(name)]
    if names and "main" not in names and not list(faults(path)):
        # ISA-L now and then deflates the same values to other, equally valid bytes: seen once in 500 kills, not in a
        # million calls in isolation; https://github.com/intel/isa-l/issues/140 asks for more.
        names = [name for name in names if not name.startswith("main at") and name not in OF_STORED_BYTES]
    return names


def leftovers(folder: Path) -> list[str]:
    """Partial, temporary and lock files."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


Refused = Callable[..., str]
