"""Shards: the units in which pairs are worked off. A shard is a range of pairs and the file that it makes.

How a dataset is divided depends on its number of pairs alone, never on who does the work: the same units come out on
one machine and on many, and a unit that is done twice gives the same bytes twice.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

SHARD_PAIRS = (
    64  # of images, unless said otherwise: of 1024 x 1024 pixels they take 400 MiB, and a core some ten seconds
)
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
