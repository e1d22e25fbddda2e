"""How near to reference outputs a network of random weights can come.

Such networks amplify rounding a thousand times and more. On a processor of another kind than that
of the references sums are taken in another order, and the references' own rounding shows. How much
that is at most tells the same network in float64. It is allowed on every processor, as none says of
itself whether it is of that kind.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import numpy as np
import torch
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import nn

Module = TypeVar("Module", bound=nn.Module)
NEAR = 1e-4
# Two results in float32 lie apart by what both are off; the reference's part is not known.
SHARE = 3.0


def relative_error(found: torch.Tensor, expected: np.ndarray | torch.Tensor) -> float:
    """Of all elements together."""
    wanted = torch.as_tensor(expected).double()
    return float((found.double() - wanted).norm() / wanted.norm())


def exact(network: Module) -> Module:
    """A copy in float64; positions stay in float32, in which segment-anything computes them."""
    network = copy.deepcopy(network).double()
    for part in network.modules():
        if isinstance(part, PositionEmbeddingRandom):
            part.float()
    return network


def reach(found: torch.Tensor, in_float64: torch.Tensor) -> float:
    """Largest relative error to a reference in float32 that rounding explains."""
    return max(NEAR, SHARE * relative_error(found, in_float64))
