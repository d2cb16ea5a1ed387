"""How many cores this process may use, which a container or a job scheduler may make fewer than the machine has."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""By these variables the libraries under numpy and torch are told, as they load, how many threads they may have."""


def usable_cores(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """The cores that this process may use, at least 1: those of its affinity, and no more than its cgroup's quota.

    groups, own: where the system tells of cgroups, and of those that this process is in.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # which macOS does not have
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(groups, own))]))


def _quotas(groups: Path, own: Path) -> Iterator[float]:
    """The cores' worth of time that each cgroup above this process has, of those that have a limit."""
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            names = [("cpu.cfs_quota_us", "cpu.cfs_period_us")] if controllers else [("cpu.max",)]
            root = groups / controllers if controllers else groups
            below = root / path.strip("/")
            # In a container the paths above its own group may not be there, and its own is the root.
            for folder in {root, below, *(each for each in below.parents if each.is_relative_to(root))}:
                yield from (quota for each in names if (quota := _quota(folder, *each)) is not None)


def _quota(folder: Path, *names: str) -> float | None:
    """`QUOTA PERIOD` of a group, in one file or in two, as cores; None where there is no limit."""
    try:
        quota, period = " ".join((folder / name).read_text() for name in names).split()
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number: there is no limit
        return None
