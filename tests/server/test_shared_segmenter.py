"""One network in memory, whoever asks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from esp_medsam_app.errors import InputError, WeightsError
from esp_medsam_app.server import shared_segmenter
from esp_medsam_app.server.shared_segmenter import SharedSegmenter

BUNDLE: Any = SimpleNamespace(path=Path("bundle"))


class Counted:
    """Takes the place of the Segmenter; slow to load, so that threads meet."""

    made: list[dict[str, Any]]
    meeting: threading.Event

    def __init__(self, bundle: Any, **options: Any) -> None:
        Counted.meeting.wait(5)
        Counted.made.append(options)


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    Counted.made, Counted.meeting = [], threading.Event()
    Counted.meeting.set()
    monkeypatch.setattr(shared_segmenter, "Segmenter", Counted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return Counted


def test_nothing_is_loaded_before_the_first_request(counted: type[Counted]) -> None:
    SharedSegmenter(BUNDLE)
    assert counted.made == []


def test_threads_share_one(counted: type[Counted]) -> None:
    shared = SharedSegmenter(BUNDLE, device="cpu", batch_size=3, precision="float32", fast=False)
    counted.meeting.clear()
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(shared.get) for _ in range(4)]
        counted.meeting.set()
        loaded = {id(future.result()) for future in futures}
    assert len(loaded) == 1
    assert counted.made == [
        {
            "device": "cpu",
            "batch_size": 3,
            "precision": "float32",
            "fast": False,
            "quality": "balanced",
            "embeddings": None,
            "runtime": "torch",
            "wait_for_runtime": False,
        }
    ]


def test_names_of_the_same_device_share_one(counted: type[Counted]) -> None:
    shared = SharedSegmenter(BUNDLE)
    assert len({id(shared.get(name)) for name in ("auto", "cpu", "cuda", "cuda:1")}) == 1
    assert len(counted.made) == 1


def test_an_impossible_device_is_refused() -> None:
    with pytest.raises(InputError, match="mps"):
        SharedSegmenter(BUNDLE).get("mps")


def test_a_failed_load_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = SharedSegmenter(BUNDLE)

    def damaged(*_: Any, **__: Any) -> None:
        raise WeightsError("damaged")

    with monkeypatch.context() as context:
        context.setattr(shared_segmenter, "Segmenter", damaged)
        with pytest.raises(WeightsError):
            shared.get()
    assert isinstance(shared.get(), Counted)
