"""The compact profile: the same backbone on a smaller input, taught by the full model (MMDKD).

Every modality starts as it is in the full model, its teacher, and learns to see as much in an image
sampled coarser: its controller the teacher's embedding, controller and queries together the
teacher's soft masks and the labels. Backbone, QDMD and SPPG are the teacher's and stay as they are,
so that modalities learn one by one, in whichever run, and fit together in one bundle.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from esp_medsam_app.inference.device import autocast, choose_precision
from esp_medsam_app.inference.fast_network import FastNetwork
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.networks.tiny_vit import DIMS, EMBEDDING_CHANNELS, TinyViT
from esp_medsam_app.training.compact_recipe import CompactRecipe
from esp_medsam_app.training.groups import controller_groups, query_groups
from esp_medsam_app.training.inputs import (
    computed,
    embed_from,
    placed,
    views_of,
)
from esp_medsam_app.training.losses import SegmentationLoss
from esp_medsam_app.training.optimisation import CHECKPOINT, Checkpoint, Phase, optimise
from esp_medsam_app.training.slice_cache import SliceCache
from esp_medsam_app.training.sources import (
    Batch,
    BatchSource,
    CachedFeatures,
    FreshViews,
    Turns,
)
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.training.views import TrainingViews

LESSONS = "lessons"
_OWNED = ("controllers.", "queries.")


def distil_compact(
    teacher: EspMedSam,
    caches: Mapping[str, SliceCache],
    modalities: Sequence[Modality],
    recipe: CompactRecipe,
    *,
    tile: int,
    place: Surroundings,
) -> EspMedSam:
    """Teach each modality to work on a smaller input. What they share stays, bit by bit.

    Args:
        teacher: the full model; it has controllers and all of `modalities`. It stays as it is.
        caches: slices of each modality's cases, by name.
        modalities: what to train, one after the other.
        recipe: all numbers.
        tile: side of the teacher's input, pixels.
        place: folder, device, processes. What the teacher says of a modality's views is kept there
            until that has learned.

    Returns:
        The compact network in evaluation mode, on the CPU.

    Raises:
        InputError: a loss that is no number, a damaged checkpoint.
    """
    torch.manual_seed(recipe.seed)
    device = torch.device(place.device)
    teacher.to(device).eval().requires_grad_(False)
    student = copy.deepcopy(teacher)
    checkpoint = Checkpoint(place.work / CHECKPOINT, student, lambda name: name.startswith(_OWNED))
    lessons = _Lessons(teacher, student, recipe, device)
    for modality in modalities:
        name = modality.name
        if not checkpoint.finished(name):
            views = views_of(
                caches, modality, modalities, tile=tile, seed=recipe.seed, absent=recipe.absent
            )
            groups = query_groups(student, [name], recipe.query_rate)
            groups += controller_groups(student, [name], recipe.controller_rate)
            source = lessons.source(name, views, place)
            phase = Phase(name, recipe.steps, groups, source, lessons.losses)
            optimise(phase, recipe, checkpoint, place)
        if place.processes.first:
            shutil.rmtree(place.work / LESSONS / name, ignore_errors=True)
    return student.cpu().eval().requires_grad_(False)


def fitting(
    recipe: CompactRecipe, modalities: Sequence[Modality], *, tile: int, stride: int, limit: int
) -> CompactRecipe:
    """The recipe with no more views than fit on disk, one modality's at a time.

    Args:
        recipe: as it was asked for.
        modalities: what learns.
        tile: side of the teacher's input, pixels.
        stride: of the encoder's stem.
        limit: bytes.
    """
    if recipe.views is None or not recipe.cached_stage:
        return recipe
    labels = max(len(modality.labels) for modality in modalities)
    kept = sum(math.prod(shape) for shape in _shapes(recipe, stride, labels))
    # bfloat16, and a label map beside it
    views = max(1, limit // (2 * kept + tile * tile))
    return recipe.model_copy(update={"views": min(recipe.views, views)})


class _Lesson(NamedTuple):
    """What a student hears of views.

    Attributes:
        features: what enters its cached stage; at stage 0 the views themselves, `[B, 3, S, S]`.
        embedding: the teacher's, on the student's grid.
        masks: the teacher's probabilities, on the student's pixels.
    """

    features: Tensor
    embedding: Tensor
    masks: Tensor

    def packed(self) -> Tensor:
        """A row `[B, N]` in bfloat16 for each view."""
        return torch.cat([part.flatten(1).to(torch.bfloat16) for part in self], dim=1)


class _Lessons:
    """A teacher and its student."""

    def __init__(
        self, teacher: EspMedSam, student: EspMedSam, recipe: CompactRecipe, device: torch.device
    ) -> None:
        self.teacher = FastNetwork(teacher, choose_precision("auto", device))
        self.student = student
        self.recipe = recipe
        self.device = device
        self.loss = SegmentationLoss(recipe.patch_weight, recipe.pixel_loss)

    def source(self, name: str, views: TrainingViews, place: Surroundings) -> BatchSource:
        """Batches of a modality: lessons on disk, or fresh views."""
        recipe = self.recipe
        count = recipe.views
        if count is not None:
            # a short run makes no views that it does not touch
            count = min(count, max(1, recipe.steps * recipe.accumulate * recipe.batch))
        turns = Turns((name,), recipe.batch, count, recipe.seed)
        if not recipe.cached_stage:
            return FreshViews({name: views}, turns, place.workers)
        assert count is not None
        stored = computed(
            LESSONS,
            (name,),
            count,
            lambda _: views.__getitem__,
            lambda images, name: self._lesson(images.to(self.device), name).packed(),
            place,
        )
        return CachedFeatures(stored, turns)

    def losses(self, batch: Batch) -> Mapping[str, Tensor]:
        """What a batch's step minimises."""
        recipe, name = self.recipe, batch.modality
        labels = batch.labels.to(self.device, non_blocking=True)
        with autocast(self.device):
            lesson = self._heard(batch)
            features = placed(lesson.features, self.device)
            embedding = embed_from(self.student, features, recipe.cached_stage, name)
            masks, patches = self.student.decode(embedding, name)
        masks = masks.float()
        # as inference does: masks are judged on the image's pixels, not on the network's
        shown = F.interpolate(masks, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        labelled = self.loss(shown, patches, labels)
        soft = F.binary_cross_entropy_with_logits(masks, lesson.masks.float().to(self.device))
        apart = F.mse_loss(embedding.float(), lesson.embedding.float().to(self.device))
        total = (
            recipe.mask_weight * labelled.total
            + recipe.soft_weight * soft
            + recipe.embedding_weight * apart
        )
        return {
            "total": total,
            "mask": labelled.mask,
            "patch": labelled.patch,
            "soft": soft.detach(),
            "embedding": apart.detach(),
        }

    def _heard(self, batch: Batch) -> _Lesson:
        if not self.recipe.cached_stage:
            with torch.no_grad():
                return self._lesson(batch.inputs.to(self.device), batch.modality)
        queries = self.student.queries[batch.modality].decoded
        assert isinstance(queries, int)
        shapes = _shapes(self.recipe, self._stride, queries)
        parts = batch.inputs.split([math.prod(shape) for shape in shapes], dim=1)
        return _Lesson(
            *(part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True))
        )

    def _lesson(self, images: Tensor, name: str) -> _Lesson:
        """Of views `[B, 3, T, T]`, where T is the teacher's input."""
        embedding = self.teacher.embed(images, name)
        masks, _ = self.teacher.decode(embedding, name)
        features = smaller(images, self.recipe.size)
        if self.recipe.cached_stage:
            encoder = self.student.encoder
            assert isinstance(encoder, TinyViT)
            features = encoder.encode_until(
                features, self.recipe.cached_stage, self.student.controller(name)
            )
        side = self.recipe.size // (4 * self._stride)
        return _Lesson(
            features, smaller(embedding.float(), side), smaller(masks.float().sigmoid(), 4 * side)
        )

    @property
    def _stride(self) -> int:
        encoder = self.student.encoder
        assert isinstance(encoder, TinyViT)
        return encoder.stem_stride


def smaller(images: Tensor, side: int) -> Tensor:
    """`[B, C, H, W]` to `[B, C, side, side]`, as slices are scaled for the network."""
    return F.interpolate(
        images, size=(side, side), mode="bilinear", align_corners=False, antialias=True
    )


def _shapes(recipe: CompactRecipe, stride: int, queries: int) -> tuple[tuple[int, ...], ...]:
    """Of a lesson's parts, for one view; of a recipe with a cached stage."""
    grid = recipe.size // stride
    # merging keeps the grid of the last stage
    side = grid // 2 if recipe.cached_stage == 1 else grid // 4
    embedding = grid // 4
    return (
        (DIMS[recipe.cached_stage], side, side),
        (EMBEDDING_CHANNELS, embedding, embedding),
        (queries, 4 * embedding, 4 * embedding),
    )
