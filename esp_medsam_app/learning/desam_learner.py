"""DeSAM's decoder of one modality, as a module that learns by itself from submitted labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from esp_medsam_app.dataset import prepare_caches
from esp_medsam_app.evaluation.pairs import CasePair
from esp_medsam_app.inference.device import autocast
from esp_medsam_app.learning.material import Material, held_out_tiles, with_cases
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks.desam import DeSam
from esp_medsam_app.training.desam_features import encoding, restored
from esp_medsam_app.training.desam_losses import (
    DeSamLoss,
    hits_of,
    in_frame,
    pixels_of,
    random_points,
)
from esp_medsam_app.training.desam_recipe import DeSamRecipe
from esp_medsam_app.training.inputs import placed, views_of
from esp_medsam_app.training.sources import compute_once
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.weights.desam_prompts import PromptMode


class Prompted(NamedTuple):
    """What a modality gives for a batch.

    Attributes:
        masks: logits `[B, labels, S, S]`.
        iou: predicted, `[B, labels]`.
        places: pixels of the points, `[B, 2]` (x, y).
        pointed: which items the points were the prompt of, `[B]`; the box was of the others.
    """

    masks: Tensor
    iou: Tensor
    places: Tensor
    pointed: Tensor


class DeSamMaterial(Material):
    """Rows of the encoder's features, each followed by a point that is drawn anew each time."""

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        found = super().__getitem__(item)
        label = found["label"]
        point = random_points(label.unsqueeze(0), torch.default_generator)
        # exact in bfloat16 where the side is a power of two
        frame = in_frame(point, label.shape[-1])[0].to(found["image"].dtype)
        return {**found, "image": torch.cat([found["image"], frame])}


class DeSamLearner(nn.Module):
    """A modality's decoder on a frozen network; its parameters and state are the decoder's alone.

    While it learns, the prompts take their share of every batch; else all are the first one's.

    Args:
        network: it has the modality. Everything in it is frozen.
        modality: a name.
        prompts: that are learned.
        device: where to compute. The network is moved there.
    """

    def __init__(
        self,
        network: DeSam,
        modality: str,
        prompts: Sequence[PromptMode],
        device: torch.device,
    ) -> None:
        super().__init__()
        network.to(device).eval().requires_grad_(False)
        self.decoder = network.decoder(modality)
        # in a tuple: no child module, so neither saved nor trained with this one
        self._frozen = (network,)
        self.modality = modality
        self.prompts = tuple(prompts)
        self.device = device

    @property
    def network(self) -> DeSam:
        """The whole network, the modality's decoder in it being this one's."""
        return self._frozen[0]

    def groups(self, recipe: DeSamRecipe) -> list[dict[str, Any]]:
        """Parameter groups for AdamW; from now on these parameters need gradients."""
        self.decoder.requires_grad_(True)
        return [{"params": list(self.decoder.parameters()), "lr": recipe.rate}]

    def forward(self, rows: Tensor) -> Prompted:
        """From `DeSamMaterial`'s images `[B, N + 2]` to masks."""
        rows = placed(rows, self.device)
        frame = rows[:, -2:].float()
        features = restored(rows[:, :-2], self.network)
        with autocast(self.device):
            # as prompts are chosen: by item, the same number of tokens for each
            pointed = self._pointed(len(rows))
            tokens = torch.where(
                pointed[:, None, None],
                self.network.points(frame),
                self.network.whole_box(len(rows)),
            )
            masks, iou = self.network(features, self.modality, tokens)
        places = pixels_of(frame, masks.shape[-1])
        return Prompted(masks.float(), iou.float(), places, pointed)

    def _pointed(self, count: int) -> Tensor:
        modes = self.prompts if torch.is_grad_enabled() else self.prompts[:1]
        chosen = [modes[item % len(modes)] == "grid_points" for item in range(count)]
        return torch.tensor(chosen, device=self.device)


class DeSamLearnerLoss(nn.Module):
    """`DeSamLoss` as MONAI's engines call it."""

    def __init__(self, recipe: DeSamRecipe) -> None:
        super().__init__()
        self.loss = DeSamLoss(recipe)

    def forward(self, found: Prompted, labels: Tensor) -> Tensor:
        """The total, a scalar, for label maps `[B, S, S]`."""
        hits = None
        if found.pointed.any():
            hits = hits_of(labels, found.places, found.iou.shape[1])[found.pointed]
        total: Tensor = self.loss(found.masks, labels, found.iou[found.pointed], hits).total
        return total


def desam_material(
    network: DeSam,
    modality: Modality,
    pairs: Sequence[CasePair],
    recipe: DeSamRecipe,
    *,
    tile: int,
    place: Surroundings,
    held_out: bool = False,
) -> Path:
    """Rows of augmented views, `recipe.views` of them; or of held-out tiles as inference cuts them.

    Returns:
        The folder for `DeSamMaterial.read`.

    Raises:
        InputError: a case that cannot be used.
    """
    encode = encoding(network, torch.device(place.device))
    if held_out:
        tiles = held_out_tiles(modality, pairs, tile, place)
        folder = place.work / "held_out_features"
        task = f"held-out features {modality.name}"
        compute_once(folder, len(tiles), tiles.__getitem__, encode, place.counting(task))
        return with_cases(folder, tiles.cases)
    assert recipe.views is not None
    caches = prepare_caches({modality.name: pairs}, [modality], tile=tile, place=place)
    views = views_of(
        caches, modality, [modality], tile=tile, seed=recipe.seed, absent=recipe.absent
    )
    folder = place.work / "features"
    task = f"features {modality.name}"
    compute_once(folder, recipe.views, views.__getitem__, encode, place.counting(task))
    return with_cases(folder, [views.case(i) for i in range(recipe.views)])
