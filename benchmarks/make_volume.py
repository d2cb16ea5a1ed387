"""Build the benchmark's volume: EM-like sections of 8192 x 8192 voxels, as Neuroglancer precomputed.

    python benchmarks/make_volume.py OUT_FOLDER [--sections 12]

OUT_FOLDER/image is uint8 at MIP 2 to 6, mask uint8 at MIP 4 (255 in a band of every fifth section), field float32 with
two channels at MIP 6 (smooth, 60 voxels rms, and up to about 1,000 voxels of shift a section). Chunks are 1024 x 1024 x
1, gzipped, as such volumes are stored. points.csv holds 800 points, points_80.csv and points_8.csv the first of them.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from cloudvolume import CloudVolume

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from make_sample_volume import make_sample_volume

SIZE = 8192  # voxels at MIP 0
DETAIL_MIP = 2  # the finest level that is read: a sample section of SIZE / 4 pixels
TOP_MIP = 6
BOX = 4096  # voxels: what a 1024-pixel box at MIP 2 spans
CHUNK = (1024, 1024, 1)


def layer(path: Path, dtype: str, channels: int, sections: int) -> str:
    """An empty layer with all levels; its path."""
    info = CloudVolume.create_new_info(
        num_channels=channels,
        layer_type="image",
        data_type=dtype,
        encoding="raw",
        resolution=[4, 4, 40],
        voxel_offset=[0, 0, 0],
        chunk_size=CHUNK,
        volume_size=[SIZE, SIZE, sections],
    )
    volume = CloudVolume(f"file://{path}", info=info)
    for mip in range(1, TOP_MIP + 1):
        volume.add_scale((2**mip, 2**mip, 1), chunk_size=CHUNK)
    volume.commit_info()
    return f"file://{path}"


def write(path: str, mip: int, voxels: np.ndarray) -> None:
    """Store a level, (X, Y, Z, C), whole."""
    volume = CloudVolume(path, mip=mip, progress=False, compress="gzip")
    x_size, y_size, sections, _ = voxels.shape
    volume[0:x_size, 0:y_size, 0:sections] = voxels


def images(out: Path, sections: int) -> None:
    """The sample volume's sections, its MIP 0 taken for MIP 2."""
    path = layer(out / "image", "uint8", 1, sections)
    with tempfile.TemporaryDirectory() as folder:
        make_sample_volume(Path(folder), size=SIZE >> DETAIL_MIP, sections=sections, seed=0)
        for mip in range(DETAIL_MIP, TOP_MIP + 1):
            sample = CloudVolume(f"file://{folder}/image", mip=mip - DETAIL_MIP, progress=False)
            write(path, mip, np.asarray(sample[:]))


def masks(out: Path, sections: int) -> None:
    size = SIZE >> 4
    voxels = np.zeros((size, size, sections, 1), np.uint8)
    voxels[size // 3 : size // 3 + size // 16, : size // 2, 2::5] = 255
    write(layer(out / "mask", "uint8", 1, sections), 4, voxels)


def fields(out: Path, sections: int) -> None:
    """Vectors of a few long waves, and a shift of each section's own."""
    random = np.random.default_rng(0)
    size = SIZE >> TOP_MIP
    turns = np.linspace(0, 2 * np.pi, size, endpoint=False)
    voxels = np.empty((size, size, sections, 2), np.float32)
    for z in range(sections):
        for component in range(2):
            phases = random.uniform(0, 2 * np.pi, (3, 2))
            waves = [
                np.sin((wave + 1) * turns + x_phase)[:, None] + np.cos((wave + 1) * turns + y_phase)
                for wave, (x_phase, y_phase) in enumerate(phases)
            ]
            smooth = np.sum(waves, axis=0)
            voxels[:, :, z, component] = smooth / smooth.std() * 60 + np.clip(random.normal() * 400, -1000, 1000)
    write(layer(out / "field", "float32", 2, sections), TOP_MIP, voxels)


def points(out: Path, sections: int) -> None:
    random = np.random.default_rng(1)
    corners = random.integers(600, SIZE - BOX - 600, (800, 2)).tolist()
    rows = [f'"({x}, {y}, {random.integers(3, sections)})",,,,,,,Point,' for x, y in corners]
    header = "Coordinate 1,Coordinate 2,Ellipsoid Dimensions,Tags,Description,Segment IDs,Parent ID,Type,ID"
    for name, count in (("points.csv", 800), ("points_80.csv", 80), ("points_8.csv", 8)):
        (out / name).write_text("\r\n".join([header, *rows[:count]]), newline="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sections", type=int, default=12)
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for part in (images, masks, fields, points):
        part(out, args.sections)


if __name__ == "__main__":
    main()
