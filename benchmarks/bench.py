"""Time the toolkit, a plain loop and a floor on the same work, turn by turn, and print a table.

    python benchmarks/bench.py bench            (what `make bench` runs; it wants about 20 GiB of disk)
    python benchmarks/bench.py bench --only http concat --rounds 5

Every figure is of whole processes, start-up included: medians over the rounds of wall seconds, and of the peak of the
memory that all processes of a command hold together (proportional set size, sampled).
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
PYTHON = sys.executable
OFFSETS = ("--offsets", "-1", "-2", "-3", "--permute_pairs")
DELAY_S = 0.05


@dataclass(frozen=True)
class Run:
    """One finished command. mib: the peak of all its processes together. own_cpu: processor seconds of it alone."""

    seconds: float
    mib: float
    own_cpu: float


def timed(command: list[str]) -> Run:
    """Run a command to its end; its failure is this script's."""
    started, cpu_before = time.perf_counter(), _cpu_of_children()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = [0.0]
    watch = threading.Thread(target=_watch, args=(process.pid, peak))
    watch.start()
    _, errors = process.communicate()
    seconds = time.perf_counter() - started
    watch.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{errors[-2000:]}")
    return Run(seconds, peak[0], _cpu_of_children() - cpu_before)


def _cpu_of_children() -> float:
    """Processor seconds of the commands that have ended; their workers are not waited for, and so are not counted."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watch(pid: int, peak: list[float]) -> None:
    while Path(f"/proc/{pid}/stat").exists() and not _is_zombie(pid):
        peak[0] = max(peak[0], sum(map(_mib, _family(pid))))
        time.sleep(0.1)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _family(pid: int) -> list[int]:
    family = [pid]
    for member in family:
        try:
            family += [int(child) for child in Path(f"/proc/{member}/task/{member}/children").read_text().split()]
        except OSError:
            continue
    return family


def _mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


@dataclass(frozen=True)
class Row:
    """A kind of work, and the commands that do it: the toolkit's first, then what it is compared with.

    is_long: the plain loop takes minutes, and is run in the first round alone.
    """

    name: str
    commands: dict[str, list[str]]
    outputs: tuple[Path, ...] = ()
    is_long: bool = False


def measured(row: Row, rounds: int) -> dict[str, list[Run]]:
    """Every command's runs, turn by turn, each into empty folders."""
    runs: dict[str, list[Run]] = {name: [] for name in row.commands}
    for turn in range(rounds):
        for name, command in row.commands.items():
            if turn and row.is_long and name == "plain loop":
                continue
            keep = name == "floor"  # it reads the sizes that the toolkit's run has just made
            for output in row.outputs:
                if not (keep and output.name == "toolkit"):
                    shutil.rmtree(output, ignore_errors=True)
                    output.mkdir(parents=True)
            runs[name].append(timed(command))
    return runs


def line(row: Row, runs: dict[str, list[Run]]) -> str:
    """The row's line of the table."""
    seconds = {name: statistics.median(run.seconds for run in each) for name, each in runs.items()}
    own, plain, floor = (seconds.get(name) for name in ("toolkit", "plain loop", "floor"))
    cells = [
        row.name,
        f"{own:.2f} s",
        f"{statistics.median(run.mib for run in runs['toolkit']):.0f} MiB",
        f"{plain:.1f} s, {plain / own:.1f} times ours" if own and plain else "",
        f"{floor:.2f} s, ours {own / floor:.1f} times that" if own and floor else "",
    ]
    return f"| {' | '.join(cells)} |"


def script(name: str, *arguments: object) -> list[str]:
    return [PYTHON, str(ROOT / name), *map(str, arguments)]


def helper(name: str, *arguments: object) -> list[str]:
    return [PYTHON, str(HERE / name), *map(str, arguments)]


class Bench:
    """The benchmark's folder: the volume, the specs made from it, and the rows of work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.volume = self.folder / "volume"
        if not (self.volume / "points.csv").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            timed(helper("make_volume.py", self.volume))

    def spec(self, name: str, volume: str, points: str, box: int = 1024) -> Path:
        """A spec of the volume at a path, with the pairs of a file of points."""
        template = self.folder / f"{name}.template.json"
        text = (HERE / "template.json").read_text().replace("VOLUME", volume)
        template.write_text(
            text.replace('"x_size": 1024', f'"x_size": {box}').replace('"y_size": 1024', f'"y_size": {box}')
        )
        spec = self.folder / f"{name}.json"
        arguments = ["--src_spec_path", template, "--dst_spec_path", spec, "--points_path", self.volume / points]
        timed(script("create_spec.py", *arguments, *OFFSETS, "--overwrite"))
        return spec

    def dataset(self, name: str, spec: Path, floor: bool = True, plain: bool = True, is_long: bool = False) -> Row:
        out = {what: self.folder / what for what in ("toolkit", "plain", "floor")}
        commands = {
            "toolkit": script("make_dataset.py", "--spec_path", spec, "--dst_path", out["toolkit"], "--parallel", 2)
        }
        if floor:
            commands["floor"] = helper("floor.py", "dataset", spec, out["floor"], out["toolkit"])
        if plain:
            commands["plain loop"] = helper("plain_loop.py", "dataset", spec, out["plain"])
        return Row(name, commands, tuple(out.values()), is_long)

    def local(self) -> Iterator[Row]:
        for pairs, points in ((48, "points_8.csv"), (480, "points_80.csv")):
            spec = self.spec(f"local_{pairs}", f"file://{self.volume}", points)
            yield self.dataset(f"make_dataset, {pairs} pairs, local", spec, is_long=pairs > 48)

    def http(self) -> Iterator[Row]:
        with served(self.volume) as url:
            spec = self.spec("http_48", f"precomputed://{url}", "points_8.csv")
            yield self.dataset("make_dataset, 48 pairs, HTTP 50 ms", spec, is_long=True)

    def growth(self) -> Iterator[Row]:
        for pairs, points in ((48, "points_8.csv"), (480, "points_80.csv"), (4800, "points.csv")):
            spec = self.spec(f"growth_{pairs}", f"file://{self.volume}", points, box=256)
            yield self.dataset(f"make_dataset, {pairs} pairs of 256 x 256", spec, floor=False, plain=False)

    def concat(self) -> Iterator[Row]:
        shards = self.folder / "shards"
        if not shards.exists():
            shards.mkdir()
            timed(helper("make_shards.py", shards, self.folder / "older_shards"))
        out = self.folder / "joined"
        commands = {
            "toolkit": script("concat_fields.py", "--temp_dir", shards, "--dst_path", out / "toolkit.h5"),
            "floor": ["sh", "-c", f"cat {shards}/*.h5 > {out}/floor.h5 && sync {out}/floor.h5"],
            "plain loop": helper("plain_loop.py", "concat", self.folder / "older_shards", out / "plain.h5"),
        }
        yield Row("concat_fields, 48 fields of 1024 x 1024", commands, (out,))

    def create(self) -> Iterator[Row]:
        template = self.folder / "create.template.json"
        # The points lie in a volume larger than any on this disk: one in a store, whose extent is not asked for.
        template.write_text((HERE / "template.json").read_text().replace("VOLUME", "gs://volumes/large"))
        out = self.folder / "specs"
        for count in (100_000, 1_000_000):
            points = self.folder / f"points_{count}.csv"
            if not points.exists():
                timed(helper("make_points.py", count, points))
            arguments = ["--src_spec_path", template, "--dst_spec_path", out / "toolkit.json", "--points_path", points]
            commands = {
                "toolkit": script("create_spec.py", *arguments, *OFFSETS),
                "plain loop": helper("plain_loop.py", "spec", template, points, out / "plain.json"),
            }
            yield Row(f"create_spec, {count:,} points x 6", commands, (out,), is_long=count >= 10**6)

    def generate(self) -> Iterator[Row]:
        images = self.folder / "images"
        if not images.exists():
            images.mkdir()
            timed(helper("make_shards.py", "--images", images))
        out = self.folder / "fields"
        options = ["--image_path", images / "images.h5", "--temp_dir", out, "--stage", 0, "--checkpoint_name", "none"]
        levels = ["--src_mip", 3, "--dst_mip", 2, "--cpu_workers", 1]
        commands = {
            "toolkit": script("generate_fields.py", "--pyramid_path", HERE / "pyramid", *options, *levels),
            "floor": helper("forward_passes.py", images / "images.h5"),
        }
        yield Row("generate_fields, 24 pairs; bare passes", commands, (out,))

    def startup(self) -> Iterator[Row]:
        yield Row("make_dataset --help", {"toolkit": script("make_dataset.py", "--help")})


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder behind a server on this machine that takes its time; its address."""
    process = subprocess.Popen(helper("latency_server.py", folder, DELAY_S), stdout=subprocess.PIPE, text=True)
    try:
        port = process.stdout.readline().strip() if process.stdout else ""
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    groups: dict[str, Callable[[Bench], Iterator[Row]]] = {
        "local": Bench.local,
        "http": Bench.http,
        "growth": Bench.growth,
        "concat": Bench.concat,
        "create": Bench.create,
        "generate": Bench.generate,
        "startup": Bench.startup,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=groups, default=list(groups))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    bench = Bench(args.folder)
    print(f"{os.cpu_count()} processors, Python {sys.version.split()[0]}; medians of {args.rounds} rounds\n")
    print("| work | toolkit | peak memory | plain loop | floor |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for group in args.only:
        for row in groups[group](bench):
            print(line(row, measured(row, args.rounds)), flush=True)


if __name__ == "__main__":
    main()
