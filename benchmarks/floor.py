"""A floor: the least that a job must do, for the benchmark to compare with.

    python benchmarks/floor.py dataset SPEC.json OUT_FOLDER MADE_FOLDER

TensorStore reads the distinct chunks that the spec's boxes lie in, all at once; then as many bytes as the files in
MADE_FOLDER hold are written by plain file writes, and flushed to the disk. Nothing is computed or compressed.
"""

import os
import sys
from pathlib import Path

import numpy as np
import tensorstore

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from curation.boxes import Box
from curation.spec import read_spec

BLOCK = bytes(np.random.default_rng(0).integers(0, 256, 4 * 2**20, dtype=np.uint8))


def dataset(spec_path: str, out: str, made: str) -> None:
    spec = read_spec(spec_path)
    starts = np.unique(spec.starts().reshape(-1, 3), axis=0)
    layers = [(spec.image.path, spec.image.src_mip), *((mask.path, mask.src_mip) for mask in spec.masks)]
    if spec.image.reference is not None:
        layers.append((spec.image.reference.path, spec.image.reference.src_mip))
    if spec.field is not None:
        layers.append((spec.field.path, spec.field.src_mip))
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 2**31}})
    for path, mip in dict.fromkeys(layers):
        store = tensorstore.open(
            {"driver": "neuroglancer_precomputed", "kvstore": kvstore(path), "scale_index": mip},
            open=True,
            context=context,
        ).result()
        chunks = set()
        for start in starts.tolist():
            window = Box(start[0], start[1], start[2], spec.x_size, spec.y_size, spec.dst_mip).window(mip)
            low = [max(0, edge) // size for edge, size in zip(window.start, CHUNK, strict=True)]
            high = [-(-edge // size) for edge, size in zip(window.stop, CHUNK, strict=True)]
            chunks |= {(x, y, start[2]) for x in range(low[0], high[0]) for y in range(low[1], high[1])}
        pending = []
        for x, y, z in chunks:
            x_stop, y_stop = (
                min((at + 1) * size, end) for at, size, end in zip((x, y), CHUNK, store.shape, strict=False)
            )
            if x * CHUNK[0] < x_stop and y * CHUNK[1] < y_stop:
                pending.append(store[x * CHUNK[0] : x_stop, y * CHUNK[1] : y_stop, z].read())
        for read in pending:
            read.result()
    for path_made in sorted(Path(made).glob("*.h5")):
        write(Path(out) / path_made.name, path_made.stat().st_size)


CHUNK = (1024, 1024)


def kvstore(path: str) -> str | dict[str, str]:
    path = path.removeprefix("precomputed://")
    if path.startswith("file://"):
        return {"driver": "file", "path": path.removeprefix("file://") + "/"}
    return path + "/"


def write(path: Path, size: int) -> None:
    with open(path, "wb", buffering=0) as file:
        for begin in range(0, size, len(BLOCK)):
            file.write(BLOCK[: min(len(BLOCK), size - begin)])
        os.fsync(file.fileno())


if __name__ == "__main__":
    {"dataset": dataset}[sys.argv[1]](*sys.argv[2:])
