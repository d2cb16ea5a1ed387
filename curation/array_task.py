"""Which part of a job this process is to do, as job schedulers say it to the tasks of an array."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import UsageError

OF_SCHEDULER = "scheduler"  # --shard without a value


@dataclass(frozen=True)
class ArrayTask:
    """One of `count` tasks that share a job; index: which of them, from 0."""

    index: int
    count: int

    def has(self, number: int) -> bool:
        """Whether the unit of this number is this task's. The units of a task are spread over the whole job."""
        return number % self.count == self.index


def array_task(text: str, environment: Mapping[str, str] = os.environ) -> ArrayTask:
    """The task that `--shard` names: I/N, from 0/N to (N-1)/N, or `OF_SCHEDULER`, as the environment says it."""
    if text == OF_SCHEDULER:
        index, count, source = _of_environment(environment)
    else:
        first, slash, last = text.partition("/")
        if not (slash and first.isdecimal() and last.isdecimal()):
            raise UsageError(f"--shard {text}: want I/N, such as 0/16, or no value in the task of a job array")
        index, count, source = int(first), int(last), f"--shard {text}"
    if not 0 <= index < count:
        raise UsageError(f"{source}: want a task from 0 to {count - 1} of {count}, since tasks are numbered from 0")
    return ArrayTask(index, count)


def _of_environment(environment: Mapping[str, str]) -> tuple[int, int, str]:
    """The index and the count that the scheduler says, and where it says them."""

    def number(name: str, otherwise: int | None = None) -> int:
        text = environment.get(name, "" if otherwise is None else str(otherwise))
        if not text.isdecimal():
            raise UsageError(f"{name} is {text or 'not set'}: want a number; or give --shard I/N")
        return int(text)

    if "SLURM_ARRAY_TASK_ID" in environment:
        first, step = number("SLURM_ARRAY_TASK_MIN", 0), number("SLURM_ARRAY_TASK_STEP", 1)
        task = number("SLURM_ARRAY_TASK_ID")
        count = number("SLURM_ARRAY_TASK_COUNT")
        if (number("SLURM_ARRAY_TASK_MAX", first + (count - 1) * step) - first) // step + 1 != count:
            raise UsageError(
                "the task numbers of this SLURM array have gaps: want an array without gaps, such as --array=0-15, or "
                "--shard I/N"
            )
        return (task - first) // step, count, f"SLURM_ARRAY_TASK_ID {task}"
    if "JOB_COMPLETION_INDEX" in environment:
        task = number("JOB_COMPLETION_INDEX")
        return task, number("JOB_COMPLETIONS"), f"JOB_COMPLETION_INDEX {task}"
    if "RANK" in environment:
        task = number("RANK")
        return task, number("WORLD_SIZE"), f"RANK {task}"
    raise UsageError(
        "--shard without a value asks the job scheduler which part to do, and neither SLURM_ARRAY_TASK_ID nor "
        "JOB_COMPLETION_INDEX nor RANK is set: want --shard I/N"
    )


def local_share(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Which of the processes on this machine this one is, and how many there are, as torchrun says; else (0, 1)."""
    rank, size = environment.get("LOCAL_RANK", ""), environment.get("LOCAL_WORLD_SIZE", "")
    if rank.isdecimal() and size.isdecimal() and int(rank) < int(size):
        return int(rank), int(size)
    return 0, 1
