"""Unlabelled images: what common knowledge is distilled on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from esp_medsam_app.data.reading import read_image
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.inference.preprocessing import IntensityScale, Tiling
from esp_medsam_app.modalities import Augmentation, Intensity, Tiles
from esp_medsam_app.training.augmentation import IMAGE, LABEL, augmentation

CHANGES = Augmentation(flips=("left_right",), rotation=10, scale=0.3, intensity=0.2)


class UnlabelledViews(Dataset[tuple[Tensor, Tensor]]):
    """Whole slices of images, changed a little; view `i` is a function of the seed and `i` alone.

    Args:
        images: files.
        tile: side of the network's input, pixels.
        seed: same seed, same views.
    """

    def __init__(self, images: Sequence[Path], *, tile: int, seed: int) -> None:
        self.images = list(images)
        self.tile = tile
        self.seed = seed
        self.transform = augmentation(CHANGES, tile)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """View `index`: float32 `[3, S, S]` in [0, 1], and an empty label map uint8 `[S, S]`.

        Raises:
            InputError: the image cannot be read.
        """
        rng = np.random.default_rng([self.seed, index])
        turn, place = divmod(index, len(self.images))
        order = np.random.default_rng([self.seed, turn, 1]).permutation(len(self.images))
        image = read_image(self.images[order[place]])
        slices = SliceView.of(image.grid).slices(image.voxels)
        chosen = int(rng.integers(len(slices)))
        scale = IntensityScale.of(image.voxels, Intensity())
        tiling = Tiling(slices.shape[1], slices.shape[2], self.tile, Tiles())
        canvas = tiling.scale(scale.apply(slices[chosen : chosen + 1]))[0]
        self.transform.set_random_state(int(rng.integers(2**31)))
        view = self.transform({IMAGE: canvas, LABEL: torch.zeros(1, *canvas.shape[-2:])})
        tile = torch.as_tensor(view[IMAGE]).as_subclass(Tensor).clamp(0, 1)
        return tile, torch.zeros(tile.shape[-2:], dtype=torch.uint8)
