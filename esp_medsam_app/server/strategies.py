"""Which image a viewer shows next."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy


class RandomImage(Strategy):
    """An image without a label; the longer ago it was shown, the likelier.

    MONAI Label's own fails when the only image left was shown within the same second.
    """

    def __init__(self) -> None:
        super().__init__("An image without a label, by chance")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        if not images:
            return None
        name = request.get("strategy", "random")
        now = time.time()
        weights = [
            1 + max(0.0, now - _last_shown(datastore.get_image_info(image), name))
            for image in images
        ]
        return {"id": random.choices(images, weights=weights)[0]}


def _last_shown(info: Mapping[str, Any], strategy: str) -> float:
    """Unix time that MONAI Label's endpoint noted; 0 if never."""
    return float(info.get("strategy", {}).get(strategy, {}).get("ts", 0))
