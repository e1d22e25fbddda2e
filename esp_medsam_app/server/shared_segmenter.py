"""One backbone in memory for all models."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, NamedTuple

import torch

from esp_medsam_app.errors import EspMedSamError
from esp_medsam_app.inference.device import choose_device
from esp_medsam_app.inference.embedding_cache import EmbeddingCache
from esp_medsam_app.inference.input_size import DEFAULT_QUALITY
from esp_medsam_app.inference.segmenter import Segmenter
from esp_medsam_app.weights.bundle import Bundle
from esp_medsam_app.weights.versions import Stamp, VersionStore

logger = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """What a device has in memory, and the state of the store that it comes from."""

    # DeSamSegmenter has the same methods, where tasks of DeSAM use them
    segmenter: Any
    bundle: Bundle
    stamp: Stamp | None


class SharedSegmenter:
    """Loads the bundle's network when it is first needed, once, and hands it to every task.

    A version that is published or restored serves every request from then on. Those that run keep
    the segmenter that they got: none mixes versions or waits for another's weights.

    Args:
        bundle: weights and modalities.
        versions: of its modalities, trained here; none: the bundle alone serves.
        device: where it runs unless a request asks for another.
        batch_size: tiles in one pass; chosen by the device if not given.
        precision: of passes, as `Segmenter`'s.
        fast: by the fused encoder, as `Segmenter`'s.
        runtime: of the fused encoder on CPUs, as `Segmenter`'s; no request waits until it is made.
        quality: by the size of the network's input, as `Segmenter`'s.
        embeddings_mb: megabytes of image embeddings that are kept on each device; 0: none are.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        versions: VersionStore | None = None,
        device: str = "auto",
        batch_size: int | None = None,
        precision: str = "auto",
        fast: bool = True,
        runtime: str = "torch",
        embeddings_mb: int = 0,
        quality: str = DEFAULT_QUALITY,
    ) -> None:
        self.bundle = bundle
        self.versions = versions
        self.device = device
        self.batch_size = batch_size
        self.precision = precision
        self.fast = fast
        self.runtime = runtime
        self.embeddings_mb = embeddings_mb
        self.quality = quality
        self._loaded: dict[torch.device, Loaded] = {}
        self._loading = threading.Lock()

    def get(self, device: str = "auto") -> Segmenter:
        """The segmenter of what serves now on a device; `auto` is the server's own.

        Use one for a whole request.

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
            stamp = self.versions.stamp() if self.versions else None
            loaded = self._loaded.get(place)
            if loaded is None:
                loaded = self._load(place, stamp)
            elif loaded.stamp != stamp:
                loaded = self._follow(loaded, stamp)
            self._loaded[place] = loaded
            found: Segmenter = loaded.segmenter
            return found

    def _load(self, place: torch.device, stamp: Stamp | None) -> Loaded:
        start = time.perf_counter()
        bundle = self.versions.bundle() if self.versions else self.bundle
        segmenter = Segmenter(
            bundle,
            device=str(place),
            batch_size=self.batch_size,
            precision=self.precision,
            fast=self.fast,
            runtime=self.runtime if place.type == "cpu" else "torch",
            wait_for_runtime=False,
            quality=self.quality,
            embeddings=EmbeddingCache(self.embeddings_mb * 10**6) if self.embeddings_mb else None,
        )
        seconds = time.perf_counter() - start
        logger.info("Loaded %s on %s in %.1f s", bundle.path, place, seconds)
        return Loaded(segmenter, bundle, stamp)

    def _follow(self, loaded: Loaded, stamp: Stamp | None) -> Loaded:
        """The same with what serves now; as it is, for another try, if that cannot be loaded."""
        assert self.versions is not None
        start = time.perf_counter()
        try:
            bundle = self.versions.bundle(like=loaded.bundle)
            segmenter = loaded.segmenter.with_bundle(bundle)
        except (EspMedSamError, OSError, RuntimeError, MemoryError) as error:
            logger.error("The versions from before go on serving: %s", error)
            return loaded
        seconds = time.perf_counter() - start
        for name in sorted({*bundle.modalities, *loaded.bundle.modalities}):
            before, now = (_number(some, name) for some in (loaded.bundle, bundle))
            if before != now:
                logger.info("%s: version %d serves, %d did; %.2f s", name, now, before, seconds)
        return Loaded(segmenter, bundle, stamp)


def _number(bundle: Bundle, modality: str) -> int:
    return bundle.version(modality) if modality in bundle.modalities else 0
