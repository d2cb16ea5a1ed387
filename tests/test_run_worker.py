"""Workers of a queue in a folder: whatever happens to them, the shards are there in the end, and are the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import msgspec
import pytest
from commands import ROOT, Command, Outcome, Script
from small_jobs import ONES, fields_arguments, put_json, pyramid_of
from test_box_shards import arguments, hashes, left, made, spec

from curation.datasets.shard_store import shard_store
from curation.errors import WorkError
from curation.queues import UnitQueue
from curation.steps.devices import Workers
from curation.steps.make_dataset import MakeDatasetOptions, make_dataset
from curation.steps.run_worker import LeasedUnits
from curation.steps.shard_job import found_job
from curation.steps.unit_work import UnitResult, UnitWork, failure_of
from curation.steps.units import Unit

__all__ = ["made", "spec"]

SLOW = "import time, torch\ndef create(): return lambda s, t: time.sleep(SECONDS) or torch.ones(1, 2, *s.shape[2:])"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def queue(tmp_path: Path) -> str:
    return f"fq://{tmp_path}/queue"


@pytest.fixture
def worker(queue: str, tmp_path: Path) -> Iterator[Start]:
    """Start a worker as a process, in a group of its own; what is left of them is ended."""
    started: list[subprocess.Popen[str]] = []

    def start(*more: object) -> "subprocess.Popen[str]":
        command = [sys.executable, ROOT / "run_worker.py", "--queue", queue, "--parallel", 1, *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        log = open(tmp_path / f"worker{len(started)}.log", "w")  # noqa: SIM115
        process = subprocess.Popen(
            list(map(str, command)), env=environment, stdout=log, stderr=log, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        for number in (signal.SIGCONT, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                break
        process.wait()


@pytest.fixture
def images(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("images")
    make_dataset(MakeDatasetOptions(str(spec), str(out), parallel=1, name="a"))
    return out / "a.h5"


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something; it is an error if it does not come about."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.02)


def waiting(queue: str) -> list[str]:
    folder = Path(queue.removeprefix("fq://")) / "queue"
    return os.listdir(folder) if folder.exists() else []


def leased(queue: str) -> dict[str, int]:
    """The units that workers have, and until when: seconds since the epoch."""
    named = (name.split("--") for name in waiting(queue))
    return {unit: int(until_s) for until_s, unit in named if int(until_s) > time.time()}


def fill(command: Command, spec: Path, out: Path, queue: str, *more: object) -> Outcome:
    return command("make_dataset.py", *arguments(spec, out, "--shards", 1, "--queue", queue, *more))


def fill_fields(command: Command, folder: Path, images: Path, queue: str, create: str) -> Path:
    """Queue the fields of nine pairs, each a shard of its own; gives the folder of the shards."""
    pyramid_of(folder, create, "0_mip0in_small")
    given = fields_arguments(folder, images, None, "--queue", queue, src_mip=0, dst_mip=0)
    outcome = command("generate_fields.py", *given)
    assert outcome.code == 0, outcome.stderr
    return folder / "shards"


@pytest.fixture(scope="module")
def single(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of shards of one pair each."""
    out = tmp_path_factory.mktemp("single")
    make_dataset(MakeDatasetOptions(str(spec), str(out), parallel=1, name="a", shard_pairs=1))
    return hashes(out)


@pytest.mark.parametrize("delay_s", [0.0, 0.4, 0.8])
def test_two_of_three_workers_are_killed(
    command: Command, spec: Path, single: dict[str, str], queue: str, worker: Start, tmp_path: Path, delay_s: float
) -> None:
    out = tmp_path / "out"
    assert "9, of 9 pairs" in fill(command, spec, out, queue).stdout
    first, second = worker("--lease", 3), worker("--lease", 3)
    until(lambda: len(list(out.rglob("[0-9]*.h5"))) >= 1)
    last = worker("--lease", 3, "--exit_when_empty")
    time.sleep(delay_s)
    for process in (first, second):
        os.killpg(process.pid, signal.SIGKILL)
    assert last.wait(90) == 0
    shards = {name: digest for name, digest in hashes(out).items() if not Path(name).name.startswith(".")}
    assert shards == single
    assert waiting(queue) == []
    outcome = command("make_dataset.py", *arguments(spec, out, "--shards"))  # removes what the killed ones left
    assert "9 of 9 are there" in outcome.stdout
    fill(command, spec, out, queue)
    assert waiting(queue) == []


def test_two_workers_with_the_same_units_make_the_same(
    command: Command, spec: Path, single: dict[str, str], queue: str, worker: Start, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    fill(command, spec, out, queue)
    fill(command, spec, out, queue)  # all are missing still
    assert len(waiting(queue)) == 18
    processes = [worker("--exit_when_empty"), worker("--exit_when_empty")]
    assert [process.wait(90) for process in processes] == [0, 0]
    assert hashes(out) == single
    assert left(out) == {"job.json", "spec.json"}


def test_fields_of_a_queue_are_those_of_one_run(
    command: Command, images: Path, queue: str, worker: Start, tmp_path: Path
) -> None:
    shards = fill_fields(command, tmp_path, images, queue, ONES)
    assert worker("--exit_when_empty").wait(90) == 0
    found = hashes(shards)
    alone = fields_arguments(tmp_path, images, None, src_mip=0, dst_mip=0, temp_dir=tmp_path / "alone")
    assert command("generate_fields.py", *alone).code == 0
    assert len(found) == 9
    assert hashes(tmp_path / "alone") == found
    status = command("generate_fields.py", *fields_arguments(tmp_path, images, None, "--status", src_mip=0, dst_mip=0))
    assert "9 of 9 are there" in status.stdout


# Leases


def test_a_lease_is_renewed_while_a_unit_is_worked_on(
    command: Command, images: Path, queue: str, worker: Start, tmp_path: Path
) -> None:
    fill_fields(command, tmp_path, images, queue, SLOW.replace("SECONDS", "8"))
    worker("--lease", 3)
    until(lambda: leased(queue))
    before = leased(queue)
    time.sleep(5)
    after = leased(queue)
    assert before.keys() <= after.keys()
    assert all(after[unit] > until_s for unit, until_s in before.items())


def test_a_worker_that_is_told_to_end_gives_its_units_back(
    command: Command, images: Path, queue: str, worker: Start, tmp_path: Path
) -> None:
    fill_fields(command, tmp_path, images, queue, SLOW.replace("SECONDS", "60"))
    process = worker("--lease", 600)
    until(lambda: leased(queue))
    process.terminate()
    assert process.wait(30) == 143
    assert leased(queue) == {}
    assert len(waiting(queue)) == 9


def test_a_lease_that_runs_out_under_a_slow_unit_harms_nothing(
    command: Command, images: Path, queue: str, worker: Start, tmp_path: Path
) -> None:
    """A worker is stopped amid a unit, another does it, and the first then ends its own."""
    shards = fill_fields(command, tmp_path, images, queue, SLOW.replace("SECONDS", "0.3"))
    slow = worker("--lease", 3, "--exit_when_empty")
    until(lambda: len(hashes(shards)) >= 1)
    os.killpg(slow.pid, signal.SIGSTOP)
    other = worker("--lease", 3, "--exit_when_empty")
    assert other.wait(90) == 0
    found = hashes(shards)
    assert len([name for name in found if not name.startswith(".")]) == 9
    os.killpg(slow.pid, signal.SIGCONT)
    assert slow.wait(60) == 0
    assert {name: digest for name, digest in hashes(shards).items() if not name.startswith(".")}.items() <= {
        name: digest for name, digest in found.items() if not name.startswith(".")
    }.items()
    assert waiting(queue) == []


# Failures

FAILS_ON_ONE = """
import torch
def create():
    def run(s, t, src_agg_field=None):
        if SEEN(s): raise ValueError("no field for this one")
        return torch.ones(1, 2, *s.shape[2:])
    return run
"""


def test_a_unit_that_always_fails_is_set_aside_with_its_traceback(
    command: Command, images: Path, queue: str, worker: Start, tmp_path: Path
) -> None:
    with h5py.File(images) as file:
        mark = float(file["main"][4, 0, 3, 3])
    create = FAILS_ON_ONE.replace("SEEN(s)", f"abs(float(s[0, 0, 3, 3]) - {mark!r}) < 1e-6")
    shards = fill_fields(command, tmp_path, images, queue, create)
    assert worker("--exit_when_empty").wait(120) == 0
    assert sorted(hashes(shards)) == sorted(f"{n}_{n + 1}.h5" for n in range(9) if n != 4)
    log = (tmp_path / "worker0.log").read_text()
    assert log.count("it is given back") == 2
    assert "units done       8" in log
    listed = command("run_worker.py", "--queue", queue, "--failed").stdout
    assert listed.startswith("pairs 4 to 4 of ")
    assert listed.count("no field for this one") >= 4
    assert 'raise ValueError("no field for this one")' in listed
    given = fields_arguments(tmp_path, images, None, "--status", src_mip=0, dst_mip=0)
    assert "1 of the missing shards: 4_5" in command("generate_fields.py", *given).stdout


def test_a_unit_under_which_the_process_dies_is_set_aside(
    command: Command, images: Path, queue: str, worker: Start, tmp_path: Path
) -> None:
    with h5py.File(images) as file:
        mark = float(file["main"][0, 0, 3, 3])
    dies = f"abs(float(s[0, 0, 3, 3]) - {mark!r}) < 1e-6 and os.kill(os.getpid(), 9)"
    shards = fill_fields(command, tmp_path, images, queue, "import os" + FAILS_ON_ONE.replace("SEEN(s)", dies))
    assert worker("--exit_when_empty").wait(180) == 0
    assert sorted(name for name in hashes(shards) if name[0] != ".") == [f"{n}_{n + 1}.h5" for n in range(1, 9)]
    listed = command("run_worker.py", "--queue", queue, "--failed").stdout
    assert listed.startswith("pairs 0 to 0 of ")
    assert listed.count("ended by itself (SIGKILL)") == 4
    assert "\n\n" not in listed  # those that were in the same hands are not set aside


@pytest.mark.parametrize(
    "payload",
    [
        [["os", "system"], ["touch harmed"], {}, None],
        {"class": "PrintTask", "txt": "hello"},
        [["curation", "unit"], [], {"unit": {"step": "rm", "folder": "/", "job": "", "first": 0, "last": 1}}, None],
        [["curation", "unit"], [], {"unit": "all"}, None],
    ],
)
def test_what_is_no_unit_of_ours_is_refused(command: Command, queue: str, tmp_path: Path, payload: Any) -> None:
    UnitQueue(queue)
    name = "0--11111111-1111-1111-1111-111111111111"
    message = {"payload": payload, "queueName": "queue", "id": name[3:]}
    (tmp_path / "queue" / "queue" / f"{name}.json").write_text(json.dumps(message))
    (tmp_path / "queue" / "movement" / name[3:]).write_text(f"{name}.json\n")
    outcome = command("run_worker.py", "--queue", queue, "--parallel", 1, "--exit_when_empty")
    assert outcome.code == 0
    assert "not a unit of this version of the toolkit" in outcome.stderr
    assert "1 units that failed" in outcome.stdout
    assert "not a unit of this version" in command("run_worker.py", "--queue", queue, "--failed").stdout
    assert waiting(queue) == []
    assert not Path("harmed").exists()


def test_a_unit_whose_job_has_changed_is_set_aside(command: Command, spec: Path, queue: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(command, spec, out, queue)
    assert command("make_dataset.py", *arguments(spec, out, "--shards", 3, "--overwrite")).code == 0
    before = hashes(out)
    outcome = command("run_worker.py", "--queue", queue, "--parallel", 2, "--exit_when_empty")
    assert outcome.code == 0
    assert "belongs to another job than the unit" in outcome.stderr
    assert "given back" not in outcome.stderr
    assert hashes(out) == before


def test_a_worker_that_knows_a_job_sees_that_its_folder_was_given_to_another(
    command: Command, images: Path, queue: str, tmp_path: Path
) -> None:
    shards = fill_fields(command, tmp_path, images, queue, ONES)
    job = found_job(shard_store(str(shards)))
    assert job is not None
    work = UnitWork(Workers(("cpu",), 1))
    units = [Unit("generate_fields", str(shards), job.origin, n, n + 1) for n in range(3)]
    assert list(work(0, iter(enumerate(units[:1])))) == [(0, UnitResult())]
    (shards / "0_1.h5").unlink()
    put_json(shards / "job.json", {**asdict(job), "provenance": {"of": "another"}})
    results = dict(work(0, iter(enumerate(units))))
    assert [result.is_final for result in results.values()] == [True] * 3
    assert not list(shards.glob("*.h5"))
    assert not list(shards.glob("*.failed.txt"))


def test_an_update_ends_the_job_that_had_the_folder(command: Command, images: Path, queue: str, tmp_path: Path) -> None:
    """Units of that job may be in a queue still."""
    shards = fill_fields(command, tmp_path, images, queue, ONES)
    assert command("run_worker.py", "--queue", queue, "--parallel", 1, "--exit_when_empty").code == 0
    update = ("--update", "--field_decimals", 1)
    assert (
        command("generate_fields.py", *fields_arguments(tmp_path, images, None, *update, src_mip=0, dst_mip=0)).code
        == 0
    )
    assert not (shards / "job.json").exists()


def test_a_worker_that_can_do_nothing_leaves_the_units_to_others(
    queue: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One machine that does not see the folder of the shards is not to set aside a whole queue."""
    units = UnitQueue(queue)
    units.insert(msgspec.to_builtins(Unit("make_dataset", "/nowhere", "", n, n + 1)) for n in range(100))
    worker = LeasedUnits(units, 60, exit_when_empty=True)
    failed = UnitResult(failure_of("no job.json there", ""))

    def fail() -> None:
        for number, _ in worker.take({}) or []:
            worker.finish(number, failed)

    for _ in range(29):
        fail()
    for number, _ in worker.take({}) or []:
        worker.finish(number, UnitResult())  # one that is done ends the row
    for _ in range(29):
        fail()
    with pytest.raises(WorkError, match=r"30 times in a row, a unit has failed here.*no job.json there"):
        fail()
    worker.close()
    assert len(waiting(queue)) == 99
    assert leased(queue).keys() <= {name.split("--")[1] for name in waiting(queue)}


def test_what_an_error_says_fits_into_a_message_of_sqs() -> None:
    failure = failure_of("x" * 10**6, "y" * 10**6)
    assert 3 * len(msgspec.json.encode(failure)) < 2**17


def test_units_that_another_version_has_set_aside_are_listed(command: Command, queue: str) -> None:
    failed = UnitQueue(queue).failed(begin=True)
    assert failed is not None
    failure = {"message": "no memory", "trace": "", "worker": "one"}
    failed.insert([{"step": "of the future", "failures": [failure]}, {"failures": [{"message": 1}]}])
    outcome = command("run_worker.py", "--queue", queue, "--failed")
    assert outcome.code == 0
    assert "of the future" in outcome.stdout


@pytest.mark.parametrize("more", [["--failed"], ["--exit_when_empty"], []])
def test_a_queue_that_nobody_has_made_is_refused(
    command: Command, queue: str, tmp_path: Path, more: list[object]
) -> None:
    """A worker of a misspelled queue would be idle for ever."""
    outcome = command("run_worker.py", "--queue", queue, "--parallel", 1, *more)
    assert outcome.code == 2
    assert "no such queue" in outcome.line
    assert not (tmp_path / "queue").exists()


def test_a_local_path_with_a_scheme_is_made_absolute(
    command: Command, spec: Path, queue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers may be started in other folders."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of data").mkdir()
    given = ["--spec_path", spec, "--dst_path", "file://of data/", "--name", "a", "--shards", 4, "--queue", queue]
    outcome = command("make_dataset.py", *given)
    assert f"output           {tmp_path}/of data/a\n" in outcome.stdout
    assert (tmp_path / "of data" / "a" / "job.json").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("q", "want a queue such as fq://FOLDER"),
        ("http://q", "want a queue"),
        ("fq:///no/such/place", "no folder /no/such"),
    ],
)
def test_what_is_no_queue_is_refused(command: Command, url: str, message: str) -> None:
    outcome = command("run_worker.py", "--queue", url)
    assert outcome.code == 2
    assert message in outcome.line


def test_the_package_is_named_where_it_is_missing(script: Script, tmp_path: Path) -> None:
    (tmp_path / "taskqueue.py").write_text("raise ModuleNotFoundError('taskqueue', name='taskqueue')")
    done = script("run_worker.py", "--queue", f"fq://{tmp_path}/queue", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "pip install task-queue" in done.stderr


def test_the_queue_is_one_of_task_queue(command: Command, spec: Path, queue: str, tmp_path: Path) -> None:
    fill(command, spec, tmp_path / "out", queue)
    run = [Path(sys.executable).with_name("ptq"), "status", queue]
    text = subprocess.run(list(map(str, run)), capture_output=True, text=True, check=True).stdout
    assert "Enqueued: 9" in text


def test_a_queue_is_looked_into_less_often_while_it_is_empty(queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("curation.steps.run_worker.time.monotonic", lambda: now[0])
    looks = []
    units = LeasedUnits(UnitQueue(queue), 60, exit_when_empty=False)
    lease = units._queue.lease
    monkeypatch.setattr(units._queue, "lease", lambda seconds: looks.append(now[0]) or lease(seconds))
    while now[0] < 60:
        assert units.take({}) is None
        now[0] += 0.1
    units.close()
    assert 8 <= len(looks) <= 20
    assert not units.over


def test_a_result_after_the_unit_was_given_back_is_nothing(queue: str) -> None:
    units = LeasedUnits(UnitQueue(queue), 60, exit_when_empty=True)
    units.close()
    with pytest.raises(KeyError):
        units.finish(1, UnitResult())
