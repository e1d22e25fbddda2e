"""Assessing the images of a datastore that have no score yet, one after the other."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.datastore import Datastore

from esp_medsam_app.active_learning.image_modalities import ImageModalities, ImageModality
from esp_medsam_app.active_learning.score_cache import ScoreCache, ScoreKey, fingerprint
from esp_medsam_app.active_learning.strategies import Candidate, by_chance
from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.errors import (
    BusyError,
    InputError,
    OutOfMemoryError,
    UnknownNameError,
    UnreachableError,
    WeightsError,
)
from esp_medsam_app.server.originals import borrowed
from esp_medsam_app.server.reading import read_image
from esp_medsam_app.server.scored_models import ScoredModels

# Of a DICOMweb archive, so many series are fetched to be assessed; chosen by chance.
REMOTE_SERIES = 500
# A series' content never changes under its UID (DICOM PS3.3).
_SERIES = "series"

logger = logging.getLogger(__name__)


class StoppedError(Exception):
    """Whoever wanted the scores wants no more."""


class ImageScores:
    """Brings the cache up to date.

    Of all threads and processes that use one lock file, one works at a time.

    Args:
        models: what assesses.
        cache: for the scores.
        seen: for what images are of.
        lock: path of the lock file.
    """

    def __init__(
        self, models: ScoredModels, cache: ScoreCache, seen: ImageModalities, lock: Path
    ) -> None:
        self.models = models
        self.cache = cache
        self.seen = seen
        self.lock = lock
        # failures that may be ours: tried again after a restart
        self._given_up: dict[str, str] = {}
        self._blind = False

    def score_missing(
        self,
        modality: str,
        datastore: Datastore,
        before_pass: Callable[[], None] = lambda: None,
    ) -> int | None:
        """Assess the images that have no score under the weights that serve now.

        Those without a label come first; the others are needed for what they look like. An image
        that fails is named in the log and left alone until its file changes. So is, silently, one
        of another modality.

        Args:
            modality: one of the models'.
            datastore: of the images.
            before_pass: called before each image and each pass over the network. What it raises
                ends the work.

        Returns:
            How many were assessed; none if another thread or process is at it.

        Raises:
            WeightsError, OutOfMemoryError: nothing can be assessed now.
            sqlite3.Error, OSError: the cache cannot be used.
        """
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        try:
            return self._score_missing(modality, datastore, before_pass)
        finally:
            lock.release()

    def _score_missing(
        self, modality: str, datastore: Datastore, before_pass: Callable[[], None]
    ) -> int:
        version = self.models.version(modality)
        known, failed = self.cache.known(modality, version), self.cache.failed()
        told_apart = self.models.told_apart(modality)
        seen = self.seen.known() if told_apart else {}
        count = 0
        for image in _in_order(datastore):
            try:
                mark = image_fingerprint(datastore, image)
            except OSError:
                continue  # removed meanwhile
            if mark in (known.get(image), failed.get(image), self._given_up.get(image)):
                continue
            of = seen.get(image)
            if of is not None and of.fingerprint != mark:
                of = None
            if of is not None and modality not in of.possible:
                continue
            before_pass()
            if self.models.version(modality) != version:
                break  # the next call goes on with the new weights
            if not count:
                logger.info("Assessing images for %s in the background", modality)
            key = ScoreKey(image, mark, modality, version)
            count += self._score(key, datastore, before_pass, look=told_apart and of is None)
        return count

    def _score(
        self,
        key: ScoreKey,
        datastore: Datastore,
        before_pass: Callable[[], None],
        *,
        look: bool,
    ) -> bool:
        """Assess an image; before that, look whether it is of the modality at all."""
        try:
            with borrowed(datastore, key.image) as path:
                image = read_image(path)
                if look and not self._may_be_of(key, image):
                    return False
                version, assessment = self.models.assess(key.modality, image, before_pass)
        except (BusyError, UnreachableError) as error:
            # the next round asks again
            logger.warning("Image %r cannot be assessed now: %s", key.image, error)
            return False
        except (StoppedError, WeightsError, OutOfMemoryError, UnknownNameError, sqlite3.Error):
            raise
        except InputError as error:
            logger.warning("Image %r cannot be assessed: %s", key.image, error)
            # without the server's paths: clients may read it
            self.cache.fail(key.image, key.fingerprint, error.problem)
            return False
        except Exception:
            logger.exception("Image %r cannot be assessed", key.image)
            self._given_up[key.image] = key.fingerprint
            return False
        # what really looked at it: new weights may have come in between
        self.cache.put(ScoreKey(key.image, key.fingerprint, key.modality, version), assessment)
        return True

    def _may_be_of(self, key: ScoreKey, image: MedicalImage) -> bool:
        """Whether an image may be of a modality; what it is of is noted."""
        try:
            of = ImageModality(key.fingerprint, self.models.read(key.modality, image))
        except WeightsError as error:
            if not self._blind:
                logger.warning("What images are of is not looked at: %s", error)
            self._blind = True
            return True
        self.seen.put(key.image, *of)
        return key.modality in of.possible


def image_fingerprint(datastore: Datastore, image: str) -> str:
    """What changes with an image's content; fetches nothing.

    Raises:
        OSError: it is gone.
    """
    if isinstance(datastore, DICOMWebDatastore):
        return _SERIES
    return fingerprint(Path(datastore.get_image_uri(image)))


def _in_order(datastore: Datastore) -> list[str]:
    groups = [sorted(datastore.get_unlabeled_images()), sorted(datastore.get_labeled_images())]
    if isinstance(datastore, DICOMWebDatastore):
        groups = [
            by_chance([Candidate(image) for image in images])[:REMOTE_SERIES] for images in groups
        ]
    return [image for images in groups for image in images]
