"""All that the app needs to choose the next image, put together."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy

from esp_medsam_app.active_learning.leases import Leases
from esp_medsam_app.active_learning.score_cache import ScoreCache
from esp_medsam_app.server.background_scores import BackgroundScores
from esp_medsam_app.server.image_scores import ImageScores
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
        self.scores = ImageScores(self.models, self.cache, own / "scores.lock")
        self.datastore = datastore
        self.background = BackgroundScores(self.scores, datastore)

    def strategies(self) -> dict[str, Strategy]:
        """By the names that viewers show; `random` first, as it is their default."""
        chosen: dict[str, Strategy] = {
            "random": RandomImage(self.leases),
            "first": FirstImage(self.leases),
        }
        for name in DESCRIPTIONS:
            chosen[name] = ScoredImage(name, self.leases, self.models, self.cache)
        return chosen

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
