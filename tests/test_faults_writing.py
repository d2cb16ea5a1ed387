"""Faults 29 to 39 of docs/faults.md: interrupted, crowded, crossed and damaged on the way to the disk.

tests/crash goes deeper.
"""

import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import pytest
from commands import ROOT, Command
from small_jobs import (
    NAME,
    Refused,
    contents,
    dataset_arguments,
    field_layer,
    image_layer,
    leftovers,
    made_folder,
    pair,
    put_json,
    spec_of,
    voxels,
)
from volumes_made import make_layer

from curation import files
from curation.files import locked
from curation.samples import Sample
from curation.steps import box_work
from curation.steps.box_tasks import BoxResult, BoxTask
from curation.steps.box_work import BoxWork

PARTIAL = f".{NAME.removesuffix('.h5')}.partial.h5"
FIELD = f"field_0_{NAME}"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return made_folder(tmp_path / "out")


@pytest.fixture
def job(tmp_path: Path, out: Path) -> list[object]:
    """make_dataset.py's arguments: 40 pairs with a field."""
    pairs = [pair(16 * x, 16 * y, z) for x in range(4) for y in range(2) for z in range(1, 6)]
    pairs.sort(key=lambda boxes: -boxes["src"]["z_start"])
    spec = put_json(tmp_path / "spec.json", spec_of(image_layer(tmp_path), field_layer(tmp_path), pairs))
    return dataset_arguments(spec, out)


@pytest.fixture
def expected(tmp_path: Path, job: list[object], out: Path, command: Command) -> dict[str, dict[str, Any]]:
    """What the job makes when nothing comes between; `out` is empty again."""
    assert command("make_dataset.py", *job).code == 0
    made = {name: contents(out / name) for name in (NAME, FIELD)}
    shutil.rmtree(out)
    out.mkdir()
    return made


Check = Callable[[], None]


@pytest.fixture
def resumes(job: list[object], out: Path, expected: dict[str, dict[str, Any]], command: Command) -> Check:
    """The same command again ends with what an uninterrupted run makes, and nothing beside it."""

    def check() -> None:
        done = command("make_dataset.py", *job)
        assert done.code == 0, done.stderr
        assert {name: contents(out / name) for name in (NAME, FIELD)} == expected
        assert leftovers(out) == []

    return check


# Run in a process of its own: the script, with a pause after each box that leaves time to be killed or interrupted.
SLOWLY = """
import sys, time
sys.path.insert(0, {root!r})
from curation.steps import box_job, box_work
box_job.COMMIT_S = 0
put = box_job.BoxFiles.put
def slow(self, box, cut):
    put(self, box, cut)
    time.sleep(0.5)
box_job.BoxFiles.put = slow
import make_dataset
make_dataset.cli.run(make_dataset.parser(), make_dataset.main)
"""


@pytest.fixture
def under_way(job: list[object], out: Path) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    """Starts the job slowed down, and waits until it has committed something."""
    started: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        code = SLOWLY.format(root=str(ROOT))
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, job)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        until = time.monotonic() + 60
        while not (out / PARTIAL).exists() and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.4)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_29_killed_it_goes_on_to_the_same_end(under_way: Callable[[], Any], resumes: Check, out: Path) -> None:
    process = under_way()
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert not (out / NAME).exists()
    resumes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_30_interrupted_it_flushes_and_goes_on(
    number: signal.Signals, code: int, under_way: Callable[[], Any], resumes: Check, out: Path
) -> None:
    process = under_way()
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert said.strip().splitlines()[-1].endswith("the same command goes on from here")
    with h5py.File(out / PARTIAL) as file:
        assert file["checksum"][:].any()
    resumes()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_31_ended_around_the_rename_the_old_file_or_the_new_is_there(
    moment: str, job: list[object], out: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("make_dataset.py", *job).code == 0
    old = (out / NAME).read_bytes()
    rename = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if moment == "after":
            rename(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupted)
    assert command("make_dataset.py", *job, "--overwrite").code == 130
    monkeypatch.undo()
    if moment == "before":
        assert (out / NAME).read_bytes() == old
    with h5py.File(out / NAME) as file:
        assert (file["checksum"][:] != 0).all()
    assert command("make_dataset.py", *job, "--overwrite").code == 0


def test_32_a_full_disk_fails_and_with_space_the_same_command_finishes(
    job: list[object], expected: dict[str, dict[str, Any]], resumes: Check, out: Path
) -> None:
    # A limit on the size of files gives the same short writes and errors as a disk that fills up.
    script = [sys.executable, str(ROOT / "make_dataset.py"), *map(str, job)]
    done = subprocess.run(["bash", "-c", f"ulimit -f 40; exec {shlex.join(script)}"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].endswith("partial.h5: File too large")
    assert not (out / NAME).exists()
    resumes()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_33_an_input_output_error_is_a_failure(
    call: str, job: list[object], failed: Refused, resumes: Check, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, call, broken)
        assert "Input/output error" in failed("make_dataset.py", *job)
    assert not (out / NAME).exists()
    resumes()


def test_34_a_missing_destination_is_made(job: list[object], out: Path, command: Command) -> None:
    out.rmdir()
    assert command("make_dataset.py", *job, "--dry_run").code == 0
    assert not out.exists()
    assert command("make_dataset.py", *job).code == 0
    assert (out / NAME).exists()


def test_34_a_destination_without_a_parent_is_refused_before_reading(tmp_path: Path, refused: Refused) -> None:
    spec = put_json(tmp_path / "spec.json", spec_of("file:///nowhere/that/is/read"))
    line = refused("make_dataset.py", *dataset_arguments(spec, tmp_path / "far" / "away"))
    assert f"away: no such folder, nor is there {tmp_path}/far to make it in" in line
    assert not (tmp_path / "far").exists()


def test_34_a_read_only_destination_is_refused_before_reading(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = made_folder(tmp_path / "out")
    out.chmod(0o555)
    # The superuser may write anywhere, so what the system answers everyone else is put in its mouth.
    monkeypatch.setattr(files.os, "access", lambda path, mode: not (Path(path) == out and mode & os.W_OK))
    spec = put_json(tmp_path / "spec.json", spec_of("file:///nowhere/that/is/read"))
    assert "out: cannot be written to" in refused("make_dataset.py", *dataset_arguments(spec, out))


def test_35_a_second_run_is_told_who_holds_the_destination(job: list[object], out: Path, refused: Refused) -> None:
    with locked(out / NAME):
        line = refused("make_dataset.py", *job)
    assert f"{NAME}: process {os.getpid()} on " in line
    assert "is at work on it" in line


def test_35_a_second_run_of_another_stretch_that_has_one_file_in_common(
    tmp_path: Path, out: Path, refused: Refused
) -> None:
    place = ["--z_start", 1, "--z_end", 4, "--x_offset", 0, "--y_offset", 0, "--mips", 1, 0, "--patch_sizes", 16, 32]
    image = make_layer(tmp_path / "image", {0: voxels(), 1: voxels()[::2, ::2]})
    with locked(out / "x0_y0_z1_MIP0.h5"):
        line = refused("download_image.py", "--cv_path", image, "--dst_folder", out, *place)
    assert "x0_y0_z1_MIP0.h5: process" in line


@pytest.fixture
def begun(job: list[object], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job, interrupted half-way."""
    left = iter(range(15))

    def interrupted(sample: Sample, readings: object) -> object:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return warped(sample, readings)

    warped: Any = box_work._warped
    with monkeypatch.context() as patch:
        patch.setattr(box_work, "_warped", interrupted)
        assert command("make_dataset.py", *job).code == 130


def test_36_resuming_with_another_spec_or_arguments_says_what_changed(
    job: list[object], begun: None, refused: Refused, tmp_path: Path
) -> None:
    spec = tmp_path / "spec.json"
    assert "begun with another field_decimals" in refused("make_dataset.py", *job, "--field_decimals", "none")
    spec.write_text(spec.read_text().replace('"max_mip": 4', '"max_mip": 3'))
    assert "begun with another spec;" in refused("make_dataset.py", *job)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_37_a_damaged_partial_is_detected_and_redone(
    damage: str, expected: dict[str, dict[str, Any]], begun: None, resumes: Check, out: Path
) -> None:
    content = bytearray((out / PARTIAL).read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    else:
        with h5py.File(out / PARTIAL) as file:
            place = file["main"].id.get_chunk_info(0)
        content[place.byte_offset + place.size // 2] ^= 1
    (out / PARTIAL).write_bytes(content)
    resumes()


def written(path: Path) -> tuple[int, int, int]:
    """A file's number, size and time of its last change; reading it moves only the time of access."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@pytest.mark.parametrize("more", [[], ["--dry_run"], ["--update"]])
def test_38_finished_output_of_the_same_command_is_not_touched(
    more: list[str], job: list[object], out: Path, command: Command
) -> None:
    assert command("make_dataset.py", *job).code == 0
    before = {path: written(path) for path in (out, *out.iterdir())}
    done = command("make_dataset.py", *job, *more)
    assert done.code == 0
    assert re.search(r"^pairs +\d+, done already$", done.stdout, re.MULTILINE)
    assert {path: written(path) for path in (out, *out.iterdir())} == before


def test_38_finished_output_of_another_origin_stays_unless_told(
    job: list[object], out: Path, command: Command, refused: Refused
) -> None:
    assert command("make_dataset.py", *job).code == 0
    old = {name: written(out / name) for name in (NAME, FIELD)}
    line = refused("make_dataset.py", *job, "--field_decimals", "none")
    assert line.endswith(
        f"{NAME} is there already, made with another field_decimals: --update brings it up to date, or take another "
        "name"
    )
    assert {name: written(out / name) for name in old} == old
    assert command("make_dataset.py", *job, "--overwrite").code == 0
    assert all(written(out / name)[0] != before[0] for name, before in old.items())


@dataclass(frozen=True)
class KillsItsWorker(BoxWork):
    """Cuts boxes, but the first worker that has cut one is killed; `marker` says that it was."""

    marker: Path = Path()

    def __call__(self, number: int, boxes: Iterator[tuple[int, BoxTask]]) -> Iterator[tuple[int, BoxResult]]:
        for place, cut in super().__call__(number, boxes):
            if not self.marker.exists():
                self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield place, cut


def test_39_the_samples_of_a_killed_worker_are_done_by_others(
    job: list[object],
    expected: dict[str, dict[str, Any]],
    out: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("curation.steps.make_dataset.BoxWork", partial(KillsItsWorker, marker=tmp_path / "killed"))
    done = command("make_dataset.py", *job[:-1], 2)
    assert done.code == 0, done.stderr
    assert (tmp_path / "killed").exists()
    assert {name: contents(out / name) for name in (NAME, FIELD)} == expected
