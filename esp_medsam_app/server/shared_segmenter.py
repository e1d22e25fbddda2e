"""One backbone in memory for all models."""

from __future__ import annotations

import logging
import threading
import time

import torch

from esp_medsam_app.inference.device import choose_device
from esp_medsam_app.inference.segmenter import Segmenter
from esp_medsam_app.weights.bundle import Bundle

logger = logging.getLogger(__name__)


class SharedSegmenter:
    """Loads the bundle's network when it is first needed, once, and hands it to every task.

    Args:
        bundle: weights and modalities.
        device: where it runs unless a request asks for another.
        batch_size: tiles in one pass; chosen by the device if not given.
    """

    def __init__(
        self, bundle: Bundle, *, device: str = "auto", batch_size: int | None = None
    ) -> None:
        self.bundle = bundle
        self.device = device
        self.batch_size = batch_size
        self._loaded: dict[torch.device, Segmenter] = {}
        self._loading = threading.Lock()

    def get(self, device: str = "auto") -> Segmenter:
        """The segmenter on a device; `auto` is the server's own.

        As everywhere in MONAI Label, `cuda` on a server without a GPU is the server's own too.

        Raises:
            InputError: there is no such device.
            WeightsError: the weights are missing or damaged; the next call tries again.
        """
        if device == "auto" or (device.startswith("cuda") and not torch.cuda.is_available()):
            device = self.device
        place = choose_device(device)
        if place.type == "cuda" and place.index is None:
            place = torch.device("cuda", torch.cuda.current_device())
        with self._loading:
            if place not in self._loaded:
                start = time.perf_counter()
                self._loaded[place] = Segmenter(
                    self.bundle, device=str(place), batch_size=self.batch_size
                )
                logger.info(
                    "Loaded %s on %s in %.1f s",
                    self.bundle.path,
                    place,
                    time.perf_counter() - start,
                )
            return self._loaded[place]
