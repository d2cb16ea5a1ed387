"""A store that fails now and then, for good, or silently: over HTTP from this process, against the same read from disk.

Waits between attempts are taken out by the fixture `waits`.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import Command
from layers_served import Answer, Server, served
from small_jobs import OF_THE_SPEC, Refused, dataset_arguments, differing, made_folder, pair, put_json, spec_of
from volumes_made import make_layer

from curation import stores

PAIRS = 48
SHAPE = (64, 64, PAIRS + 1)
NAME = "x0_y0_z1_MIP0.h5"
CHUNK = "image/4_4_40/32-64_0-32_20-21"  # in section 20
WHERE = "chunk at (32, 0, 20)"


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    """A folder with the layers image, field and mask, in chunks of one section's quarter."""
    numbers = np.random.default_rng(0)
    folder = made_folder(tmp_path / "layers")
    image = numbers.integers(1, 255, SHAPE, dtype=np.uint8)
    vectors = numbers.normal(2, 3, (16, 16, SHAPE[2], 2)).astype(np.float32)
    mask = (numbers.random(SHAPE) < 0.1).astype(np.uint8)
    for name, mip, values in (("image", 0, image), ("field", 2, vectors), ("mask", 0, mask)):
        make_layer(folder / name, {mip: values}, chunk=(32, 32, 1), compress=False)
    return folder


@pytest.fixture
def server(layers: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served(layers) as server:
        yield server


Arguments = Callable[[str, str], list[object]]


@pytest.fixture
def job(tmp_path: Path) -> Arguments:
    """make_dataset.py's arguments for 48 pairs of the layers below a cloud path, into a folder of that name."""

    def arguments(layers: str, out: str) -> list[object]:
        spec = spec_of(f"{layers}/image", f"{layers}/field", [pair(0, 16, z) for z in range(1, PAIRS + 1)])
        spec["pairs"][0]["src"]["y_start"] = spec["pairs"][0]["tgt"]["y_start"] = 0
        spec |= {"x_size": 48, "y_size": 32, "masks": [{"path": f"{layers}/mask", "src_mip": 0, "threshold": 1}]}
        return dataset_arguments(put_json(tmp_path / f"{out}.json", spec), made_folder(tmp_path / out))

    return arguments


@pytest.fixture
def from_disk(layers: Path, job: Arguments, command: Command, tmp_path: Path) -> Path:
    """The folder of what the job makes of the same layers, read as files."""
    done = command("make_dataset.py", *job(f"precomputed://file://{layers}", "disk"))
    assert done.code == 0, done.stderr
    return tmp_path / "disk"


def faults(served: Path, disk: Path) -> list[str]:
    """What differs between the files of two folders, but for where their volumes are."""
    names = sorted(path.name for path in disk.iterdir())
    assert sorted(path.name for path in served.iterdir()) == names
    return [f"{name}: {what}" for name in names for what in differing(served / name, disk / name, OF_THE_SPEC)]


def now_and_then(file: str, nth: int) -> Answer:
    """Far away, and one request in twenty fails, in one of four ways; which depends on the file and its turn alone."""
    chance = random.Random(f"{file} {nth}")
    fails = chance.random() < 0.05
    answer = chance.choice([Answer(503), Answer(reset=True), Answer(sent=0.5), Answer(sent=0)]) if fails else Answer()
    return replace(answer, delay=0.05)


def test_a_far_store_that_fails_now_and_then_changes_nothing(
    server: Server,
    job: Arguments,
    from_disk: Path,
    command: Command,
    waits: list[float],
    tmp_path: Path,
) -> None:
    server.otherwise = now_and_then
    done = command("make_dataset.py", *job(server.url, "served"))
    assert done.code == 0, done.stderr
    assert faults(tmp_path / "served", from_disk) == []
    # As many as were given a fault; those of opening the layers for the checks beforehand are not among them.
    (retries,) = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("retries"))
    chunks = [file for file in server.asked if "_40/" in file]
    assert 10 < retries <= len(waits)
    # One of the image and one of the field are asked for beforehand, to see whether any is there.
    assert len(chunks) - len(set(chunks)) <= retries + 2


def test_a_chunk_that_fails_for_good_is_named_and_once_it_is_back_the_job_goes_on(
    server: Server,
    job: Arguments,
    from_disk: Path,
    failed: Refused,
    command: Command,
    waits: list[float],
    tmp_path: Path,
) -> None:
    server.answers[CHUNK] = [Answer(500)] * 1000
    line = failed("make_dataset.py", *job(server.url, "served"))
    assert f"{server.url}/image at MIP 0: {WHERE}" in line
    assert "500" in line
    assert sum(waits) == pytest.approx(600)
    server.answers.clear()
    assert not [path for path in (tmp_path / "served").iterdir() if not path.name.startswith(".")]
    done = command("make_dataset.py", *job(server.url, "served"))
    assert done.code == 0, done.stderr
    assert "found done       " in done.stdout  # it went on, and did not begin again
    assert faults(tmp_path / "served", from_disk) == []


def test_a_silent_server_is_given_up_on(
    server: Server, job: Arguments, failed: Refused, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "TIMEOUT_S", (0.5, 0.5))
    server.answers[CHUNK] = [Answer(silent=True)] * 1000
    line = failed("make_dataset.py", *job(server.url, "served"), "--retry_for", 2)
    assert WHERE in line
    assert "timed out" in line.lower()
    assert sum(waits) == pytest.approx(2)


def test_a_server_that_is_silent_once_is_asked_again(
    server: Server, job: Arguments, command: Command, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "TIMEOUT_S", (0.5, 0.5))
    server.answers[CHUNK] = [Answer(silent=True)]
    done = command("make_dataset.py", *job(server.url, "served"))
    assert done.code == 0, done.stderr
    assert "retries          1" in done.stdout
