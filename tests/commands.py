"""Scripts run as commands: what the fixtures of that name give."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Outcome:
    """How a script ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def line(self) -> str:
        """The last line on stderr, after the progress bars."""
        return self.stderr.replace("\r", "\n").strip().splitlines()[-1]


Command = Callable[..., Outcome]
