"""Unlabelled images: what common knowledge is distilled on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from esp_medsam_app.data.reading import read_image
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.inference.preprocessing import IntensityScale
from esp_medsam_app.modalities import Augmentation, Intensity, Modality
from esp_medsam_app.training.augmentation import Appearance, cut_view
from esp_medsam_app.training.views import Views

_ANY = Modality(
    name="unlabelled",
    title="Unlabelled images",
    description="",
    dimension=2,
    labels={"none": 1},
    augmentation=Augmentation(flips=("left_right",), rotation=10, scale=0.3, intensity=0.2),
)


class UnlabelledViews(Views):
    """Whole slices of images, changed a little.

    Args:
        images: files.
        tile: side of the network's input, pixels.
        seed: same seed, same views.
    """

    def __init__(self, images: Sequence[Path], *, tile: int, seed: int) -> None:
        super().__init__(Appearance(_ANY.augmentation), tile=tile, seed=seed)
        self.images = list(images)

    def cut(self, index: int, tile: int) -> tuple[Tensor, Tensor]:
        """Cut view `index`, with an empty label map.

        Raises:
            InputError: the image cannot be read.
        """
        rng = np.random.default_rng([self.seed, index])
        turn, place = divmod(index, len(self.images))
        order = np.random.default_rng([self.seed, turn, 1]).permutation(len(self.images))
        image = read_image(self.images[order[place]])
        slices = SliceView.of(image.grid).slices(image.voxels)
        chosen = int(rng.integers(len(slices)))
        canvas = IntensityScale.of(image.voxels, Intensity()).apply(slices[chosen : chosen + 1])[0]
        extents = (slices.shape[1], slices.shape[2])
        empty = torch.zeros(extents, dtype=torch.uint8)
        return cut_view(canvas, empty, extents=extents, tile=tile, modality=_ANY, rng=rng)
