"""Next image, please."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from esp_medsam_app.active_learning.leases import Leases
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


@pytest.fixture
def random_image(tmp_path: Path) -> RandomImage:
    return RandomImage(Leases(tmp_path / "leases.sqlite3"))


def test_nothing_left(random_image: RandomImage) -> None:
    assert random_image({"strategy": "random"}, Images({})) is None


def test_a_single_image_just_shown(random_image: RandomImage) -> None:
    shown = Images({"a": time.time() + 5})
    for _ in range(2):
        assert random_image({"strategy": "random"}, shown) == {"id": "a"}


def test_what_was_not_shown_comes_first(random_image: RandomImage) -> None:
    shown = Images({"just_now": time.time(), "never": 0})
    orders = [random_image.order(["just_now", "never"], {}, shown) for _ in range(200)]
    assert sum(order[0] == "never" for order in orders) > 190


def test_any_order_comes_up(random_image: RandomImage) -> None:
    shown = Images(dict.fromkeys("abc", 0))
    orders = {tuple(random_image.order(list("abc"), {}, shown)) for _ in range(200)}
    assert len(orders) == 6
