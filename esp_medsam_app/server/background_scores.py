"""A thread that keeps the scores of images up to date while the server has nothing better to do."""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from monailabel.interfaces.datastore import Datastore

from esp_medsam_app.errors import EspMedSamError
from esp_medsam_app.server.image_scores import ImageScores, StoppedError

# How often it looks for new images and new weights, seconds.
SECONDS = 30.0
# How long the server's end waits for the pass that runs, seconds.
_PATIENCE = 10.0

logger = logging.getLogger(__name__)


class BackgroundScores:
    """Assesses what has no score yet: at the start, for new images, and under new weights.

    It scores for the modality that is annotated here, and for those that annotators asked for.
    Requests go first: it holds the device for one tile at a time, and takes none while a request
    runs.

    Args:
        scores: brings the cache up to date.
        datastore: the app's.
        seconds: between two looks for work.
    """

    def __init__(
        self,
        scores: ImageScores,
        datastore: Callable[[], Datastore],
        *,
        seconds: float = SECONDS,
    ) -> None:
        self.scores = scores
        self.datastore = datastore
        self.seconds = seconds
        self._change = threading.Condition()
        self._requests = 0
        self._woken = False
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._images: set[str] = set()

    @property
    def is_running(self) -> bool:
        """Whether there is the thread."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread, if it does not run; it ends with the process."""
        if self.is_running:
            return
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="scores", daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """End the thread after the pass that runs."""
        atexit.unregister(self.stop)
        with self._change:
            self._stopping = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join(_PATIENCE)

    def wake(self) -> None:
        """Have it look for work now; returns at once."""
        with self._change:
            self._woken = True
            self._change.notify_all()

    @contextmanager
    def request(self) -> Iterator[None]:
        """For the time of a `with` block the device is left to a request."""
        with self._change:
            self._requests += 1
        try:
            yield
        finally:
            with self._change:
                self._requests -= 1
                self._change.notify_all()

    def round(self) -> int:
        """Assess all that has no score; how many.

        Raises:
            StoppedError: the thread is to end.
            WeightsError, OutOfMemoryError: nothing can be assessed now.
            sqlite3.Error, OSError: the cache cannot be used.
        """
        datastore = self.datastore()
        models, cache = self.scores.models, self.scores.cache
        chosen = models.chosen({}, datastore)
        wanted = [chosen] if chosen else []
        wanted += [name for name in cache.asked() if name in models.modalities]
        count = 0
        for modality in dict.fromkeys(wanted):
            found = self.scores.score_missing(modality, datastore, self._give_way)
            count += found or 0
        images = set(datastore.list_images())
        if self._images - images:
            cache.retain(images)
            self.scores.seen.retain(images)
        self._images = images
        return count

    def _give_way(self) -> None:
        """Wait until no request runs.

        Raises:
            StoppedError: the thread is to end.
        """
        with self._change:
            self._change.wait_for(lambda: self._stopping or not self._requests)
            if self._stopping:
                raise StoppedError

    def _run(self) -> None:
        while not self._stopping:
            self._woken = False
            try:
                count = self.round()
                if count:
                    logger.info("Assessed %d images", count)
            except StoppedError:
                return
            except EspMedSamError as error:
                logger.warning("Images cannot be assessed now: %s", error)
            except Exception:
                logger.exception("Images cannot be assessed now")
            with self._change:
                self._change.wait_for(lambda: self._woken or self._stopping, self.seconds)
