"""What one pass over an image tells beside its masks: how sure the network is, and what it saw.

For active learning. Nothing here needs a second pass, dropout or an ensemble: ESP-MedSAM looks for
the structure twice, coarsely (SPPG's patches) and finely (QDMD's masks), and where the two do not
agree one of them is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.inference.preprocessing import IntensityScale, Tiling
from esp_medsam_app.inference.slicewise import Passes, by_slice, naming_errors
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import Segmentation

# Slices of a volume that are looked at by default, evenly spread: bounds the time.
MOST_SLICES = 24
# Below this probability a pixel or patch counts as empty. Else the faint haze over a large
# background would outweigh a small structure.
FAINT = 0.1
# The share of a volume's slices, the least certain ones, that stand for it.
TOP = 0.25

# A logit whose probability is next to nothing.
_SURELY_NOT = -30.0
# An 8 x 8 patch of SPPG, in pixels.
_LEAST_PIXELS = 64

Look = Callable[[Tensor], Segmentation]
BeforePass = Callable[[], None]


@dataclass(frozen=True, eq=False)
class Assessment:
    """How sure the network is of its masks of an image, and the image as a vector.

    Attributes:
        uncertainty: the mean of the two below, 0 (sure) to 1; entropy alone where the network has
            no SPPG.
        disagreement: of SPPG's patches with QDMD's masks, 0 to 1; see `disagreement_sums`.
        entropy: of the mask probabilities where there is anything, 0 to 1; see `entropy_sums`.
        embedding: float32 `[256]`, the image embedding's mean over the image; of use for distances
            between images under the same weights.
        slices: how many were looked at.
    """

    uncertainty: float
    disagreement: float
    entropy: float
    embedding: NDArray[np.float32]
    slices: int


def assess_slicewise(
    image: MedicalImage,
    modality: Modality,
    look: Look,
    *,
    tile: int,
    device: torch.device,
    batch_size: int,
    most_slices: int = MOST_SLICES,
    before_pass: BeforePass | None = None,
) -> Assessment:
    """Assess an image, slice by slice along its acquisition axis.

    A volume's uncertainty, disagreement and entropy are means over its least certain quarter of
    slices: most slices of a volume show nothing to be unsure of, and would drown the few that do.

    Args:
        image: picture or volume.
        modality: its intensity rule and tiles.
        look: the network, from tiles `[B, 3, tile, tile]` on the CPU, in [0, 1].
        tile: side of the network's input, pixels.
        device: where `look` computes.
        batch_size: tiles in one pass. Halved, down to 1, when memory does not suffice.
        most_slices: of a volume with more, so many are looked at, evenly spread.
        before_pass: called before each pass. What it raises ends the work.

    Raises:
        InputError: nothing to see: voxels that are all equal or not finite, or slices of fewer
            than 8 pixels.
        OutOfMemoryError: not even one tile at a time fits into memory.
    """
    with naming_errors(image):
        slices = SliceView.of(image.grid).slices(image.voxels)
        tiling = Tiling(slices.shape[1], slices.shape[2], tile, modality.tiles)
        scale = IntensityScale.of(image.voxels, modality.intensity)
        chosen = slices[_spread(len(slices), most_slices)]
        # no tile is padded where another is not
        shown = (min(tile, tiling.canvas[0]), min(tile, tiling.canvas[1]))

        def run(tiles: Tensor) -> Tensor:
            if before_pass is not None:
                before_pass()
            return sums(look(tiles), shown).cpu()

        passes = Passes(run, device, batch_size, image)
        found = [
            torch.stack(of_tiles).sum(dim=0) for of_tiles in by_slice(passes, chosen, scale, tiling)
        ]
        return _assessment(found, len(modality.labels))


def nothing_found(embedding: Tensor, labels: int) -> Segmentation:
    """What a modality that was never trained says of tiles `[B, C, E, E]`: there is nothing."""
    side = 4 * embedding.shape[-1]
    masks = embedding.new_full((len(embedding), labels, side, side), _SURELY_NOT)
    return Segmentation(masks, None, embedding)


def sums(segmentation: Segmentation, shown: tuple[int, int]) -> Tensor:
    """All that is needed of a batch of tiles, to be added up over the tiles of a slice.

    Args:
        segmentation: what the network gives for the tiles.
        shown: rows and columns of a tile that are image; what lies beyond is padding.

    Returns:
        `[B, 2 Q + 3 + 1 + C]` float32: `entropy_sums`, `disagreement_sums` (zeros without SPPG),
        the embedding's places and their sum.
    """
    masks = segmentation.mask_logits.float()
    side = masks.shape[-1]
    masks = _cropped(masks, shown, side)
    if segmentation.patch_logits is None:
        disagreement = masks.new_zeros(len(masks), 3)
    else:
        patches = _cropped(segmentation.patch_logits.float(), shown, side)
        disagreement = disagreement_sums(
            patches, masks, side // segmentation.patch_logits.shape[-1]
        )
    embedding = _cropped(segmentation.image_embedding.float(), shown, side)
    places = embedding.new_full((len(embedding), 1), embedding[0, 0].numel())
    return torch.cat([entropy_sums(masks), disagreement, places, embedding.sum(dim=(2, 3))], dim=1)


def entropy_sums(mask_logits: Tensor) -> Tensor:
    """Binary entropy of each label's probabilities, where there may be something of it.

    That is where the probability is above `FAINT`: the structure and the doubtful band around it.
    A mean over the whole image would be a measure of the structure's size, since the background,
    most of it, is certain.

    Args:
        mask_logits: `[B, Q, H, W]`.

    Returns:
        `[B, 2 Q]`: for each label the entropy there (bits), then for each the pixels.
    """
    probability = mask_logits.sigmoid()
    # log2 of the probabilities from the logits, so that none is the logarithm of 0
    bits = F.softplus(mask_logits) - mask_logits * probability
    there = probability > FAINT
    entropy = (bits * there).sum(dim=(2, 3)) / np.log(2)
    return torch.cat([entropy, there.sum(dim=(2, 3))], dim=1)


def disagreement_sums(patch_logits: Tensor, mask_logits: Tensor, patch: int) -> Tensor:
    """How far SPPG's patches are from the masks, on the patches where either sees something.

    SPPG was trained on the label map, all labels in one, max-pooled to patches; so are the masks
    here. Of the two maps p and m of probabilities, the sums of |p - m| and max(p, m) give the
    distance 1 - sum min / sum max, a soft 1 - IoU that is 0 only for maps that are equal.

    Args:
        patch_logits: `[B, 1, h, w]`.
        mask_logits: `[B, Q, H, W]`; the last patches may be cut off by the padding.
        patch: side of a patch, pixels of the masks.

    Returns:
        `[B, 3]`: the two sums, and 1 where there is SPPG.
    """
    pooled = F.max_pool2d(mask_logits.amax(dim=1, keepdim=True), patch, ceil_mode=True)
    coarse, fine = patch_logits.sigmoid(), pooled.sigmoid()
    larger = torch.maximum(coarse, fine)
    seen = larger > FAINT
    apart = ((coarse - fine).abs() * seen).sum(dim=(1, 2, 3))
    whole = (larger * seen).sum(dim=(1, 2, 3))
    return torch.stack([apart, whole, torch.ones_like(whole)], dim=1)


def _assessment(slices: Sequence[Tensor], labels: int) -> Assessment:
    """From the sums of each slice, `[2 Q + 3 + 1 + C]`."""
    table = torch.stack(list(slices)).double().numpy()
    bits, pixels = table[:, :labels], table[:, labels : 2 * labels]
    apart, whole, has_patches, places = table[:, 2 * labels : 2 * labels + 4].T
    # A handful of pixels, or less than a patch, is hardly something: the least areas. The worst
    # label counts, as a mean would hide it behind those that the image does not show.
    entropy = (bits / np.maximum(pixels, _LEAST_PIXELS)).max(axis=1)
    disagreement = apart / np.maximum(whole, 1.0)
    uncertainty = np.where(has_patches > 0, (entropy + disagreement) / 2, entropy)
    top = np.argsort(-uncertainty, kind="stable")[: max(1, round(TOP * len(table)))]
    embedding = table[:, 2 * labels + 4 :].sum(axis=0) / places.sum()
    return Assessment(
        uncertainty=float(uncertainty[top].mean().clip(0, 1)),
        disagreement=float(disagreement[top].mean().clip(0, 1)),
        entropy=float(entropy[top].mean().clip(0, 1)),
        embedding=embedding.astype(np.float32),
        slices=len(table),
    )


def _cropped(maps: Tensor, shown: tuple[int, int], side: int) -> Tensor:
    """The part of maps `[B, C, h, w]` over a square of `side` pixels that shows the image."""
    step = side // maps.shape[-1]
    return maps[..., : -(-shown[0] // step), : -(-shown[1] // step)]


def _spread(count: int, most: int) -> NDArray[np.intp]:
    """Indices of at most `most` of `count` slices, the middles of equal parts."""
    wanted = min(count, max(1, most))
    return ((np.arange(wanted) + 0.5) * count / wanted).astype(np.intp)
