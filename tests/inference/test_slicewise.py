"""`segment_slicewise` around functions of tiles that are no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.bundles import bundle_of

from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.errors import InputError, OutOfMemoryError
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.inference.slicewise import Run, segment_slicewise
from esp_medsam_app.modalities import Modality, Tiles
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.networks.esp_medsam import Design
from esp_medsam_app.networks.tiny_vit import TinyViT
from esp_medsam_app.weights import Bundle

CPU = torch.device("cpu")
TWO = Modality(
    name="two", title="", description="", dimension=2, labels={"a": 1, "b": 2},
)  # fmt: skip


def segment(
    voxels: np.ndarray, run: Run, batch_size: int = 3, path: Path | None = None, tiles: int = 1
) -> object:
    grid = Grid(voxels.shape, np.eye(4), has_patient_space=False)
    return segment_slicewise(
        MedicalImage(voxels, grid, path),
        TWO.model_copy(update={"tiles": Tiles(least=tiles, most=tiles)}),
        run,
        tile=32,
        device=CPU,
        batch_size=batch_size,
    )


def grey_is_label(tiles: torch.Tensor) -> torch.Tensor:
    """Background below 0.25, `a` below 0.75, then `b`."""
    grey = tiles[:, 0]
    a = torch.where((grey > 0.25) & (grey < 0.75), 1.0, -1.0)
    return torch.stack([a, torch.where(grey > 0.75, 1.0, -1.0)], dim=1)


@pytest.mark.parametrize(("shape", "tiles"), [((32, 32), 1), ((24, 60), 2), ((32, 20, 5), 1)])
def test_every_slice_and_tile_comes_back_in_its_place(shape: tuple[int, ...], tiles: int) -> None:
    truth = np.zeros(shape, np.uint8)
    truth[2:14, 4:16], truth[14:22, 8:20] = 1, 2
    if len(shape) == 3:
        truth[..., ::2] = 0
        truth[16:, :, 0] = 2
    found = segment(truth * 50, grey_is_label, tiles=tiles)
    assert (found == truth).mean() > 0.97


def test_tiles_come_in_batches_of_the_size_asked_for() -> None:
    sizes: list[int] = []

    def run(tiles: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tiles))
        assert tiles.shape[1:] == (3, 32, 32)
        assert 0 <= tiles.min() < tiles.max() <= 1
        return grey_is_label(tiles)

    segment(np.random.default_rng(0).random((32, 20, 8)), run)
    assert sizes == [3, 3, 2]


def test_errors_name_the_file() -> None:
    path = Path("case.png")
    with pytest.raises(InputError, match=r"case\.png: all voxels"):
        segment(np.ones((20, 20)), grey_is_label, path=path)

    def full(tiles: torch.Tensor) -> torch.Tensor:
        raise MemoryError

    with pytest.raises(OutOfMemoryError, match=r"case\.png: cpu has too little memory"):
        segment(np.random.default_rng(0).random((20, 20)), full, path=path)


@pytest.mark.parametrize("own_queries", [True, False])
def test_parameters_are_shared_ones_and_those_of_the_modality(
    monkeypatch: pytest.MonkeyPatch, own_queries: bool
) -> None:
    network = EspMedSam(TinyViT(1), Design(own_queries=own_queries))
    alone = sum(parameter.numel() for parameter in network.parameters())
    one = Modality(name="one", title="", description="", dimension=2, labels={"a": 1})
    for modality in (one, TWO):
        network.add_modality(modality.name, len(modality.labels))
    monkeypatch.setattr(Bundle, "load_network", lambda bundle: network)
    segmenter = Segmenter(bundle_of(one, TWO), device="cpu")
    for name in ("one", "two"):
        own = [*network.controllers[name].parameters(), *network.queries[name].parameters()]
        assert segmenter.parameters(name) == alone + sum(part.numel() for part in own)
