"""What is known of each box and of each pair, beside its image and its field.

Everything else derives from these two classes: the datasets that store the facts, the ranges that verify_dataset
checks, and what the tables after a run count.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

SOURCE, TARGET = 0, 1
ROLES = ("source", "target")

VOLUMES = ("image", "image.reference", "masks", "field", "field.reference")
"""The parts of a spec that name volumes."""


@dataclass(frozen=True)
class Stored:
    """How a fact is stored, and the lowest and highest that it may be. may_be_nan: where there is nothing to tell."""

    dtype: str
    shape: tuple[int, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    may_be_nan: bool = False

    def allows(self, values: np.ndarray) -> np.ndarray:
        """Which of some values it may have."""
        within = (values >= self.low) & (values <= self.high)
        return np.asarray(within | np.isnan(values) if self.may_be_nan else within)

    @property
    def wanted(self) -> str:
        """What it may be, for messages."""
        return f"{self.low} to {self.high}" + (", or NaN" if self.may_be_nan else "")


def _stored(dtype: str, shape: tuple[int, ...] = (), low: float = -math.inf, high: float = math.inf) -> Any:
    return field(metadata={"stored": Stored(dtype, shape, low, high)})


def _measured(low: float, high: float = math.inf) -> Any:
    return field(metadata={"stored": Stored("<f4", low=low, high=high, may_be_nan=True)})


def _flag() -> Any:
    return _stored("|u1", low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class BoxFacts:
    """What is known of a box; each fact is a dataset of its name, (N, 2, *shape), in an image file.

    translation: (x, y), by which the box was shifted, MIP-0 voxels. mean, std: what its image was normalised with.
    valid, masked, outside: fractions of its pixels that are neither black nor masked; masked; outside the volume.
    missing_chunks: chunks that the store did not have. chunks_by_volume, missing_by_volume: how many chunks were asked
    for in each of the `VOLUMES`, and how many of these the store did not have; a chunk that two of them share counts
    for the first. zero_variance: there was no variance, or no pixel, to normalise with. no_vector: there was no finite
    vector to take the translation from.
    """

    translation: tuple[int, int] = _stored("<i8", (2,))
    mean: float = _stored("<f4")
    std: float = _stored("<f4", low=0)
    valid: float = _stored("<f4", low=0, high=1)
    masked: float = _stored("<f4", low=0, high=1)
    outside: float = _stored("<f4", low=0, high=1)
    missing_chunks: int = _stored("<i4", low=0)
    chunks_by_volume: tuple[int, ...] = _stored("<i4", (len(VOLUMES),), low=0)
    missing_by_volume: tuple[int, ...] = _stored("<i4", (len(VOLUMES),), low=0)
    zero_variance: bool = _flag()
    no_vector: bool = _flag()

    def by_name(self) -> Mapping[str, Any]:
        """The facts by their names."""
        return vars(self)


@dataclass(frozen=True, kw_only=True)
class QualityFacts:
    """The numbers of a pair and its field, as `quality.PairQuality` explains them: datasets, (N,), in a field file."""

    correlation_before: float = _measured(-1, 1)
    correlation_after: float = _measured(-1, 1)
    cpc_median_before: float = _measured(-1, 1)
    cpc_low_before: float = _measured(-1, 1)
    cpc_median_after: float = _measured(-1, 1)
    cpc_low_after: float = _measured(-1, 1)
    displacement_median: float = _measured(0)
    displacement_max: float = _measured(0)
    folded: float = _measured(0, 1)
    roughness: float = _measured(0)


@dataclass(frozen=True, kw_only=True)
class PairFacts(QualityFacts):
    """What is known of a pair's field; each fact is a dataset of its name, (N,), in a field file.

    not_run: an image of the pair is all 0, so that its field is the prior. failed: the aligner failed, so that the
    field is none of its own. nonfinite: vectors that are not finite.
    """

    not_run: bool = _flag()
    failed: bool = _flag()
    nonfinite: int = _stored("<i8", low=0)


BOX_FACTS: Mapping[str, Stored] = {each.name: each.metadata["stored"] for each in fields(BoxFacts)}
QUALITY_FACTS: Mapping[str, Stored] = {each.name: each.metadata["stored"] for each in fields(QualityFacts)}
PAIR_FACTS: Mapping[str, Stored] = {each.name: each.metadata["stored"] for each in fields(PairFacts)}

FIELD_FILE_FACTS = ("translation", "no_vector")  # of a box's facts those that its field shows


def stacked(facts: Sequence[Any], names: Iterable[str] = PAIR_FACTS) -> dict[str, np.ndarray]:
    """The datasets that hold some facts of pairs, by their names; facts: of each pair an object that has them."""
    return {name: np.array([getattr(each, name) for each in facts], PAIR_FACTS[name].dtype) for name in names}
