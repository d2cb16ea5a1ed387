"""Progress on stderr: a bar on a terminal, a line now and then in a log file, and nothing where nobody wants it."""

import sys
from typing import Any

from tqdm import tqdm

LINE_EVERY_S = 30.0

_LINE = "{desc}: {n_fmt} of {total_fmt}, {percentage:.0f} %, {elapsed} passed, {remaining} left{postfix}"

_silent = False


def silence() -> None:
    """Show no progress from now on, for --quiet."""
    global _silent
    _silent = True


def progress(total: int, what: str, unit: str, done: int = 0) -> "tqdm[Any]":
    """A bar of `total` units, `done` of them from the beginning: to be updated, and closed as a context manager."""
    if _silent:
        return tqdm(disable=True)
    if sys.stderr.isatty():
        return tqdm(total=total, initial=done, desc=what, unit=unit)
    # What lasts less than LINE_EVERY_S is not shown at all.
    often = {"delay": LINE_EVERY_S, "mininterval": LINE_EVERY_S, "maxinterval": LINE_EVERY_S}
    return _Lines(total=total, initial=done, desc=what, unit=unit, bar_format=_LINE, **often)


def say(text: str) -> None:
    """Print a result on stdout while a bar may be shown, in another process too: never onto the bar."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    print(text, flush=True)


class _Lines(tqdm):  # type: ignore[misc]
    """Shows each state on a line of its own."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        print(str(self) if msg is None else msg, file=sys.stderr, flush=True)
        return True

    def close(self) -> None:
        if not getattr(self, "disable", True) and self._time() - self.start_t >= self.delay:
            self.display()
        self.disable = True  # so that tqdm does not end a bar that is none
        super().close()
