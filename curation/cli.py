"""What every script shares: argument types, and turning outcomes into one line and an exit code.

Exit codes: 0 done; 2 the input is wrong; 1 the work failed; 130 and 143 interrupted by SIGINT and SIGTERM.
Nothing heavy is imported here, so that `--help` and a usage error answer at once.
"""

import argparse
import io
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NoReturn

from .array_task import OF_SCHEDULER
from .errors import UsageError, WorkError
from .files import Existing

USAGE_ERROR, WORK_FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143


class Terminated(BaseException):
    """SIGTERM arrived. Derived from BaseException, as KeyboardInterrupt is, so that no handler swallows it."""


def parser(description: str | None, resumes: bool = True) -> argparse.ArgumentParser:
    """A parser whose help shows a script's docstring as it is written, examples included.

    resumes: whether the same command goes on where the script was interrupted.
    """
    made = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.set_defaults(resumes=resumes)
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add the option that keeps progress from stderr."""
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def add_existing(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what happens to output that is there already."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--update", action="store_true", help="bring output that is there up to date: keep what is right, make the rest"
    )
    either.add_argument("--overwrite", action="store_true", help="make the output anew, and replace what is there")


def add_parts(parser: argparse.ArgumentParser) -> None:
    """Add the options by which many processes, on many machines, do a part of the work each."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--shard",
        metavar="I/N",
        nargs="?",
        const=OF_SCHEDULER,
        help="make only the I-th of N parts of the shards, from 0; without I/N, as SLURM, Kubernetes or torchrun says",
    )
    either.add_argument(
        "--queue",
        metavar="URL",
        help="put the missing shards into a queue for run_worker.py: fq://FOLDER or sqs://NAME",
    )
    either.add_argument("--status", action="store_true", help="only say how many shards are there, missing and failed")


def existing(args: argparse.Namespace) -> Existing:
    """What happens to output that is there already, as `add_existing` lets the user say."""
    if args.update:
        return Existing.UPDATED
    return Existing.REPLACED if args.overwrite else Existing.REFUSED


def run(parser: argparse.ArgumentParser, main: Callable[[argparse.Namespace], None]) -> None:
    """Parse the command line, call `main`, and leave with the exit code that its outcome stands for."""
    _open_streams()
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        if getattr(args, "quiet", False):
            from .progress import silence

            silence()
        main(args)
        sys.stdout.flush()
    except (UsageError, WorkError, KeyboardInterrupt, Terminated, Exception) as error:
        if args.debug:
            traceback.print_exc()
        code, message = _outcome(error, args.resumes)
        print(f"{Path(parser.prog).stem}: {message}", file=sys.stderr)
        _leave(code)


def _open_streams() -> None:
    """Make output possible: a summary that cannot be printed must not make a failure of work that is done."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this; a data file would be opened in its place
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest that is free, which is that stream's own
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # of names that its encoding does not have
        sys.stdout.reconfigure(errors="backslashreplace")


def _leave(code: int) -> NoReturn:
    """End the process: at once if HDF5 still has files open, which it could not write or close."""
    h5py = sys.modules.get("h5py")
    if h5py is not None and h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_ALL):
        with suppress(OSError):
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # HDF5 would try again as the interpreter ends, and crash
    sys.exit(code)


def _outcome(error: BaseException, resumes: bool) -> tuple[int, str]:
    goes_on = "; the same command goes on from here" if resumes else ""
    if isinstance(error, UsageError):
        return USAGE_ERROR, f"error: {_one_line(error)}"
    if isinstance(error, WorkError):
        return WORK_FAILED, f"failed: {_one_line(error)}"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, f"interrupted{goes_on}"
    if isinstance(error, Terminated):
        return TERMINATED, f"terminated{goes_on}"
    if isinstance(error, ModuleNotFoundError):
        return USAGE_ERROR, (
            f"error: {error.name} is not installed for {sys.executable}: activate the environment "
            "(. .venv/bin/activate), or pip install -r requirements.txt there"
        )
    if isinstance(error, BrokenPipeError):  # `script | head`: the reader has gone, and so has its pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WORK_FAILED, "failed: nobody reads the output any more"
    kind = type(error).__name__
    return WORK_FAILED, f"failed: {kind}: {_one_line(error)} (--debug shows where)"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _raise_terminated(signum: int, frame: object) -> None:
    raise Terminated


def positive(text: str) -> int:
    """An integer of at least 1."""
    return _integer(text, at_least=1)


def jpeg_quality(text: str) -> int:
    """The quality of a JPEG file, from 1 to 95."""
    value = _integer(text, at_least=1)
    if value > 95:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 95, beyond which files only grow")
    return value


def picture_side(text: str) -> int:
    """The longest side of a picture in a JPEG file, in pixels."""
    value = _integer(text, at_least=1)
    if value > 65500:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 65500 pixels, which no JPEG file can have")
    return value


def sheet_rows(text: str) -> int:
    """How many pairs a contact sheet shows."""
    value = _integer(text, at_least=1)
    if value > 200:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 200, of which a picture would be too large to open")
    return value


def level(text: str) -> int:
    """A MIP level: 0 or more."""
    return _integer(text, at_least=0)


def width(text: str) -> float:
    """A positive number of nm."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a width: want nm, more than 0")
    return value


def lease(text: str) -> int:
    """The length of a lease in whole seconds: at least 3, and no more than the 12 hours that SQS allows."""
    value = _integer(text, at_least=3)
    if value > 43200:
        raise argparse.ArgumentTypeError(f"{text!r} is more than the 43200 seconds that a queue allows")
    return value


def seconds(text: str) -> float:
    """A length of time of at least 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a length of time: want seconds, 0 or more")
    return value


def threshold(text: str) -> float:
    """A number to compare values with, which NaN is not: no value is at least NaN."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no number that values can be compared with")
    return value


def triple(values: list[float] | None) -> tuple[float, float, float] | None:
    """Three values of an option, if it was given."""
    if values is None:
        return None
    x, y, z = values
    return x, y, z


def check_given(args: argparse.Namespace, *names: str) -> None:
    """Refuse arguments without one of these."""
    missing = [f"--{name}" for name in names if getattr(args, name) is None]
    if missing:
        raise UsageError(f"the following arguments are required: {', '.join(missing)}")


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def numbers(text: str) -> tuple[int, ...]:
    """A comma-separated list of integers of at least 0, such as `0,1,3`, without repeats."""
    values = tuple(_integer(part, at_least=0) for part in text.split(","))
    if len(set(values)) != len(values):
        raise argparse.ArgumentTypeError(f"{text!r} names a number twice")
    return values


def decimals(text: str) -> int | Literal["binary"] | None:
    """What fields are rounded to: a number of decimals from 0 to 6, `binary`, or `none`."""
    if text == "none":
        return None
    if text == "binary":
        return "binary"
    if not text.isdecimal() or int(text) > 6:
        raise argparse.ArgumentTypeError(f"{text!r} is not what a field is rounded to: want 0 to 6, binary, or none")
    return int(text)


def step(text: str) -> float:
    """A power of two from 2^-24 to 1, written as a fraction such as `1/2048` or as a decimal number."""
    numerator, slash, denominator = text.partition("/")
    try:
        value = float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not (2**-24 <= value <= 1 and math.frexp(value)[0] == 0.5):
        raise argparse.ArgumentTypeError(f"{text!r} is no power of two from 2^-24 to 1: want a step such as 1/2048")
    return value


def json_object(text: str) -> dict[str, Any]:
    """A JSON object, such as `{"finetune_iter": 50}`."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def _integer(text: str, at_least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
    if value < at_least:
        raise argparse.ArgumentTypeError(f"{text!r} is less than {at_least}")
    return value
