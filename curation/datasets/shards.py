"""Shards: the units in which pairs are worked off. A shard is a range of pairs and the file that it makes.

How a dataset is divided depends on its number of pairs alone, never on who does the work: the same units come out on
one machine and on many, and a unit that is done twice gives the same bytes twice.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..provenance import sha256

SPEC_FILE = "spec.json"
"""Beside shards that do not hold their spec, as each of them would hold all of it: the text of the spec."""

JOB_FILE = "job.json"
"""Beside shards that several processes may make: what they are to hold, and with which options they are made."""

BESIDE_SHARDS = (SPEC_FILE, JOB_FILE)
"""The files that belong to a folder of shards and are none."""

SHARD_PAIRS = 64  # of images, unless said otherwise: of 1024 x 1024 pixels they take 400 MiB, and a core some seconds
LONGEST_SHARD = 16  # pairs: what a crash can lose of a worker's work
FEWEST_SHARDS = 32  # of a dataset of that many pairs or more, so that several workers end at about the same time

_NAME = re.compile(r"(\d+)_(\d+)\.h5")


@dataclass(frozen=True)
class Shard:
    """A range of pairs, [first, last), which is one unit of work."""

    first: int
    last: int

    @property
    def name(self) -> str:
        """The shard's file name, FIRST_LAST.h5."""
        return f"{self.first}_{self.last}.h5"

    @property
    def count(self) -> int:
        """How many pairs it has."""
        return self.last - self.first

    @property
    def pairs(self) -> range:
        """The numbers of its pairs."""
        return range(self.first, self.last)


def shard_named(name: str) -> Shard | None:
    """The shard whose file has this name; None if the name is not a shard's."""
    match = _NAME.fullmatch(name)
    return Shard(int(match[1]), int(match[2])) if match else None


def shards_in(folder: Path) -> list[tuple[Shard, Path]]:
    """The files in a folder that have a shard's name, in order of their pairs."""
    there = [(shard, path) for path in sorted(folder.iterdir()) if (shard := shard_named(path.name))]
    return sorted(there, key=lambda each: (each[0].first, each[0].last))


def gaps(shards: Iterable[Shard], pairs: int) -> Iterator[tuple[int, int]]:
    """The ranges of pairs, first and last, that none of some shards, in order, covers. pairs: how many there are."""
    end = 0
    for shard in shards:
        if shard.first > end:
            yield end, shard.first - 1
        end = max(end, shard.last)
    if end < pairs:
        yield end, pairs - 1


def gaps_text(missing: Sequence[tuple[int, int]]) -> str:
    """Ranges of pairs, for messages, of which there is at least one: "pairs 4 to 8 are missing"."""
    (first, last), *others = missing
    more = sum(end - begin + 1 for begin, end in others)
    named = f"pair {first} is" if first == last else f"pairs {first} to {last} are"
    return f"{named} missing" + (f", and {more} more" if more else "")


def spec_beside(folder: Path, promised: str) -> str | None:
    """The text of the spec of the shards in a folder, from the file beside them; None if there is no such file.

    promised: its hash, as the shards say it. A `UsageError` if the file is another spec.
    """
    path = folder / SPEC_FILE
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    if sha256(text) != promised:
        raise UsageError(f"{path} is not the spec of the shards beside it: want the one whose SHA-256 is {promised}")
    return text


def shard_size(pairs: int) -> int:
    """How many pairs a shard of a dataset of `pairs` pairs has; the last one may have fewer."""
    return max(1, min(LONGEST_SHARD, pairs // FEWEST_SHARDS))


def missing_shards(there: Sequence[Shard], pairs: int, size: int | None = None) -> list[Shard]:
    """The units that are left: shards, in order, of all pairs that none of `there` (in order) covers.

    They end at multiples of `size`, which is `shard_size` unless given, and where a shard of `there` begins.
    """
    size = size or shard_size(pairs)
    edges = [0, *(edge for shard in there for edge in (shard.first, shard.last)), pairs]
    shards = []
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        while begin < end:
            last = min(begin - begin % size + size, end)
            shards.append(Shard(begin, last))
            begin = last
    return shards
