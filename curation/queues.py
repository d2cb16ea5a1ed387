"""Queues of units that machines share, through the package task-queue (Seung lab): file queues, and Amazon's SQS.

`fq://FOLDER` is a folder of a file system that all machines see, without a server; `sqs://NAME` is a queue of SQS. The
command `ptq` of the package works on both: `ptq status`, `ptq release`, `ptq purge`.

A message has the form of task-queue's own tasks, a function's name and its arguments. Here the name is always `UNIT`,
and the argument is plain JSON that is looked at before anything is done. A message with another name would have a
worker import and call somebody's function: it is refused.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from .errors import UsageError, WorkError

Answer = TypeVar("Answer")

UNIT = ("curation", "unit")
FAILED = "failed"  # the name of the queue beside a queue where failed units are set aside
AT_ONCE = 1000  # units that are in memory while a queue is filled
OUTAGE_S = 600.0  # for which a queue that is away is waited for
ATTEMPTS = 3  # for what is no outage; task-queue makes four of each
LISTED_FOR_S = 60  # for which a message of SQS is out of sight while the queue is listed


@dataclass(frozen=True)
class Leased:
    """A message that this process has taken, and that no other sees until the lease runs out. id: as the queue says.

    content: None where the message is none of ours.
    """

    id: str
    content: Mapping[str, Any] | None
    text: str


class UnitQueue:
    """A queue at a URL. Whatever goes wrong with it is a `UsageError` or a `WorkError` that names the URL.

    begin: make the folder of a file queue, if it is not there; else that is a `UsageError`, as it is of SQS.
    """

    def __init__(self, url: str, begin: bool = True) -> None:
        protocol, separator, rest = url.partition("://")
        if protocol not in ("fq", "sqs") or not separator or not rest:
            raise UsageError(f"{url}: want a queue such as fq://FOLDER, on a disk that all machines see, or sqs://NAME")
        self.url = url
        self.is_file_queue = protocol == "fq"
        try:
            from taskqueue import TaskQueue
        except ModuleNotFoundError:
            raise UsageError(f"{url}: queues need a package that is not installed: pip install task-queue") from None
        if self.is_file_queue and not os.path.isdir(os.path.dirname(os.path.abspath(rest))):
            raise UsageError(f"{url}: there is no folder {os.path.dirname(os.path.abspath(rest))} to make it in")
        if self.is_file_queue and not begin and not os.path.isdir(os.path.join(rest, "queue")):
            raise UsageError(f"{url}: no such queue; make_dataset.py and generate_fields.py make it with --queue")
        with _telling(url), redirect_stdout(sys.stderr):  # it prints that a queue is not there, each time that it asks
            self._queue = TaskQueue(url, progress=False)
        self._api = self._queue.api

    def insert(self, units: Iterable[Mapping[str, Any]], delay_s: int = 0) -> int:
        """Put units into the queue; how many. delay_s: for so many seconds nobody is given them."""
        from taskqueue.queueablefns import FunctionTask

        inserted = 0
        tasks = (FunctionTask(UNIT, [], {"unit": dict(unit)}) for unit in units)
        while some := list(islice(tasks, AT_ONCE)):
            # If it is asked again, some may be there twice, which does no harm.
            inserted += self._ask(partial(self._queue.insert, some, delay_seconds=delay_s, total=len(some)))
        return inserted

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        """Ask the queue, again and again while it is away: a worker is not to end because of that."""
        from .stores import Patience

        with _telling(self.url):
            return Patience(retry_for=OUTAGE_S, attempts=ATTEMPTS).ask(question)

    def lease(self, seconds: int) -> Leased | None:
        """Take a unit for some seconds; None where none is to be had now."""
        found = self._ask(lambda: self._api.lease(seconds, 1, 0))
        return _leased(found[0]) if found else None

    def renew(self, leased: Leased, seconds: int) -> None:
        """Have a lease end so many seconds from now."""
        with _telling(self.url):
            self._api.renew_lease(leased, seconds)

    def give_back(self, leased: Leased) -> None:
        """Let others have a unit at once."""
        self.renew(leased, 0)

    def delete(self, leased: Leased) -> None:
        """Take a unit out of the queue: it is done."""
        self._ask(lambda: self._api.delete(leased.id))
        self._ask(self._api.tally)

    def is_empty(self) -> bool:
        """Whether no unit is in the queue, neither waiting nor leased. SQS knows it approximately."""
        return bool(self._ask(self._api.is_empty))

    def failed(self, begin: bool) -> "UnitQueue | None":
        """The queue where failed units are set aside. begin: make it, if it is not there; else there may be none."""
        if self.is_file_queue:
            url = f"{self.url.rstrip('/')}/{FAILED}"
            return UnitQueue(url) if begin or os.path.isdir(url.removeprefix("fq://")) else None
        return self._failed_of_sqs(begin)

    def _failed_of_sqs(self, begin: bool) -> "UnitQueue | None":
        url = f"{self.url.rstrip('/')}-{FAILED}"
        name = url.rpartition("/")[2]
        with _telling(self.url):
            alike = self._api.sqs.list_queues(QueueNamePrefix=name).get("QueueUrls", [])
            is_there = any(each.rpartition("/")[2] == name for each in alike)
            if not is_there and begin:
                self._api.sqs.create_queue(QueueName=name)
        return UnitQueue(url) if is_there or begin else None

    def __iter__(self) -> Iterator[Leased]:
        """All units. Those of SQS are out of sight for others while it is listed."""
        with _telling(self.url):
            if self.is_file_queue:
                yield from (_leased(json.loads(text)) for text in self._api)
                return
            seen = []
            while found := self._api.lease(LISTED_FOR_S, 10, 1):
                seen += list(map(_leased, found))
        for leased in seen:
            self.give_back(leased)
        yield from seen


def _leased(message: Mapping[str, Any]) -> Leased:
    payload = message.get("payload")
    content = None
    if isinstance(payload, list) and len(payload) == 4 and payload[0] == list(UNIT) and isinstance(payload[2], dict):
        unit = payload[2].get("unit")
        content = unit if isinstance(unit, dict) else None
    return Leased(str(message["id"]), content, json.dumps(payload))


@contextmanager
def _telling(url: str) -> Iterator[None]:
    """A context in which errors of a queue become errors for users."""
    try:
        yield
    except (UsageError, WorkError):
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if "NonExistentQueue" in text:
            name = url.removeprefix("sqs://")
            raise UsageError(f"{url}: no such queue; make it: aws sqs create-queue --queue-name {name}") from None
        if type(error).__name__ in ("NoCredentialsError", "PermissionError", "NoRegionError"):
            raise UsageError(f"{url}: {text}") from None
        raise WorkError(f"{url}: {type(error).__name__}: {text}") from error
