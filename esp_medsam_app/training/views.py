"""Training views: network inputs cut from augmented images, on the very path of inference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandRotate90d,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSpatialCropd,
    SpatialPadd,
)
from torch import Tensor

from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.evaluation.pairs import CasePair, read_pair
from esp_medsam_app.inference.preprocessing import IntensityScale, Tiling
from esp_medsam_app.modalities import Augmentation, Modality


@dataclass(frozen=True)
class Views:
    """Network inputs and their label maps.

    Attributes:
        images: float16 `[N, 3, S, S]` in [0, 1].
        labels: uint8 `[N, S, S]`.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def make_views(
    pairs: Sequence[CasePair], modality: Modality, *, tile: int, count: int, seed: int
) -> Views:
    """Cut `count` augmented views from training images.

    Every image gives as many as the others (give or take one): whole images where the modality
    has one tile, random places of the scaled image where it has more. Half of the slices taken
    from a volume hold a label, the others come as they fall.

    Args:
        pairs: images with label maps.
        modality: its labels, intensities, tiles and augmentation.
        tile: side of the network's input, pixels.
        count: number of views.
        seed: same seed, same views.

    Raises:
        InputError: an image or label map that cannot be used.
    """
    rng = np.random.default_rng(seed)
    transform = augmentation(modality.augmentation, tile)
    transform.set_random_state(seed)
    images = torch.empty(count, 3, tile, tile, dtype=torch.float16)
    labels = torch.empty(count, tile, tile, dtype=torch.uint8)
    shares = np.full(len(pairs), count // len(pairs))
    shares[rng.permutation(len(pairs))[: count % len(pairs)]] += 1
    made = 0
    for pair, share in zip(pairs, shares, strict=True):
        if not share:
            continue
        for canvas, truth in _canvases(pair, modality, tile, int(share), rng):
            view = transform({"image": canvas, "label": truth.unsqueeze(0)})
            images[made] = torch.as_tensor(view["image"]).clamp(0, 1).half()
            labels[made] = torch.as_tensor(view["label"])[0].round().to(torch.uint8)
            made += 1
    return Views(images, labels)


def augmentation(rule: Augmentation, tile: int) -> Compose:
    """Random transform of `image` `[3, h, w]` and `label` `[1, h, w]` to one tile of each."""
    keys = ("image", "label")
    strength = rule.intensity
    steps: list[object] = [
        RandAffined(
            keys,
            prob=0.8,
            rotate_range=np.deg2rad(rule.rotation),
            scale_range=(rule.scale, rule.scale),
            translate_range=tile * 0.05,
            mode=("bilinear", "nearest"),
            padding_mode="zeros",
        ),
        SpatialPadd(keys, (tile, tile), method="end"),
        RandSpatialCropd(keys, (tile, tile), random_size=False),
    ]
    # images are [C, rows, columns]: axis 1 mirrors left and right
    steps += [
        RandFlipd(keys, prob=0.5, spatial_axis={"up_down": 0, "left_right": 1}[flip])
        for flip in rule.flips
    ]
    if rule.quarter_turns:
        steps.append(RandRotate90d(keys, prob=0.75, max_k=3))
    if strength:
        steps += [
            RandAdjustContrastd("image", prob=0.5, gamma=(1 / (1 + strength), 1 + strength)),
            RandScaleIntensityd("image", factors=0.3 * strength, prob=0.5, channel_wise=True),
            RandShiftIntensityd("image", offsets=0.15 * strength, prob=0.5),
            RandGaussianSmoothd(
                "image", prob=0.15, sigma_x=(0.3, 2 * strength), sigma_y=(0.3, 2 * strength)
            ),
            RandGaussianNoised("image", prob=0.3, std=0.08 * strength),
        ]
    return Compose(steps)


def _canvases(
    pair: CasePair, modality: Modality, tile: int, share: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """`share` times a scaled slice `[3, h, w]` with its labels `[h, w]`."""
    image, reference = read_pair(pair, modality)
    view = SliceView.of(image.grid)
    slices = view.slices(image.voxels)
    truth = np.ascontiguousarray(view.slices(reference.voxels))
    scale = IntensityScale.of(image.voxels, modality.intensity)
    tiling = Tiling(slices.shape[1], slices.shape[2], tile, modality.tiles)
    for index in _choose(truth, share, rng):
        labels = torch.from_numpy(truth[index : index + 1])
        yield (
            tiling.scale(scale.apply(slices[index : index + 1]))[0],
            tiling.scale_labels(labels)[0],
        )


def _choose(truth: np.ndarray, share: int, rng: np.random.Generator) -> list[int]:
    if len(truth) == 1:
        return [0] * share
    labelled = np.flatnonzero(truth.any(axis=(1, 2)))
    return [
        int(rng.choice(labelled))
        if len(labelled) and turn % 2 == 0
        else int(rng.integers(len(truth)))
        for turn in range(share)
    ]
