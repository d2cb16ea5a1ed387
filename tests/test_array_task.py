"""Which part of a job a process is to do: as it is told, or as the scheduler of its job array says."""

import pytest

from curation.array_task import OF_SCHEDULER, ArrayTask, array_task, local_share
from curation.errors import UsageError

SLURM = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_MAX": "11"}


@pytest.mark.parametrize(
    ("text", "environment", "task"),
    [
        ("0/1", {}, (0, 1)),
        ("3/16", {"RANK": "1", "WORLD_SIZE": "2"}, (3, 16)),
        (OF_SCHEDULER, {**SLURM, "SLURM_ARRAY_TASK_COUNT": "7"}, (2, 7)),
        (OF_SCHEDULER, {**SLURM, "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_STEP": "2"}, (1, 4)),
        (OF_SCHEDULER, {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "3"}, (2, 3)),
        (OF_SCHEDULER, {"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "4"}, (0, 4)),
        (OF_SCHEDULER, {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (3, 4)),
        (OF_SCHEDULER, {**SLURM, "SLURM_ARRAY_TASK_COUNT": "7", "RANK": "0", "WORLD_SIZE": "1"}, (2, 7)),
    ],
)
def test_a_task_is_what_it_is_told(text: str, environment: dict[str, str], task: tuple[int, int]) -> None:
    assert array_task(text, environment) == ArrayTask(*task)


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("3", {}, "--shard 3: want I/N"),
        ("a/b", {}, "--shard a/b: want I/N"),
        ("-1/4", {}, "want I/N"),
        ("4/4", {}, "from 0 to 3 of 4"),
        ("0/0", {}, "of 0"),
        (OF_SCHEDULER, {}, "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX nor RANK is set"),
        (OF_SCHEDULER, {**SLURM, "SLURM_ARRAY_TASK_COUNT": "2"}, "have gaps"),
        (OF_SCHEDULER, {"JOB_COMPLETION_INDEX": "0"}, "JOB_COMPLETIONS is not set"),
        (OF_SCHEDULER, {"RANK": "0", "WORLD_SIZE": "many"}, "WORLD_SIZE is many"),
        (OF_SCHEDULER, {"RANK": "4", "WORLD_SIZE": "4"}, "RANK 4: want a task from 0 to 3"),
    ],
)
def test_what_is_no_task_is_refused(text: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        array_task(text, environment)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_each_unit_is_one_tasks(count: int) -> None:
    for number in range(30):
        assert sum(ArrayTask(index, count).has(number) for index in range(count)) == 1


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, (0, 1)),
        ({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}, (2, 4)),
        ({"LOCAL_RANK": "2"}, (0, 1)),
        ({"LOCAL_RANK": "4", "LOCAL_WORLD_SIZE": "4"}, (0, 1)),
    ],
)
def test_processes_of_torchrun_share_a_machine(environment: dict[str, str], share: tuple[int, int]) -> None:
    assert local_share(environment) == share
