"""SPPG: the self-patch prompt generator, which makes the dense prompt from the image itself."""

from __future__ import annotations

import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn


class PatchPromptGenerator(nn.Module):
    """Predicts which patches hold the structure and turns that map into a dense prompt.

    ESP-MedSAM, figure of the method: a patch is 2 x 2 places of the image embedding (32 x 32
    pixels of a 1024 image, 8 x 8 of a 256 image behind the 1x1 stem). The map is thresholded and
    detached before it becomes a prompt, as in the authors' code: the patch loss alone trains it.
    """

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        self.patch_decoder = nn.Sequential(
            nn.Conv2d(channels, channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.Conv2d(channels // 4, 1, kernel_size=1),
        )
        self.dense_prompter = nn.Sequential(
            nn.Conv2d(1, channels, kernel_size=1), LayerNorm2d(channels), nn.GELU()
        )

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """From an embedding `[B, 256, E, E]`, E even.

        Returns:
            The dense prompt `[B, 256, E, E]` and the patch logits `[B, 1, E/2, E/2]`.
        """
        patch_logits = self.patch_decoder(embedding)
        # sigmoid(x) >= 0.5
        patches = (patch_logits.detach() >= 0).to(embedding.dtype)
        patches = F.interpolate(patches, scale_factor=2, mode="nearest")
        return self.dense_prompter(patches), patch_logits
