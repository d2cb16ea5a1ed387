"""Hold thousands of random datasets against `one_sample`, which computes every pixel straight from the contract.

    PYTHONPATH=.:tests python tests/torture_differential.py --cases 2000 --seed 0

One case in ten is a stretch. Each disagreement is printed with its seed, and the same seed gives the same case again:
`--cases 1 --seed S`. Exit code 1 at any.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from commands import ROOT, Outcome
from judging import judge_dataset, judge_stretch
from random_jobs import make_job, make_stretch
from tqdm import tqdm

SHOWN = 4  # of a case's disagreements


def main() -> int:
    """Run the cases; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="how many (2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; each next has the next (0)")
    arguments = parser.parse_args()
    differing, began = 0, time.monotonic()
    for seed in tqdm(range(arguments.seed, arguments.seed + arguments.cases), unit="case", smoothing=0):
        faults = run_case(seed)
        differing += bool(faults)
        for fault in faults[:SHOWN]:
            tqdm.write(f"seed {seed}: {fault}", file=sys.stdout)
    minutes = (time.monotonic() - began) / 60
    print(f"{differing} of {arguments.cases} cases differ; {arguments.cases / minutes:.0f} cases a minute")
    return int(differing > 0)


def run_case(seed: int) -> list[str]:
    """The disagreements over the job of a seed."""
    folder = Path(tempfile.mkdtemp(prefix="differential-"))
    try:
        out = folder / "out"
        out.mkdir()
        if seed % 10 == 9:
            stretch = make_stretch(seed, folder)
            return judge_stretch(stretch, run_script("download_image.py", *stretch.arguments(out)), out)
        job = make_job(seed, folder)
        spec = folder / "spec.json"
        spec.write_text(json.dumps(job.written))
        return judge_dataset(job, run_script("make_dataset.py", *job.arguments(spec, out)), out)
    finally:
        shutil.rmtree(folder)


def run_script(name: str, *arguments: object) -> Outcome:
    """A top-level script in this process, as the fixture `command` runs it, but without pytest."""
    spec = importlib.util.spec_from_file_location(f"script_{Path(name).stem}", ROOT / name)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    before = signal.getsignal(signal.SIGTERM)
    try:
        with (
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            mock.patch.object(sys, "argv", [name, *map(str, arguments)]),
            mock.patch.object(module.cli, "_leave", sys.exit),  # this process goes on
        ):
            module.cli.run(module.parser(), module.main)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    finally:
        signal.signal(signal.SIGTERM, before)
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


if __name__ == "__main__":
    sys.exit(main())
