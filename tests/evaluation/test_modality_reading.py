"""Counting what was read right, wrong, or asked about."""

from __future__ import annotations

from pathlib import Path

from esp_medsam_app.evaluation.modality_reading import judge_readings
from esp_medsam_app.inference.modality_reader import ModalityReading


def reading(name: str | None, likeliest: str) -> ModalityReading:
    return ModalityReading(name, 0.9, {likeliest: 0.9, "other": 0.1})


def test_counts_and_shares() -> None:
    readings = {
        "a1": reading("a", "a"), "a2": reading("b", "b"), "a3": reading(None, "a"),
        "b1": reading("b", "b"), "n1": reading(None, "a"), "n2": reading("a", "a"),
    }  # fmt: skip
    images = {
        truth: [Path(name) for name in readings if name[0] == truth[0]]
        for truth in ("a", "b", "none")
    }
    figures = judge_readings(images, {"a", "b"}, lambda path: readings[path.name])
    assert figures["images"] == 4
    assert figures["asked"] == 1 / 4
    assert figures["accuracy"] == 2 / 3
    assert figures["right"] == 2 / 4
    assert (figures["others"], figures["others_asked"]) == (2, 1 / 2)
    assert figures["modalities"]["a"] == {
        "images": 3, "right": 1, "asked": 1, "taken_for": {"b": 1}, "likeliest_right": 2,
    }  # fmt: skip
    assert figures["modalities"]["none"]["taken_for"] == {"a": 1}


def test_only_images_of_something_else() -> None:
    figures = judge_readings({"x": [Path("x")]}, {"a"}, lambda path: reading(None, "a"))
    assert (figures["images"], figures["accuracy"], figures["others_asked"]) == (0, None, 1.0)
