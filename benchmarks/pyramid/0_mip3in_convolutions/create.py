"""A module that takes as long as a small network does, on one thread: what generate_fields must not make longer."""

from itertools import pairwise

import torch


class Convolutions(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = [2, 16, 16, 16, 2]
        pairs = pairwise(widths)
        self.layers = torch.nn.ModuleList(torch.nn.Conv2d(wide, out, 7, padding=3) for wide, out in pairs)

    def forward(self, src_img: torch.Tensor, tgt_img: torch.Tensor) -> torch.Tensor:
        field = torch.cat([src_img, tgt_img], dim=1)
        for layer in self.layers:
            field = torch.tanh(layer(field))
        return field


def create() -> Convolutions:
    return Convolutions()
