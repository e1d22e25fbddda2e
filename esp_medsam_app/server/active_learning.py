"""All that the app needs to choose the next image, put together."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy

from esp_medsam_app.active_learning.image_modalities import ImageModalities
from esp_medsam_app.active_learning.leases import Leases
from esp_medsam_app.active_learning.score_cache import ScoreCache
from esp_medsam_app.active_learning.used_models import UsedModels
from esp_medsam_app.server.background_scores import BackgroundScores
from esp_medsam_app.server.image_scores import ImageScores, image_fingerprint
from esp_medsam_app.server.scored_models import ScoredModels
from esp_medsam_app.server.strategies import DESCRIPTIONS, FirstImage, RandomImage, ScoredImage

logger = logging.getLogger(__name__)


class ActiveLearning:
    """Strategies, leases and scores of one datastore.

    Args:
        folder: for files that a server's workers share.
        studies: folder or address of the datastore; each has files of its own.
        tasks: the app's models by name.
        datastore: the app's.
    """

    def __init__(
        self,
        folder: Path,
        studies: str,
        tasks: Mapping[str, InferTask],
        datastore: Callable[[], Datastore],
    ) -> None:
        where = studies if "://" in studies else str(Path(studies).resolve())
        own = folder / hashlib.sha256(where.encode()).hexdigest()[:16]
        self.leases = Leases(own / "leases.sqlite3")
        self.cache = ScoreCache(own / "scores.sqlite3")
        self.models = ScoredModels(tasks)
        self.seen = ImageModalities(own / f"modalities_{self.models.reader()}.sqlite3")
        self.used = UsedModels(own / "used_models.sqlite3")
        self.scores = ImageScores(self.models, self.cache, self.seen, own / "scores.lock")
        self.datastore = datastore
        self.background = BackgroundScores(self.scores, datastore)

    def strategies(self) -> dict[str, Strategy]:
        """By the names that viewers show; `random` first, as it is their default."""
        chosen: dict[str, Strategy] = {
            "random": RandomImage(self.leases, self.of_others),
            "first": FirstImage(self.leases, self.of_others),
        }
        for name in DESCRIPTIONS:
            chosen[name] = ScoredImage(name, self.leases, self.of_others, self.models, self.cache)
        return chosen

    def of_others(self, request: Mapping[str, Any], datastore: Datastore) -> set[str]:
        """Images that are known to be of another modality than the one that is annotated."""
        wanted = self.models.wanted(request, datastore)
        if wanted is None or not self.models.told_apart(wanted):
            return set()
        try:
            seen = self.seen.known()
        except (sqlite3.Error, OSError) as error:
            logger.warning("What images are of is not known: %s: %s", self.seen.path, error)
            return set()
        return {image for image, of in seen.items() if wanted not in of.possible}

    def was_read(self, image: str, modality: str) -> None:
        """A model has read an image's modality from it."""
        try:
            self.seen.put(image, image_fingerprint(self.datastore(), image), [modality])
        except (sqlite3.Error, OSError) as error:
            logger.warning("What images are of is not noted: %s: %s", self.seen.path, error)

    def was_used(self, image: str, model: str) -> None:
        """A client has run a model on an image."""
        try:
            self.used.put(image, model)
        except (sqlite3.Error, OSError) as error:
            logger.warning("Which model was used is not noted: %s: %s", self.used.path, error)

    def used_models(self) -> Mapping[str, str]:
        """The model that a client ran last on each image."""
        try:
            return self.used.known()
        except (sqlite3.Error, OSError) as error:
            logger.warning("Which models were used is not known: %s: %s", self.used.path, error)
            return {}

    def modality_of(self, image: str) -> str | None:
        """The modality that an image is known to be of, as its file is now."""
        try:
            of = self.seen.known().get(image)
            now = image_fingerprint(self.datastore(), image)
        except (sqlite3.Error, OSError):
            return None
        if of is None or of.fingerprint != now or len(of.possible) != 1:
            return None
        return of.possible[0]

    def submitted(self, image: str) -> None:
        """A label of this image was submitted: nobody works on it any more."""
        if isinstance(self.datastore(), DICOMWebDatastore):
            # MONAI Label asks the archive once in hours, and would offer the image till then
            DICOMWebDatastore.get_labeled_images.cache_clear()
        try:
            self.leases.release(image)
        except (sqlite3.Error, OSError) as error:
            # the label itself is safe
            logger.warning("%s: %s", self.leases.path, error)
        self.background.wake()
