"""MMDKD: the multi-modal decoupled knowledge distillation of ESP-MedSAM (arXiv 2407.14153).

Common knowledge: a student backbone learns a SAM ViT's embedding on unlabelled images. Medical
knowledge: a teacher learns all modalities (`trainer.train` with an encoder that learns); then each
modality's controller learns the teacher's embedding, all else frozen, and the student decodes with
the teacher's own SPPG and QDMD. Both losses are the mean squared error of the embeddings, as in the
authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esp_medsam_app.inference.device import autocast
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.networks.tiny_vit import TinyViT
from esp_medsam_app.training.groups import controller_groups
from esp_medsam_app.training.inputs import (
    Stored,
    embed_from,
    features_of,
    joint_turns,
    make_views,
    placed,
    targets_of,
)
from esp_medsam_app.training.optimisation import CHECKPOINT, Checkpoint, Phase, optimise
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.slice_cache import SliceCache
from esp_medsam_app.training.sources import Batch, BatchSource, CachedFeatures, FreshViews
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.training.views import Views

COMMON = "common"


def distil_common(
    student: TinyViT,
    teacher: nn.Module,
    images: Views,
    recipe: Recipe,
    *,
    place: Surroundings,
) -> TinyViT:
    """Teach a backbone the embedding of a SAM ViT on unlabelled images.

    The student's batch norm keeps its statistics: batches are small, and it starts trained.

    Args:
        student: it is changed, all of it but those statistics.
        teacher: frozen; images `[B, 3, S, S]` in [0, 1] to the student's embedding shape.
        images: what both look at.
        recipe: `joint_steps`, `joint_batch` and `encoder_rate` count.
        place: folder, device, processes.

    Returns:
        The student in evaluation mode, on the CPU.

    Raises:
        InputError: an image that cannot be read, a loss that is no number, a damaged checkpoint.
    """
    torch.manual_seed(recipe.seed)
    device = torch.device(place.device)
    student.to(device).eval()
    teacher.to(device).eval().requires_grad_(False)

    def losses(batch: Batch) -> Mapping[str, Tensor]:
        inputs = placed(batch.inputs, device)
        with autocast(device):
            with torch.no_grad():
                target = teacher(inputs)
            embedding = student(inputs)
        return {"total": F.mse_loss(embedding.float(), target.float())}

    source = FreshViews({COMMON: images}, joint_turns((COMMON,), recipe), place.workers)
    groups = [{"params": list(student.parameters()), "lr": recipe.encoder_rate}]
    checkpoint = Checkpoint(place.work / CHECKPOINT, student, lambda name: True)
    optimise(Phase(COMMON, recipe.joint_steps, groups, source, losses), recipe, checkpoint, place)
    return student.cpu().eval().requires_grad_(False)


def distil_controllers(
    student: EspMedSam,
    teacher: EspMedSam,
    caches: Mapping[str, SliceCache],
    modalities: Sequence[Modality],
    recipe: Recipe,
    *,
    tile: int,
    place: Surroundings,
) -> EspMedSam:
    """Teach each modality's controller the embedding of the medical teacher.

    Nothing but the controllers of `modalities` changes: the student's backbone keeps the common
    knowledge, and its decoder is the teacher's (`with_decoder_of`).

    Args:
        student: it has all of `modalities`. It is changed.
        teacher: it has them too.
        caches: slices of each modality's cases, by name. Labels only
            tell where the structure is absent.
        modalities: what to train.
        recipe: `joint_steps`, `joint_batch` and `controller_rate` count.
        tile: side of the network's input, pixels.
        place: folder, device, processes.

    Returns:
        The student in evaluation mode, on the CPU.

    Raises:
        InputError: a loss that is no number, a damaged checkpoint.
    """
    torch.manual_seed(recipe.seed)
    device = torch.device(place.device)
    student.to(device).eval()
    teacher.to(device).eval().requires_grad_(False)
    names = tuple(modality.name for modality in modalities)
    views = make_views(caches, modalities, recipe, tile)
    order = joint_turns(names, recipe)
    source: BatchSource = FreshViews(views, order, place.workers)
    if recipe.cached_stage:
        features = features_of(student, views, recipe, place)
        targets = targets_of(teacher, views, recipe, place)
        source = CachedFeatures(_beside(features, targets), order)

    def losses(batch: Batch) -> Mapping[str, Tensor]:
        inputs = placed(batch.inputs, device)
        with autocast(device):
            if recipe.cached_stage:
                target = batch.labels.to(device)
            else:
                with torch.no_grad():
                    target = teacher.embed(inputs, batch.modality)
            embedding = embed_from(student, inputs, recipe.cached_stage, batch.modality)
        return {"total": F.mse_loss(embedding.float(), target.float())}

    groups = controller_groups(student, names, recipe.controller_rate)
    checkpoint = Checkpoint(
        place.work / CHECKPOINT, student, lambda name: name.startswith("controllers.")
    )
    phase = Phase("controllers", recipe.joint_steps, groups, source, losses)
    optimise(phase, recipe, checkpoint, place)
    return student.cpu().eval().requires_grad_(False)


def with_decoder_of(student: EspMedSam, teacher: EspMedSam) -> EspMedSam:
    """The student with the teacher's QDMD, SPPG and queries (paper: the decoder is shared).

    Args:
        student: all of its modalities are the teacher's too. It is changed.
        teacher: stays as it is.
    """
    for part in ("decoder", "patch_prompt_generator", "prompt_encoder"):
        getattr(student, part).load_state_dict(getattr(teacher, part).state_dict())
    for name in student.modalities:
        student.queries[name].load_state_dict(teacher.queries[name].state_dict())
    return student


def _beside(features: Stored, targets: Stored) -> Stored:
    """The student's features with the teacher's embeddings in place of label maps."""
    return {name: (features[name][0], targets[name][0]) for name in features}
