"""Which models a training of the new labels is of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.fake_server import ORGANS, SPOTS

from esp_medsam_app.errors import InputError
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server import local_datastore
from esp_medsam_app.server.local_datastore import SafeDatastore
from esp_medsam_app.server.newly_labelled import models_to_update

MODELS = ("esp_medsam_ct_organs", "esp_medsam_spots")
DESAM = "desam_ct_organs"
OF_ORGANS = {"label_info": [{"name": "liver", "idx": 1}]}


class Clinic:
    """Labels at times, and trainings at times."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained = dict.fromkeys((*MODELS, DESAM), 0.0)
        self.used: dict[str, str] = {}
        self._clock = SimpleNamespace(time=lambda: self.now)
        monkeypatch.setattr(local_datastore, "time", self._clock)
        self.now = 1000.0
        for name in "abc":
            Image.fromarray(np.zeros((3, 4), np.uint8)).save(folder / f"{name}.png")
        self.store = SafeDatastore(str(folder), extensions=["*.png"])
        self._label = folder / "a.png"

    def label(self, image: str, now: float, info: dict[str, Any], tag: str = "final") -> None:
        self.now = now
        self.store.save_label(image, str(self._label), tag, info)

    def chosen(self, *, desam: bool = False) -> list[str]:
        def task(modality: Modality, model: str) -> Any:
            return SimpleNamespace(
                modality=modality,
                models=frozenset((*MODELS, DESAM)),
                last_start=lambda: self.trained[model],
            )

        trainers = {model: task(m, model) for m, model in zip((ORGANS, SPOTS), MODELS, strict=True)}
        if desam:
            trainers[DESAM] = task(ORGANS, DESAM)
        return models_to_update(trainers, self.store, self.used)


@pytest.fixture
def clinic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clinic:
    return Clinic(tmp_path, monkeypatch)


def test_without_a_label_there_is_nothing_to_learn(clinic: Clinic) -> None:
    with pytest.raises(InputError, match="no label has been submitted yet"):
        clinic.chosen()
    # first drafts are none, nor is what no model has
    clinic.label("a", 1001, OF_ORGANS, "original")
    clinic.label("b", 1002, {"label_info": [{"name": "knee", "idx": 1}]})
    with pytest.raises(InputError, match="Submit labels first"):
        clinic.chosen()


def test_those_with_labels_since_their_last_training(clinic: Clinic) -> None:
    clinic.label("a", 1001, OF_ORGANS)
    assert clinic.chosen() == [MODELS[0]]
    clinic.label("b", 1002, {"model": MODELS[1]})
    assert clinic.chosen() == list(MODELS)
    clinic.trained = {MODELS[0]: 1005.0, MODELS[1]: 1005.0}
    clinic.label("c", 1006, {"modality": "ct_organs"})
    assert clinic.chosen() == [MODELS[0]]


def test_a_label_that_came_while_a_training_went_on_is_new(clinic: Clinic) -> None:
    clinic.label("a", 1001, OF_ORGANS)
    clinic.label("b", 1003.9, {"model": MODELS[1]})
    # it began in the same second, before
    clinic.trained = {MODELS[0]: 1005.0, MODELS[1]: 1003.5}
    assert clinic.chosen() == [MODELS[1]]


def test_where_nothing_is_new_it_is_the_one_that_was_annotated_last(clinic: Clinic) -> None:
    clinic.label("a", 1001, OF_ORGANS)
    clinic.label("b", 1003, {"model": MODELS[1]})
    clinic.trained = dict.fromkeys(MODELS, 1010.0)
    assert clinic.chosen() == [MODELS[1]]


def test_a_label_that_tells_nothing_is_everybody_s(clinic: Clinic) -> None:
    """As training takes it."""
    clinic.label("a", 1001, {})
    assert clinic.chosen() == list(MODELS)


def test_a_damaged_info_is_nobody_s(clinic: Clinic) -> None:
    clinic.label("a", 1001, OF_ORGANS)
    clinic.label("b", 1002, {"label_info": 3, "model": ["x"]})
    assert clinic.chosen() == [MODELS[0]]


def test_one_label_is_one_training(clinic: Clinic) -> None:
    """Two families of models learn the structure: the one that was used is trained."""
    clinic.label("a", 1001, OF_ORGANS)
    assert clinic.chosen(desam=True) == [MODELS[0]]
    # the first draft was DeSAM's
    clinic.label("a", 1002, {"model": DESAM}, "original")
    assert clinic.chosen(desam=True) == [DESAM]
    # the person at the viewer ran another one
    clinic.used["a"] = MODELS[0]
    assert clinic.chosen(desam=True) == [MODELS[0]]
    clinic.used["a"] = DESAM
    assert clinic.chosen(desam=True) == [DESAM]
    # or a model that reads the modality from the image
    clinic.used["a"] = "esp_medsam"
    clinic.label("a", 1003, {**OF_ORGANS, "model": MODELS[0]})
    assert clinic.chosen(desam=True) == [MODELS[0]]
    # what one model has learned from is not new to it, and no matter of another
    clinic.trained[MODELS[0]] = 1010.0
    clinic.label("b", 1005, {"model": MODELS[1]})
    assert clinic.chosen(desam=True) == [MODELS[1]]
