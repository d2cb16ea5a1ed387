"""A job that is divided into shards: what stands in `job.json` of its folder, how far it is, and its failures.

Any process, on any machine, that has the folder can do a part of the job: `job.json` says what made its shards, and
with which options the others are to be made. Which shards there are says what is done.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from ..array_task import ArrayTask
from ..datasets.shard_store import ShardStore, stored_shards
from ..datasets.shards import JOB_FILE, Shard, missing_shards
from ..errors import UsageError, WorkError
from ..provenance import Provenance, as_text, differences, sha256
from .report import table

FAILED = ".failed.txt"  # after a shard's range: why it could not be made
RATE_S = 3600.0  # the shards of the last hour say how fast the work goes


@dataclass(frozen=True)
class ShardJob:
    """What a folder of shards is to hold, and what makes it.

    step: the script that makes them, without `.py`. pairs: of the whole dataset. shard_pairs: in each shard but the
    last. options: of the script, as JSON values. provenance: of each shard.
    """

    step: str
    pairs: int
    shard_pairs: int
    options: Mapping[str, Any]
    provenance: Provenance

    @property
    def origin(self) -> str:
        """A hash by which units recognise the job that they belong to."""
        return sha256(json.dumps([self.step, self.pairs, self.shard_pairs, as_text(self.provenance)]))

    def missing(self, there: Sequence[Shard]) -> list[Shard]:
        """The shards that are left to be made. there: in order."""
        return missing_shards(there, self.pairs, self.shard_pairs)

    def of_task(self, shards: Sequence[Shard], task: ArrayTask | None) -> list[Shard]:
        """Those of some shards that are a task's."""
        return [shard for shard in shards if task is None or task.has(shard.first // self.shard_pairs)]


def found_job(store: ShardStore) -> ShardJob | None:
    """The job that a folder says it belongs to; None where it does not say."""
    text = store.text(JOB_FILE)
    if text is None:
        return None
    try:
        return ShardJob(**json.loads(text))
    except (ValueError, TypeError):
        raise UsageError(
            f"{store.path}/{JOB_FILE}: not what this version of the toolkit writes; take another path"
        ) from None


def check_claim(store: ShardStore, job: ShardJob) -> None:
    """See that a folder is a job's, or nobody's; a `UsageError` if it is another's."""
    found = found_job(store)
    if found is None:
        if stored_shards(store):
            raise UsageError(
                f"{store.path}: shards are there, but no {JOB_FILE} that says what made them; take another path"
            )
        return
    if found.step != job.step or dict(found.provenance) != dict(job.provenance):
        differ = differences(job.provenance, found.provenance)
        raise UsageError(
            f"{store.path}: its shards are made with another {differ or 'script'}; --overwrite replaces them, or take "
            "another path"
        )
    if (found.pairs, found.shard_pairs) != (job.pairs, job.shard_pairs):
        raise UsageError(
            f"{store.path}: its shards have {found.shard_pairs} pairs each, not {job.shard_pairs}: give the same, or "
            "take another path"
        )


class OtherJobError(UsageError):
    """A folder is no longer, or never was, of the job that shards are made for."""


def check_still_of(store: ShardStore, origin: str) -> None:
    """See that a folder still is of the job of an origin, before a shard goes into it.

    Somebody may have given the folder to another job while this process was at work, as --overwrite does. The shards
    of the two have the same names.
    """
    found = found_job(store)
    if found is None or found.origin != origin:
        raise OtherJobError(f"{store.path}: belongs to another job than the shards that were being made for it")


def claim(store: ShardStore, job: ShardJob) -> None:
    """Say in a folder, which `check_claim` has seen is no other job's, that it is of this one."""
    store.begin()
    text = json.dumps(asdict(job), indent=1, sort_keys=True)
    if store.text(JOB_FILE) != text:  # of the same job, the options may say anew where its inputs are
        store.put_text(JOB_FILE, text)


def message_of(error: Exception) -> str:
    """What is said of an error that kept a shard from being made, in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UsageError | WorkError) else f"{type(error).__name__}: {text}"


def note_failure(store: ShardStore, shard: Shard, message: str, trace: str) -> None:
    """Leave word beside the shards of why one of them could not be made."""
    store.put_text(_note(shard), f"{message}\n\n{trace}")


def forget_failure(store: ShardStore, shard: Shard) -> None:
    """Take the word back: the shard is there. Not every store lets those delete who may write, which does no harm."""
    with suppress(UsageError, WorkError, OSError):
        store.delete(_note(shard))


def _note(shard: Shard) -> str:
    return shard.name.removesuffix(".h5") + FAILED


@dataclass(frozen=True)
class ShardStatus:
    """How far a job is, as the shards themselves say. pairs: of the whole job. there: pairs in shards.

    failed: the shards that could not be made, as `FIRST_LAST`. rate: pairs an hour; None where that cannot be told.
    """

    path: str
    pairs: int
    shards: int
    missing: int
    pairs_there: int
    failed: tuple[str, ...]
    first_failure: str
    rate: float | None

    def __str__(self) -> str:
        left = self.pairs - self.pairs_there
        lines = [
            ("output", self.path),
            ("pairs", f"{self.pairs_there} of {self.pairs} are there"),
            ("shards", f"{self.shards} are there, {self.missing} are missing"),
        ]
        if self.failed:
            lines.append(("failed", f"{len(self.failed)} of the missing shards: {self._named()}"))
            lines.append(("the first", self.first_failure))
        if self.rate is not None and left:
            hours = left / self.rate if self.rate else None
            until = "nothing was made in the last hour" if hours is None else f"about {_span(hours)} left"
            lines.append(("rate", f"{self.rate:.0f} pairs an hour in the last hour; {until}"))
        return table(lines)

    def _named(self) -> str:
        named = ", ".join(self.failed[:3])
        return f"{named} and {len(self.failed) - 3} more" if len(self.failed) > 3 else named


def _span(hours: float) -> str:
    return str(timedelta(minutes=round(60 * hours)))[:-3] + " h"


@dataclass(frozen=True)
class ShardsMade:
    """What a run has made, for the summary. made: shards. status: how far the whole job is."""

    made: int
    retries: int
    status: ShardStatus

    def __str__(self) -> str:
        lines = [("made now", "1 shard" if self.made == 1 else f"{self.made} shards")]
        if self.retries:
            lines.append(("read again", f"{self.retries} times"))
        return f"{self.status}\n{table(lines)}"


def status_of(stores: Sequence[ShardStore], job: ShardJob) -> ShardStatus:
    """How far a job is. stores: the folders of which each is to hold every shard."""
    names = [set(store.names()) for store in stores]
    there = [shard for shard in stored_shards(stores[0]) if all(shard.name in each for each in names)]
    missing = job.missing(there)
    failed = tuple(note.removesuffix(FAILED) for note in map(_note, missing) if any(note in each for each in names))
    first = ""
    if failed:
        text = next((text for store in stores if (text := store.text(failed[0] + FAILED))), "")
        first = text.partition("\n")[0]
    return ShardStatus(
        stores[0].path,
        job.pairs,
        len(there),
        len(missing),
        sum(shard.count for shard in there),
        failed,
        first,
        _rate(stores[0], there),
    )


def _rate(store: ShardStore, there: Sequence[Shard]) -> float | None:
    """Pairs an hour, told from when the shards were written; None if only the first ones are there.

    The first shard of the window began before it was written, so its pairs count only if the window is full.
    """
    times = {shard: store.changed_at(shard.name) for shard in there}
    known = sorted((at, shard.count) for shard, at in times.items() if at is not None)
    if not known:
        return None
    now = time.time()
    begin = max(known[0][0], now - RATE_S)
    made = sum(count for at, count in known if at > begin)
    if not made and begin == known[0][0]:
        return None
    return made / max(now - begin, 1.0) * 3600.0


def failures_text(failed: Sequence[tuple[Shard, str]]) -> str:
    """What is said of shards that failed: how many, and why the first did."""
    shard, message = failed[0]
    count = "a shard" if len(failed) == 1 else f"{len(failed)} shards"
    return f"{count} could not be made; the first, of pairs {shard.first} to {shard.last - 1}: {message}"
