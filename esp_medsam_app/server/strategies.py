"""Which image a viewer shows next."""

from __future__ import annotations

import logging
import random
import sqlite3
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from esp_medsam_app.active_learning.leases import Leases
from esp_medsam_app.active_learning.score_cache import ScoreCache
from esp_medsam_app.active_learning.strategies import STRATEGIES, Candidate
from esp_medsam_app.inference.assessment import Assessment
from esp_medsam_app.server.ohif_volumes import OHIF, ohif_shows
from esp_medsam_app.server.scored_models import ScoredModels

DESCRIPTIONS = {
    "uncertainty": "The image that the model is least sure of",
    "diversity": "The image that is least like those annotated",
    "hybrid": "An image that the model is unsure of and that is unlike those annotated",
}

OfOthers = Callable[[Mapping[str, Any], Datastore], set[str]]

logger = logging.getLogger(__name__)


def _of_nobody(request: Mapping[str, Any], datastore: Datastore) -> set[str]:
    del request, datastore
    return set()


class LeasedStrategy(Strategy):
    """Puts the images without a label in an order, and offers the first that nobody works on.

    Images of another modality than the one that is annotated come last. They are not left out:
    tags may be wrong, and looks deceive.

    Args:
        description: for viewers.
        leases: who works on what.
        of_others: the images that are known to be of another modality than a request is about.
    """

    def __init__(self, description: str, leases: Leases, of_others: OfOthers = _of_nobody) -> None:
        super().__init__(description)
        self.leases = leases
        self.of_others = of_others

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The image's `id`; none if all have labels.

        Args:
            request: `strategy`; `viewer`, who gets only what it shows if that is OHIF;
                `client_id` or `user`, who asks; `label_tag` and `labels`, what
                counts as labelled, for datastores that know it; `model`, whose scores count.
            datastore: of the images.
        """
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        if request.get("viewer") == OHIF:
            images = [image for image in images if ohif_shows(datastore.get_image_info(image))]
        if not images:
            return None
        others = self.of_others(request, datastore)
        order = []
        for group in (set(images) - others, set(images) & others):
            if group:
                order += self.order(sorted(group), request, datastore)
        client = str(request.get("client_id") or request.get("user") or "")
        try:
            image = self.leases.take(order, client)
        except (sqlite3.Error, OSError) as error:
            logger.warning("Two annotators may get the same image: %s: %s", self.leases.path, error)
            image = order[0]
        return {"id": image}

    @abstractmethod
    def order(
        self, images: list[str], request: Mapping[str, Any], datastore: Datastore
    ) -> list[str]:
        """All the images, at least one, the best first."""


class RandomImage(LeasedStrategy):
    """By chance; the longer ago an image was shown, the likelier it comes early.

    MONAI Label's own fails when the only image left was shown within the same second.
    """

    def __init__(self, leases: Leases, of_others: OfOthers = _of_nobody) -> None:
        super().__init__("An image without a label, by chance", leases, of_others)

    def order(
        self, images: list[str], request: Mapping[str, Any], datastore: Datastore
    ) -> list[str]:
        """Drawn one after the other, each with a chance of its weight among those left."""
        name = request.get("strategy") or "random"
        now = time.time()
        # the first of waiting times at these rates is each with that chance, and so on
        return sorted(
            images,
            key=lambda image: random.expovariate(
                1 + max(0.0, now - _last_shown(datastore.get_image_info(image), name))
            ),
        )


class FirstImage(LeasedStrategy):
    """By name."""

    def __init__(self, leases: Leases, of_others: OfOthers = _of_nobody) -> None:
        super().__init__("The first image without a label, by name", leases, of_others)

    def order(
        self, images: list[str], request: Mapping[str, Any], datastore: Datastore
    ) -> list[str]:
        """As they come: sorted."""
        return images


class ScoredImage(LeasedStrategy):
    """By the scores that there are; computes none, so that the answer comes at once.

    An image without a score stands in the middle of the order, see `active_learning.strategies`,
    until the background thread has assessed it.

    Args:
        name: one of `STRATEGIES`.
        leases: who works on what.
        of_others: see `LeasedStrategy`.
        models: which modality's scores count, and under which weights.
        cache: of the scores.
    """

    def __init__(
        self,
        name: str,
        leases: Leases,
        of_others: OfOthers,
        models: ScoredModels,
        cache: ScoreCache,
    ) -> None:
        super().__init__(DESCRIPTIONS[name], leases, of_others)
        self.rule = STRATEGIES[name]
        self.models = models
        self.cache = cache

    def order(
        self, images: list[str], request: Mapping[str, Any], datastore: Datastore
    ) -> list[str]:
        """By the strategy's rule."""
        try:
            table = self._table(request, datastore)
            count = len(self.leases.held()) + 1
        except (sqlite3.Error, OSError) as error:
            logger.warning("The scores of images cannot be used: %s: %s", self.cache.path, error)
            table, count = {}, 1
        candidates = [
            Candidate(image, table[image].uncertainty, table[image].embedding)
            if image in table
            else Candidate(image)
            for image in images
        ]
        labelled = sorted(set(datastore.get_labeled_images()) & set(table))
        annotated = [table[image].embedding for image in labelled]
        return self.rule(candidates, annotated, count=count)

    def _table(self, request: Mapping[str, Any], datastore: Datastore) -> Mapping[str, Assessment]:
        modality = self.models.chosen(request, datastore)
        if modality is None:
            return {}
        if request.get("model"):
            self.cache.ask(modality)
        return self.cache.table(modality, self.models.version(modality))


def _last_shown(info: Mapping[str, Any], strategy: str) -> float:
    """Unix time that MONAI Label's endpoint noted; 0 if never."""
    noted = info.get("strategy")
    shown = noted.get(strategy) if isinstance(noted, Mapping) else None
    time_of_it = shown.get("ts") if isinstance(shown, Mapping) else None
    return float(time_of_it) if isinstance(time_of_it, int | float) else 0.0
