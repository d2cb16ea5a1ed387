"""Memory that a worker process shares with the one that it works for: the arrays of its results go through it.

Through a pipe, a process has to copy every byte once more, and that is a third of the work of the one that writes.

The memory is a file without a name (memfd), which is gone when both processes are, however they end. Its first page
holds how many messages the reader is done with. Slots follow, and message m lies in slot m % SLOTS: a worker waits for
a slot until the reader is done with what was there before.
"""

import mmap
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np

SLOTS = 2  # so that a worker can go on with its next unit while its last result is being used
LARGEST_SLOT = 64 * 2**20  # bytes: what is larger goes through the pipe
POLL_S = 0.001  # a unit takes many times longer


class ResultMemory:
    """The memory as one of the two processes has it. It travels to the other as an argument of the new process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        size = os.fstat(descriptor).st_size
        self._memory = mmap.mmap(descriptor, size)
        self._slot_size = (size - mmap.PAGESIZE) // SLOTS
        self._released = np.frombuffer(self._memory, np.int64, 1)
        self._messages = 0  # that this process has sent, or taken
        self._parent = os.getppid()

    def __reduce__(self) -> tuple[Callable[[Any], "ResultMemory"], tuple[Any]]:
        return _received, (DupFd(self._descriptor),)

    def close(self) -> None:
        """Let go of the memory, once nothing uses the arrays that were taken any more."""
        os.close(self._descriptor)

    def put(self, arrays: Sequence[memoryview]) -> bool:
        """Store the arrays of the next message, one after the other, once there is room; False if they do not fit."""
        if sum(array.nbytes for array in arrays) > self._slot_size:
            return False
        while self._messages - self._released[0] >= SLOTS:
            if os.getppid() != self._parent:  # the process that it works for has died, and nothing will be released
                raise EOFError
            time.sleep(POLL_S)
        first = self._begin()
        for array in arrays:
            self._memory[first : first + array.nbytes] = array
            first += array.nbytes
        return True

    def taken(self, sizes: Sequence[int]) -> list[memoryview]:
        """The arrays of the next message, of these sizes; they may be used until they are released."""
        first, views = self._begin(), []
        for size in sizes:
            views.append(memoryview(self._memory)[first : first + size])
            first += size
        return views

    def release(self) -> None:
        """Say that all arrays that were taken are not used any more."""
        self._released[0] = self._messages

    def _begin(self) -> int:
        """Where the next message lies."""
        slot = self._messages % SLOTS
        self._messages += 1
        return mmap.PAGESIZE + slot * self._slot_size


def _received(sent: Any) -> ResultMemory:
    return ResultMemory(sent.detach())


def result_memory(most: int) -> ResultMemory | None:
    """New memory for results of at most so many bytes; None where there are none, or the system has no such memory.

    A page of it is taken up only when it is first used.
    """
    if most == 0 or not hasattr(os, "memfd_create"):  # macOS
        return None
    with suppress(OSError):
        descriptor = os.memfd_create("results")
        try:
            os.ftruncate(descriptor, mmap.PAGESIZE + SLOTS * min(most, LARGEST_SLOT))
            return ResultMemory(descriptor)
        except OSError:
            os.close(descriptor)
    return None
