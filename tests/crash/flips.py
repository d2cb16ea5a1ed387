"""Flip one bit at a time, in finished files and in those of interrupted runs: no change is read unsaid.

    make torture
    PYTHONPATH=.:tests python tests/crash/flips.py --every 7 --seed 1

Of a finished file (an image, a field, a joined and a shard file): if a flip changes anything that a reader sees,
verify_dataset says so. Of a partial file: the same command ends as if nothing had happened. The bit is drawn at random
at each byte, or at every so-manieth. Exit code 1 if a flip had another end; which, is printed.
"""

import argparse
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
from crashing import Call, Nursery, setting
from small_jobs import contents
from steps import Inputs, Step, begun, make_steps
from tqdm import tqdm
from whole_files import whole_files

from curation.errors import WorkError
from curation.steps.verify_dataset import faults, look_for_faults

FINISHED = ("image", "field", "joined", "shard")
UNSEALED = ("toolkit 0.1",)
PARTIAL = ("make_dataset", "concat_fields")

AT_ONCE = 200  # flips that one child looks at
CPU_S, MORE_BYTES = 10, 2 * 2**30  # for such a child
PROBE = "curation.datasets.probe.CPU_S"  # what endless loops take, shortened
TOLD = 30  # of the flips with bad ends


@dataclass(frozen=True)
class Flip:
    """One bit of a file, and what came of it. bad: why that must not be; "" if it may."""

    place: int
    bit: int
    end: str
    bad: str = ""


def flips(content: bytes, places: Sequence[int], seed: int) -> Iterator[tuple[int, int, bytes]]:
    """The content with one bit flipped, at each place; the place and the bit."""
    drawn = random.Random(seed)
    for place in places:
        bit = drawn.randrange(8)
        yield place, bit, content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


# Finished files


def of_finished(whole: Path, folder: Path, every: int, seed: int, sealed: bool = True) -> Iterator[Flip]:
    """Flip bits of a finished file, read it, and have it verified. A change in one without a seal may go untold."""
    content = whole.read_bytes()
    path = Path(shutil.copy(whole, folder))
    before = read(path)
    todo = deque(flips(content, range(seed % every, len(content), every), seed))

    def look() -> Iterator[tuple[bool, list[str]]]:
        for _, _, damaged in list(todo)[:AT_ONCE]:
            path.write_bytes(damaged)
            yield differs(path, before), list(look_for_faults(path))

    while todo:
        for found in [*in_child(look), None][:AT_ONCE]:
            if not todo:
                break
            place, bit, damaged = todo.popleft()
            if found is None:  # reading it ended the child, so there is a change; how does verify_dataset take it?
                path.write_bytes(damaged)
                found = True, list(faults(path))
            changed, lines = found
            yield Flip(place, bit, *_judged(changed, lines, path, sealed))


def read(path: Path) -> dict[str, Any]:
    """What a reader sees of a file: not the bytes of chunks, as deflate can tell the same values in several ways."""
    return {name: what for name, what in contents(path).items() if not name.startswith("main at ")}


def differs(path: Path, before: dict[str, Any]) -> bool:
    """Whether anything in a file is read differently."""
    try:
        return read(path) != before
    except Exception:
        return True


def _judged(changed: bool, lines: list[str], path: Path, sealed: bool) -> tuple[str, str]:
    if lines:
        strange = [line for line in lines if not line.startswith(f"{path}: ")]
        return ("told" if changed else "told, though nothing changed"), ", ".join(strange)
    if changed:
        return "not told", "a change that is not told" if sealed else ""
    return "nothing changed", ""


def in_child(look: Callable[[], Iterator[Any]]) -> list[Any]:
    """What `look` yields in a child process, until damage ends that; it may take neither all time nor all memory."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES, used + MORE_BYTES))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with open(theirs, "wb") as told:
                for found in look():
                    pickle.dump(found, told)
                    told.flush()
        finally:
            os._exit(0)
    os.close(theirs)
    found = []
    with open(ours, "rb") as told, suppress(EOFError):
        while True:
            found.append(pickle.load(told))
    os.waitpid(child, 0)
    return found


# Partial files


def of_partial(nursery: Nursery, step: Step, folder: Path, every: int, seed: int) -> Iterator[Flip]:
    """Flip bits of the partial file of a run that was killed halfway, and run the same again.

    Each takes as long as dozens of a finished file, so only every fourth is met; and of the bytes of chunks, which are
    most of the file and all alike, every hundredth of these.
    """
    start = folder / "begun"
    start.mkdir()
    begun(nursery, step, start)
    whole = next(start.glob(".[xj]*.partial.h5"))
    content = whole.read_bytes()
    chunks = _bytes_of_chunks(whole)
    places = [place for place in range(len(content)) if place not in chunks or place % 100 == 0]
    for place, bit, damaged in flips(content, places[seed % every :: 4 * every], seed):
        out = folder / "out"
        shutil.copytree(start, out)
        (out / whole.name).write_bytes(damaged)
        call = step.call(out).after(partial(setting, PROBE, 1))
        yield Flip(place, bit, *_resumed(nursery, step, call, out))
        shutil.rmtree(out)


def _bytes_of_chunks(path: Path) -> set[int]:
    with h5py.File(path, "r") as file:
        main = file["main"].id
        infos = [main.get_chunk_info(index) for index in range(main.get_num_chunks())]
    return {place for info in infos for place in range(info.byte_offset, info.byte_offset + info.size)}


def _resumed(nursery: Nursery, step: Step, call: Call, out: Path) -> tuple[str, str]:
    again = ""
    try:
        outcome = nursery.run(call)
    except TimeoutError as error:
        return "hangs", str(error)
    if isinstance(outcome.error, WorkError):  # which it may say, if the same command then makes it good
        again = ", by the second run"
        outcome = nursery.run(call)
    if outcome.killed:
        return "killed", "the process was killed"
    if not outcome.is_finished:
        return "refused", repr(outcome.error)
    try:
        differing = step.faults(out)
    except Exception as error:  # it cannot even be read
        differing = [repr(error)]
    if differing:
        return "differs", ", ".join(differing)
    kept = step.resumed(outcome.value) if outcome.value else 0
    return (f"finished{again}, with work kept" if kept else f"finished{again}, begun anew"), ""


# The sweep


def sweep(nursery: Nursery, folder: Path, every: int, seed: int, names: tuple[str, ...]) -> Iterator[tuple[str, Flip]]:
    """All flips of the files with these names, each flip with the name."""
    if set(names) & {*FINISHED, *UNSEALED}:
        (folder / "whole").mkdir()
        made = nursery.finish(Call(whole_files, (folder / "whole",)))  # there, as this process is to stay small
        for name in [name for name in (*FINISHED, *UNSEALED) if name in names]:
            (folder / name).mkdir()
            ends = of_finished(made[name], folder / name, every, seed, name not in UNSEALED)
            yield from ((name, flip) for flip in ends)
    if set(names) & set(PARTIAL):
        (folder / "inputs").mkdir()
        steps = make_steps(nursery, Inputs(folder / "inputs").make())
        for name in [name for name in PARTIAL if name in names]:
            (folder / name).mkdir()
            yield from ((name, flip) for flip in of_partial(nursery, steps[name], folder / name, every, seed))


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--every", type=int, default=7, help="so-manieth byte is met (7)")
    arguments.add_argument("--seed", type=int, default=0, help="of the bits, and of the first byte (0)")
    arguments.add_argument("--files", nargs="+", default=[*FINISHED, *UNSEALED, *PARTIAL], help="which of them (all)")
    args = arguments.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # of what runs below
    setting(PROBE, 2)
    counts: dict[str, Counter[str]] = {}
    bad = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Nursery() as nursery,
        tqdm(unit="flip", disable=False) as bar,
    ):
        for name, flip in sweep(nursery, Path(folder), args.every, args.seed, tuple(args.files)):
            bar.set_description(name, refresh=False)
            bar.update()
            counts.setdefault(name, Counter())[flip.end] += 1
            if flip.bad:
                bad.append(f"{name}, byte {flip.place}, bit {flip.bit}: {flip.end}: {flip.bad}")
    for name, ends in counts.items():
        print(f"{name:<14} {ends.total():>6} flips: {', '.join(f'{count} {end}' for end, count in ends.most_common())}")
    print(*bad[:TOLD], sep="\n")
    print(f"{len(bad)} flips had an end that must not be")
    return 1 if bad else 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        sys.exit(main())
