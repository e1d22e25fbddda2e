"""What the training of one modality reads: views and held-out tiles, the frozen part done once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from esp_medsam_app.evaluation.pairs import CasePair
from esp_medsam_app.inference.device import autocast
from esp_medsam_app.inference.preprocessing import Tiling
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.networks.tiny_vit import TinyViT
from esp_medsam_app.training.canvases import CanvasStore
from esp_medsam_app.training.inputs import features_of, make_views
from esp_medsam_app.training.recipe import Recipe
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
    views = make_views({modality.name: pairs}, [modality], recipe, tile, place)
    features, _ = features_of(network, views, recipe, place)[modality.name]
    folder = place.work / f"features_{recipe.cached_stage}" / modality.name
    return _with_cases(folder, [views[modality.name].case(i) for i in range(len(features))])


def held_out_material(
    network: EspMedSam,
    modality: Modality,
    pairs: Sequence[CasePair],
    recipe: Recipe,
    *,
    tile: int,
    place: Surroundings,
) -> Path:
    """Tiles of the held-out cases as inference cuts them, `HELD_OUT_TILES` at even distances.

    `case` of an item is the case's place in `pairs`.

    Returns:
        The folder for `Material.read`.

    Raises:
        InputError: a case that cannot be used.
    """
    store = CanvasStore.prepare(
        place.work / "held_out_slices",
        pairs,
        modality,
        tile=tile,
        limit_bytes=place.slice_bytes,
        report=place.counting(f"held-out slices {modality.name}"),
    )
    tiles = _Tiles(store, modality, tile)
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
    return _with_cases(folder, tiles.cases)


def _with_cases(folder: Path, cases: Sequence[int]) -> Path:
    (folder / _CASES).write_text(json.dumps(list(cases)), encoding="utf-8")
    return folder


class _Tiles:
    """Tiles of a store's slices, unchanged."""

    def __init__(self, store: CanvasStore, modality: Modality, tile: int) -> None:
        self.store = store
        self.modality = modality
        self.tile = tile

    @cached_property
    def _places(self) -> list[tuple[int, int, tuple[int, int]]]:
        """Case, slice and origin of the chosen tiles."""
        found = []
        for case, (labelled, empty) in enumerate(self.store.by_case):
            for number in sorted(labelled + empty):
                _, labels = self.store.read(number)
                found += [(case, number, origin) for origin in self._tiling(labels).origins]
        if len(found) <= HELD_OUT_TILES:
            return found
        chosen = torch.linspace(0, len(found) - 1, HELD_OUT_TILES).round().int().tolist()
        return [found[place] for place in chosen]

    @property
    def cases(self) -> list[int]:
        return [case for case, _, _ in self._places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        _, number, origin = self._places[item]
        image, labels = self.store.read(number)
        tiling = self._tiling(labels)
        canvas = tiling.scale(image.unsqueeze(0))
        truth = tiling.scale_labels(labels.unsqueeze(0))
        return tiling.cut(canvas, origin)[0].clamp(0, 1), tiling.cut(truth, origin)[0]

    def _tiling(self, labels: Tensor) -> Tiling:
        height, width = labels.shape
        return Tiling(height, width, self.tile, self.modality.tiles)
