"""Large matrices in a quarter of their size: 8-bit integers with a scale for each row.

The experts are nearly all of a controller. Rounded to 255 steps of their row's largest weight they
change a mask no more than bfloat16 arithmetic does, and a modality costs 3 MB instead of 6.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from esp_medsam_app.networks.compact_linear import CompactLinear
from esp_medsam_app.networks.modality_controller import BlockController

STEPS = 127
SCALE = ".scale"


def compact(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix `[rows, columns]` as int8 and a bfloat16 scale `[rows, 1]`.

    Eight bits of the scale suffice, and make this idempotent: compacting what was restored gives
    the same bits, so that a modality which is only copied stays as it is.
    """
    scale = (matrix.float().abs().amax(dim=1, keepdim=True) / STEPS).to(torch.bfloat16)
    divisor = torch.where(scale == 0, 1, scale.float())
    steps = (matrix.float() / divisor).round().clamp(-STEPS, STEPS)
    return steps.to(torch.int8), scale


def restore(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a file in float32, those that were compacted among them."""
    restored = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in tensors:
            continue
        scale = tensors.get(name + SCALE)
        restored[name] = tensor.float() if scale is None else tensor.float() * scale.float()
    return restored


def compact_in_memory(network: nn.Module) -> None:
    """Hold the experts of a network for inference as their files do, bit by bit the same weights.

    Layers that no file of ours holds so, such as just trained ones, stay as they are.
    """
    experts = [part.expert for part in network.modules() if isinstance(part, BlockController)]
    for expert in experts:
        for name, layer in list(expert.named_children()):
            if not isinstance(layer, nn.Linear):
                continue
            steps, scale = compact(layer.weight.detach())
            if torch.equal(steps.float() * scale.float(), layer.weight):
                held = CompactLinear(steps, scale, layer.bias.detach()).train(layer.training)
                setattr(expert, name, held)
