"""DeSAM's training on a small problem, with the real backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from esp_medsam_app.dataset import prepare_caches
from esp_medsam_app.errors import InputError
from esp_medsam_app.evaluation.pairs import CasePair
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import DeSam, TinyViT
from esp_medsam_app.training import optimisation
from esp_medsam_app.training.desam_features import flattened, restored
from esp_medsam_app.training.desam_losses import DeSamLoss, hits_of, in_frame, random_points
from esp_medsam_app.training.desam_recipe import DeSamRecipe
from esp_medsam_app.training.desam_starting import new_desam
from esp_medsam_app.training.desam_trainer import DeSamSteps, train_desam
from esp_medsam_app.training.optimisation import rate_of
from esp_medsam_app.training.recipe import recipes
from esp_medsam_app.training.sources import Batch, read_computed
from esp_medsam_app.training.surroundings import Surroundings

TILE = 32
SMALL = DeSamRecipe(views=8, absent=0.0, epochs=10, batch=4, rate=1e-3)


class Run:
    """Runs of the small problem in one folder."""

    def __init__(self, pairs: list[CasePair], disc: Modality) -> None:
        self.pairs, self.disc = pairs, disc
        self.told: list[tuple[str, int, Mapping[str, float]]] = []
        self.stop_at = 0

    def report(self, phase: str, done: int, total: int, losses: Mapping[str, float]) -> None:
        self.told.append((phase, done, dict(losses)))
        if losses and done == self.stop_at:
            raise KeyboardInterrupt

    def __call__(self, work: Path, recipe: DeSamRecipe = SMALL, **options: int) -> DeSam:
        self.told = []
        place = Surroundings(work, report=self.report)
        return train_desam(
            new_desam("lite_medsam", [self.disc]),
            prepare_caches({"disc": self.pairs}, [self.disc], tile=TILE, place=place),
            [self.disc],
            recipe,
            tile=TILE,
            place=place,
            **options,
        )

    @property
    def losses(self) -> list[float]:
        return [losses["total"] for _, _, losses in self.told if losses]


@pytest.fixture
def run(disc_pairs: list[CasePair], disc: Modality) -> Run:
    return Run(disc_pairs, disc)


def test_the_loss_goes_down_and_only_the_decoder_learns(run: Run, tmp_path: Path) -> None:
    untrained = new_desam("lite_medsam", [run.disc])
    before = untrained.state_dict()
    network = run(tmp_path)
    rows, labels = read_computed(tmp_path / "features" / "disc")
    for number in (0, 1):  # whole box, points
        batch = Batch("disc", rows, labels, number)
        first, last = (DeSamSteps(n, SMALL, "cpu")(batch)["total"] for n in (untrained, network))
        assert last < 0.7 * first
    after = network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in changed} == {"decoders"}
    # both parts of it
    assert {name.split(".")[2] for name in changed} == {"prim", "pdmm"}


def test_features_beyond_the_bound_change_nothing(run: Run, tmp_path: Path) -> None:
    recipe = SMALL.model_copy(update={"epochs": 1})
    whole = run(tmp_path / "whole", recipe).state_dict()
    some = run(tmp_path / "some", recipe, feature_bytes=5 * 80_000).state_dict()
    counted = max(done for phase, done, _ in run.told if phase.startswith("features"))
    assert 0 < counted < 8
    none = run(tmp_path / "none", recipe, feature_bytes=0).state_dict()
    assert not any(phase.startswith("features") for phase, _, _ in run.told)
    used = sum(path.stat().st_size for path in (tmp_path / "some" / "features").rglob("*.bin"))
    assert used <= 5 * 80_000
    for name, value in whole.items():
        # batches of another size round otherwise
        torch.testing.assert_close(some[name], value, rtol=0.05, atol=2e-3)
        torch.testing.assert_close(none[name], value, rtol=0.05, atol=2e-3)


def test_stopped_run_goes_on_to_the_same_end(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = SMALL.model_copy(update={"epochs": 2})
    whole = run(tmp_path / "a", recipe).state_dict()
    monkeypatch.setattr(optimisation, "CHECKPOINT_SECONDS", 0.0)
    run.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", recipe)
    run.stop_at = 0
    resumed = run(tmp_path / "b", recipe).state_dict()
    assert len(run.losses) == 2
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_without_views_every_slice_is_seen_as_it_is(run: Run, tmp_path: Path) -> None:
    run(tmp_path, DeSamRecipe(views=None, epochs=1, batch=2))
    assert len(run.losses) == 2


def test_rows_hold_what_the_encoder_gives() -> None:
    torch.manual_seed(0)
    network = DeSam(TinyViT()).eval()
    with torch.inference_mode():
        features = network.encode(torch.rand(2, 3, 32, 32))
    again = restored(flattened(features), network)
    for found, expected in zip(
        (*again.inner, again.embedding), (*features.inner, features.embedding), strict=True
    ):
        assert torch.equal(found, expected)


def test_points_are_half_inside_and_their_hits_are_the_maps_own() -> None:
    labels = torch.zeros(400, 16, 16, dtype=torch.uint8)
    labels[:, 2:4, 5:7] = 1
    labels[:, 10, 10] = 2
    labels[300:] = 0
    places = random_points(labels, torch.Generator().manual_seed(0))
    hits = hits_of(labels, places, 2)
    inside = hits[:300].any(dim=1).float().mean()
    assert 0.4 < inside < 0.6
    # the small label is drawn as often as the large one
    assert 0.35 < hits[:300, 1].sum() / hits[:300].sum() < 0.65
    assert not hits[300:].any()
    for label_map, (x, y), hit in zip(labels, places, hits, strict=True):
        assert [bool(label_map[y, x] == k) for k in (1, 2)] == hit.tolist()
    assert in_frame(torch.tensor([[8, 4]]), 16).tolist() == [[512.0, 256.0]]


def test_loss_is_small_where_all_is_right_and_counts_the_iou_ten_times() -> None:
    loss = DeSamLoss(DeSamRecipe())
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[0, 2:5, 2:5] = 1
    logits = torch.where(labels.unsqueeze(1) == 1, 20.0, -20.0)
    hits = torch.tensor([[True], [False]])
    assert loss(logits, labels, hits.float(), hits).total < 1e-3
    wrong = loss(logits, labels, torch.zeros(2, 1), hits)
    assert wrong.total == pytest.approx(10 * 0.5, abs=1e-3)
    assert loss(logits, labels, torch.zeros(2, 1), None).total < 1e-3
    code = DeSamLoss(DeSamRecipe.read("authors_code"))
    assert code(logits, labels, torch.full((2, 1), 0.5), hits).total == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("name", recipes(DeSamRecipe))
def test_recipes_of_the_package_are_whole(name: str) -> None:
    assert DeSamRecipe.read(name, seed=3).seed == 3


def test_the_papers_recipe_is_the_default_and_no_other_familys() -> None:
    assert DeSamRecipe.read("paper") == DeSamRecipe()
    with pytest.raises(InputError, match="paper"):
        DeSamRecipe.read("two_cores")


def test_the_rate_falls_as_a_polynomial() -> None:
    recipe = DeSamRecipe()
    rates = [rate_of(step, 100, recipe) for step in (0, 50, 99)]
    assert rates == pytest.approx([1.0, 0.5**0.9, 0.01**0.9])
