"""Inference on all images of the datastore."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

Infer = Callable[[Mapping[str, Any], Datastore], dict[str, Any]]
# Whether what an answer's `params` tell of, its version above all, is what would be given today.
UpToDate = Callable[[str, Mapping[str, Any]], bool]

DONE, SKIPPED, FAILED = "done", "skipped", "failed"

logger = logging.getLogger(__name__)


class BatchInfer(BatchInferTask):
    """MONAI Label's own, which fails on a machine without a GPU and ends at the first bad image.

    An image that has a label of the same model and of the version that serves is skipped: a batch
    that was killed goes on where it was, and one that is started again costs nothing.

    Args:
        up_to_date: called with a model's name and the `params` of an earlier answer.
    """

    def __init__(self, up_to_date: UpToDate) -> None:
        self._up_to_date = up_to_date

    def get_images(self, request: Mapping[str, Any], datastore: Datastore) -> Sequence[str]:
        """The images to segment.

        Args:
            request: `images`: `all`, `labeled`, `unlabeled`, or ids; `again`: those too that have
                an up-to-date label.
            datastore: of the images.
        """
        images: Sequence[str] = super().get_images(request, datastore)
        if request.get("again"):
            return images
        return [image for image in images if not self._is_done(request, datastore, image)]

    def __call__(
        self, request: Mapping[str, Any], datastore: Datastore, infer: Infer
    ) -> dict[str, Any]:
        """Segment the images, one after another or in threads.

        Returns:
            For each image what `infer` returned, `{"error": explanation}`, or `{"skipped": ...}`.
        """
        if not torch.cuda.is_available():
            # MONAI Label would choose among no GPUs at all
            request = {**request, "multi_gpu": False}
        every = super().get_images(request, datastore)
        wanted = set(self.get_images(request, datastore))
        counts = Counter({SKIPPED: len(every) - len(wanted)})
        logger.info(
            "Batch of %s: %d images, %d of them are up to date",
            request.get("model"),
            len(every),
            counts[SKIPPED],
        )

        def go_on(request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
            try:
                answer = infer(request, datastore)
            except HTTPException as error:
                logger.warning("Batch: %s: %s", request["image"], error.detail)
                answer = {"error": error.detail}
            counts[FAILED if "error" in answer else DONE] += 1
            told = " ".join(f"{counts[kind]} {kind}" for kind in (DONE, SKIPPED, FAILED))
            logger.info("Batch: %d images, %s", len(every), told)
            return answer

        answers = {image: {"skipped": "up to date"} for image in every if image not in wanted}
        return {**answers, **super().__call__(request, datastore, go_on)}

    def _is_done(self, request: Mapping[str, Any], datastore: Datastore, image: str) -> bool:
        tag = request.get("label_tag") or DefaultLabelTag.ORIGINAL
        tag = str(getattr(tag, "value", tag))
        if tag not in datastore.get_labels_by_image_id(image):
            return False
        info = datastore.get_label_info(image, tag)
        told = info.get("params")
        return (
            info.get("model") == request.get("model")
            and isinstance(told, Mapping)
            # an image that was uploaded again is newer than its label
            and info.get("ts", 0) >= datastore.get_image_info(image).get("ts", 0)
            and self._up_to_date(str(info["model"]), told)
        )
