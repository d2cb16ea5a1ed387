"""Write a CSV of random points, as Neuroglancer exports them.

python benchmarks/make_points.py COUNT OUT.csv
"""

import sys

import numpy as np

if __name__ == "__main__":
    count, path = int(sys.argv[1]), sys.argv[2]
    rows = np.random.default_rng(0).integers(0, 200_000, (count, 3)).tolist()
    header = "Coordinate 1,Coordinate 2,Ellipsoid Dimensions,Tags,Description,Segment IDs,Parent ID,Type,ID"
    with open(path, "w", newline="") as file:
        file.write("\r\n".join([header, *(f'"({x}, {y}, {z})",,,,,,,Point,' for x, y, z in rows)]))
