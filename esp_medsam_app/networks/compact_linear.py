"""A linear layer that is kept small while it is not used."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class CompactLinear(nn.Module):
    """A linear layer for inference, its weight held in 8 bits: steps of a scale of each row.

    Args:
        steps: int8 `[out, in]`.
        scale: `[out, 1]`; the weight is their product, in float32.
        bias: `[out]`.
    """

    scale: Tensor

    def __init__(self, steps: Tensor, scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.steps = nn.Parameter(steps, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """`[out, in]`, made anew each time."""
        return self.steps.float() * self.scale.float()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)
