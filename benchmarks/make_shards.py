"""Write what the benchmark joins, or runs a module over.

    python benchmarks/make_shards.py SHARD_FOLDER OLDER_FOLDER     48 fields of 1024 x 1024 in 4 shards, twice
    python benchmarks/make_shards.py --images FOLDER               24 pairs of images of 512 x 512

The older shards are as the original tool writes them: LZF and scaleoffset, and only `main`.
"""

import sys
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from curation.datasets.chunks import encode
from curation.datasets.layout import Layout
from curation.datasets.writer import write_whole
from curation.fields import upsample

SHARD, SHARDS, SIZE = 12, 4, 1024


def field(pair: int) -> np.ndarray:
    """A smooth field, (2, X, Y), rounded to 2 decimals."""
    random = np.random.default_rng(pair)
    return np.round(upsample(random.normal(0, 8, (2, SIZE // 64, SIZE // 64)).astype(np.float32), 64), 2)


def shards(folder: Path, older: Path) -> None:
    older.mkdir(exist_ok=True)
    for first in range(0, SHARD * SHARDS, SHARD):
        fields = [field(pair) for pair in range(first, first + SHARD)]
        name = f"{first}_{first + SHARD}.h5"
        attributes = {"mip": 2, "pairs": SHARD * SHARDS, "first": first, "last": first + SHARD - 1}
        layout = Layout((SHARD, 2, SIZE, SIZE), 1, {}, (), {}, attributes)
        write_whole(folder / name, layout, [encode(values) for values in fields])
        with h5py.File(older / name, "w") as file:
            file.create_dataset(
                "main", data=np.stack(fields), chunks=(1, 1, SIZE, SIZE), compression="lzf", scaleoffset=2
            )


def images(folder: Path) -> None:
    with h5py.File(folder / "images.h5", "w") as file:
        pairs = np.random.default_rng(0).normal(size=(24, 2, 512, 512)).astype(np.float32)
        file.create_dataset("main", data=pairs, chunks=(1, 1, 512, 512), compression="gzip", shuffle=True)
        file.attrs["mip"] = 3


if __name__ == "__main__":
    if sys.argv[1] == "--images":
        images(Path(sys.argv[2]))
    else:
        shards(Path(sys.argv[1]), Path(sys.argv[2]))
