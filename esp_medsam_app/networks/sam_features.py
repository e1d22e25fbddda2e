"""SAM's ViT as an encoder that shows what is inside it."""

from __future__ import annotations

from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from esp_medsam_app.networks.features import Features, InnerMap


class SamFeatures(nn.Module):
    """A ViT of segment-anything with its maps after the blocks of global attention.

    Those blocks are four, of which the last is followed by the neck at once: the maps are the
    outputs of the first three (blocks 2, 5, 8 of ViT-B; 5, 11, 17 of ViT-L; 7, 15, 23 of ViT-H).

    Args:
        vit: frozen on construction.
        prepare: applied to the image first (`networks.sam_teacher.SamInput`).

    Raises:
        ValueError: a ViT of which not four blocks attend globally.
    """

    def __init__(self, vit: ImageEncoderViT, prepare: nn.Module | None = None) -> None:
        super().__init__()
        self.vit = vit.requires_grad_(False)
        self.prepare = prepare
        # index of each block that attends to the whole grid
        self.shown = [i for i, block in enumerate(vit.blocks) if block.window_size == 0][:-1]
        if len(self.shown) != 3:
            raise ValueError(f"{len(self.shown) + 1} blocks of the ViT attend globally, not four")

    @property
    def inner_maps(self) -> tuple[InnerMap, InnerMap, InnerMap]:
        """Shapes of the inner maps: all on the embedding's grid."""
        width = InnerMap(self.vit.neck[0].in_channels)
        return (width, width, width)

    def features(self, image: Tensor) -> Features:
        """Of images `[B, 3, S, S]`: in [0, 1] with `prepare`, else as the ViT wants them."""
        x = self.vit.patch_embed(self.prepare(image) if self.prepare is not None else image)
        if self.vit.pos_embed is not None:
            x = x + self.vit.pos_embed
        inner = []
        for index, block in enumerate(self.vit.blocks):
            x = block(x)
            if index in self.shown:
                inner.append(x.permute(0, 3, 1, 2))
        shallow, middle, deep = inner
        return Features((shallow, middle, deep), self.vit.neck(x.permute(0, 3, 1, 2)))

    def forward(self, image: Tensor) -> Tensor:
        """The embedding alone."""
        return self.features(image).embedding
