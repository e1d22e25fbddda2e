"""The compact profile learns from the full model, and changes nothing but what it may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from esp_medsam_app.dataset import prepare_caches
from esp_medsam_app.evaluation.pairs import CasePair
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.training import optimisation
from esp_medsam_app.training.compact import LESSONS, distil_compact, fitting, smaller
from esp_medsam_app.training.compact_recipe import CompactRecipe
from esp_medsam_app.training.starting import new_network
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.weights.backbones import LITE_MEDSAM, load_encoder

FULL, SIZE = 64, 32


@pytest.fixture
def recipe() -> CompactRecipe:
    return CompactRecipe(size=SIZE, views=4, steps=8, batch=2, warm_up=0, average=0, absent=0)


@pytest.fixture
def teacher(disc: Modality) -> EspMedSam:
    """A full model of two modalities whose controllers do something."""
    other = disc.model_copy(update={"name": "other"})
    network = new_network(replace(LITE_MEDSAM, input_size=FULL), [disc, other])
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.controllers.named_parameters():
        if name.endswith("expert.fc2.weight"):
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return network.eval().requires_grad_(False)


class Run:
    """Runs on the discs, in one folder each."""

    def __init__(self, pairs: list[CasePair], disc: Modality) -> None:
        self.pairs, self.disc = pairs, disc
        self.told: list[tuple[str, int]] = []
        self.stop_at: tuple[str, int] | None = None

    def report(self, phase: str, done: int, total: int, losses: Mapping[str, float]) -> None:
        self.told.append((phase, done))
        if self.stop_at == (phase, done):
            raise KeyboardInterrupt

    def __call__(
        self, work: Path, teacher: EspMedSam, recipe: CompactRecipe, *names: str
    ) -> EspMedSam:
        modalities = [self.disc.model_copy(update={"name": name}) for name in names or ("disc",)]
        place = Surroundings(work, report=self.report)
        data = {modality.name: self.pairs for modality in modalities}
        return distil_compact(
            teacher,
            prepare_caches(data, modalities, tile=FULL, place=place),
            modalities,
            recipe,
            tile=FULL,
            place=place,
        )


@pytest.fixture
def run(disc_pairs: list[CasePair], disc: Modality) -> Run:
    return Run(disc_pairs, disc)


def changed(before: Mapping[str, torch.Tensor], network: torch.nn.Module) -> set[str]:
    after = network.state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@torch.no_grad()
def apart(student: EspMedSam, teacher: EspMedSam) -> float:
    """Distance of the embeddings of a bright disc."""
    rows, columns = torch.meshgrid(torch.arange(FULL), torch.arange(FULL), indexing="ij")
    image = (((rows - 30) ** 2 + (columns - 34) ** 2) < 196).float().expand(1, 3, -1, -1)
    found = student.embed(smaller(image, SIZE), "disc")
    return float((found - smaller(teacher.embed(image, "disc"), SIZE // 4)).square().mean())


@pytest.mark.parametrize("cached_stage", [0, 1, 2])
def test_a_modality_learns_and_what_it_shares_stays(
    run: Run, teacher: EspMedSam, recipe: CompactRecipe, tmp_path: Path, cached_stage: int
) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    far = apart(teacher, teacher)
    views = None if cached_stage == 0 else recipe.views
    update = {"cached_stage": cached_stage, "views": views, "mask_weight": 0.0}
    student = run(tmp_path, teacher, recipe.model_copy(update=update))
    assert changed(before, teacher) == set()
    names = changed(before, student)
    assert {".".join(name.split(".")[:2]) for name in names} == {"controllers.disc", "queries.disc"}
    released = load_encoder(LITE_MEDSAM).state_dict()
    assert changed(released, student.encoder) == set()
    assert apart(student, teacher) < 0.9 * far
    # what the teacher said is of no use any more
    assert not list((tmp_path / LESSONS).glob("*"))


@pytest.mark.parametrize("weight", ["mask_weight", "soft_weight", "embedding_weight"])
def test_each_teacher_teaches(
    run: Run, teacher: EspMedSam, recipe: CompactRecipe, tmp_path: Path, weight: str
) -> None:
    weights = dict.fromkeys(("mask_weight", "soft_weight", "embedding_weight"), 0.0)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    silent = recipe.model_copy(update={**weights, "steps": 1, "weight_decay": 0.0})
    assert changed(before, run(tmp_path / "silent", teacher, silent)) == set()
    heard = silent.model_copy(update={weight: 1.0})
    names = changed(before, run(tmp_path / "heard", teacher, heard))
    assert any(name.startswith("controllers.disc.") for name in names)
    # the queries have no part in the embedding
    assert any(name.startswith("queries.") for name in names) == (weight != "embedding_weight")


def test_a_stopped_run_goes_on_to_the_same_end(
    run: Run,
    teacher: EspMedSam,
    recipe: CompactRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("disc", "other")
    whole = run(tmp_path / "a", teacher, recipe, *names).state_dict()
    monkeypatch.setattr(optimisation, "CHECKPOINT_SECONDS", 0.0)
    run.stop_at = ("other", 5)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", teacher, recipe, *names)
    run.stop_at, run.told = None, []
    resumed = run(tmp_path / "b", teacher, recipe, *names)
    # nothing is done twice but the step that was not written down
    assert run.told == [("other", done) for done in (5, 6, 7, 8)]
    assert changed(whole, resumed) == set()


def test_a_modality_learns_the_same_alone_as_beside_others(
    run: Run, teacher: EspMedSam, recipe: CompactRecipe, tmp_path: Path
) -> None:
    together = run(tmp_path / "a", teacher, recipe, "other", "disc").state_dict()
    alone = run(tmp_path / "b", teacher, recipe, "disc").state_dict()
    for name, value in alone.items():
        if ".disc." in name:
            assert torch.equal(together[name], value), name


def test_views_that_do_not_fit_on_disk_are_left_out(disc: Modality, recipe: CompactRecipe) -> None:
    many = recipe.model_copy(update={"views": 1000})
    # stage 2 and the embedding on 8 x 8 places, a mask of 32 x 32, in 2 bytes each; the label map
    each = 2 * (160 * 64 + 256 * 64 + 32 * 32) + FULL * FULL

    def views(limit: int) -> int | None:
        return fitting(many, [disc], tile=FULL, stride=1, limit=limit).views

    assert [views(10 * each), views(10 * each - 1), views(0), views(10**12)] == [10, 9, 1, 1000]


def test_kept_views_have_a_number() -> None:
    with pytest.raises(ValueError, match="views"):
        CompactRecipe(views=None, cached_stage=2)
