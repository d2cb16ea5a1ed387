"""Kill the steps that write, hundreds of times: each killed run, run again, must end as if it had not been killed.

    make torture
    PYTHONPATH=.:tests python tests/crash/torture.py --kills 2000

Every step has its share of the kills, swept evenly over a run; one in ten falls on a run with two workers. Exit code
1 at the first difference.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from crashing import Nursery
from steps import Inputs, Kill, Step, make_steps, sweep
from tqdm import tqdm

PARALLEL_SHARE = 0.1


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=500, help="in all (500)")
    wanted = arguments.parse_args().kills
    found: dict[str, Counter[str]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        Nursery() as nursery,
        tqdm(total=wanted, unit="kill", smoothing=0) as bar,
    ):
        for name, kill in kills(nursery, Path(folder), wanted):
            bar.update(kill.hit)
            found.setdefault(name, Counter()).update(runs=1, hits=kill.hit, resumed=kill.hit and kill.resumed > 0)
            if kill.faults:
                bar.close()
                print(f"{name}, killed after {kill.delay:.4f} s: {', '.join(kill.faults)}")
                return 1
    for name, counts in found.items():
        print(f"{name:<28} {counts['hits']:>5} kills of {counts['runs']} runs, {counts['resumed']} with work kept")
    print("every run ended as if it had not been killed")
    return 0


def kills(nursery: Nursery, folder: Path, wanted: int) -> Iterator[tuple[str, Kill]]:
    """So many kills, each named for what it fell on."""
    inputs = Inputs(folder).make()
    made = make_steps(nursery, inputs)
    variants = dict(made)
    for name in ("make_dataset", "generate_fields", "download_image"):
        variants[f"{name} --parallel 2"] = parallel(made[name])
    few = int(wanted * PARALLEL_SHARE) // (len(variants) - len(made))
    many, rest = divmod(wanted - few * (len(variants) - len(made)), len(made))
    for number, (name, step) in enumerate(variants.items()):
        share = many + (number < rest) if name in made else few
        place = folder / f"kills_{number}"
        place.mkdir()
        begin = 0 if name in made else 0.7  # workers take a while to start
        for kill in sweep(nursery, step, place, share, begin):
            yield name, kill


def parallel(step: Step) -> Step:
    return Step(step.name, partial(step.call, parallel=2), step.reference, step.resumed)


if __name__ == "__main__":
    sys.exit(main())
