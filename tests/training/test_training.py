"""The training loop on a small problem, with the real backbone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from esp_medsam_app.errors import InputError
from esp_medsam_app.evaluation.pairs import CasePair, find_pairs
from esp_medsam_app.modalities import Augmentation, Modality
from esp_medsam_app.training import Recipe, train
from esp_medsam_app.training.losses import SegmentationLoss
from esp_medsam_app.training.record import claim_work
from esp_medsam_app.training.trainer import new_network
from esp_medsam_app.training.views import augmentation, make_views
from esp_medsam_app.weights.backbones import LITE_MEDSAM

SMALL = replace(LITE_MEDSAM, input_size=64)
DISC = Modality(name="disc", title="", description="", dimension=2, labels={"disc": 1})
RECIPE = Recipe(
    views=8, decoder_steps=12, joint_steps=12, decoder_batch=4, joint_batch=4, cached_stage=1
)


@pytest.fixture
def pairs(tmp_path: Path) -> list[CasePair]:
    """Bright discs on noise."""
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    rows, columns = np.mgrid[:64, :64]
    for index in range(4):
        row, column = rng.integers(20, 44, 2)
        disc = (rows - row) ** 2 + (columns - column) ** 2 < 14**2
        grey = rng.normal(60 + 120 * disc, 12).clip(0, 255).astype(np.uint8)
        Image.fromarray(grey).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(disc.astype(np.uint8)).save(tmp_path / "labels" / f"{index}.png")
    return find_pairs([tmp_path])


def test_training_learns_and_leaves_the_backbone_alone(
    pairs: list[CasePair], tmp_path: Path
) -> None:
    losses: dict[str, list[float]] = {}

    def report(phase: str, done: int, total: int, value: float) -> None:
        losses.setdefault(phase, []).append(value)

    network = train({"disc": pairs}, [DISC], SMALL, RECIPE, work=tmp_path / "run", report=report)
    assert losses["joint"][-1] < 0.7 * losses["decoder"][0]
    from esp_medsam_app.weights.backbones import load_encoder

    fresh = load_encoder(SMALL).state_dict()
    assert all(
        torch.equal(fresh[name], value) for name, value in network.encoder.state_dict().items()
    )
    experts = [block.expert.fc2.weight.abs().max() for block in network.controller("disc").blocks]
    assert min(experts) > 0


def test_stopped_run_goes_on_to_the_same_end(pairs: list[CasePair], tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(phase: str, done: int, total: int, value: float) -> None:
        if phase == "joint" and done == 7:
            raise StoppedError

    whole = train({"disc": pairs}, [DISC], SMALL, RECIPE, work=tmp_path / "a")
    with pytest.raises(StoppedError):
        train({"disc": pairs}, [DISC], SMALL, RECIPE, work=tmp_path / "b", report=stop)
    seen: list[str] = []
    resumed = train(
        {"disc": pairs},
        [DISC],
        SMALL,
        RECIPE,
        work=tmp_path / "b",
        report=lambda phase, *rest: seen.append(phase),
    )
    assert set(seen) == {"joint"}
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_going_on_with_one_modality_leaves_the_others_alone(
    pairs: list[CasePair], tmp_path: Path
) -> None:
    other = DISC.model_copy(update={"name": "other"})
    start = new_network(SMALL, [other, DISC])
    before = {name: value.clone() for name, value in start.state_dict().items()}
    steps = RECIPE.model_copy(update={"joint_steps": 2})
    after = train({"disc": pairs}, [DISC], SMALL, steps, work=tmp_path, start=start).state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("controllers.disc.", "queries.disc.")) for name in changed)


def test_work_folder_is_kept_to_one_run(pairs: list[CasePair], tmp_path: Path) -> None:
    """A checkpoint of other data or options is not taken for this run's."""
    work = tmp_path / "work"
    claim_work(work, RECIPE, {"disc": pairs}, None)
    claim_work(work, RECIPE, {"disc": pairs}, None)
    claim_work(work, RECIPE, {"disc": pairs[1:]}, None)  # nothing was computed yet
    (work / "checkpoint.pt").touch()
    claim_work(work, RECIPE, {"disc": pairs[1:]}, None)
    with pytest.raises(InputError, match="holds another run"):
        claim_work(work, RECIPE, {"disc": pairs}, None)
    with pytest.raises(InputError, match="holds another run"):
        claim_work(work, RECIPE.model_copy(update={"seed": 5}), {"disc": pairs[1:]}, None)


def test_views_move_image_and_label_together(pairs: list[CasePair]) -> None:
    rule = DISC.model_copy(
        update={
            "augmentation": Augmentation(
                flips=("left_right", "up_down"), quarter_turns=True, rotation=30, scale=0.3,
                intensity=0,
            )
        }
    )  # fmt: skip
    views = make_views(pairs, rule, tile=64, count=10, seed=1)
    assert views.images.shape == (10, 3, 64, 64)
    for image, labels in zip(views.images.float(), views.labels, strict=True):
        bright = image[0] > 0.5
        overlap = 2 * (bright & (labels > 0)).sum() / (bright.sum() + (labels > 0).sum())
        assert overlap > 0.9
    assert not torch.equal(views.images[0], views.images[1])


def test_views_follow_the_seed(pairs: list[CasePair]) -> None:
    first, again, other = (
        make_views(pairs, DISC, tile=64, count=4, seed=seed).images for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_left_right_flip_mirrors_columns() -> None:
    transform = augmentation(
        Augmentation(flips=("left_right",), rotation=0, scale=0, intensity=0), 8
    )
    transform.set_random_state(0)
    image = torch.zeros(3, 8, 8)
    image[:, 2, 0] = 1
    seen = set()
    for _ in range(40):
        out = torch.as_tensor(transform({"image": image, "label": image[:1]})["image"])
        if out.sum() > 2.5:
            seen |= {tuple(place) for place in (out[0] > 0.9).nonzero().tolist()}
    assert {(2, 0), (2, 7)} <= seen


def test_loss_prefers_the_truth() -> None:
    labels = torch.zeros(2, 32, 32, dtype=torch.uint8)
    labels[:, 4:20, 4:20] = 1
    labels[:, 20:28, 20:28] = 2
    masks = torch.stack([labels == 1, labels == 2], dim=1).float() * 20 - 10
    patches = torch.nn.functional.max_pool2d((labels > 0).float().unsqueeze(1), 8) * 20 - 10
    loss = SegmentationLoss(0.5)
    right = loss(masks, patches, labels)
    assert right < 0.01
    assert loss(masks.flip(1), patches, labels) > 0.5
    assert loss(masks, -patches, labels) > right + 1
