"""How much of the time a device is busy in generate_fields.py, while pairs are read and fields are encoded beside it.

    python benchmarks/overlap.py --size 1024 --pairs 96 --forward_ms 20

The device is a module that sleeps: as a GPU does, it leaves the processor to others meanwhile.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from curation import fields  # noqa: E402
from curation.datasets.chunks import DEFLATE_LEVEL, encode  # noqa: E402
from curation.datasets.seal import seal_finished  # noqa: E402

MODULE = """
import time
def create():
    times = open("TIMES", "w", buffering=1)
    def forward(s, t, src_agg_field):
        began = time.perf_counter()
        field = src_agg_field + 0.123
        time.sleep(max(0, SECONDS - (time.perf_counter() - began)))
        print(began, time.perf_counter(), file=times)
        return field
    return forward
"""
GRID = 32  # pixels between the vectors of a field, which is smooth between them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="pixels along a side")
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--forward_ms", type=float, default=20.0, help="time of the module for a pair")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        share, rate = measured(Path(name), args.size, args.pairs, args.forward_ms / 1000)
    print(f"{args.size} x {args.size}: the device is busy {share:.0%} of the time, {rate:.1f} pairs per second")


def measured(folder: Path, size: int, pairs: int, seconds: float) -> tuple[float, float]:
    """The share of the time in which the module ran, from its first call to its last, and the pairs in a second."""
    images, priors, times = folder / "images.h5", folder / "priors.h5", folder / "times"
    put(images, size, pairs, roles=2)
    put(priors, size, pairs, roles=1)
    module = folder / "pyramid" / "0_mip3in_sleep"
    module.mkdir(parents=True)
    (module / "create.py").write_text(MODULE.replace("SECONDS", str(seconds)).replace("TIMES", str(times)))
    command: list[object] = ["--pyramid_path", module.parent, "--image_path", images, "--prev_field_path", priors]
    command += ["--temp_dir", folder / "shards", "--stage", "0", "--checkpoint_name", "none"]
    command += ["--src_mip", "3", "--dst_mip", "3", "--cpu_workers", "1", "--quiet"]
    script = [sys.executable, str(ROOT / "generate_fields.py"), *map(str, command)]
    # Else torch's own threads, which a GPU's worker does not use, wait for work by counting on.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    subprocess.run(script, check=True, stdout=subprocess.DEVNULL, env=environment)
    calls = np.loadtxt(times)
    whole = float(calls[-1, 1] - calls[0, 0])
    return float((calls[:, 1] - calls[:, 0]).sum()) / whole, len(calls) / whole


def put(path: Path, size: int, pairs: int, roles: int) -> None:
    """A file of images (two chunks a pair) or of fields (one), as make_dataset.py stores them; all pairs are alike."""
    random = np.random.default_rng(0)
    values = fields.upsample(random.normal(size=(2, size // GRID, size // GRID)).astype(np.float32) * 5, GRID)
    if roles == 2:
        values += random.normal(size=values.shape).astype(np.float32)
    else:
        values = fields.rounded(values, 2)
    parts = [encode(part) for part in (values if roles == 2 else [values])]
    shape, chunk = (pairs, 2, size, size), (1, 2 // roles, size, size)
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "main", shape, "<f4", chunks=chunk, shuffle=True, compression="gzip", compression_opts=DEFLATE_LEVEL
        )
        for pair in range(pairs):
            for role, part in enumerate(parts):
                file["main"].id.write_direct_chunk((pair, role, 0, 0), part.data, part.skipped)
        file["crc32"] = np.array([[part.crc32 for part in parts]] * pairs, np.uint32)
        file.attrs["mip"] = 3
        seal_finished(file)


if __name__ == "__main__":
    main()
