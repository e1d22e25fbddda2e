"""DeSAM without a person: the whole image as box, or a grid of points.

The paper trains and tests with either. In grid mode PRIM looks at every point first, which costs
little; masks are drawn only of points whose predicted IoU is high enough, the best first, and no
more of them than are kept. Of N points that is nearly N times less work, and gives what drawing all
of them would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torchvision.ops import box_iou, masks_to_boxes

from esp_medsam_app.networks.desam import PROMPT_FRAME, DeSam
from esp_medsam_app.networks.features import Features
from esp_medsam_app.weights.desam_prompts import MaskRules, PromptMode

# Points that PRIM looks at in one pass, as in the authors' code; each holds some copies of the
# embedding (4 MB).
POINTS_AT_ONCE = 9
# Pixels of the authors' masks, which sizes of regions are meant for.
MASK_PIXELS = 256 * 256
# Logit of a label that no mask is left of; no louder than what a neighbouring tile may have found.
NOTHING = -10.0
# Pixels that touch at a corner belong together, as in SAM.
_NEIGHBOURS = np.ones((3, 3))


def prompted_masks(
    network: DeSam, features: Features, modality: str, mode: PromptMode, rules: MaskRules
) -> Tensor:
    """Mask logits `[B, labels, 4 E, 4 E]`, float32, of images on their device.

    Args:
        network: it has the modality.
        features: what its encoder gives for the images.
        modality: a name.
        mode: how it is prompted.
        rules: from prompts to masks.
    """
    if mode == "whole_box":
        prompts = network.whole_box(len(features.embedding))
        logits = network(features, modality, prompts).mask_logits.float()
    else:
        logits = torch.stack(
            [_of_points(network, part, modality, rules) for part in _one_by_one(features)]
        )
    smallest = region_pixels(rules.smallest_region, logits.shape[-2] * logits.shape[-1])
    return without_small_regions(logits, smallest) if smallest > 1 else logits


def region_pixels(region: int, pixels: int) -> int:
    """How large a region of the authors' masks is in a mask of so many pixels."""
    return round(region * pixels / MASK_PIXELS)


def point_grid(side: int, device: torch.device | None = None) -> Tensor:
    """Middles of `side` x `side` equal squares in the prompt's frame, `[side^2, 2]` (x, y)."""
    middles = (torch.arange(side, device=device) + 0.5) * (PROMPT_FRAME / side)
    rows, columns = torch.meshgrid(middles, middles, indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten()], dim=1)


def chosen_masks(
    ious: Tensor, draw: Callable[[int], Tensor], rules: MaskRules
) -> list[tuple[int, Tensor]]:
    """The masks that threshold and non-maximum suppression leave, the best first.

    Args:
        ious: predicted, of each point, `[N]`.
        draw: the mask logits `[H, W]` of a point; called for as few as possible.
        rules: thresholds, and how many are wanted.

    Returns:
        Points and their logits.
    """
    kept: list[tuple[int, Tensor]] = []
    boxes: list[Tensor] = []
    for index in ious.argsort(descending=True, stable=True).tolist():
        if ious[index] <= rules.iou_threshold or (rules.most and len(kept) == rules.most):
            break
        logits = draw(index)
        if not (logits > 0).any():
            continue
        box = masks_to_boxes(logits.unsqueeze(0) > 0)
        if boxes and bool((box_iou(box, torch.cat(boxes)) > rules.nms_threshold).any()):
            continue
        boxes.append(box)
        kept.append((index, logits))
    return kept


def without_small_regions(logits: Tensor, smallest: int) -> Tensor:
    """Logits `[B, labels, H, W]` with small islands and holes of the masks turned over."""
    masks = (logits > 0).cpu().numpy()
    cleaned = np.stack([[cleaned_mask(mask, smallest) for mask in image] for image in masks])
    changed = torch.from_numpy(cleaned != masks).to(logits.device)
    # the same distance from the threshold on its other side; 0 is not above it
    turned = torch.where(logits > 0, -logits, logits.abs().clamp(min=1e-3))
    return torch.where(changed, turned, logits)


def cleaned_mask(mask: NDArray[np.bool_], smallest: int) -> NDArray[np.bool_]:
    """A mask `[H, W]` without holes, then without islands, of fewer pixels than `smallest`.

    Where all islands are smaller, the largest stays, as in SAM.
    """
    holes, sizes = _regions(~mask)
    filled = mask | np.isin(holes, [k for k, size in sizes.items() if size < smallest])
    islands, sizes = _regions(filled)
    large = [k for k, size in sizes.items() if size >= smallest]
    if not large and sizes:
        large = [max(sizes, key=lambda k: sizes[k])]
    return np.isin(islands, large)


def _regions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], dict[int, int]]:
    regions, count = ndimage.label(mask, _NEIGHBOURS)
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    return regions, {k: int(sizes[k]) for k in range(1, count + 1)}


def _of_points(network: DeSam, features: Features, modality: str, rules: MaskRules) -> Tensor:
    """Logits `[labels, 4 E, 4 E]` of one image."""
    embedding = features.embedding
    tokens = network.points(point_grid(rules.points_per_side, embedding.device))
    parts = tokens.split(POINTS_AT_ONCE)
    ious = torch.cat([network.relate(modality, embedding, part).iou.float() for part in parts])
    pdmm = network.decoder(modality).pdmm
    drawn: dict[int, Tensor] = {}
    contexts: list[Tensor] = []

    def draw(label: int, index: int) -> Tensor:
        if not contexts:
            contexts.extend(pdmm.contexts(features.inner))
        if index not in drawn:
            related = network.relate(modality, embedding, tokens[index : index + 1])
            drawn[index] = pdmm.draw(contexts, related.mask_embedding)[0].float()
        return drawn[index][label]

    side = 4 * embedding.shape[-1]
    found = []
    for label in range(ious.shape[1]):
        kept = chosen_masks(ious[:, label], partial(draw, label), rules)
        masks = [logits for _, logits in kept]
        nothing = torch.full((1, side, side), NOTHING, device=embedding.device)
        found.append(torch.stack(masks).amax(dim=0) if masks else nothing[0])
    return torch.stack(found)


def _one_by_one(features: Features) -> Iterator[Features]:
    for index in range(len(features.embedding)):
        inner: Sequence[Tensor] = [part[index : index + 1] for part in features.inner]
        yield Features((inner[0], inner[1], inner[2]), features.embedding[index : index + 1])
