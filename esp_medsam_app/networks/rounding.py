"""Weights in 16 bits whose rounding cancels in the mean.

Each weight rounded to its nearest shifts what a layer gives by the sum of the roundings, weighed by
its inputs' means: the same for every pixel, so that it does not average out. Weights near the
middle of two numbers can be rounded to either; a few are rounded the other way so that the shift
vanishes. The means come from batch norm, which standardises each channel to known mean and
variance, as in data-free quantisation (arXiv 1906.04721, section 4.2, which corrects the bias
instead; in 16 bits that is rounded too).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Weights of an output that are rounded the other way at most.
TURNED = 3
# Where the normal distribution is looked at, in standard deviations.
_NODES = torch.linspace(-6, 6, 241, dtype=torch.float64)


class Moments(NamedTuple):
    """Mean and variance of each channel, `[C]` in float64; taken for normally distributed."""

    mean: Tensor
    variance: Tensor

    @classmethod
    def behind(cls, norm: nn.BatchNorm2d) -> Moments:
        """Of what a batch norm gives, on what it was trained on."""
        return cls(norm.bias.detach().double(), norm.weight.detach().double().square())

    def plus(self, other: Moments) -> Moments:
        """Of a sum, the two being independent."""
        return Moments(self.mean + other.mean, self.variance + other.variance)

    def gelu(self) -> Moments:
        """Behind GELU, by the trapezoidal rule."""
        nodes = _NODES.to(self.mean.device)
        weights = (-nodes.square() / 2).softmax(0)
        values = F.gelu(self.mean[:, None] + self.variance.sqrt()[:, None] * nodes)
        mean = values @ weights
        return Moments(mean, (values - mean[:, None]).square() @ weights)


def rounded(
    weight: Tensor, bias: Tensor, mean: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Weight and bias in a type of fewer bits.

    Args:
        weight: `[out, ...]`; what an output takes is flattened.
        bias: `[out]`.
        mean: of each input, of the shape that one output's weights have, or `[out, ...]` where
            outputs take different inputs; none if it is not known, then all go to the nearest.
        dtype: of the result.

    Returns:
        The weight, each element one of the two numbers beside it, and the bias, nearest.
    """
    nearest, nearest_bias = weight.to(dtype), bias.to(dtype)
    if mean is None or dtype in (torch.float32, torch.float64):
        return nearest, nearest_bias
    exact = weight.double().flatten(1)
    inputs = mean.double().expand(weight.shape).flatten(1)
    chosen = nearest.double().flatten(1)
    # The mirror image of the rounding, rounded: the number on the other side, or for a weight that
    # lies close to its nearest that one again.
    other = (2 * exact - chosen).to(dtype).double()
    shift = ((chosen - exact) * inputs).sum(1) + nearest_bias.double() - bias.double()
    change = (other - chosen) * inputs
    rows = torch.arange(len(exact), device=exact.device)
    for _ in range(TURNED):
        left, index = (shift[:, None] + change).abs().min(1)
        better = left < shift.abs()
        turned, column = rows[better], index[better]
        chosen[turned, column] = other[turned, column]
        shift[turned] += change[turned, column]
        # not turned back
        change[turned, column] = 0
    return chosen.to(dtype).view(weight.shape), nearest_bias
