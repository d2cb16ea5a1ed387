"""The folder of shards of generate_fields: what is in it, and moving shards of another origin aside.

With --update, shards of another origin are given hidden names in the same folder. They are used until all shards are
made anew, and are then deleted. So the fields that were right stay in the folder, whatever is killed meanwhile.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from ..datasets.dataset import open_dataset
from ..datasets.partial import stale_partials
from ..datasets.probe import check_undamaged, undamaged
from ..datasets.shards import JOB_FILE, SPEC_FILE, Shard, missing_shards, shards_in
from ..errors import UsageError, WorkError
from ..files import holds, lock_path, written_whole
from ..provenance import Provenance, differences
from .kept_fields import says_all

LOCKED = "shards"  # what the lock in the folder is a lock of

_ASIDE = re.compile(r"\.before_\d+_\d+(_\d+)?\.h5")


@dataclass(frozen=True)
class FoundShards:
    """What is in a folder of shards.

    shards: those of the origin that is wanted, in order. others: the rest, each with what is wrong. aside: those
    moved aside earlier. partials: of workers that were killed. has_lock: a run is at work, or was
    killed.
    """

    folder: Path
    shards: tuple[Shard, ...] = ()
    others: Mapping[Shard, str] = field(default_factory=dict)
    aside: tuple[Path, ...] = ()
    partials: tuple[Path, ...] = ()
    has_lock: bool = False

    def missing(self, pairs: int) -> list[Shard]:
        """The shards that are left to be made."""
        return missing_shards(self.shards, pairs)

    def are_all(self, pairs: int) -> bool:
        """Whether all pairs are there, and nothing of another origin is."""
        return not self.others and not self.missing(pairs)

    @property
    def is_tidy(self) -> bool:
        """Whether no run is at work, and none was killed and left something to be removed."""
        return not (self.aside or self.partials or self.has_lock)

    def check(self) -> None:
        """Refuse shards of another origin."""
        for shard, wrong in self.others.items():
            raise UsageError(
                f"{self.folder / shard.name}: {wrong}; --update keeps the fields that are still right, "
                "or take another --temp_dir"
            )


def find_shards(folder: Path, made_of: Provenance, failed: str, update: bool) -> FoundShards:
    """What is in a folder, which need not be there. A shard that is damaged is a `UsageError`.

    failed: what the fields of pairs are on which the aligner fails. update: shards that are damaged, or in which a pair
    has failed, are among the others.
    """
    if not folder.exists():
        return FoundShards(folder)
    there = {path: shard for shard, path in shards_in(folder)}
    paths = list(there)
    if not update:
        check_undamaged(*paths)
    others = {there[path]: "damaged" for path in paths}
    shards = []
    for number in undamaged(paths) if update else range(len(paths)):
        shard = there[paths[number]]
        if wrong := _other_origin(paths[number], made_of, None if update else failed):
            others[shard] = wrong
        else:
            del others[shard]
            shards.append(shard)
    return FoundShards(
        folder,
        tuple(shards),
        others,
        aside=tuple(sorted(path for path in folder.iterdir() if _ASIDE.fullmatch(path.name))),
        partials=tuple(_partials(folder)),
        has_lock=lock_path(folder / LOCKED).exists(),
    )


def _partials(folder: Path) -> Iterable[Path]:
    """What killed workers have left. Where a folder may be worked on without its lock, others may be at theirs."""
    if (folder / JOB_FILE).exists():
        return stale_partials(folder)
    return folder.glob(".[0-9]*_[0-9]*.*.partial.h5")


def _other_origin(path: Path, made_of: Provenance, failed: str | None) -> str | None:
    """What else a shard was made with; None if that is nothing. failed: what it may hold of pairs that failed."""
    data = open_dataset(path)
    with closing(data.file) as file:
        found = json.loads(data.provenance)
        if found != made_of:
            return f"made with another {differences(made_of, found)}"
        if not says_all(file):
            return "made with another version of the toolkit"
        if file["failed"][:].any() and data.attributes.get("failed") != failed:
            return "made with another failed"
    return None


def has_spec(folder: Path, text: str | None) -> bool:
    """Whether the spec that belongs beside the shards in a folder is there; None where none does."""
    return text is None or holds(folder / SPEC_FILE, [text])


def put_spec(folder: Path, text: str | None) -> None:
    """Put the spec beside the shards in a folder, if one belongs there."""
    if text is not None and not has_spec(folder, text):
        with written_whole(folder / SPEC_FILE) as file:
            file.write(text)


def move_aside(folder: Path, shards: Iterable[Shard]) -> list[Path]:
    """Give shards hidden names that are free; returns the paths."""
    moved = []
    for shard in shards:
        moved.append(next(path for path in _hidden(folder, shard) if not path.exists()))
        try:
            os.rename(folder / shard.name, moved[-1])
        except OSError as error:
            raise WorkError(f"{folder / shard.name}: {error.strerror or error}") from error
    return moved


def _hidden(folder: Path, shard: Shard) -> Iterator[Path]:
    yield folder / f".before_{shard.first}_{shard.last}.h5"
    for number in count(1):
        yield folder / f".before_{shard.first}_{shard.last}_{number}.h5"
