"""The classifier that tells a bundle's modalities apart by the plain backbone's features.

Features are turned and scaled so that the spread within the classes is alike in all directions
(linear discriminant analysis); an image belongs to the class whose centre is nearest. What counts
is how much nearer than to the others, and than the class reaches: an image that is like none of the
classes is about as far from all of them, or farther than any image of the nearest, and so comes out
as uncertain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class ClassifierDescription(BaseModel):
    """What `bundle.json` says of the classifier.

    Attributes:
        modalities: its classes, in the order of the centres. It may know more than the bundle, so
            that images of those are not taken for others.
        side: of the square that a slice is scaled to, pixels.
        sharpness: power of the inverse distances that makes them probabilities.
        threshold: probability from which on it decides instead of asking.
        training: on what it was fitted.
        scores: what `esp-medsam classifier evaluate` found, by the split's name.
    """

    model_config = ConfigDict(extra="forbid")
    modalities: list[str]
    side: int = Field(ge=32, le=2048)
    sharpness: float = Field(gt=0)
    threshold: float = Field(gt=0, lt=1)
    training: dict[str, Any] = Field(default_factory=dict)
    scores: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ModalityClassifier:
    """A fitted classifier of `F` features and `K` classes.

    Attributes:
        description: its classes and threshold.
        mean: `[F]`, of the features.
        projection: `[F, D]`, to where the classes are round and of one size.
        centres: `[K, D]`.
        reach: `[K]`, distance from which on an image is rather none of the class.
    """

    description: ClassifierDescription
    mean: Tensor
    projection: Tensor
    centres: Tensor
    reach: Tensor

    def distances(self, features: Tensor) -> Tensor:
        """From images `[N, F]` to the centres, `[N, K]`."""
        return torch.cdist((features - self.mean) @ self.projection, self.centres)

    def probabilities(self, features: Tensor) -> Tensor:
        """Of the classes for images `[N, F]`, `[N, K]`; what lacks to 1 is that of none of them.

        None of them is as another class that lies where the nearest one's reach ends.
        """
        distances = self.distances(features)
        end = self.reach[distances.argmin(dim=1)].unsqueeze(1)
        everything = torch.cat([distances, end], dim=1)
        return inverse_distances(everything, self.description.sharpness)[:, :-1]

    def rank(self, features: Tensor) -> dict[str, float]:
        """The classes with their probabilities for one image `[F]`, the likeliest first."""
        values = self.probabilities(features.unsqueeze(0))[0].tolist()
        ranked = zip(self.description.modalities, values, strict=True)
        return dict(sorted(ranked, key=lambda item: -item[1]))


def inverse_distances(distances: Tensor, sharpness: float) -> Tensor:
    """Distances `[N, K]` as probabilities in proportion to `distance ** -sharpness`."""
    return torch.softmax(-sharpness * distances.clamp_min(1e-6).log(), dim=1)
