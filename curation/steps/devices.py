"""Where generate_fields runs its module: the devices of its workers, and the cores that each of them may use."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..datasets.stored import Empty
from ..errors import UsageError
from ..machine import usable_cores

FLOAT32 = "float32"
PRECISIONS = (FLOAT32, "bfloat16", "float16")


@dataclass(frozen=True)
class Threads:
    """Of one worker, beside the one that runs its module: those that read pairs, and those that encode fields."""

    reading: int
    encoding: int


@dataclass(frozen=True)
class Workers:
    """devices: one a worker, such as "cuda:0" or "cpu". cores: those that each worker may use.

    shards: the units of work that are left for all of them.
    """

    devices: tuple[str, ...]
    cores: int
    shards: int = 1

    def share(self, process: int, processes: int) -> "Workers":
        """Those of one of several processes on this machine that share its devices and cores."""
        devices = self.devices[process::processes] or (self.devices[process % len(self.devices)],)
        return replace(self, devices=devices, cores=max(1, usable_cores() // processes // len(devices)))

    @property
    def threads(self) -> Threads:
        """A worker that has one core has one of each, which also wait for the disk.

        Each thread that reads takes work in advance. With few shards left, that is work that others wait for.
        """
        in_advance = self.shards // (8 * len(self.devices))
        return Threads(max(1, min(self.cores, 4, in_advance)), max(1, min(self.cores, 8)))

    def __str__(self) -> str:
        counts = Counter(self.devices)
        named = ", ".join(device if count == 1 else f"{count} on {device}" for device, count in counts.items())
        return f"{named}; {self.cores} core{'s' if self.cores > 1 else ''} each"


def find_workers(gpu: Sequence[int] | None, cpu_workers: int | None, precision: str, shards: int) -> Workers:
    """A worker for each GPU that was asked for, else for each GPU there is, else for each core of the CPU.

    What the devices cannot do is a `UsageError`. shards: the units of work that are left: of more workers than that,
    only so many will run, and share the cores.
    """
    devices = _devices(gpu, cpu_workers)
    for device in dict.fromkeys(devices):
        check_precision(device, precision)
    return Workers(tuple(devices), cores_each(len(devices), shards), shards)


def cores_each(workers: int, shards: int) -> int:
    """The cores that each of so many workers may use while they work off `shards` units."""
    return max(1, usable_cores() // max(1, min(workers, shards)))


def expected_workers(gpu: Sequence[int] | None, cpu_workers: int | None) -> int:
    """How many workers there will be, as far as can be told without torch; else the most there may be."""
    return len(gpu) if gpu is not None else cpu_workers or usable_cores()


def pinned_on(device: str) -> Empty | None:
    """What makes arrays in memory from which a GPU copies by itself, and faster; None on the CPU."""
    if not device.startswith("cuda"):
        return None

    def empty(shape: tuple[int, ...]) -> np.ndarray:
        import torch

        with torch.cuda.device(device):  # a new thread's is the first GPU, which is another worker's
            return torch.empty(shape, pin_memory=True).numpy()

    return empty


def _devices(gpu: Sequence[int] | None, cpu_workers: int | None) -> list[str]:
    import torch  # not sooner: it takes a second, and what is amiss is told before

    if gpu is not None:
        there = torch.cuda.device_count()
        if not torch.cuda.is_available() or max(gpu) >= there:
            raise UsageError(
                f"--gpu {','.join(map(str, gpu))}: CUDA sees {there} GPUs here; "
                "leave --gpu out to run on those, or on the CPU with --cpu_workers N"
            )
        return [f"cuda:{index}" for index in gpu]
    if cpu_workers is None and torch.cuda.is_available():
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu"] * (cpu_workers or usable_cores())


def check_precision(device: str, precision: str) -> None:
    """Refuse a number type that a device does not compute in, by hardware of its own on a GPU."""
    import torch

    if precision == FLOAT32:
        return
    kind, _, index = device.partition(":")
    if kind == "cuda":
        name = torch.cuda.get_device_name(int(index))
        works = torch.version.hip is not None or torch.cuda.get_device_capability(int(index)) >= _SINCE[precision]
    else:
        name, works = "the CPU, with this build of torch", _computes_on_cpu(precision)
    if not works:
        others = " or ".join(other for other in PRECISIONS if other != precision)
        raise UsageError(f"--precision {precision}: {device} ({name}) does not compute in it: take {others}")


_SINCE = {"bfloat16": (8, 0), "float16": (5, 3)}  # compute capabilities that have these types


def _computes_on_cpu(precision: str) -> bool:
    import torch

    image = torch.ones(1, 1, 8, 8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a type that autocast does not take is only warned of, and left out
            with torch.no_grad(), torch.autocast("cpu", getattr(torch, precision)):
                made = torch.nn.functional.conv2d(image, torch.ones(1, 1, 3, 3))
    except (RuntimeError, UserWarning):
        return False
    return str(made.dtype) == f"torch.{precision}"
