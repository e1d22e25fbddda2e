"""MONAI Label's scoring method `uncertainty`: how sure the model is of each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from esp_medsam_app.server.image_scores import ImageScores

# What an image's info gets; rounded so that the same score is the same text.
_FIGURES = ("uncertainty", "disagreement", "entropy")
_DIGITS = 4


class UncertaintyScoring(ScoringMethod):
    """Assesses the images that have no score yet, and notes all scores in the datastore.

    Args:
        scores: made when they are first needed.
    """

    def __init__(self, scores: Callable[[], ImageScores]) -> None:
        super().__init__("How unsure the model is of an image, 0 to 1")
        self._scores = scores

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score all images, under the weights that serve now.

        Where the server's background thread is at it, what it has found so far is reported, and
        nothing is done twice.

        Args:
            request: `model`, whose scores are wanted; see `ScoredModels.chosen`.
            datastore: each image's info gets `uncertainty`, `disagreement`, `entropy` (0 to 1) and
                `uncertainty_model`.

        Returns:
            The same by image; `{"error": explanation}` for one that cannot be assessed.

        Raises:
            WeightsError, OutOfMemoryError: nothing can be assessed now.
        """
        scores = self._scores()
        modality = scores.models.chosen(request, datastore)
        if modality is None:
            return {}
        scores.score_missing(modality, datastore)
        found = scores.cache.scores(modality, scores.models.version(modality))
        reasons = scores.cache.reasons()
        result: dict[str, Any] = {}
        for image in datastore.list_images():
            if image in found:
                figures = {name: round(getattr(found[image], name), _DIGITS) for name in _FIGURES}
                info = {**figures, "uncertainty_model": modality}
                known = datastore.get_image_info(image)
                if any(known.get(name) != value for name, value in info.items()):
                    datastore.update_image_info(image, info)
                result[image] = info
            elif image in reasons:
                result[image] = {"error": reasons[image]}
        return result
