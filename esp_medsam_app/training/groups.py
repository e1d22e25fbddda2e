"""What learns, and at which rate: groups of parameters for the optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.networks.tiny_vit import TinyViT
from esp_medsam_app.training.recipe import Recipe

# The tokens' logits start far below those of the image; their gradient is as small.
TOKEN_BIAS_RATE = 20.0

Groups = list[dict[str, Any]]


def query_groups(network: EspMedSam, names: Sequence[str], rate: float) -> Groups:
    """Queries and hyper-network MLPs of some modalities."""
    # shared queries are those of every modality: each parameter once
    parameters = dict.fromkeys(p for name in names for p in network.queries[name].parameters())
    return [{"params": list(parameters), "lr": rate}]


def shared_groups(network: EspMedSam, recipe: Recipe, rate: float) -> Groups:
    """QDMD, at this rate, and SPPG, at one that is higher as its start is fresh."""
    groups = [{"params": list(network.decoder.parameters()), "lr": rate}]
    if network.design.patch_prompt:
        fresh = recipe.fresh_rate * rate / recipe.decoder_rate
        groups.append({"params": list(network.patch_prompt_generator.parameters()), "lr": fresh})
    return groups


def controller_groups(network: EspMedSam, names: Sequence[str], rate: float) -> Groups:
    """Controllers of some modalities; none where the design has none."""
    controllers = [c for name in names if (c := network.controller(name)) is not None]
    named = [item for controller in controllers for item in controller.named_parameters()]
    biases = [parameter for name, parameter in named if name.endswith("token_bias")]
    others = [parameter for name, parameter in named if not name.endswith("token_bias")]
    if not named:
        return []
    return [
        {"params": others, "lr": rate},
        {"params": biases, "lr": rate * TOKEN_BIAS_RATE, "weight_decay": 0.0},
    ]


def encoder_groups(network: EspMedSam, recipe: Recipe) -> Groups:
    """The encoder from the cached stage on; of a SAM teacher what it says it learns."""
    encoder: nn.Module = network.encoder
    if isinstance(encoder, TinyViT):
        parts = [*encoder.layers[recipe.cached_stage :], encoder.neck]
        if not recipe.cached_stage:
            parts.append(encoder.patch_embed)
        parameters = [p for part in parts for p in part.parameters()]
    else:
        trainable = encoder.trainable
        assert callable(trainable)
        parameters = list(trainable())
    return [{"params": parameters, "lr": recipe.encoder_rate}]
