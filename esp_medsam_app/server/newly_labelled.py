"""Which models have labels that they have not learned from yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore

from esp_medsam_app.errors import InputError
from esp_medsam_app.server.annotated_cases import FINAL, is_of

# the time of a label is noted without its fractions
_TICK = 1.0


def models_to_update(trainers: Mapping[str, Any], datastore: Datastore) -> list[str]:
    """The models with labels younger than their last training, in the order of `trainers`.

    Where no label is younger, the models that the youngest one is of: somebody wants a training.

    Args:
        trainers: train tasks of single modalities by model, see `EspMedSamTrainTask`.
        datastore: with the labels.

    Raises:
        InputError: there is no label that any of them learns from.
    """
    infos = [datastore.get_label_info(image, FINAL) for image in datastore.get_labeled_images()]
    youngest: dict[str, float] = {}
    for model, task in trainers.items():
        own = [_submitted(info) for info in infos if _learns_from(task, info)]
        if own:
            youngest[model] = max(own)
    if not youngest:
        raise InputError(
            "no label has been submitted yet that a model could learn from",
            remedy="Submit labels first, then update the model",
        )
    newly = [
        model for model, time in youngest.items() if time + _TICK > trainers[model].last_start()
    ]
    last = max(youngest.values())
    return newly or [model for model, time in youngest.items() if time == last]


def _learns_from(task: Any, info: Mapping[str, Any]) -> bool:
    try:
        return is_of(info, task.modality, task.models)
    except InputError:
        return False


def _submitted(info: Mapping[str, Any]) -> float:
    time = info.get("ts")
    return float(time) if isinstance(time, int | float) else 0.0
