"""Cycles of a training without end: how they compute, how they are judged, what they keep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from esp_medsam_app.dataset import prepare_slices
from esp_medsam_app.evaluation.pairs import CasePair
from esp_medsam_app.modalities import Modality, Tiles
from esp_medsam_app.training.acceptance import LARGEST_LOSS, compare
from esp_medsam_app.training.arithmetic import CHOICE, Arithmetic, choose_arithmetic, keep_choice
from esp_medsam_app.training.campaign import SHARES, run_cycle, served_size
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.sizes import SizeStage
from esp_medsam_app.training.starting import new_network
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.training.validation import dice_by_site, site_means
from esp_medsam_app.weights.backbones import Backbone

CPU = torch.device("cpu")


def test_better_means_more_than_the_error_and_no_site_that_loses() -> None:
    before = {"a": {"1": 0.5, "2": 0.6, "3": 0.7}, "b": {"4": 0.8, "5": 0.9}}
    raised = {
        site: {case: dice + 0.05 for case, dice in cases.items()} for site, cases in before.items()
    }
    verdict = compare(before, raised)
    assert verdict.gain == pytest.approx(0.05)
    assert verdict.error == pytest.approx(0, abs=1e-9)
    assert verdict.better
    assert not compare(before, before).better
    # a site of its own may not pay for the mean
    paid = {"a": dict.fromkeys("123", 1.0), "b": {"4": 0.8 - 0.03, "5": 0.9 - 0.03}}
    verdict = compare(before, paid)
    assert verdict.gain > verdict.error
    assert verdict.worst < -LARGEST_LOSS
    assert not verdict.better
    # chance: one case up, one down
    noisy = {"a": {"1": 0.9, "2": 0.3, "3": 0.7}, "b": before["b"]}
    verdict = compare(before, noisy)
    assert 0 < verdict.gain < verdict.error
    assert not verdict.better


def test_weights_serve_at_the_size_that_suits_the_sites() -> None:
    """A site with many cases counts as much as one with few."""
    dice = {
        128: {"large": {"1": 0.5, "2": 0.5, "3": 0.5}, "small": {"4": 0.9}},
        256: {"large": {"1": 0.6, "2": 0.6, "3": 0.6}, "small": {"4": 0.7}},
    }
    assert served_size(dice) == 128


def test_a_missing_case_is_no_comparison() -> None:
    with pytest.raises(KeyError):
        compare({"a": {"1": 0.5, "2": 0.5}}, {"a": {"1": 0.5}})


def test_the_arithmetic_of_a_run_is_measured_once(
    small_backbone: Backbone, disc: Modality, tmp_path: Path
) -> None:
    network = new_network(small_backbone, [disc])
    place = Surroundings(tmp_path)
    chosen = choose_arithmetic(network, "disc", place)
    kept = json.loads((tmp_path / CHOICE).read_text())
    assert min(kept["seconds"], key=kept["seconds"].get) == kept["dtype"]
    assert str(chosen.dtype) == f"torch.{kept['dtype']}"
    assert not any(p.requires_grad and p.grad is not None for p in network.parameters())
    other = {"float32": "bfloat16", "bfloat16": "float32"}[kept["dtype"]]
    (tmp_path / CHOICE).write_text(json.dumps({"dtype": other}))
    assert str(choose_arithmetic(network, "disc", place).dtype) == f"torch.{other}"


def test_an_arithmetic_that_was_decided_is_not_measured(
    small_backbone: Backbone, disc: Modality, tmp_path: Path
) -> None:
    keep_choice(tmp_path, "bfloat16")
    network = new_network(small_backbone, [disc])
    chosen = choose_arithmetic(network, "disc", Surroundings(tmp_path))
    assert chosen.dtype is torch.bfloat16
    assert json.loads((tmp_path / CHOICE).read_text())["seconds"] == {}


def test_features_in_bfloat16_meet_an_arithmetic_in_float32() -> None:
    features = torch.ones(2, 8, 4, 4, dtype=torch.bfloat16)
    assert Arithmetic(torch.float32, CPU).inputs(features).dtype is torch.float32
    placed = Arithmetic(torch.bfloat16, CPU).inputs(features)
    assert placed.dtype is torch.bfloat16
    assert placed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("tiles", [Tiles(), Tiles(least=2, most=2)])
def test_validation_sees_what_inference_sees(
    small_backbone: Backbone,
    disc: Modality,
    disc_pairs: list[CasePair],
    tmp_path: Path,
    tiles: Tiles,
) -> None:
    """Discs are bright: a network that marks what is bright has nearly the whole Dice."""
    modality = disc.model_copy(update={"tiles": tiles})
    cache = prepare_slices(tmp_path / "val", disc_pairs, modality, tile=64)
    network = new_network(small_backbone, [modality])

    def bright(image: torch.Tensor, name: str) -> torch.Tensor:
        return image

    def marked(image: torch.Tensor, *rest: object, **more: object) -> tuple[torch.Tensor, None]:
        return 20 * (image[:, :1] - 0.45), None

    network.embed = network.decode = None  # type: ignore[assignment]
    import esp_medsam_app.training.validation as validation

    class Bright:
        def __init__(self, *_: object) -> None:
            pass

        embed = staticmethod(bright)
        decode = staticmethod(marked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "FastNetwork", Bright)
        found = dice_by_site(
            network, cache, modality, size=32, arithmetic=Arithmetic(torch.float32, CPU)
        )
    assert list(found) == list(cache.sites)
    assert set().union(*found.values()) == set(cache.case_names)
    assert min(site_means(found).values()) > 0.93


def test_a_cycle_trains_at_several_sizes_and_judges_what_it_offers(
    small_backbone: Backbone,
    disc: Modality,
    disc_pairs: list[CasePair],
    small_recipe: Recipe,
    tmp_path: Path,
) -> None:
    recipe = small_recipe.model_copy(
        update={
            "views": None,
            "cached_stage": 0,
            "decoder_steps": 0,
            "joint_steps": 6,
            "size_stages": (
                SizeStage(until=0.5, sizes=(32,)),
                SizeStage(until=1, sizes=(40, 48)),
            ),
        }
    )
    caches = [
        prepare_slices(tmp_path / name, pairs, disc, tile=48)
        for name, pairs in (("train", disc_pairs[:2]), ("val", disc_pairs[2:]))
    ]
    network = new_network(small_backbone, [disc])
    before = {key: value.clone() for key, value in network.state_dict().items()}
    sides: list[int] = []
    network.encoder.register_forward_pre_hook(
        lambda _, inputs: sides.append(inputs[0].shape[-1]) if inputs[0].requires_grad else None
    )
    result = run_cycle(
        network,
        network,
        disc,
        *caches,
        recipe,
        tile=32,
        sizes=(32, 48),
        place=Surroundings(tmp_path / "work"),
    )
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    trained = result.trained.state_dict()
    changed = {key for key in before if not torch.equal(before[key], trained[key])}
    assert changed
    assert all(key.startswith(("controllers.disc.", "queries.disc.")) for key in changed)
    # all controllers learn, those of the first stage with attention too
    assert any(key.startswith("controllers.disc.blocks.0.") for key in changed)
    assert [candidate.share for candidate in result.candidates] == list(SHARES)
    assert set(result.before) == {32, 48}
    for candidate in result.candidates:
        assert candidate.size == served_size(candidate.dice)
    assert result.chosen is None or result.chosen.verdict.better
