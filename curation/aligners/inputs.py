"""The inputs of exported models: what each is for, which sizes it takes, and what is given to it.

Inputs are told by their names, `src_img`, `tgt_img` and `src_agg_field`, or else by their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError
from .models import FLAGS, PRIOR, SOURCE, TARGET

ROLES = (SOURCE, TARGET, PRIOR, *FLAGS)


def roles_of(path: Path, names: Sequence[str]) -> list[str]:
    """What each input of a model is for: what its name says, or else the source, the target and the prior in order.

    Inputs that cannot be told are a `UsageError`.
    """
    roles = list(names)
    if not {SOURCE, TARGET} <= set(names):
        roles[:2] = [name if name in ROLES else role for name, role in zip(names, (SOURCE, TARGET), strict=False)]
    if len(roles) > 2 and roles[2] not in ROLES and PRIOR not in roles:
        roles[2] = PRIOR
    if not {SOURCE, TARGET} <= set(roles) <= set(ROLES) or len(set(roles)) < len(roles):
        raise UsageError(
            f"{path}: takes {', '.join(names) or 'no input'}: want {SOURCE}, {TARGET} and {PRIOR}, or two or three "
            "inputs of other names in this order"
        )
    return roles


def values_of(
    source: torch.Tensor, target: torch.Tensor, prior: torch.Tensor | None, zeros: bool = True
) -> dict[str, Any]:
    """What inputs are given, by role. zeros: whether zeros take the place of a prior where there is none."""
    if prior is None and zeros:
        prior = torch.zeros(1, 2, *source.shape[2:], device=source.device)
    return {SOURCE: source, TARGET: target, PRIOR: prior, **dict.fromkeys(FLAGS, False)}


@dataclass(frozen=True)
class Axis:
    """The sizes that an input takes along one axis: the multiples of `step` from `first` to `last`, or without end."""

    first: int = 0
    last: int | None = None
    step: int = 1

    def takes(self, size: int) -> bool:
        """Whether a size is taken."""
        return self.first <= size and (self.last is None or size <= self.last) and size % self.step == 0

    def __str__(self) -> str:
        if self.first == self.last:
            return str(self.first)
        multiple = "" if self.step == 1 else f"a multiple of {self.step}, "
        return f"({multiple}{self.first} or more)" if self.last is None else f"({multiple}{self.first} to {self.last})"


@dataclass(frozen=True)
class Input:
    """An input of a model: its name in the file, its role, its type there, and its axes; () if nothing is known."""

    name: str
    role: str
    dtype: Any
    axes: tuple[Axis, ...]

    def check(self, path: Path, shape: Sequence[int]) -> None:
        """A `UsageError` if it does not take a tensor of this shape."""
        if not self.axes:
            return
        if len(self.axes) == len(shape) and all(a.takes(size) for a, size in zip(self.axes, shape, strict=True)):
            return
        wanted, given = (" x ".join(map(str, sizes)) for sizes in (self.axes, shape))
        raise UsageError(
            f"{path}: takes {self.name} of {wanted}, and here it is {given}: export the model with sizes that may "
            "vary, or use boxes of a size that it takes"
        )


def in_a_line(error: BaseException) -> str:
    """What an error says, in one line that is not too long."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 300 else f"{said[:300]}..."
