"""What belongs to one modality alone, as a module that learns by itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from esp_medsam_app.inference.device import autocast
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.networks.tiny_vit import DEPTHS
from esp_medsam_app.training.groups import controller_groups, query_groups
from esp_medsam_app.training.inputs import embed_from, placed
from esp_medsam_app.training.losses import SegmentationLoss
from esp_medsam_app.training.recipe import Recipe


class Decoded(NamedTuple):
    """What a modality gives for a batch.

    Attributes:
        masks: logits `[B, labels, S, S]`.
        patches: SPPG's logits `[B, 1, P, P]`; none where the design leaves SPPG out.
    """

    masks: Tensor
    patches: Tensor | None


class ModalityLearner(nn.Module):
    """A modality's controller and queries on a frozen network.

    Its parameters and its state are those of the modality alone: whatever trains, saves or shares
    it between processes cannot touch what other modalities use.

    Args:
        network: it has the modality. Everything in it is frozen.
        modality: a name.
        stage: encoder stage whose input `forward` expects, 1 to 3.
        device: where to compute. The network is moved there.
    """

    def __init__(self, network: EspMedSam, modality: str, stage: int, device: torch.device) -> None:
        super().__init__()
        network.to(device).eval().requires_grad_(False)
        controller = network.controller(modality)
        if controller is not None:
            self.controller = controller
        self.queries = network.queries[modality]
        # in a tuple: no child module, so neither saved nor trained with this one
        self._frozen = (network,)
        self.modality = modality
        self.stage = stage
        self.device = device

    @property
    def network(self) -> EspMedSam:
        """The whole network, the modality's parts in it being these."""
        return self._frozen[0]

    def groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """Parameter groups for AdamW; from now on these parameters need gradients."""
        names = [self.modality]
        groups = query_groups(self.network, names, recipe.joint_decoder_rate)
        groups += controller_groups(self.network, names, recipe.controller_rate)
        # what stands before the cached stage has acted already
        idle = {id(parameter) for parameter in self._before_the_stage()}
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in idle]
            for parameter in group["params"]:
                parameter.requires_grad_(True)
        return groups

    def _before_the_stage(self) -> list[nn.Parameter]:
        controller = self.network.controller(self.modality)
        if controller is None:
            return []
        blocks = list(controller.blocks)[: sum(DEPTHS[1 : self.stage])]
        return [parameter for block in blocks for parameter in block.parameters()]

    def train(self, mode: bool = True) -> ModalityLearner:
        """Batch norm keeps its statistics, also while its neighbours learn."""
        del mode
        return super().train(False)

    def forward(self, features: Tensor) -> Decoded:
        """From the features that enter the stage `[B, C, h, w]` to logits."""
        features = placed(features, self.device)
        with autocast(self.device):
            embedding = embed_from(self.network, features, self.stage, self.modality)
            masks, patches = self.network.decode(embedding, self.modality)
        return Decoded(masks.float(), None if patches is None else patches.float())


class LearnerLoss(nn.Module):
    """The training loss of `SegmentationLoss` as MONAI's engines call it."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.loss = SegmentationLoss(recipe.patch_weight, recipe.pixel_loss)

    def forward(self, decoded: Decoded, labels: Tensor) -> Tensor:
        """The total, a scalar.

        Args:
            decoded: of a batch.
            labels: label maps `[B, S, S]`.
        """
        total: Tensor = self.loss(decoded.masks, decoded.patches, labels).total
        return total
