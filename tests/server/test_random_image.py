"""Next image, please."""

from __future__ import annotations

import time
from typing import Any

from esp_medsam_app.server.strategies import RandomImage


class Images:
    """A datastore with nothing but times at which images were shown."""

    def __init__(self, shown: dict[str, float]) -> None:
        self.shown = shown

    def get_unlabeled_images(self, tag: Any, labels: Any) -> list[str]:
        return list(self.shown)

    def get_image_info(self, image: str) -> dict[str, Any]:
        ts = self.shown[image]
        return {"strategy": {"random": {"ts": ts}}} if ts else {}


def test_nothing_left() -> None:
    assert RandomImage()({"strategy": "random"}, Images({})) is None


def test_a_single_image_just_shown() -> None:
    shown = Images({"a": time.time() + 5})
    assert RandomImage()({"strategy": "random"}, shown) == {"id": "a"}


def test_what_was_not_shown_comes_first() -> None:
    shown = Images({"just_now": time.time(), "never": 0})
    picked = [RandomImage()({"strategy": "random"}, shown)["id"] for _ in range(200)]
    assert picked.count("never") > 190
