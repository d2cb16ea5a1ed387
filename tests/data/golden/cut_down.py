"""Cut the folder of golden inputs and outputs down to what fits beside the code; README.md says what is kept.

    python tests/data/golden/cut_down.py FULL_FOLDER tests/data/golden

It runs the toolkit over the full folder, for two things alone: where each box lies once it is shifted, which says what
of the volume is kept, and to prove at the end that the toolkit makes the same files, byte for byte, of either volume.
No expected value comes from there. The files it makes are the same each time.
"""

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[3]
TEMPLATES = ("a", "b")
POINTS = (2, 4)  # rows below the header of points.csv that are kept, from 1 on
PAIRS_A_POINT = 4  # offsets -1 and -2, each with its reverse
PAIRS = [PAIRS_A_POINT * (point - 1) + pair for point in POINTS for pair in range(PAIRS_A_POINT)]
LINES = [*range(0, 128, 11), 127]  # of x; 11 and 8, the factor of the fields, have no divisor in common
STARTS = ("x_start", "y_start", "z_start")

Json = dict[str, Any]
Window = tuple[int, int, int, int, int]  # x, y, z and the sizes in x and y, MIP-0 voxels


def cut_texts(full: Path, out: Path) -> None:
    """The templates as they are; the points and pairs that are kept, unchanged and in their order."""
    header, *rows = (full / "points.csv").read_bytes().splitlines(keepends=True)
    (out / "points.csv").write_bytes(b"".join([header, *(rows[point - 1] for point in POINTS)]))
    for template in TEMPLATES:
        shutil.copyfile(full / f"template_{template}.json", out / f"template_{template}.json")
        for kind in ("expected_spec", "legacy_spec"):
            spec = json.loads((full / f"{kind}_{template}.json").read_text())
            spec["pairs"] = [spec["pairs"][pair] for pair in PAIRS]
            (out / f"{kind}_{template}.json").write_text(one_pair_a_line(spec))


def one_pair_a_line(spec: Json) -> str:
    head = json.dumps({**spec, "pairs": []}, indent=1).removesuffix("[]\n}")
    return head + "[\n" + ",\n".join(f"  {json.dumps(pair)}" for pair in spec["pairs"]) + "\n ]\n}\n"


def cut_arrays(full: Path, out: Path) -> None:
    """The kept lines of the kept pairs, as the original computed them: no value is rounded or changed."""
    whole = {template: np.load(full / f"expected_{template}.npz") for template in TEMPLATES}
    field = whole["a"]["field"]
    if not np.array_equal(field, whole["b"]["field"], equal_nan=True):
        raise ValueError("the templates' fields differ: want them equal, as their fields' references are")
    arrays = {"pairs": np.array(PAIRS), "lines": np.array(LINES), "field": field[PAIRS][:, :, LINES]}
    for template, arrays_of in whole.items():
        arrays[f"image_{template}"] = arrays_of["image"][PAIRS][:, :, LINES]
    # What np.savez writes, but by LZMA, for which an image that stands in two pairs takes the place of one.
    with zipfile.ZipFile(out / "expected.npz", "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_LZMA
            with archive.open(entry, "w") as member:
                np.lib.format.write_array(member, array)


def cut_volume(full: Path, out: Path, windows: dict[tuple[str, int], set[Window]]) -> None:
    """The chunks that a window reaches into, with 0 in place of what no window holds."""
    for (name, mip), boxes in windows.items():
        info = json.loads((full / "volume" / name / "info").read_text())
        folder = out / "volume" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "info").write_text(json.dumps(info, separators=(",", ":")) + "\n")
        key = info["scales"][mip]["key"]
        (folder / key).mkdir(exist_ok=True)
        for path in sorted((full / "volume" / name / key).iterdir()):
            kept = cut_chunk(path, info, mip, boxes)
            if kept is not None:
                (folder / key / path.name).write_bytes(gzip.compress(kept, 9, mtime=0))


def cut_chunk(path: Path, info: Json, mip: int, boxes: set[Window]) -> bytes | None:
    """A raw chunk's bytes, x fastest, with 0 outside the windows; None if no window reaches into it."""
    spans = [tuple(map(int, span.split("-"))) for span in path.name.removesuffix(".gz").split("_")]
    shape = (*(stop - start for start, stop in spans), info["num_channels"])
    content = gzip.decompress(path.read_bytes())
    values = np.frombuffer(content, info["data_type"]).reshape(shape, order="F")
    kept = np.zeros_like(values)
    reached = False
    for x, y, z, x_size, y_size in boxes:
        parts = []
        for start, size, (first, last) in ((x, x_size, spans[0]), (y, y_size, spans[1])):
            low, high = start >> mip, -(-(start + size) >> mip)
            parts.append(slice(max(low, first) - first, max(min(high, last) - first, 0)))
        place = (*parts, slice(max(z - spans[2][0], 0), max(z + 1 - spans[2][0], 0)))
        reached |= values[place].size > 0
        kept[place] = values[place]
    return kept.tobytes("F") if reached else None


def windows_read(spec: Json, made: Path) -> Iterator[tuple[tuple[str, int], Window]]:
    """What a spec's pairs read: the field at each box's start, image and masks at the start that it shifts to."""
    with h5py.File(made) as file:
        starts, shifts = file["start"][:].reshape(-1, 3), file["translation"][:].reshape(-1, 2)
    own = (spec["x_size"] << spec["dst_mip"], spec["y_size"] << spec["dst_mip"])
    field, image = spec["field"], spec["image"]
    sizes = {
        "field": [own, size_of(field["reference"])],
        "image": [own, size_of(image["reference"])],
    }
    for (x, y, z), (x_shift, y_shift) in zip(starts.tolist(), shifts.tolist(), strict=True):
        for layer, size in zip((field, field["reference"]), sizes["field"], strict=True):
            yield ("field", layer["src_mip"]), (x, y, z, *size)
        for layer, size in zip((image, image["reference"]), sizes["image"], strict=True):
            yield ("image", layer["src_mip"]), (x + x_shift, y + y_shift, z, *size)
            for mask in spec["masks"]:
                yield ("mask", mask["src_mip"]), (x + x_shift, y + y_shift, z, *size)


def size_of(reference: Json) -> tuple[int, int]:
    """A reference's (x, y) size in MIP-0 voxels."""
    return reference["x_size"] << reference["dst_mip"], reference["y_size"] << reference["dst_mip"]


def made_of(folder: Path, spec: Path, out: Path) -> list[Path]:
    """The toolkit's files for a spec, whose paths are relative to `folder`: image, then field."""
    out.mkdir()
    arguments = ["--spec_path", spec, "--dst_path", out, "--parallel", "1", "--field_decimals", "none"]
    subprocess.run([sys.executable, ROOT / "make_dataset.py", *arguments], cwd=folder, check=True, capture_output=True)
    return sorted(out.glob("*.h5"), key=lambda path: path.name.startswith("field"))


def stored(path: Path) -> dict[str, bytes]:
    with h5py.File(path) as file:
        return {name: dataset[...].tobytes() for name, dataset in file.items()}


def cut_down(full: Path, out: Path) -> None:
    cut_texts(full, out)
    cut_arrays(full, out)
    with tempfile.TemporaryDirectory() as scratch:
        windows: dict[tuple[str, int], set[Window]] = {}
        made = {}
        for template in TEMPLATES:
            spec = out / f"expected_spec_{template}.json"
            made[template] = made_of(full, spec.resolve(), Path(scratch) / f"whole_{template}")
            for place, window in windows_read(json.loads(spec.read_text()), made[template][0]):
                windows.setdefault(place, set()).add(window)
        shutil.rmtree(out / "volume", ignore_errors=True)
        cut_volume(full, out, windows)
        for template in TEMPLATES:
            spec = out / f"expected_spec_{template}.json"
            again = made_of(out, spec.resolve(), Path(scratch) / f"cut_{template}")
            if [stored(path) for path in again] != [stored(path) for path in made[template]]:
                raise ValueError(f"template {template}: the toolkit makes something else of the volume that was cut")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("full", type=Path, help="the folder to cut down")
    arguments.add_argument("out", type=Path, help="where to")
    given = arguments.parse_args()
    cut_down(given.full, given.out)
