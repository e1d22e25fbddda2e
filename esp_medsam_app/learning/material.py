"""What the training of one modality reads: views and held-out tiles, the frozen part done once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from esp_medsam_app.dataset import prepare_caches, prepare_slices
from esp_medsam_app.evaluation.pairs import CasePair
from esp_medsam_app.inference.device import autocast
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.networks.tiny_vit import TinyViT
from esp_medsam_app.training.inputs import features_of, make_views
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.slice_tiles import SliceTiles
from esp_medsam_app.training.sources import compute_once, read_computed
from esp_medsam_app.training.surroundings import Surroundings

# Held-out tiles that are looked at after every epoch; promotion looks at the whole cases.
HELD_OUT_TILES = 96
_CASES = "cases.json"


@dataclass(frozen=True)
class Material(Dataset[dict[str, Tensor]]):
    """Features that enter the cached stage and their label maps, on disk and memory-mapped.

    An item is what MONAI's engines read: `image` `[C, h, w]`, `label` `[S, S]`, `case` (a number).
    """

    features: Tensor
    labels: Tensor
    cases: Sequence[int]

    @classmethod
    def read(cls, folder: Path) -> Material:
        """What one of the functions below left in a folder, for another process."""
        features, labels = read_computed(folder)
        return cls(features, labels, json.loads((folder / _CASES).read_text(encoding="utf-8")))

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        return {
            "image": self.features[item],
            "label": self.labels[item],
            "case": torch.tensor(self.cases[item]),
        }


def training_material(
    network: EspMedSam,
    modality: Modality,
    pairs: Sequence[CasePair],
    recipe: Recipe,
    *,
    tile: int,
    place: Surroundings,
) -> Path:
    """Augmented views of annotated cases, `recipe.views` of them.

    `case` of an item is the case's place in `pairs`. Each case gives as many views as any other,
    and half of the slices taken from a volume show the structure.

    Returns:
        The folder for `Material.read`.

    Raises:
        InputError: a case that cannot be used.
    """
    caches = prepare_caches({modality.name: pairs}, [modality], tile=tile, place=place)
    views = make_views(caches, [modality], recipe, tile)
    features, _ = features_of(network, views, recipe, place)[modality.name]
    folder = place.work / f"features_{recipe.cached_stage}" / modality.name
    return with_cases(folder, [views[modality.name].case(i) for i in range(len(features))])


def held_out_material(
    network: EspMedSam,
    modality: Modality,
    pairs: Sequence[CasePair],
    recipe: Recipe,
    *,
    tile: int,
    place: Surroundings,
) -> Path:
    """The `held_out_tiles` of cases.

    `case` of an item is the case's place in `pairs`.

    Returns:
        The folder for `Material.read`.

    Raises:
        InputError: a case that cannot be used.
    """
    tiles = held_out_tiles(modality, pairs, tile, place)
    encoder = network.encoder
    assert isinstance(encoder, TinyViT)
    device = torch.device(place.device)

    @torch.no_grad()
    def compute(images: Tensor) -> Tensor:
        with autocast(device):
            return encoder.encode_until(
                images.to(device), recipe.cached_stage, network.controller(modality.name)
            )

    folder = place.work / f"held_out_features_{recipe.cached_stage}"
    compute_once(
        folder,
        len(tiles),
        tiles.__getitem__,
        compute,
        place.counting(f"held-out features {modality.name}"),
    )
    return with_cases(folder, tiles.cases)


def held_out_tiles(
    modality: Modality, pairs: Sequence[CasePair], tile: int, place: Surroundings
) -> SliceTiles:
    """Tiles of the held-out cases as inference cuts them, `HELD_OUT_TILES` at even distances.

    Raises:
        InputError: a case that cannot be used.
    """
    store = prepare_slices(
        place.work / "held_out_slices",
        pairs,
        modality,
        tile=tile,
        limit_bytes=place.slice_bytes,
        report=place.counting(f"held-out slices {modality.name}"),
    )
    return SliceTiles(store, modality, tile, most=HELD_OUT_TILES)


def with_cases(folder: Path, cases: Sequence[int]) -> Path:
    """The folder, with the case of each item written down in it."""
    (folder / _CASES).write_text(json.dumps(list(cases)), encoding="utf-8")
    return folder
