"""The bare forward passes of the benchmark's module over a file of images: all that generate_fields cannot do without.

python benchmarks/forward_passes.py IMAGES.h5
"""

import sys
from pathlib import Path

import h5py
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "pyramid" / "0_mip3in_convolutions"))
from create import create

if __name__ == "__main__":
    with h5py.File(sys.argv[1]) as file:
        pairs = torch.from_numpy(file["main"][:])
    model = create().eval().requires_grad_(False)
    for source, target in pairs:
        model(source[None, None], target[None, None])
