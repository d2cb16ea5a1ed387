"""Read an image file and a field file pair by pair, as a training program does, through HDF5's own filters.

python benchmarks/read_pairs.py IMAGES.h5 FIELDS.h5
"""

import sys

import h5py

if __name__ == "__main__":
    with h5py.File(sys.argv[1]) as images, h5py.File(sys.argv[2]) as fields:
        for pair in range(len(images["main"])):
            images["main"][pair], fields["main"][pair]
