"""What the kinds of aligners share: how a model is called, and how it is placed on a device."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from ..errors import WorkError

SOURCE, TARGET, PRIOR = "src_img", "tgt_img", "src_agg_field"
FLAGS = ("train", "return_state")
"""Keywords by which metroem's models are told to train, and to return more than the field: always False here."""


class Model(Protocol):
    """A loaded model, whatever it was loaded from."""

    def __call__(self, source: torch.Tensor, target: torch.Tensor, prior: torch.Tensor | None) -> Any:
        """What the model returns for images (1, 1, X, Y) and a prior (1, 2, X, Y), float32 on the model's device."""


def placed(model: Any, device: torch.device) -> Callable[..., Any]:
    """A model that runs on a device and does not train, or a function as it is; `WorkError` if it cannot be called."""
    if isinstance(model, torch.nn.Module):
        # Not torch.no_grad() around the call: some modules finetune a field of their own by gradients as they run.
        # Weights that want no gradient keep the pass itself as cheap.
        for weights in model.parameters():
            weights.requires_grad_(False)
        return _evaluating(model.to(device))
    if not callable(model):
        raise WorkError(f"create returned {type(model).__name__}: want a model that can be called")
    placed: Callable[..., Any] = model
    return placed


def _evaluating(model: torch.nn.Module) -> torch.nn.Module:
    parts = list(model.modules())
    if all(callable(part.train) for part in parts):
        return model.eval()
    # metroem's Aligner has a flag of its own named `train`, where torch wants the method by which eval() works.
    for part in parts:
        part.training = False
    return model
