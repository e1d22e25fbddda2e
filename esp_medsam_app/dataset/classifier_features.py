"""Features to fit and judge the classifier of modalities with: of images, and of views of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.reading import is_readable_name, read_image
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import InputError
from esp_medsam_app.inference.image_features import MIDDLE, features_of, pooled, tiles_of
from esp_medsam_app.inference.preprocessing import SMALLEST_SIDE
from esp_medsam_app.modalities import Modality, Tiles
from esp_medsam_app.networks.tiny_vit import TinyViT
from esp_medsam_app.training.augmentation import Appearance, cut_view
from esp_medsam_app.training.classifier import ClassifierRecipe

# Of the views: kept features of an older one are computed anew.
_VERSION = 2

# images done, images in all
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FeatureStore:
    """Features of images, computed once and kept in a folder.

    Attributes:
        encoder: the plain backbone.
        backbone: SHA-256 of its file: another backbone has other features.
        folder: where they are kept.
        recipe: side and seed.
    """

    encoder: TinyViT
    backbone: str
    folder: Path
    recipe: ClassifierRecipe

    def plain(self, path: Path) -> Tensor:
        """Features `[F]` of an image, as the reader sees it."""
        return self._kept(
            (path, 0, ""),
            lambda: features_of(self.encoder, read_image(path), self.recipe.side).unsqueeze(0),
        )[0]

    def augmented(self, path: Path, count: int, modality: Modality) -> Tensor:
        """Features `[count, F]` of random views of an image, each of one slice."""
        rule = modality.augmentation.model_dump_json()
        return self._kept((path, count, rule), lambda: self._views(path, count, modality))

    def _views(self, path: Path, count: int, modality: Modality) -> Tensor:
        image = read_image(path)
        digest = hashlib.sha256(f"{self.recipe.seed} {path.name}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        views = Views(modality, self.recipe.side, seed)
        return pooled(self.encoder, torch.stack([views.view(image) for _ in range(count)]))

    def _kept(self, key: tuple[Path, int, str], compute: Callable[[], Tensor]) -> Tensor:
        path, count, rule = key
        state = path.stat()
        parts = [str(path.resolve()), state.st_size, state.st_mtime_ns, count, rule]
        parts += [self.backbone, self.recipe.side]
        parts += [self.recipe.seed, _VERSION] if count else []
        name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
        file = self.folder / f"{name}.safetensors"
        try:
            return load_file(file)["features"]
        except (OSError, SafetensorError, KeyError):
            features = compute()
        with written_whole(file) as partial:
            partial.write_bytes(save({"features": features.contiguous()}))
        return features


class Views:
    """Random views of a modality's images, as other devices and people might have made them.

    What may change is the modality's own rule; beyond it come crops.
    """

    def __init__(self, modality: Modality, side: int, seed: int) -> None:
        self.side = side
        self.random = np.random.default_rng(seed)
        # the tile is cut already
        self.modality = modality.model_copy(update={"tiles": Tiles()})
        self.appearance = Appearance(modality.augmentation)

    def view(self, image: MedicalImage) -> Tensor:
        """A view `[3, side, side]` in [0, 1]."""
        tile = tiles_of(self._crop(self._slice(image)), self.side)[0]
        extents = (self.side, self.side)
        view, labels = cut_view(
            tile,
            torch.zeros(extents, dtype=torch.uint8),
            extents=extents,
            tile=self.side,
            modality=self.modality,
            rng=self.random,
        )
        images, _ = self.appearance(view[None], labels[None], int(self.random.integers(2**31)))
        return images[0]

    def _slice(self, image: MedicalImage) -> NDArray[Any]:
        """One slice `[1, H, W(, 3)]` of the middle, of more than one value."""
        slices = SliceView.of(image.grid).slices(image.voxels)
        first, last = (round(share * (len(slices) - 1)) for share in MIDDLE)
        for index in self.random.permutation(np.arange(first, last + 1)):
            if slices[index].min() < slices[index].max():
                return slices[index : index + 1]
        raise InputError("the middle of the volume is empty", path=image.path)

    def _crop(self, slices: NDArray[Any]) -> NDArray[Any]:
        if self.random.random() < 0.3:
            return slices
        starts, extents = [], []
        for extent in slices.shape[1:3]:
            kept = max(SMALLEST_SIDE, round(extent * self.random.uniform(0.7, 1)))
            kept = min(kept, extent)
            starts.append(int(self.random.integers(0, extent - kept + 1)))
            extents.append(kept)
        top, left = starts
        cut = slices[:, top : top + extents[0], left : left + extents[1]]
        return cut if cut.min() < cut.max() else slices


def class_images(folders: Iterable[Path], most: int | None = None) -> list[Path]:
    """Images of folders, or of `images/` in them where there is one; at most so many, evenly.

    Raises:
        InputError: a folder without any.
    """
    found: list[Path] = []
    for folder in folders:
        place = folder / "images" if (folder / "images").is_dir() else folder
        inside = sorted(place.iterdir()) if place.is_dir() else []
        images = [path for path in inside if path.name[0] != "." and is_readable_name(path)]
        if is_readable_name(place):
            images = [place]
        if not images:
            raise InputError("no image that can be read", path=folder, remedy="Check the folder")
        found += images
    if most is None or len(found) <= most:
        return found
    return [found[index] for index in np.linspace(0, len(found) - 1, most).round().astype(int)]


def training_features(
    images: Mapping[str, Sequence[Path]],
    modalities: Mapping[str, Modality],
    store: FeatureStore,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Features `[views, F]` of each modality: every image as it is, then augmented views."""
    done, total = 0, sum(map(len, images.values()))
    features: dict[str, Tensor] = {}
    for name, paths in images.items():
        rows = []
        for index, path in enumerate(paths):
            rows.append(store.plain(path).unsqueeze(0))
            # the views left, spread over the images
            rest = max(0, store.recipe.views - len(paths))
            count = rest // len(paths) + (index < rest % len(paths))
            if count:
                rows.append(store.augmented(path, count, modalities[name]))
            done += 1
            if progress is not None:
                progress(done, total)
        features[name] = torch.cat(rows)
    return features


def plain_features(
    images: Mapping[str, Sequence[Path]], store: FeatureStore, progress: Progress | None = None
) -> dict[str, Tensor]:
    """Features `[images, F]` of each modality."""
    done, total = 0, sum(map(len, images.values()))
    features: dict[str, Tensor] = {}
    for name, paths in images.items():
        rows = []
        for path in paths:
            rows.append(store.plain(path))
            done += 1
            if progress is not None:
                progress(done, total)
        features[name] = torch.stack(rows)
    return features
