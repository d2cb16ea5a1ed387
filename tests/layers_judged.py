"""Layers written and read by TensorStore, which shares no code with CloudVolume: what it reads is what is stored.

Arrays are (X, Y, Z) or (X, Y, Z, C), as in `volumes_made`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

Json = dict[str, Any]


def precomputed(
    folder: Path,
    array: np.ndarray,
    encoding: str = "raw",
    sharding: Json | None = None,
    chunk: tuple[int, ...] = (4, 4, 2),
) -> str:
    """Write a precomputed layer of one level, and give its cloud path."""
    values = array.reshape(*array.shape[:3], -1)
    scale: Json = {"size": values.shape[:3], "resolution": [4, 4, 40], "chunk_size": chunk, "encoding": encoding}
    if encoding == "compressed_segmentation":
        scale["compressed_segmentation_block_size"] = [4, 4, 2]
    if sharding is not None:
        scale["sharding"] = {"@type": "neuroglancer_uint64_sharded_v1", **sharding}
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": f"file://{folder}",
        "multiscale_metadata": {"data_type": values.dtype.name, "num_channels": values.shape[3], "type": "image"},
        "scale_metadata": scale,
    }
    tensorstore.open(spec, create=True).result().write(values).result()
    return f"precomputed://file://{folder}"


def judged(path: str) -> np.ndarray:
    """What TensorStore reads of a precomputed layer, (X, Y, Z, C)."""
    spec = {"driver": "neuroglancer_precomputed", "kvstore": path.removeprefix("precomputed://")}
    return np.asarray(tensorstore.open(spec).result().read().result())
