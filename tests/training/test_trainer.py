"""Supervised training on a small problem, with the real backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from esp_medsam_app.dataset import prepare_caches
from esp_medsam_app.errors import InputError
from esp_medsam_app.evaluation.pairs import CasePair
from esp_medsam_app.inference.device import autocast
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.networks.esp_medsam import Design
from esp_medsam_app.training import optimisation
from esp_medsam_app.training.inputs import embed_from, features_of, make_views, placed
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.record import claim_work
from esp_medsam_app.training.starting import new_network
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.training.trainer import Learners, train
from esp_medsam_app.weights.backbones import Backbone, load_encoder

State = dict[str, torch.Tensor]


class Run:
    """Runs of the small problem in one folder."""

    def __init__(self, backbone: Backbone, pairs: list[CasePair], disc: Modality) -> None:
        self.backbone, self.pairs, self.disc = backbone, pairs, disc
        self.losses: dict[str, list[float]] = {}
        self.stop_at: tuple[str, int] | None = None

    def report(self, phase: str, done: int, total: int, losses: Mapping[str, float]) -> None:
        if losses:
            self.losses.setdefault(phase, []).append(losses["total"])
        if self.stop_at == (phase, done):
            raise KeyboardInterrupt

    def __call__(
        self, work: Path, recipe: Recipe, network: EspMedSam | None = None, **options: object
    ) -> EspMedSam:
        place = Surroundings(work, report=self.report)
        tile = self.backbone.input_size
        caches = prepare_caches(
            {"disc": self.pairs}, [self.disc], tile=recipe.largest_input(tile), place=place
        )
        return train(
            network or new_network(self.backbone, [self.disc]),
            caches,
            [self.disc],
            recipe,
            tile=tile,
            place=place,
            **options,  # type: ignore[arg-type]
        )


@pytest.fixture
def run(small_backbone: Backbone, disc_pairs: list[CasePair], disc: Modality) -> Run:
    return Run(small_backbone, disc_pairs, disc)


def changed(before: State, after: State) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_training_learns_and_leaves_the_backbone_alone(
    run: Run, small_recipe: Recipe, tmp_path: Path
) -> None:
    network = run(tmp_path / "run", small_recipe)
    assert run.losses["joint"][-1] < 0.7 * run.losses["decoder"][0]
    fresh = load_encoder(run.backbone).state_dict()
    assert changed(fresh, network.encoder.state_dict()) == set()
    controller = network.controller("disc")
    assert controller is not None
    assert min(float(block.expert.fc2.weight.abs().max()) for block in controller.blocks) > 0


@pytest.mark.parametrize("stop", [("decoder", 3), ("joint", 3)])
@pytest.mark.parametrize("cached", [True, False])
def test_stopped_run_goes_on_to_the_same_end(
    run: Run,
    small_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: tuple[str, int],
    cached: bool,
) -> None:
    recipe = small_recipe.model_copy(
        update={"decoder_steps": 4, "joint_steps": 4, "joint_batch": 2}
    )
    if not cached:
        recipe = recipe.model_copy(update={"cached_stage": 0, "views": None})
    whole = run(tmp_path / "a", recipe).state_dict()
    monkeypatch.setattr(optimisation, "CHECKPOINT_SECONDS", 0.0)
    run.stop_at = stop
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", recipe)
    run.stop_at, run.losses = None, {}
    resumed = run(tmp_path / "b", recipe).state_dict()
    # the step that was told last was not written down yet
    assert sum(map(len, run.losses.values())) == {"decoder": 4 + 4 - 2, "joint": 4 - 2}[stop[0]]
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_going_on_with_one_modality_leaves_the_others_alone(
    run: Run, small_recipe: Recipe, tmp_path: Path
) -> None:
    other = run.disc.model_copy(update={"name": "other"})
    network = new_network(run.backbone, [other, run.disc])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    steps = small_recipe.model_copy(update={"joint_steps": 2, "decoder_steps": 2})
    after = run(tmp_path, steps, network, learners=Learners(shared=False)).state_dict()
    names = changed(before, after)
    assert {name.split(".")[0] for name in names} == {"controllers", "queries"}
    assert all(name.split(".")[1] == "disc" for name in names)


def test_a_teacher_learns_as_a_whole_but_for_the_norms_statistics(
    run: Run, small_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = small_recipe.model_copy(
        update={"cached_stage": 0, "decoder_steps": 0, "joint_steps": 2}
    )
    network = new_network(run.backbone, [run.disc], design=Design(controllers=False))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    after = run(tmp_path, recipe, network, learners=Learners(encoder=True)).state_dict()
    names = changed(before, after)
    encoder = {name for name in before if name.startswith("encoder.")}
    still = {name for name in encoder if "running_" in name or "num_batches" in name}
    assert not names & still
    # a bias before a normalisation has no influence, so no gradient
    assert len(encoder - still - names) < 0.05 * len(encoder)


@pytest.mark.parametrize(
    ("design", "absent"),
    [
        (Design(controllers=False), "controllers."),
        (Design(patch_prompt=False), None),
        (Design(own_queries=False), None),
    ],
)
def test_designs_with_a_part_less_train(
    run: Run, small_recipe: Recipe, tmp_path: Path, design: Design, absent: str | None
) -> None:
    steps = small_recipe.model_copy(update={"joint_steps": 4, "decoder_steps": 0})
    other = run.disc.model_copy(update={"name": "two", "labels": {"disc": 1, "ring": 2}})
    network = new_network(run.backbone, [run.disc, other], design=design)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    after = run(tmp_path, steps, network)
    names = changed(before, after.state_dict())
    assert any(name.startswith("decoder.") for name in names)
    if absent is not None:
        assert not any(name.startswith(absent) for name in before)
    if not design.patch_prompt:
        assert not any(name.startswith("patch_prompt_generator.") for name in names)
        image = torch.rand(1, 3, 32, 32)
        assert after(image, "disc").patch_logits is None
    if not design.own_queries:
        assert after.queries["disc"].mlp is after.queries["two"].mlp
        assert after(torch.rand(1, 3, 32, 32), "disc").mask_logits.shape[1] == 1
        assert after(torch.rand(1, 3, 32, 32), "two").mask_logits.shape[1] == 2


def test_a_loss_that_is_no_number_stops_the_run(
    run: Run, small_recipe: Recipe, tmp_path: Path
) -> None:
    wild = small_recipe.model_copy(update={"decoder_rate": 1e20, "decoder_steps": 40})
    with pytest.raises(InputError, match="no number"):
        run(tmp_path, wild)


def test_work_folder_is_kept_to_one_run(
    disc_pairs: list[CasePair], small_recipe: Recipe, tmp_path: Path
) -> None:
    """A checkpoint of other data or options is not taken for this run's."""
    work = tmp_path / "work"
    claim_work(work, small_recipe, {"disc": disc_pairs}, None)
    claim_work(work, small_recipe, {"disc": disc_pairs}, None)
    claim_work(work, small_recipe, {"disc": disc_pairs[1:]}, None)  # nothing was computed yet
    (work / "features_2").mkdir()
    claim_work(work, small_recipe, {"disc": disc_pairs[1:]}, None)
    with pytest.raises(InputError, match="holds another run"):
        claim_work(work, small_recipe, {"disc": disc_pairs}, None)
    with pytest.raises(InputError, match="holds another run"):
        claim_work(
            work, small_recipe.model_copy(update={"seed": 5}), {"disc": disc_pairs[1:]}, None
        )


def test_a_damaged_checkpoint_is_told(run: Run, small_recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="checkpoint cannot be read"):
        run(tmp_path, small_recipe)


def test_controllers_before_the_cached_stage_act_in_what_is_cached(
    run: Run, small_recipe: Recipe, tmp_path: Path
) -> None:
    """As of a bundle that was trained from stage 1 on and is trained further from stage 2 on."""
    recipe = small_recipe.model_copy(update={"cached_stage": 2})
    network = new_network(run.backbone, [run.disc])
    controller = network.controller("disc")
    assert controller is not None
    torch.nn.init.normal_(controller.blocks[0].expert.fc2.weight)
    place = Surroundings(tmp_path)
    tile = run.backbone.input_size
    caches = prepare_caches({"disc": run.pairs}, [run.disc], tile=tile, place=place)
    views = make_views(caches, [run.disc], recipe, tile)
    kept, _ = features_of(network, views, recipe, place)["disc"]
    image = views["disc"][0][0].unsqueeze(0)
    with torch.no_grad(), autocast(torch.device("cpu")):
        resumed = embed_from(network, placed(kept[:1], image.device), 2, "disc").float()
        whole = network.embed(image, "disc").float()
        plain = network.encoder(image).float()
    assert torch.allclose(resumed, whole, atol=0.05, rtol=0.05)
    assert not torch.allclose(plain, whole, atol=0.05, rtol=0.05)
