"""MMDKD: each stage learns, and changes nothing but what it may."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT

from esp_medsam_app.data.reading import find_images
from esp_medsam_app.dataset import prepare_caches
from esp_medsam_app.dataset.unlabelled import UnlabelledViews
from esp_medsam_app.evaluation.pairs import CasePair
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.networks.esp_medsam import Design
from esp_medsam_app.networks.sam_teacher import SamAdapters, SamInput, SamTeacher
from esp_medsam_app.training.distillation import (
    distil_common,
    distil_controllers,
    with_decoder_of,
)
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.starting import new_network
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.training.trainer import Learners, train
from esp_medsam_app.weights.backbones import Backbone, load_encoder

TEACHER = Design(controllers=False)


@pytest.fixture
def place(tmp_path: Path) -> Surroundings:
    return Surroundings(tmp_path / "work")


@torch.no_grad()
def distance(
    student: Callable[[torch.Tensor], torch.Tensor], teacher: Callable[[torch.Tensor], torch.Tensor]
) -> float:
    """Mean squared error of two embeddings of a bright disc."""
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    image = (((rows - 15) ** 2 + (columns - 17) ** 2) < 49).float().expand(1, 3, -1, -1)
    return float((student(image) - teacher(image)).square().mean())


@pytest.fixture
def steps(small_recipe: Recipe) -> Recipe:
    return small_recipe.model_copy(
        update={"decoder_steps": 0, "joint_steps": 16, "joint_batch": 2, "warm_up": 0, "average": 0}
    )


def small_vit() -> ImageEncoderViT:
    """A ViT with the grid of the student's embedding, 8 x 8 for 32 pixels."""
    torch.manual_seed(0)
    return ImageEncoderViT(
        img_size=128, patch_size=16, embed_dim=32, depth=2, num_heads=2, out_chans=256,
        use_rel_pos=True, window_size=4, global_attn_indexes=(1,),
    )  # fmt: skip


def snapshot(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(before: dict[str, torch.Tensor], network: torch.nn.Module) -> set[str]:
    after = network.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def a_teacher(backbone: Backbone, disc: Modality) -> EspMedSam:
    """A network whose encoder is a little off the backbone's."""
    network = new_network(backbone, [disc], design=TEACHER)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in network.encoder.named_parameters():
        if name.startswith("layers.3"):
            parameter.data += (
                0.5 * parameter.std() * torch.randn(parameter.shape, generator=generator)
            )
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("cached_stage", [0, 2])
def test_controllers_learn_the_teachers_embedding_and_nothing_else_changes(
    small_backbone: Backbone,
    disc_pairs: list[CasePair],
    disc: Modality,
    steps: Recipe,
    place: Surroundings,
    cached_stage: int,
) -> None:
    teacher = a_teacher(small_backbone, disc)
    taught = snapshot(teacher)
    other = disc.model_copy(update={"name": "other"})
    student = new_network(small_backbone, [disc, other])
    before = snapshot(student)

    def apart() -> float:
        return distance(lambda x: student.embed(x, "disc"), lambda x: teacher.embed(x, "disc"))

    far = apart()
    caches = prepare_caches({"disc": disc_pairs}, [disc], tile=32, place=place)
    distil_controllers(
        student, teacher, caches, [disc],
        steps.model_copy(update={"cached_stage": cached_stage}), tile=32, place=place,
    )  # fmt: skip
    names = changed(before, student)
    assert names
    assert all(name.startswith("controllers.disc.") for name in names)
    assert changed(taught, teacher) == set()
    assert apart() < 0.9 * far


def test_the_student_decodes_with_the_teachers_decoder(
    small_backbone: Backbone, disc: Modality
) -> None:
    teacher = a_teacher(small_backbone, disc)
    for parameter in teacher.decoder.parameters():
        parameter.data += 0.01
    student = with_decoder_of(new_network(small_backbone, [disc], seed=3), teacher)
    embedding = torch.rand(1, 256, 8, 8)
    for found, expected in zip(
        student.decode(embedding, "disc"), teacher.decode(embedding, "disc"), strict=True
    ):
        assert found is not None
        assert expected is not None
        assert torch.equal(found, expected)


def test_common_knowledge_reaches_the_student(
    small_backbone: Backbone,
    disc_pairs: list[CasePair],
    steps: Recipe,
    place: Surroundings,
) -> None:
    teacher = SamTeacher(small_vit(), prepare=SamInput(128))
    taught = snapshot(teacher)
    student = load_encoder(small_backbone)
    before = snapshot(student)
    images = find_images([disc_pairs[0].image.parent])
    views = UnlabelledViews(images, tile=32, seed=0)
    far = distance(student, teacher)
    fast = steps.model_copy(update={"encoder_rate": 1e-3})
    distil_common(student, teacher, views, fast, place=place)
    assert distance(student, teacher) < 0.9 * far
    assert changed(taught, teacher) == set()
    names = changed(before, student)
    assert not any("running_" in name for name in names)
    assert len(names) > 0.5 * len(before)


def test_a_sam_teacher_learns_adapters_and_decoder_alone(
    small_backbone: Backbone,
    disc_pairs: list[CasePair],
    disc: Modality,
    steps: Recipe,
    place: Surroundings,
) -> None:
    vit = small_vit()
    encoder = SamTeacher(vit, SamAdapters(vit, own_neck=True), SamInput(128), recompute=True)
    network = new_network(small_backbone, [disc], design=TEACHER, encoder=encoder)
    before = snapshot(network)
    train(
        network, prepare_caches({"disc": disc_pairs}, [disc], tile=32, place=place), [disc],
        steps.model_copy(update={"joint_steps": 3, "cached_stage": 0}),
        tile=32, place=place, learners=Learners(encoder=True),
    )  # fmt: skip
    names = changed(before, network)
    assert any(name.startswith("encoder.adapters.") for name in names)
    assert any(name.startswith("encoder.adapters.neck.") for name in names)
    frozen = {name for name in names if name.startswith("encoder.")}
    assert all(name.startswith("encoder.adapters.") for name in frozen)


def test_unlabelled_views_follow_seed_and_number(disc_pairs: list[CasePair]) -> None:
    images = find_images([disc_pairs[0].image.parent])
    views, again = (UnlabelledViews(images, tile=32, seed=0) for _ in range(2))
    last = views[5][0]
    assert torch.equal(again[5][0], last)
    assert not torch.equal(again[4][0], last)
    assert last.shape == (3, 32, 32)
