"""Progress: a bar on a terminal, lines in a log file, nothing with --quiet; and results are never printed onto it."""

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
from commands import ROOT, Script
from small_jobs import dataset_arguments, image_layer, made_folder, put_json, put_main, spec_of

# Shows progress of three units; a result is printed after the first.
SHOWING = """
from curation import progress
progress.LINE_EVERY_S = 0.0
with progress.progress(3, "boxes", "box") as bar:
    bar.update()
    progress.say("a result")
    bar.update(2)
"""


def test_a_log_file_has_a_line_for_each_state() -> None:
    done = subprocess.run([sys.executable, "-c", SHOWING], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert lines[0].startswith("boxes: 0 of 3, 0 %, 00:00 passed")
    assert lines[-1].startswith("boxes: 3 of 3, 100 %")
    assert "\r" not in done.stderr
    assert done.stdout == "a result\n"


def test_what_is_over_soon_leaves_nothing_in_a_log_file(script: Script, tmp_path: Path) -> None:
    spec = put_json(tmp_path / "spec.json", spec_of(image_layer(tmp_path)))
    done = script("make_dataset.py", *dataset_arguments(spec, made_folder(tmp_path / "out")))
    assert (done.returncode, done.stderr) == (0, "")


def damaged(folder: Path) -> Path:
    """A file of images whose checksums are wrong."""
    return put_main(folder / "images.h5", np.ones((2, 2, 8, 8), np.float32), crc32=np.zeros((2, 2), np.uint32))


def on_a_terminal(*command: object) -> str:
    """What a command shows on a terminal, which is its stdout and its stderr."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # nobody has the terminal open any more
            break
        if not part:
            break
        shown += part
    process.wait()
    os.close(ours)
    return shown.decode()


def test_a_terminal_has_a_bar_and_results_are_on_lines_of_their_own() -> None:
    shown = on_a_terminal("-c", SHOWING)
    assert "boxes: 100%|" in shown
    assert "\r\x1b[Ka result\r\n" in shown


def test_a_fault_is_not_printed_onto_the_bar_of_the_process_that_finds_it(tmp_path: Path) -> None:
    path = damaged(tmp_path)
    shown = on_a_terminal("verify_dataset.py", path)
    assert "images.h5:" in shown
    assert f"\r\x1b[K{path}: pair 0 source: its values do not have the CRC-32" in shown


def test_quiet_shows_no_bar(tmp_path: Path) -> None:
    path = damaged(tmp_path)
    shown = on_a_terminal("verify_dataset.py", path, "--quiet")
    assert "sample/s" not in shown
    assert "its values do not have the CRC-32" in shown
