"""What one pair takes in bytes and in processor time, by how it is rounded; and what a box costs the writing process.

    python benchmarks/box_costs.py bench        (what `make bench` runs after bench.py; the folder may be new)

All times are processor times, which other work on the machine hardly changes: medians over the rounds.
"""

import argparse
import os
import shutil
import statistics
import sys
from pathlib import Path

from bench import Bench, helper, script, timed

SIZE = 1024
POINTS = {"points_8.csv": 8, "points_80.csv": 80}
PAIRS_A_POINT, BOXES_A_POINT = 6, 4  # with the offsets of `bench`: three other sections, each pair in both directions

ROUNDINGS = {
    "`--field_decimals 2`": ["--field_decimals", "2"],
    "`--field_decimals binary` (the default)": [],
    "`--field_decimals none`": ["--field_decimals", "none"],
    "`--image_step 1/2048`": ["--image_step", "1/2048"],
}


def rounding_line(bench: Bench, name: str, rounds: int) -> str:
    """The line of the table for one way to round: all work in one process, so that its time is all there is."""
    spec = bench.spec("costs", f"file://{bench.volume}", "points_8.csv", SIZE)
    pairs = POINTS["points_8.csv"] * PAIRS_A_POINT
    out = bench.folder / "rounded"
    files = [out / "made.h5", out / "field_0_made.h5"]
    cut = script("make_dataset.py", "--spec_path", spec, "--dst_path", out, "--name", "made", "--parallel", 1)
    writing, reading = [], []
    for _ in range(rounds):
        shutil.rmtree(out, ignore_errors=True)
        writing.append(timed([*cut, *ROUNDINGS[name]]).own_cpu)
        reading.append(timed(helper("read_pairs.py", *files)).own_cpu)
    sizes = [f"{file.stat().st_size / pairs / 2**20:.2f} MiB" for file in files]
    times = [f"{1000 * statistics.median(each) / pairs:.0f} ms" for each in (writing, reading)]
    return f"| {' | '.join([name, *sizes, *times])} |"


def parent_line(bench: Bench, size: int, rounds: int) -> str:
    """What each further box costs the process that writes, while two workers cut; the start does not count."""
    out = bench.folder / "parent"
    medians = []
    for points in POINTS:
        spec = bench.spec("parent", f"file://{bench.volume}", points, size)
        cut = script("make_dataset.py", "--spec_path", spec, "--dst_path", out, "--parallel", 2)
        used = []
        for _ in range(rounds):
            shutil.rmtree(out, ignore_errors=True)
            used.append(timed(cut).own_cpu)
        medians.append(statistics.median(used))
    fewer, more = (count * BOXES_A_POINT for count in POINTS.values())
    return f"| {size} x {size} | {1000 * (medians[1] - medians[0]) / (more - fewer):.1f} ms |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=["rounding", "parent"], default=["rounding", "parent"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    bench = Bench(args.folder)
    print(f"{os.cpu_count()} processors, Python {sys.version.split()[0]}; medians of {args.rounds} rounds")
    if "rounding" in args.only:
        print("\n| options | image file, a pair | field file, a pair | to write a pair | to read a pair |")
        print("| --- | --- | --- | --- | --- |", flush=True)
        for name in ROUNDINGS:
            print(rounding_line(bench, name, args.rounds), flush=True)
    if "parent" in args.only:
        print("\n| boxes | processor time of the writing process, a box |")
        print("| --- | --- |", flush=True)
        for size in (SIZE, SIZE // 4):
            print(parent_line(bench, size, args.rounds), flush=True)


if __name__ == "__main__":
    main()
