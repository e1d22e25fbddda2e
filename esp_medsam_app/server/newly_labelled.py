"""Which models have labels that they have not learned from yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from esp_medsam_app.errors import InputError
from esp_medsam_app.server.annotated_cases import FINAL, is_of

DRAFT = str(DefaultLabelTag.ORIGINAL.value)
# the time of a label is noted without its fractions
_TICK = 1.0


def models_to_update(
    trainers: Mapping[str, Any], datastore: Datastore, used: Mapping[str, str]
) -> list[str]:
    """The models with labels younger than their last training, in the order of `trainers`.

    Where no label is younger, the models that the youngest one is of: somebody wants a training.
    A label of a structure that several families of models learn is of one of them: the model that
    the label names, else the one that was run on its image, else the one that drew the first draft,
    else the first family's.

    Args:
        trainers: train tasks of single modalities by model, see `EspMedSamTrainTask`.
        datastore: with the labels.
        used: the model that was run last on each image.

    Raises:
        InputError: there is no label that any of them learns from.
    """
    youngest: dict[str, float] = {}
    for image in datastore.get_labeled_images():
        info = datastore.get_label_info(image, FINAL)
        models = [model for model, task in trainers.items() if _learns_from(task, info)]
        draft = datastore.get_label_info(image, DRAFT)
        known = (info.get("model"), used.get(image), draft.get("model"))
        for model in _one_a_modality(models, trainers, known):
            youngest[model] = max(youngest.get(model, 0.0), _submitted(info))
    if not youngest:
        raise InputError(
            "no label has been submitted yet that a model could learn from",
            remedy="Submit labels first, then update the model",
        )
    newly = [
        model
        for model in trainers
        if model in youngest and youngest[model] + _TICK > trainers[model].last_start()
    ]
    last = max(youngest.values())
    return newly or [model for model in trainers if youngest.get(model) == last]


def _one_a_modality(
    models: list[str], trainers: Mapping[str, Any], known: tuple[Any, ...]
) -> list[str]:
    """Of the models that could learn from a label, one for each modality that it may be of."""
    chosen: dict[str, str] = {}
    for model in models:
        chosen.setdefault(trainers[model].modality.name, model)
    for name in reversed(known):
        if name in models:
            chosen[trainers[name].modality.name] = name
    return list(chosen.values())


def _learns_from(task: Any, info: Mapping[str, Any]) -> bool:
    try:
        return is_of(info, task.modality, task.models)
    except InputError:
        return False


def _submitted(info: Mapping[str, Any]) -> float:
    time = info.get("ts")
    return float(time) if isinstance(time, int | float) else 0.0
