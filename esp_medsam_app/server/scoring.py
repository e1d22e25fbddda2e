"""Scores of the labels in the datastore: how far a prediction was corrected, and its size."""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.scoring import ScoringMethod
from numpy.typing import NDArray

from esp_medsam_app.data.image import Grid
from esp_medsam_app.errors import EspMedSamError, InputError
from esp_medsam_app.evaluation.metrics import mask_dice
from esp_medsam_app.server.reading import read_label_map
from esp_medsam_app.server.submitted_labels import BACKGROUND, simple_name, stored_names

Masks = dict[str, NDArray[np.bool_]]

logger = logging.getLogger(__name__)


class LabelScoring(ScoringMethod):
    """Scores one image after the other; one that fails is reported, and the others go on.

    Such methods read label maps only. So the server runs them beside its other work whenever
    labels may have changed, instead of starting a process for each, as MONAI Label would.
    """

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score all images that have the labels for it.

        Returns:
            The score of each image; `{"error": explanation}` for one that failed.
        """
        result: dict[str, Any] = {}
        for image_id in datastore.list_images():
            try:
                score = self.score(image_id, request, datastore)
            except Exception as error:
                known = isinstance(error, EspMedSamError | HTTPException)
                logger.warning("Image %r cannot be scored: %s", image_id, error, exc_info=not known)
                detail = error.detail if isinstance(error, HTTPException) else str(error)
                result[image_id] = {"error": detail}
                continue
            if score is not None:
                result[image_id] = score
        return result

    @abstractmethod
    def score(self, image_id: str, request: Mapping[str, Any], datastore: Datastore) -> Any:
        """The score of an image, which is also noted in the datastore; None if it has no labels.

        What was computed from the very same files is taken from there.
        """


class DiceScore(LabelScoring):
    """Dice of two labels of an image, the mean over all labels that either of them holds.

    Labels are compared by name. Two that are both empty agree: 1.

    The image's info gets `dice`, `dice_labels` (by name) and `dice_of` (what was compared).
    """

    def __init__(self) -> None:
        super().__init__("Dice of the submitted label map and the model's, mean over labels")

    def score(
        self, image_id: str, request: Mapping[str, Any], datastore: Datastore
    ) -> float | None:
        """Dice, 0 to 1.

        Args:
            image_id: of the image.
            request: `y` and `y_pred`, the tags to compare; MONAI Label's names and defaults.
            datastore: of the image.

        Raises:
            InputError: a label map that cannot be read, or two of different shapes.
        """
        tags = (
            _tag(request, "y", DefaultLabelTag.FINAL),
            _tag(request, "y_pred", DefaultLabelTag.ORIGINAL),
        )
        files = [_label_file(image_id, tag, datastore) for tag in tags]
        reference, prediction = files
        if reference is None or prediction is None:
            return None
        compared = [
            [tag, *_stamp(file)] for tag, file in zip(tags, (reference, prediction), strict=True)
        ]
        known = datastore.get_image_info(image_id)
        if known.get("dice_of") == compared and known.get("dice") is not None:
            return float(known["dice"])
        truth, grid = _masks(image_id, tags[0], reference, datastore)
        guess, other = _masks(image_id, tags[1], prediction, datastore, grid)
        if grid.shape != other.shape:
            raise InputError(
                f"labels {tags[0]!r} and {tags[1]!r} have {grid.shape} and {other.shape} voxels",
                remedy="Resample one onto the other's grid",
            )
        by_label = dice_of_labels(truth, guess)
        dice = float(np.mean(list(by_label.values()))) if by_label else 1.0
        info = {"dice": dice, "dice_labels": by_label, "dice_of": compared}
        datastore.update_image_info(image_id, info)
        return dice


class VoxelSum(LabelScoring):
    """How many voxels a label map marks.

    The label's info gets `sum` (of all labels), `slices` (how many hold any), `voxels` (by name)
    and `sum_of` (what was counted).

    Args:
        tags: of the labels to count.
    """

    def __init__(
        self, tags: tuple[str, ...] = (DefaultLabelTag.FINAL.value, DefaultLabelTag.ORIGINAL.value)
    ) -> None:
        super().__init__("Voxels of each label, submitted and the model's")
        self.tags = tags

    def score(
        self, image_id: str, request: Mapping[str, Any], datastore: Datastore
    ) -> dict[str, Any] | None:
        """What was counted, by tag.

        Raises:
            InputError: a label map that cannot be read.
        """
        result = {}
        for tag in self.tags:
            file = _label_file(image_id, tag, datastore)
            if file is None:
                continue
            label_id = datastore.get_label_by_image_id(image_id, tag)
            known = datastore.get_label_info(label_id, tag)
            counted = list(_stamp(file))
            if known.get("sum_of") != counted:
                masks, grid = _masks(image_id, tag, file, datastore)
                known = {**_counts(masks, grid), "sum_of": counted}
                datastore.update_label_info(label_id, tag, known)
            result[tag] = {name: known[name] for name in ("sum", "slices", "voxels")}
        return result or None


def dice_of_labels(reference: Masks, prediction: Masks) -> dict[str, float]:
    """Dice of every label that either holds; 0 where only one does. Masks have one shape."""
    return {
        name: mask_dice(reference[name], prediction[name])
        if name in reference and name in prediction
        else 0.0
        for name in sorted({*reference, *prediction})
    }


class BackgroundScoring:
    """One thread that scores when it is woken, and once more if it was woken meanwhile.

    Args:
        methods: what to run, by name.
        datastore: of the images.
    """

    def __init__(self, methods: Mapping[str, LabelScoring], datastore: Callable[[], Datastore]):
        self._methods = methods
        self._datastore = datastore
        self._lock = threading.Lock()
        self._wanted = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Have everything scored that has changed; returns at once."""
        with self._lock:
            self._wanted = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Until there is nothing left to do."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._thread = None
                    return
                self._wanted = False
            for name, method in self._methods.items():
                try:
                    method({"method": name}, self._datastore())
                except Exception:
                    logger.exception("Scoring %r failed", name)


def _tag(request: Mapping[str, Any], key: str, default: DefaultLabelTag) -> str:
    tag = request.get(key) or default.value
    if not isinstance(tag, str):
        raise InputError(f"{key}: {tag!r} is no label's tag")
    return tag


def _label_file(image_id: str, tag: str, datastore: Datastore) -> Path | None:
    label_id = datastore.get_label_by_image_id(image_id, tag)
    uri = datastore.get_label_uri(label_id, tag) if label_id else ""
    return Path(uri) if uri and Path(uri).is_file() else None


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _masks(
    image_id: str, tag: str, file: Path, datastore: Datastore, grid: Grid | None = None
) -> tuple[Masks, Grid]:
    """The mask of each label in a label map, by simple name; one without a name by its value."""
    label = read_label_map(file, grid, kept=True)
    names = stored_names(datastore.get_label_info(image_id, tag))
    masks: Masks = {}
    for value in np.unique(label.voxels):
        name = simple_name(names.get(int(value), str(value)))
        if value and name != BACKGROUND:
            mask = label.voxels == value
            masks[name] = masks[name] | mask if name in masks else mask
    return masks, label.grid


def _counts(masks: Masks, grid: Grid) -> dict[str, Any]:
    everything = np.zeros(grid.shape, bool)
    for mask in masks.values():
        everything |= mask
    # the last index of a volume is its slice
    plane = everything if len(grid.shape) == 3 else everything[..., np.newaxis]
    return {
        "sum": int(np.count_nonzero(everything)),
        "slices": int(np.count_nonzero(plane.any(axis=(0, 1)))),
        "voxels": {name: int(np.count_nonzero(mask)) for name, mask in masks.items()},
    }
