"""Fitting the classifier that reads a modality from an image.

Nothing learns by gradient: a linear discriminant analysis of the frozen backbone's features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from esp_medsam_app.weights.modality_classifier import (
    ClassifierDescription,
    ModalityClassifier,
    inverse_distances,
)


class ClassifierRecipe(BaseModel):
    """The numbers of a classifier.

    Attributes:
        seed: of the augmented views.
        side: of the square that a slice is scaled to, pixels. Half of the backbone's: a fourth of
            the time, and enough to tell modalities apart.
        images: of each modality at most, evenly chosen by name.
        views: of each modality: its images as they are, then augmented ones.
        components: of the features that are kept.
        shrinkage: of the spread within the classes towards a round one.
        reach: how far a class reaches, as a multiple of the distance of its farthest image.
        asked: share of the validation images that may be asked about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    seed: int = 0
    side: int = Field(default=128, ge=32)
    images: int = Field(default=60, ge=2)
    views: int = Field(default=150, ge=2)
    components: int = Field(default=300, ge=1)
    shrinkage: float = Field(default=0.02, ge=0, le=1)
    reach: float = Field(default=1.25, ge=1)
    asked: float = Field(default=0.02, ge=0, lt=1)


def fit_classifier(
    training: Mapping[str, Tensor], validation: Mapping[str, Tensor], recipe: ClassifierRecipe
) -> ModalityClassifier:
    """Fit the classes to training features `[N, F]` and calibrate on validation features.

    A class reaches a little farther than its farthest image. The sharpness is the one with which
    the mean confidence is the share of right answers (with one wrong answer more than there are, as
    none at all would claim certainty). The threshold is the confidence that the share
    `recipe.asked` of the validation images does not reach, a half at least.

    Args:
        training: of each class.
        validation: of the same classes.
        recipe: the numbers.
    """
    names = list(training)
    mean, projection, centres = _discriminants(list(training.values()), recipe)
    description = ClassifierDescription(
        modalities=names, side=recipe.side, sharpness=1, threshold=0.5
    )
    draft = ModalityClassifier(
        description, mean, projection, centres, torch.full((len(names),), torch.inf)
    )
    own = {
        name: draft.distances(torch.cat([training[name], validation[name]]))[:, index]
        for index, name in enumerate(names)
    }
    distances = torch.cat([draft.distances(validation[name]) for name in names])
    counts = torch.tensor([len(validation[name]) for name in names])
    truth = torch.arange(len(names)).repeat_interleave(counts)
    described = description.model_copy(update={"sharpness": _sharpness(distances, truth)})
    reach = recipe.reach * torch.stack([own[name].max() for name in names])
    fitted = replace(draft, description=described, reach=reach)
    confidence = torch.cat([fitted.probabilities(validation[name]) for name in names])
    least = np.quantile(confidence.max(dim=1).values.numpy(), recipe.asked)
    threshold = float(np.clip(least, 0.5, 0.999))
    return replace(fitted, description=described.model_copy(update={"threshold": threshold}))


def _discriminants(
    classes: Sequence[Tensor], recipe: ClassifierRecipe
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean `[F]`, projection `[F, D]` and centres `[K, D]` of a linear discriminant analysis."""
    everything = torch.cat(list(classes)).double()
    mean, scale = everything.mean(dim=0), everything.std(dim=0).clamp_min(1e-6)
    standard = (everything - mean) / scale
    # the components in which there is variance at all
    _, _, directions = torch.linalg.svd(standard, full_matrices=False)
    base = directions[: min(recipe.components, len(everything) - 1)].T / scale[:, None]
    placed = [(features.double() - mean) @ base for features in classes]
    middles = torch.stack([features.mean(dim=0) for features in placed])
    within = torch.cat([rows - middle for rows, middle in zip(placed, middles, strict=True)])
    spread = within.T @ within / max(1, len(within) - len(classes))
    size = len(spread)
    even = torch.eye(size, dtype=torch.float64) * spread.diagonal().mean().clamp_min(1e-12)
    spread = (1 - recipe.shrinkage) * spread + recipe.shrinkage * even
    values, vectors = torch.linalg.eigh(spread)
    # a distance of 1 is the usual one from the own centre
    rounding = vectors / (values.clamp_min(1e-12) * size).sqrt()
    return mean.float(), (base @ rounding).float(), (middles @ rounding).float()


def _sharpness(distances: Tensor, truth: Tensor) -> float:
    right = int((distances.argmin(dim=1) == truth).sum())
    wanted = (right + 1) / (len(truth) + 2)
    low, high = 0.1, 200.0
    for _ in range(50):
        middle = (low * high) ** 0.5
        if float(inverse_distances(distances, middle).max(dim=1).values.mean()) < wanted:
            low = middle
        else:
            high = middle
    return low
