"""The U-Net from nothing: it learns, is kept, and answers as its softmax does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.bundles import bundle_of

from esp_medsam_app.baselines import unet
from esp_medsam_app.baselines.unet import (
    RECORD,
    WEIGHTS,
    UNetSegmenter,
    fit_unet,
    new_unet,
    unet_recipe,
    views_seen,
)
from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.errors import InputError, WeightsError
from esp_medsam_app.evaluation.pairs import CasePair, find_pairs, read_pair
from esp_medsam_app.modalities import Modality, Tiles
from esp_medsam_app.training import optimisation
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.weights.bundle import Bundle

DISC = Modality(name="disc", title="", description="", dimension=2, labels={"disc": 1})
TILE = 64


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[CasePair]:
    """Bright discs on noise."""
    folder = tmp_path_factory.mktemp("discs")
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for index in range(4):
        row, column = rng.integers(20, 44, 2)
        disc = (rows - row) ** 2 + (columns - column) ** 2 < 14**2
        grey = rng.normal(60 + 120 * disc, 12).clip(0, 255).astype(np.uint8)
        Image.fromarray(grey).save(folder / "images" / f"{index}.png")
        Image.fromarray(disc.astype(np.uint8)).save(folder / "labels" / f"{index}.png")
    return find_pairs([folder])


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unet, "FILTERS", (8, 16, 32, 32))


def fit(pairs: list[CasePair], work: Path, views: int = 8, seed: int = 0) -> torch.nn.Module:
    return fit_unet(pairs, DISC, unet_recipe(views, seed), tile=TILE, place=Surroundings(work))[0]


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_it_learns(pairs: list[CasePair], tmp_path: Path) -> None:
    network, record = fit_unet(
        pairs, DISC, unet_recipe(160), tile=TILE, place=Surroundings(tmp_path)
    )
    image, reference = read_pair(pairs[0], DISC)
    found = UNetSegmenter(network, DISC, tile=TILE, device="cpu").segment(image)
    overlap = 2 * (found & reference.voxels).sum() / (found.sum() + reference.voxels.sum())
    assert overlap > 0.7
    assert record.views == 160
    assert record.seconds is not None
    assert record.seconds > 0
    assert record.device == "cpu"
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_second_call_does_not_train(
    pairs: list[CasePair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fit(pairs, tmp_path)
    monkeypatch.setattr(unet, "optimise", lambda *_: pytest.fail("trains again"))
    assert same(fit(pairs, tmp_path), first)


def test_same_seed_same_network(pairs: list[CasePair], tmp_path: Path) -> None:
    first = fit(pairs, tmp_path / "a")
    assert same(fit(pairs, tmp_path / "b"), first)
    assert not same(fit(pairs, tmp_path / "c", seed=1), first)


def test_a_stopped_training_goes_on(
    pairs: list[CasePair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(pairs, tmp_path / "whole", views=24)
    monkeypatch.setattr(optimisation, "CHECKPOINT_SECONDS", -1.0)

    def stop(task: str, done: int, *_: object) -> None:
        if task == unet.PHASE and done == 4:
            raise KeyboardInterrupt

    work = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        fit_unet(pairs, DISC, unet_recipe(24), tile=TILE, place=Surroundings(work, report=stop))
    assert not (work / WEIGHTS).exists()
    steps: list[int] = []

    def count(task: str, done: int, *_: object) -> None:
        if task == unet.PHASE:
            steps.append(done)

    place = Surroundings(work, report=count)
    again, _ = fit_unet(pairs, DISC, unet_recipe(24), tile=TILE, place=place)
    assert steps == [4, 5, 6]
    assert same(again, whole)


def test_a_folder_is_kept_to_one_network(pairs: list[CasePair], tmp_path: Path) -> None:
    fit(pairs, tmp_path)
    with pytest.raises(InputError, match=r"another U-Net \(differing in recipe\)"):
        fit(pairs, tmp_path, views=12)
    with pytest.raises(InputError, match=r"differing in cases"):
        fit(pairs[:3], tmp_path)
    tiled = DISC.model_copy(update={"tiles": Tiles(least=2, most=2)})
    with pytest.raises(InputError, match=r"differing in modality, tile\)"):
        fit_unet(pairs, tiled, unet_recipe(8), tile=32, place=Surroundings(tmp_path))
    # a folder in which nothing was learned yet is free
    (tmp_path / WEIGHTS).unlink()
    fit(pairs[:3], tmp_path)


def test_damaged_files_are_told(pairs: list[CasePair], tmp_path: Path) -> None:
    fit(pairs, tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="damaged or was exchanged"):
        fit(pairs, tmp_path)
    (tmp_path / RECORD).write_text("{}")
    with pytest.raises(InputError, match="not the record of a U-Net"):
        fit(pairs, tmp_path)


def test_size_of_the_real_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    network = new_unet(3)
    assert 5e6 < sum(parameter.numel() for parameter in network.parameters()) < 8e6
    with torch.inference_mode():
        assert network.eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 4, 64, 96)


class Noise(torch.nn.Module):
    """Logits of three classes that are a function of the input."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        waves = [torch.sin(7 * (k + 1) * tiles[:, 0] + k) for k in range(3)]
        return torch.stack(waves, dim=1) - 3


def test_labels_are_those_of_the_softmax() -> None:
    modality = DISC.model_copy(update={"labels": {"a": 1, "b": 2}})
    grey = np.random.default_rng(0).random((TILE, TILE)).astype(np.float32)
    grey[0, :2] = 0, 1
    image = MedicalImage(grey, Grid(grey.shape, np.eye(4), has_patient_space=False))
    found = UNetSegmenter(Noise(), modality, tile=TILE, device="cpu").segment(image)
    logits = Noise()(torch.from_numpy(grey)[None, None].expand(-1, 3, -1, -1))
    expected = logits.softmax(dim=1).argmax(dim=1)[0].numpy()
    assert set(np.unique(expected)) == {0, 1, 2}
    assert (found == expected).all()


@dataclass
class Run:
    decoder_steps: int = 100
    decoder_batch: int = 4
    joint_steps: int = 50
    joint_batch: int = 2


def test_views_seen_are_those_of_all_runs_of_the_modality() -> None:
    runs = [
        {"recipe": Run().__dict__, "data": {"disc": {}, "other": {}}},
        {"recipe": Run(decoder_steps=0).__dict__ | {"accumulate": 3}, "data": {"disc": {}}},
        {"recipe": Run().__dict__, "data": {"other": {}}},
    ]
    bundle = with_runs(runs)
    assert views_seen(bundle, "disc") == (400 + 100) // 2 + 3 * 100
    assert views_seen(bundle, "absent") is None
    assert views_seen(bundle_of(DISC), "disc") is None


def test_a_recipe_sees_the_views_asked_for() -> None:
    for views, steps in ((1, 1), (8, 2), (9, 3)):
        assert unet_recipe(views).joint_steps == steps
    assert views_seen(with_runs([{"recipe": unet_recipe(8).model_dump(), "data": {"disc": {}}}]),
                      "disc") == 8  # fmt: skip


def with_runs(runs: list[dict[str, object]]) -> Bundle:
    bundle = bundle_of(DISC)
    description = bundle.description.model_copy(update={"training": {"runs": runs}})
    return replace(bundle, description=description)
