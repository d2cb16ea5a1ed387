"""examples/chain.sh: one command from points to the fields of every stage, which may be run again at any time."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import pytest
from commands import ROOT
from small_jobs import Json, differing, made_folder, put_json, start

FILES = {"coarse.h5", "field_0_coarse.h5", "field_1.h5", "fine.h5", "field_0_fine.h5", "field_2.h5"}
STEPS = 8  # that write: four for each of two levels

# Stands in for `python`: it counts the steps, and kills the one that it is told to, once that is at work.
PYTHON = f"""#!/bin/bash
step=$(cat "$STEPS"); echo $((step + 1)) >"$STEPS"
if [ "$step" != "$KILLED" ]; then exec {sys.executable} "$@"; fi
{sys.executable} "$@" & pid=$!
case $1 in
    *create_spec.py) sleep 0.1 ;;  # has no lock
    *) until compgen -G "$OUT/.*.lock" || compgen -G "$OUT/*/.*.lock"; do kill -0 $pid || break; sleep 0.01; done ;;
esac
case $1 in *make_dataset.py | *generate_fields.py) sleep 0.3 ;; esac
kill -9 $pid; wait $pid; [ $? = 137 ] && echo "$step" >>"$KILLS"
exit 137  # also where it has ended just before
"""


@dataclass(frozen=True)
class Chain:
    """The chain over a folder of data, in a folder of its own for the rest. rejected: files of pairs to leave out."""

    data: Path
    folder: Path
    rejected: tuple[Path, ...] = ()

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def run(self, killed: int | None = None) -> "subprocess.CompletedProcess[str]":
        """Run it, and kill one of its steps on the way."""
        python = made_folder(made_folder(self.folder) / "bin") / "python"
        python.write_text(PYTHON)
        python.chmod(0o755)
        (self.folder / "steps").write_text("0")
        told = {"STEPS": str(self.folder / "steps"), "KILLED": str(killed), "OUT": str(self.out)}
        told["KILLS"] = str(self.folder / "kills")
        return subprocess.run(
            ["bash", "examples/chain.sh", str(self.data), str(self.out), *map(str, self.rejected)],
            cwd=ROOT,
            env={**os.environ, **told, "PATH": f"{python.parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def finish(self) -> str:
        """Run it to its end; what it prints on stdout."""
        done = self.run()
        assert done.returncode == 0, done.stderr
        return done.stdout

    def state(self) -> dict[str, tuple[int, int]]:
        """Each file and folder of the results: its number and when it was changed."""
        paths = [self.out, *self.out.rglob("*")]
        return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}

    def faults(self, other: "Chain") -> list[str]:
        """What is not as in the results of another chain."""
        assert {path.name for path in self.out.glob("*.h5")} == FILES
        left = [path.name for path in self.out.rglob(".*")]
        return [*left, *(fault for name in FILES for fault in differing(self.out / name, other.out / name))]


def points(folder: Path, *rows: tuple[int, int, int]) -> Path:
    """A folder of data whose points are these."""
    lines = [",".join(map(str, row)) for row in (("x0", "y0", "z0"), *rows)]
    (folder / "points.csv").write_text("\n".join(lines) + "\n")
    return folder


@contextmanager
def out_of_reach(paths: Sequence[Path]) -> Iterator[None]:
    """Nothing can be read from these files meanwhile."""
    contents = {path: path.read_bytes() for path in paths}
    try:
        for path in paths:
            path.write_bytes(b"out of reach")
        yield
    finally:
        for path, content in contents.items():
            path.write_bytes(content)


KEPT = [(96, 128, 8), (128, 96, 7)]
GONE = (64, 64, 6)
NEW = [(112, 80, 3), (80, 112, 3)]  # whose boxes lie in sections 1 to 3: those of the others lie in 4 to 8


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample volume of the README, smaller and of more sections, with points of its own."""
    folder = tmp_path_factory.mktemp("chain") / "sample"
    make = [sys.executable, ROOT / "examples" / "make_sample_volume.py", folder, "--size", "1024", "--sections", "9"]
    subprocess.run(make, check=True, capture_output=True)
    return points(folder, KEPT[0], KEPT[1], GONE)


@pytest.fixture(scope="module")
def finished(sample: Path) -> Chain:
    """A chain that has run to its end, undisturbed."""
    chain = Chain(sample, sample.parent / "finished")
    chain.finish()
    return chain


def test_run_again_it_changes_nothing(finished: Chain) -> None:
    before = finished.state()
    assert finished.finish().count("done already") == STEPS
    assert finished.state() == before


def test_killed_in_every_step_it_ends_as_if_undisturbed(finished: Chain, tmp_path: Path) -> None:
    chain = Chain(finished.data, tmp_path)
    for step in range(STEPS):
        assert chain.run(killed=step).returncode == 137, step
    assert len((tmp_path / "kills").read_text().split()) > STEPS // 2  # the rest had ended just before
    chain.finish()
    assert chain.faults(finished) == []


def test_of_new_points_only_the_boxes_are_read(finished: Chain, sample: Path, tmp_path: Path) -> None:
    data = made_folder(tmp_path / "data")
    for name in ("coarse.json", "fine.json"):
        shutil.copy(sample / name, data)
    points(data, KEPT[0], *NEW, KEPT[1])
    fresh, updated = Chain(data, tmp_path / "fresh"), Chain(data, tmp_path / "updated")
    fresh.finish()
    shutil.copytree(finished.out, made_folder(updated.folder) / "out")
    chunks = [path for path in sample.glob("*/*/*_*_*") if int(re.split(r"[_-]", path.name)[4]) >= 4]
    with out_of_reach(chunks):
        text = updated.finish()
    assert len(chunks) > 100
    assert re.findall(r"^kept +(\d+ of \d+) images", text, re.MULTILINE) == ["16 of 32", "16 of 32"]
    assert re.findall(r"^fields +(\d+) kept, (\d+) made", text, re.MULTILINE) == [("8", "8"), ("8", "8")]
    assert updated.faults(fresh) == []


def pair_of(image_file: Path, place: int) -> Json:
    """A pair of an image file, as an exclusion file lists it."""
    with h5py.File(image_file) as file:
        source, target = file["start"][place].tolist()
    return {"src": start(*source), "tgt": start(*target)}


def test_after_a_review_nothing_is_made_again_but_the_files(finished: Chain, sample: Path, tmp_path: Path) -> None:
    first, other = (pair_of(finished.out / "fine.h5", place) for place in (0, 7))
    rejected = (put_json(tmp_path / "a review.json", {"pairs": [first]}), put_json(tmp_path / "more.json", [other]))
    fresh, updated = Chain(sample, tmp_path / "fresh", rejected), Chain(sample, tmp_path / "updated", rejected)
    fresh.finish()
    shutil.copytree(finished.out, made_folder(updated.folder) / "out")
    with out_of_reach(list(sample.glob("*/*/*_*_*"))):
        text = updated.finish()
    excluded, kept = "4 pairs, by " + ", ".join(map(str, rejected)), "16 of 16"
    assert re.findall(r"^excluded +(.*)$", text, re.MULTILINE) == [excluded] * 2
    assert re.findall(r"^kept +(\d+ of \d+) images", text, re.MULTILINE) == [kept] * 2
    assert re.findall(r"^fields +(\d+) kept, (\d+) made", text, re.MULTILINE) == [("8", "0")] * 2
    assert updated.faults(fresh) == []
