"""What the frozen encoder gives, kept on disk as far as the disk may be used for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from esp_medsam_app.inference.device import autocast
from esp_medsam_app.networks.desam import DeSam
from esp_medsam_app.networks.features import Features
from esp_medsam_app.training.sources import Batch, Turns, compute_once
from esp_medsam_app.training.surroundings import Surroundings

DEFAULT_FEATURE_BYTES = 8 * 2**30
_BYTES = 2  # of bfloat16

Views = Dataset[tuple[Tensor, Tensor]]


def flattened(features: Features) -> Tensor:
    """Maps and embedding of B images as one row each, `[B, N]`."""
    return torch.cat([part.flatten(1) for part in (*features.inner, features.embedding)], dim=1)


def restored(rows: Tensor, network: DeSam) -> Features:
    """The inverse of `flattened`, for the encoder of this network."""
    maps = network.inner_maps
    channels = [inner.channels * inner.times**2 for inner in maps] + [256]
    side = math.isqrt(rows.shape[1] // sum(channels))
    parts = rows.split([count * side**2 for count in channels], dim=1)
    inner = [
        part.reshape(len(rows), shape.channels, side * shape.times, side * shape.times)
        for part, shape in zip(parts, maps, strict=False)
    ]
    embedding = parts[-1].reshape(len(rows), 256, side, side)
    return Features((inner[0], inner[1], inner[2]), embedding)


class BoundedFeatures:
    """Features of a modality's views: the first are read from disk, others computed again.

    Args:
        folder: of the files.
        views: `[3, S, S]` and label map of each number.
        turns: which are in a batch; it has a single modality and a number of views.
        encode: images `[B, 3, S, S]` to rows `[B, N]`.
        limit_bytes: of the files.
        place: whom to tell; the first process computes for all.
    """

    def __init__(
        self,
        folder: Path,
        views: Views,
        turns: Turns,
        encode: Callable[[Tensor], Tensor],
        *,
        limit_bytes: int,
        place: Surroundings,
    ) -> None:
        assert turns.views is not None
        self.views = views
        self.turns = turns
        self.encode = encode
        row = encode(views[0][0].unsqueeze(0)).shape[1]
        self.kept = min(turns.views, limit_bytes // (row * _BYTES + views[0][1].numel()))
        self.stored: tuple[Tensor, Tensor] | None = None
        for turn in (place.processes.first, not place.processes.first):
            if turn and self.kept:
                self.stored = compute_once(
                    folder,
                    self.kept,
                    views.__getitem__,
                    encode,
                    place.counting(f"features {turns.modalities[0]}"),
                )
            place.processes.wait()

    def batches(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """The batches of these numbers, in this order."""
        for number in numbers:
            rows, maps = zip(*map(self._view, self.turns.indices(number)), strict=True)
            yield Batch(self.turns.modality(number), torch.stack(rows), torch.stack(maps), number)

    def _view(self, index: int) -> tuple[Tensor, Tensor]:
        if self.stored is not None and index < self.kept:
            rows, maps = self.stored
            return rows[index], maps[index]
        image, label_map = self.views[index]
        # as it would have come from the file
        return self.encode(image.unsqueeze(0))[0].to("cpu", torch.bfloat16), label_map


def encoding(network: DeSam, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Images to rows, with the network's frozen encoder."""

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        with autocast(device):
            return flattened(network.encode(images.to(device)))

    return encode
