"""The cores that this process may use: those of its affinity, and no more than its cgroups' quotas."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from curation.machine import usable_cores

Groups = Callable[[str, dict[str, str]], int]


@pytest.fixture
def cores_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    """The cores of a process that has 64 by its affinity, in a cgroup, with some files below /sys/fs/cgroup."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)

    def count(own: str, files: dict[str, str]) -> int:
        (tmp_path / "own").write_text(own)
        for name, content in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return usable_cores(tmp_path / "groups", tmp_path / "own")

    return count


def test_without_a_quota_they_are_those_of_the_affinity(cores_in: Groups) -> None:
    assert cores_in("", {}) == 64
    assert cores_in("0::/job", {"job/cpu.max": "max 100000\n", "cpu.max": "torn"}) == 64


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}),  # a container's own group is the root of what it sees
        ("0::/docker/1f2e\n", {"cpu.max": "150000 100000\n"}),
        ("0::/slurm/job/step\n", {"slurm/job/cpu.max": "200000 100000\n", "slurm/job/step/cpu.max": "max 100000\n"}),
        ("0::/slurm/job\n", {"slurm/job/cpu.max": "200000 100000\n", "slurm/cpu.max": "800000 100000\n"}),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}),
        (
            "5:memory:/a\n4:cpu,cpuacct:/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "200000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
        ),
    ],
)
def test_a_quota_of_two_cores_is_two_whatever_the_machine_has(
    own: str, files: dict[str, str], cores_in: Groups
) -> None:
    assert cores_in(own, files) == 2


def test_no_quota_in_the_older_form_and_a_part_of_a_core(cores_in: Groups) -> None:
    none = {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}
    assert cores_in("3:cpu:/\n", none) == 64
    assert cores_in("0::/\n", {"cpu.max": "20000 100000"}) == 1


def test_an_affinity_of_one_core_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {17}, raising=False)
    assert usable_cores(tmp_path, tmp_path / "none") == 1
