"""The steps that write, small enough to be killed by the hundred, and sweeps of kills over them."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import ROOT
from crashing import PATIENCE_S, Call, Nursery, dying, run_script, setting
from small_jobs import differing, leftovers
from volumes_made import make_layer

from curation.files import Existing
from curation.steps.concat_fields import concat_fields
from curation.steps.download_image import DownloadImageOptions, download_image
from curation.steps.field_work import GenerateFieldsOptions
from curation.steps.generate_fields import generate_fields
from curation.steps.make_dataset import MakeDatasetOptions, make_dataset

SIZE, PAIRS = 64, 24


@dataclass(frozen=True)
class Step:
    """A writing function with its inputs made: how to call it for a destination folder."""

    name: str
    call: Callable[[Path], Call]
    reference: Path
    resumed: Callable[[Any], int] = field(repr=False)

    def faults(self, folder: Path) -> list[str]:
        """What is not as after an uninterrupted run."""
        folders = (folder, self.reference)
        names = [{path.name for path in each.glob("*.h5") if not path.name.startswith(".")} for each in folders]
        if self.name in ("generate_fields", "update_fields"):
            # How pairs fall into shards depends on those that are there, so the joined files are compared.
            joined = [each.with_name(f"{each.name}.joined.h5") for each in folders]
            for each, path in zip(folders, joined, strict=True):
                concat_fields(str(each), str(path), Existing.REPLACED)
            return [*leftovers(folder), *differing(*joined, leaving_out=("attribute provenance", "attribute seal"))]
        if names[0] != names[1]:
            return [f"files {sorted(names[0])}, not {sorted(names[1])}", *leftovers(folder)]
        return [
            *leftovers(folder),
            *(fault for name in names[0] for fault in differing(folder / name, folders[1] / name)),
        ]


SHIFTING = """
def create(checkpoint_name):
    return lambda src_img, tgt_img, src_agg_field=None: src_agg_field + 1
"""

LONGEST_SHARD = "curation.datasets.shards.LONGEST_SHARD"

# So that a run of a tenth of a second has many moments: a commit after every box, a shard for every pair.
EVERY_BOX = (
    partial(setting, "curation.steps.box_job.COMMIT_BYTES", 1),
    partial(setting, "curation.steps.concat_fields.COMMIT_BYTES", 1),
    partial(setting, LONGEST_SHARD, 1),
)


IN_FILES = {"image_path": "images", "prev_field_path": "priors"}


@dataclass(frozen=True)
class Inputs:
    """What the steps read, in one folder."""

    folder: Path

    @property
    def image(self) -> str:
        return f"file://{self.folder / 'image'}"

    def make(self) -> "Inputs":
        random = np.random.default_rng(3)
        image = random.integers(1, 255, (4 * SIZE, 2 * SIZE, 10), dtype=np.uint8)
        image[70:90, 5:30] = 0
        make_layer(self.folder / "image", {0: image, 1: image[::2, ::2]}, compress="")
        vectors = random.normal(2, 3, (2 * SIZE, SIZE, 10, 2)).astype(np.float32)
        vectors[20, 3, 4] = np.nan
        make_layer(self.folder / "field", {1: vectors})
        self.write_spec("spec.json", self.pairs(PAIRS))
        self.write_spec("small.json", self.pairs(2))
        for name in ("images", "priors"):
            with h5py.File(self.folder / f"{name}.h5", "w") as file:
                file["main"] = random.normal(size=(PAIRS, 2, SIZE, SIZE)).astype(np.float32)
                file.attrs["mip"] = 3
            self.write_other_pairs(name)
        module = self.folder / "pyramid" / "1_mip3in_shift"
        module.mkdir(parents=True)
        (module / "create.py").write_text(SHIFTING)
        return self

    def write_other_pairs(self, name: str) -> None:
        """Of the images or the priors: a file in which pairs are left out, are new, or have another number."""
        with h5py.File(self.folder / f"{name}.h5") as one, h5py.File(self.folder / f"other_{name}.h5", "w") as other:
            main = one["main"][:][::-1][3:]
            main[::4] += 1
            other["main"] = main
            other.attrs["mip"] = 3

    @staticmethod
    def pairs(count: int) -> list[list[dict[str, int]]]:
        """Neighbouring sections in three columns; each box but the last of a column is in two pairs."""
        at = [(SIZE * (index % 3), 0, 1 + index // 3) for index in range(count)]
        return [[{"x_start": x, "y_start": y, "z_start": z - less} for less in (0, 1)] for x, y, z in at]

    def write_spec(self, name: str, pairs: list[Any], image: str | None = None, **changes: Any) -> Path:
        """Write a spec with these pairs, and what else a test changes of it."""
        spec = {
            "image": {"path": image or self.image, "src_mip": 0},
            "field": {"path": f"file://{self.folder / 'field'}", "src_mip": 1},
            "max_mip": 3,
            "dst_mip": 0,
            "x_size": SIZE,
            "y_size": SIZE,
            "pairs": pairs,
        }
        path = self.folder / name
        path.write_text(json.dumps({**spec, **changes}))
        return path

    def make_dataset(self, folder: Path | str, parallel: int = 1, spec: str = "spec.json", **changes: Any) -> Call:
        options = MakeDatasetOptions(str(self.folder / spec), str(folder), parallel, **changes)
        return Call(make_dataset, (options,), EVERY_BOX)

    def download_image(
        self, folder: Path, parallel: int = 1, sections: int = 9, mips: tuple[int, ...] = (0, 1), **changes: Any
    ) -> Call:
        sizes = tuple(SIZE >> mip for mip in mips)
        options = DownloadImageOptions(self.image, str(folder), 1, 1 + sections, 0, 0, mips, sizes, **changes)
        return Call(download_image, (replace(options, parallel=parallel),), EVERY_BOX)

    def generate_fields(self, folder: Path, parallel: int = 1, **changes: Any) -> Call:
        given: Mapping[str, Any] = {
            "pyramid_path": str(self.folder / "pyramid"),
            "image_path": str(self.folder / "images.h5"),
            "prev_field_path": str(self.folder / "priors.h5"),
            "temp_dir": str(folder),
            "stage": 1,
            "checkpoint_name": "none",
            "src_mip": 3,
            "dst_mip": 3,
            "cpu_workers": parallel,
        }
        return Call(generate_fields, (GenerateFieldsOptions(**{**given, **changes}),), EVERY_BOX)

    def update_fields(self, folder: Path, parallel: int = 1) -> Call:
        """Of a folder that holds the fields of other pairs: those that `write_other_pairs` changed."""
        if not any(folder.iterdir()):
            for path in (self.folder / "shards").iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
        paths = {key: str(self.folder / f"other_{name}.h5") for key, name in IN_FILES.items()}
        return self.generate_fields(folder, parallel, update=True, **paths)

    def update_dataset(self, folder: Path, parallel: int = 1) -> Call:
        """Of a folder that holds the dataset of other pairs: some are left out, new, or have another number."""
        if not any(folder.iterdir()):
            for path in (self.folder / "reference" / "make_dataset").iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
        pairs = self.pairs(PAIRS + 3)
        self.write_spec("other_pairs.json", [pairs[0], *pairs[:5:-1]])
        return self.make_dataset(folder, parallel, spec="other_pairs.json", existing=Existing.UPDATED)

    def concat_fields(self, folder: Path, shards: str = "shards", existing: Existing = Existing.REFUSED) -> Call:
        return Call(concat_fields, (str(self.folder / shards), str(folder / "joined.h5"), existing), EVERY_BOX)


def make_steps(nursery: Nursery, inputs: Inputs) -> dict[str, Step]:
    """The steps, each with the outputs of an uninterrupted run as its reference."""
    made = {}
    (inputs.folder / "shards").mkdir()
    nursery.finish(inputs.generate_fields(inputs.folder / "shards").after(partial(setting, LONGEST_SHARD, 8)))
    for name, resumed in [
        ("make_dataset", lambda report: report.resumed),
        ("update_dataset", lambda report: report.resumed),
        ("download_image", lambda downloaded: sum(report.resumed for report in downloaded.reports)),
        ("generate_fields", lambda generated: generated.resumed),
        ("update_fields", lambda generated: generated.resumed),
        ("concat_fields", lambda joined: joined.resumed),
    ]:
        reference = inputs.folder / "reference" / name
        reference.mkdir(parents=True)
        made[name] = Step(name, getattr(inputs, name), reference, resumed)
        nursery.finish(made[name].call(reference))
    return made


# Sweeps


@dataclass(frozen=True)
class Kill:
    """A kill, and the run that followed it. hit: it met a run at work. resumed: what was found done."""

    delay: float
    hit: bool
    resumed: int
    faults: tuple[str, ...]


def duration(nursery: Nursery, step: Step, folder: Path, times: int = 3) -> float:
    """The shortest time, in seconds, of an uninterrupted run."""
    taken = []
    for number in range(times):
        (folder / f"timed_{number}").mkdir()
        begin = time.monotonic()
        nursery.finish(step.call(folder / f"timed_{number}"))
        taken.append(time.monotonic() - begin)
    return min(taken)


GOLDEN = 0.618034  # whose multiples, modulo 1, fill an interval evenly, however many are taken


def sweep(nursery: Nursery, step: Step, folder: Path, kills: int, begin: float = 0.0) -> Iterator[Kill]:
    """Kill `kills` runs at work, at moments spread evenly from `begin`, a share of a run, on; the same call finishes.

    A kill that comes after the end does not count, and those after it come sooner: how long a run takes varies.
    """
    longest = duration(nursery, step, folder)
    hits = number = 0
    while hits < kills:
        if number >= 5 * kills:
            raise TimeoutError(f"{hits} of {number} kills met a run at work")
        delay = longest * (begin + (1 - begin) * (number * GOLDEN % 1))
        destination = folder / f"killed_{number}"
        destination.mkdir()
        call = step.call(destination)
        hit = nursery.kill(call, delay).killed
        outcome = nursery.run(call)
        faults = step.faults(destination) if outcome.is_finished else [repr(outcome.error)]
        yield Kill(delay, hit, step.resumed(outcome.value) if outcome.value else 0, tuple(faults))
        hits += hit
        number += 1
        if not hit:
            longest *= 0.95


def stat(process: int) -> list[str]:
    """What the system says of a process: its state, its parent, its group, and so on. Empty state: it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return ["", "0", "0"]


def alive(group: int) -> list[int]:
    """The processes of a process group that have not ended."""
    numbers = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [number for number in numbers if stat(number)[2] == str(group) and stat(number)[0] not in ("", "Z")]


# What the tests do with them

STEPS = ("make_dataset", "download_image", "generate_fields", "concat_fields")

each_step = pytest.mark.parametrize("step", STEPS, indirect=True)


def new_folder(path: Path) -> Path:
    path.mkdir()
    return path


def waited(until: Callable[[], Any], seconds: float = PATIENCE_S) -> bool:
    """Wait until something is so; whether it came to be."""
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def finishes(nursery: Nursery, step: Step, call: Call, out: Path) -> list[str]:
    """What is not as after an undisturbed run, once a call has run in peace."""
    outcome = nursery.run(call)
    return step.faults(out) if outcome.is_finished else [f"{outcome}"]


WRITING_SHARD = "curation.steps.field_work.write_whole"
AT_WORK = {"generate_fields": WRITING_SHARD, "update_fields": WRITING_SHARD}


def begun(nursery: Nursery, step: Step, out: Path) -> Call:
    """The step's call, killed when it has done some of its work."""
    call = step.call(out)
    name = AT_WORK.get(step.name, "curation.datasets.writer.Writer.put")
    assert nursery.run(call.after(partial(dying, name, 12))).killed
    return call


def as_script(call: Call, *prepare: Callable[[], None]) -> Call:
    """A call of a step as its command, run in the nursery."""
    return Call(run_script, (str(ROOT / f"{call.function.__name__}.py"), arguments(call)), (*call.prepare, *prepare))


def arguments(call: Call) -> tuple[str, ...]:
    """A call's options, spelt on the command line."""
    if call.function.__name__ == "concat_fields":
        return ("--temp_dir", str(call.arguments[0]), "--dst_path", str(call.arguments[1]))
    found: list[str] = []
    for name, value in vars(call.arguments[0]).items():
        name = "field_decimals" if name == "decimals" else name
        if isinstance(value, tuple):
            found += [f"--{name}", *map(str, value)] if value else []
        elif isinstance(value, Existing):
            found += {Existing.REFUSED: [], Existing.UPDATED: ["--update"], Existing.REPLACED: ["--overwrite"]}[value]
        elif value is not None and value is not False and value != {}:
            found += [f"--{name}", str(value)]
    return tuple(found)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own in a new folder, for tests that run as root; others are skipped."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
