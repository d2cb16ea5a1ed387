"""Runs that are interrupted, and workers that are: make_dataset as a command with two workers."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from commands import ROOT
from crashing import PATIENCE_S, Nursery
from layers_served import Answer, Server, served
from small_jobs import OF_THE_SPEC, differing, leftovers
from steps import PAIRS, Inputs, Step, alive, arguments, as_script, stat, waited


@dataclass
class Served:
    """make_dataset over volumes behind a server that stalls, after some boxes, until `gate` is opened."""

    server: Server
    gate: threading.Event
    command: tuple[str, ...]
    text: str = ""
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    def start(self) -> "subprocess.Popen[str]":
        """The script at work, in a process group of its own, with some boxes done and others waited for."""
        process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.started.append(process)
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        # Not by the bar: it is not drawn anew for boxes that are done within a tenth of a second.
        assert waited(lambda: len(self.server.asked) > STALLS_AFTER), self.text
        time.sleep(1)  # what was answered is put
        return process

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        while part := os.read(process.stdout.fileno(), 2**16):
            self.text += part.decode()

    def last_line(self) -> str:
        return self.text.replace("\r", "\n").strip().splitlines()[-1]


STALLS_AFTER = 45  # of 65 requests: then some boxes are whole, and some are waited for


@pytest.fixture
def stalling(inputs: Inputs, out: Path) -> Iterator[Served]:
    gate = threading.Event()

    def answer(file: str, nth: int) -> Answer:
        if len(server.asked) > STALLS_AFTER:
            gate.wait(PATIENCE_S)
        return Answer()

    with served(inputs.folder) as server:
        server.otherwise = answer
        inputs.write_spec("served.json", inputs.pairs(PAIRS), f"{server.url}/image")
        call = inputs.make_dataset(out, 2, "served.json")
        command = (sys.executable, str(ROOT / "make_dataset.py"), *arguments(call))
        made = Served(server, gate, command)
        try:
            yield made
        finally:
            gate.set()
            for process in made.started:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def faults_but_the_spec(out: Path, reference: Path) -> list[str]:
    names = [path.name for path in reference.glob("*.h5")]
    faults = [fault for name in names for fault in differing(out / name, reference / name, OF_THE_SPEC)]
    return [*leftovers(out), *faults]


def found_done(text: str) -> int:
    return int(re.search(r"^found done +(\d+) of 48 images$", text, re.MULTILINE)[1])  # type: ignore[index]


def resumed_script(stalling: Served, inputs: Inputs, nursery: Nursery, out: Path) -> str:
    """What the same command says once the server answers."""
    stalling.gate.set()
    outcome = nursery.run(as_script(inputs.make_dataset(out, 2, "served.json")))
    assert outcome.value == 0, outcome
    return outcome.text


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_interrupted_it_keeps_what_is_done_and_leaves_no_worker(
    number: signal.Signals,
    code: int,
    word: str,
    stalling: Served,
    inputs: Inputs,
    steps: dict[str, Step],
    nursery: Nursery,
    out: Path,
) -> None:
    process = stalling.start()
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == code
    assert waited(lambda: alive(process.pid) == [], 10)
    assert stalling.last_line() == f"make_dataset: {word}; the same command goes on from here"
    assert "Traceback" not in stalling.text
    assert found_done(resumed_script(stalling, inputs, nursery, out)) > 0
    assert faults_but_the_spec(out, steps["make_dataset"].reference) == []


def test_ctrl_c_reaches_the_whole_group_and_the_main_process_decides(stalling: Served) -> None:
    process = stalling.start()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(PATIENCE_S) == 130
    assert waited(lambda: alive(process.pid) == [], 10)
    assert "Traceback" not in stalling.text


def test_workers_end_when_the_main_process_is_killed(stalling: Served) -> None:
    process = stalling.start()
    assert len(alive(process.pid)) >= 4  # it, what starts the workers, and two of them
    process.kill()
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert waited(lambda: alive(process.pid) == [], 10)  # though the server has not answered them


SLEEPING = """
import pathlib, time
def create(checkpoint_name):
    def forward(src_img, tgt_img, src_agg_field=None):
        pathlib.Path({marker!r}).touch()
        time.sleep(5)
        return src_agg_field
    return forward
"""


def test_no_shard_appears_after_the_main_process_was_killed(
    nursery: Nursery, inputs: Inputs, out: Path, tmp_path: Path
) -> None:
    """It would overlap those of the next run, to which the pairs fall in other shards."""
    marker = tmp_path / "at_work"
    module = tmp_path / "pyramid" / "1_mip3in_sleeping"
    module.mkdir(parents=True)
    (module / "create.py").write_text(SLEEPING.format(marker=str(marker)))
    call = inputs.generate_fields(out, 2, pyramid_path=str(tmp_path / "pyramid"))
    main = nursery.start(call)
    assert waited(marker.exists)
    os.kill(main, signal.SIGKILL)
    assert nursery.end().killed
    assert waited(lambda: alive(main) == [], 3)  # amid a pair
    assert list(out.glob("*.h5")) == []


def workers(main: int) -> list[int]:
    """The grandchildren of a main process: its children start them, and keep count of semaphores."""
    parents = {number: int(stat(number)[1]) for number in alive(main)}
    return [number for number, parent in parents.items() if parents.get(parent) == main]


def test_the_boxes_of_a_killed_worker_are_cut_by_others(stalling: Served, steps: dict[str, Step], out: Path) -> None:
    process = stalling.start()
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    time.sleep(0.2)  # its death is seen while others wait
    stalling.gate.set()
    assert process.wait(PATIENCE_S) == 0, stalling.text
    assert faults_but_the_spec(out, steps["make_dataset"].reference) == []
