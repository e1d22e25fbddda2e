"""How an image looks: light, colour, noise and sharpness, and what other devices and sites add.

Every change takes a batch float32 `[B, 3, S, S]` in [0, 1] and gives one of the same shape. They
are written for this project, in plain torch, so that a GPU applies them to whole batches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from esp_medsam_app.modalities import Augmentation
from esp_medsam_app.training.augmentation import colour, degradation, light, occlusion
from esp_medsam_app.training.augmentation.draw import Draw

Change = Callable[[Tensor, Draw], Tensor]

# what an `acquisition` entry of a modality's rule applies, and to which share of the images
_ACQUISITION: dict[str, tuple[tuple[float, Change], ...]] = {
    "colour": ((0.5, colour.saturation_and_cast), (0.1, colour.grey)),
    "stain": ((0.5, colour.optical_density_mix),),
    "inversion": ((0.15, colour.inverted),),
    "window": ((0.5, light.other_window),),
    "illumination": ((0.35, light.uneven_light),),
    "speckle": ((0.35, degradation.speckle),),
    "low_resolution": ((0.25, degradation.low_resolution),),
    "ringing": ((0.15, degradation.ringing),),
    "jpeg": ((0.25, degradation.block_compression),),
}
_OCCLUSION: dict[str, tuple[float, occlusion.Occlusion]] = {
    "highlights": (0.3, occlusion.highlights),
    "text": (0.3, occlusion.text_and_marks),
    "frame": (0.25, occlusion.endoscope_frame),
    "panels": (0.2, occlusion.panels),
    "cutout": (0.15, occlusion.cutout),
}


class Appearance:
    """Random change of how a batch looks, by a modality's rule.

    Args:
        rule: strength and kinds of the changes.
    """

    def __init__(self, rule: Augmentation) -> None:
        self.occlusions = [_OCCLUSION[name] for name in rule.acquisition if name in _OCCLUSION]
        self.changes: list[tuple[float, Change]] = [
            change for name in rule.acquisition for change in _ACQUISITION.get(name, ())
        ]
        if rule.intensity:
            self.changes += _intensity(rule.intensity)

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Change a batch.

        Args:
            images: float32 `[B, 3, S, S]` in [0, 1], on any device.
            labels: uint8 `[B, S, S]`. What a change hides is taken out of them.
            seed: same seed, same changes.

        Returns:
            Images and labels of the same shapes.
        """
        draw = Draw(seed, images.device)
        images, labels = images.clone(), labels.clone()
        for probability, occlude in self.occlusions:
            for row in draw.rows(len(images), probability).tolist():
                occlude(images[row], labels[row], draw)
        for probability, change in self.changes:
            rows = draw.rows(len(images), probability)
            if len(rows):
                images[rows] = change(images[rows], draw).clamp(0, 1)
        return images, labels


def _intensity(strength: float) -> list[tuple[float, Change]]:
    """Changes that every modality knows: gamma, contrast, brightness, sharpness, noise."""

    def gamma(images: Tensor, draw: Draw) -> Tensor:
        bound = float(torch.log1p(torch.tensor(strength)))
        return images.clamp(min=1e-6) ** draw.uniform(len(images), -bound, bound).exp()

    def contrast(images: Tensor, draw: Draw) -> Tensor:
        middle = images.mean(dim=(1, 2, 3), keepdim=True)
        factor = 1 + draw.uniform(len(images), -0.4, 0.4) * strength
        return middle + (images - middle) * factor

    def brightness(images: Tensor, draw: Draw) -> Tensor:
        factor = 1 + draw.uniform(len(images), -0.4, 0.4) * strength
        return images * factor + draw.uniform(len(images), -0.12, 0.12) * strength

    def blur(images: Tensor, draw: Draw) -> Tensor:
        return degradation.blurred(images, draw.uniform(len(images), 0.3, 0.3 + 2 * strength))

    def sharpening(images: Tensor, draw: Draw) -> Tensor:
        amount = draw.uniform(len(images), 0.3, 1.5)
        smooth = degradation.blurred(images, draw.uniform(len(images), 0.5, 1.5))
        return images + amount * (images - smooth)

    def noise(images: Tensor, draw: Draw) -> Tensor:
        # one channel: grey images stay grey
        grain = draw.normal(len(images), 1, *images.shape[-2:])
        return images + draw.uniform(len(images), 0, 0.1 * strength) * grain

    return [
        (0.5, gamma), (0.4, contrast), (0.5, brightness), (0.15, blur), (0.1, sharpening),
        (0.3, noise),
    ]  # fmt: skip
