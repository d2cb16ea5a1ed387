"""Memory: ten times the pairs take no more of it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT
from small_jobs import dataset_arguments, made_folder, pair, put_json, spec_of
from volumes_made import make_layer

BOX = 128
GROWTH = 1.10
PATIENCE_S = 120


def children(process: int) -> list[int]:
    """A process and all below it, as far as they are there still."""
    try:
        direct = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [process, *(below for child in direct for below in children(int(child)))]


def resident_bytes(process: int) -> int:
    """Of one process: its own pages, and its share of those it has in common with others."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def peak_of(command: list[str]) -> int:
    """The most memory that a command and its processes have together at any one time."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak, until = 0, time.monotonic() + PATIENCE_S
    try:
        while process.poll() is None and time.monotonic() < until:
            peak = max(peak, sum(map(resident_bytes, children(process.pid))))
            time.sleep(0.02)
    finally:
        process.kill()
        said = process.communicate()[1]
    assert process.returncode == 0, said
    return peak


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="this system does not tell of shared pages")
def test_ten_times_the_pairs_take_no_more_memory(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 255, (512, 512, 21), dtype=np.uint8)
    vectors = np.random.default_rng(1).normal(0, 2, (128, 128, 21, 2)).astype(np.float32)
    image = make_layer(tmp_path / "image", {0: values}, chunk=(128, 128, 1))
    field = make_layer(tmp_path / "field", {2: vectors}, chunk=(64, 64, 1))
    pairs = [pair(x, y, z) for x in range(0, 384, 64) for y in range(0, 256, 64) for z in range(1, 21)]
    peaks = []
    for count in (48, 480):
        spec = spec_of(image, field, pairs[:count]) | {"x_size": BOX, "y_size": BOX}
        out = made_folder(tmp_path / str(count))
        arguments = dataset_arguments(put_json(tmp_path / f"{count}.json", spec), out, "--parallel", 2)
        peaks.append(peak_of([sys.executable, str(ROOT / "make_dataset.py"), *map(str, arguments)]))
        size = sum(path.stat().st_size for path in out.iterdir())
    print(f"peaks {[peak / 2**20 for peak in peaks]} MiB, output {size / 2**20} MiB")
    assert size > (GROWTH - 1) * peaks[0]  # else it could all be held without being seen here
    assert peaks[1] <= GROWTH * peaks[0]
