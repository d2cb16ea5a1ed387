"""Shards: ranges of pairs, each in a field file of its own, named FIRST_LAST.h5 (LAST excluded)."""

import re
from dataclasses import dataclass

LONGEST_SHARD = 16  # pairs: what a crash can lose of a worker's work

_NAME = re.compile(r"(\d+)_(\d+)\.h5")


@dataclass(frozen=True)
class Shard:
    """A range of pairs, [first, last)."""

    first: int
    last: int

    @property
    def name(self) -> str:
        """Its file's."""
        return f"{self.first}_{self.last}.h5"


def shard_named(name: str) -> Shard | None:
    """The shard whose file has this name; None if it is no shard's."""
    match = _NAME.fullmatch(name)
    return Shard(int(match[1]), int(match[2])) if match else None


def missing_shards(there: list[Shard], pairs: int, workers: int) -> list[Shard]:
    """Shards for the pairs that none in `there` (in order) covers: several a worker, so that none waits long."""
    edges = [0, *(edge for shard in there for edge in (shard.first, shard.last)), pairs]
    gaps = list(zip(edges[::2], edges[1::2], strict=True))
    left = sum(end - begin for begin, end in gaps)
    size = max(1, min(LONGEST_SHARD, left // (4 * workers)))
    return [Shard(first, min(first + size, end)) for begin, end in gaps for first in range(begin, end, size)]
