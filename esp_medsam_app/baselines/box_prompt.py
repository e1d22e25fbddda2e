"""LiteMedSAM as it was released: a mask for each box.

The checkpoint that lends ESP-MedSAM its backbone is a whole model, whose other half (SAM's prompt
encoder and mask decoder) wants a box from a person. Two boxes are tried: that of the reference,
which no one has before the work is done (an oracle), and the whole image, which anyone has.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.inference.device import autocast, choose_device
from esp_medsam_app.inference.preprocessing import IntensityScale, Tiling, decide
from esp_medsam_app.inference.slicewise import batch_size_for
from esp_medsam_app.modalities import Modality, Tiles
from esp_medsam_app.networks.tiny_vit import EMBEDDING_CHANNELS, TinyViT
from esp_medsam_app.weights.backbones import LITE_MEDSAM, Backbone
from esp_medsam_app.weights.integrity import check_sha256, load_strictly, read_checkpoint

# Boxes in one pass of the decoder; each holds several copies of the embedding (4 MB).
BOXES_AT_ONCE = 16
# Logit of a label that no box was drawn for.
NOTHING = -1e4
# Pixels that touch at a corner belong together.
NEIGHBOURS = np.ones((3, 3))


class LiteMedSam(nn.Module):
    """Encoder, prompt encoder and mask decoder under their names in the released checkpoint.

    Args:
        backbone: whose whole checkpoint it is.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        side = backbone.input_size
        # side of the embedding: 64 at 256 pixels
        embedding = side // (4 * backbone.stem_stride)
        self.image_encoder = TinyViT(backbone.stem_stride)
        self.prompt_encoder = PromptEncoder(
            embed_dim=EMBEDDING_CHANNELS,
            image_embedding_size=(embedding, embedding),
            input_image_size=(side, side),
            mask_in_chans=16,
        )
        self.mask_decoder = MaskDecoder(
            transformer_dim=EMBEDDING_CHANNELS,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=EMBEDDING_CHANNELS, num_heads=8, mlp_dim=2048
            ),
        )

    def forward(self, embedding: Tensor, boxes: Tensor) -> Tensor:
        """Mask logits `[N, 4 E, 4 E]` of boxes `[N, 4]` in one image's embedding `[1, 256, E, E]`.

        A box is the column and row of its first pixel, then of its last, in the input's frame.
        """
        with torch.autocast(embedding.device.type, enabled=False):
            # the code of a place turns many times across the image: not in bfloat16
            sparse, dense = self.prompt_encoder(points=None, boxes=boxes, masks=None)
            position = self.prompt_encoder.get_dense_pe()
        logits, _ = self.mask_decoder(
            image_embeddings=embedding,
            image_pe=position,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return logits[:, 0]


def load_lite_medsam(backbone: Backbone = LITE_MEDSAM) -> LiteMedSam:
    """The released model in evaluation mode, after its file was verified.

    Raises:
        WeightsError: missing, damaged or unfit file.
    """
    path = backbone.path()
    check_sha256(path, backbone.sha256)
    model = LiteMedSam(backbone)
    load_strictly(model, read_checkpoint(path), path)
    return model.eval().requires_grad_(False)


class BoxPromptedSegmenter:
    """Segments slices with LiteMedSAM and boxes that are not drawn by a person.

    A slice is scaled in intensity by the modality's rule, then in size to a longest side of 256,
    then once more in intensity from its minimum to its maximum, and padded at the right and below,
    as LiteMedSAM was trained. Masks of the same label are united; where masks of different labels
    overlap, the larger logit decides.

    Args:
        modality: labels and intensity rule.
        device: `auto`, `cpu`, `cuda`, ...
        batch_size: slices in one pass of the encoder; chosen by the device by default.
        backbone: LiteMedSAM.

    Raises:
        WeightsError: missing, damaged or unfit weights.
        InputError: there is no such device.
    """

    def __init__(
        self,
        modality: Modality,
        *,
        device: str = "auto",
        batch_size: int | None = None,
        backbone: Backbone = LITE_MEDSAM,
    ) -> None:
        self.modality = modality
        self.device = choose_device(device)
        self.batch_size = batch_size or batch_size_for(self.device)
        self.side = backbone.input_size
        self.model = load_lite_medsam(backbone).to(self.device)

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def segment_boxed(
        self, image: MedicalImage, reference: NDArray[np.generic]
    ) -> NDArray[np.uint8]:
        """Label map from the tight boxes of a reference label map, one for each connected part.

        What the reference does not hold in a slice stays empty there.

        Args:
            image: picture or volume.
            reference: label map of the image's shape.

        Raises:
            InputError: nothing to segment in the image.
        """
        truth = SliceView.of(image.grid).slices(reference)
        values = list(self.modality.labels.values())
        return self._segment(image, lambda index, tiling: label_boxes(truth[index], values, tiling))

    def segment_whole(self, image: MedicalImage) -> NDArray[np.uint8]:
        """Label map from a box around each whole slice.

        Such a box says nothing of labels: what is found is called the modality's first.

        Raises:
            InputError: nothing to segment in the image.
        """

        def whole(index: int, tiling: Tiling) -> tuple[Tensor, Tensor]:
            height, width = tiling.canvas
            return torch.tensor([[0.0, 0.0, width - 1, height - 1]]), torch.zeros(1).long()

        return self._segment(image, whole)

    def _segment(
        self, image: MedicalImage, prompt: Callable[[int, Tiling], tuple[Tensor, Tensor]]
    ) -> NDArray[np.uint8]:
        view = SliceView.of(image.grid)
        slices = view.slices(image.voxels)
        count, height, width = slices.shape[:3]
        tiling = Tiling(height, width, self.side, Tiles())
        scale = IntensityScale.of(image.voxels, self.modality.intensity)
        labels = np.zeros((count, height, width), np.uint8)
        prompts = {index: prompt(index, tiling) for index in range(count)}
        prompted = iter(index for index, (boxes, _) in prompts.items() if len(boxes))
        while chosen := list(islice(prompted, self.batch_size)):
            tiles = [
                tiling.cut(_stretched(tiling.scale(scale.apply(slices[i : i + 1]))), (0, 0))
                for i in chosen
            ]
            embeddings = self._embed(torch.cat(tiles))
            for index, embedding in zip(chosen, embeddings.split(1), strict=True):
                logits = self._logits(embedding, *prompts[index])
                labels[index] = decide(tiling.join(logits.unsqueeze(0))).cpu().numpy()
        return np.ascontiguousarray(view.restore(labels))

    @torch.inference_mode()
    def _embed(self, tiles: Tensor) -> Tensor:
        with autocast(self.device):
            return self.model.image_encoder(tiles.to(self.device)).float()

    @torch.inference_mode()
    def _logits(self, embedding: Tensor, boxes: Tensor, owners: Tensor) -> Tensor:
        """`[labels, S, S]` of one slice's embedding: the largest logit of each label's boxes."""
        with autocast(self.device):
            parts = boxes.to(self.device).split(BOXES_AT_ONCE)
            masks = torch.cat([self.model(embedding, part).float() for part in parts])
        logits = masks.new_full((len(self.modality.labels), *masks.shape[-2:]), NOTHING)
        for label in owners.unique().tolist():
            logits[label] = masks[owners.to(masks.device) == label].amax(dim=0)
        return logits


def label_boxes(
    truth: NDArray[np.generic], values: list[int], tiling: Tiling
) -> tuple[Tensor, Tensor]:
    """The tight boxes of the labels of a slice, one for each connected part of a label.

    Args:
        truth: label map `[H, W]`.
        values: of the labels.
        tiling: from the slice to the network's frame.

    Returns:
        Boxes `[N, 4]` in the network's frame (first column and row, last column and row), and
        which of `values` each belongs to, by its place there, `[N]`.
    """
    down, right = (c / e for c, e in zip(tiling.canvas, truth.shape, strict=True))
    boxes: list[list[float]] = []
    owners: list[int] = []
    for place, value in enumerate(values):
        parts, _ = ndimage.label(truth == value, NEIGHBOURS)
        for rows, columns in ndimage.find_objects(parts):
            # the edges of the outermost pixels, wherever they come to lie on the network's grid
            boxes.append(
                [
                    columns.start * right,
                    rows.start * down,
                    columns.stop * right - 1,
                    rows.stop * down - 1,
                ]
            )
            owners.append(place)
    return torch.tensor(boxes).reshape(-1, 4), torch.tensor(owners, dtype=torch.long)


def _stretched(canvas: Tensor) -> Tensor:
    """A slice from its own minimum and maximum to 0 and 1; one of a single value becomes 0."""
    low, high = canvas.amin(), canvas.amax()
    return (canvas - low) / (high - low).clamp(min=1e-8)
