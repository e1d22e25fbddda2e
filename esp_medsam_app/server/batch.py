"""Inference on all images of the datastore."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

Infer = Callable[[Mapping[str, Any], Datastore], dict[str, Any]]


class BatchInfer(BatchInferTask):
    """MONAI Label's own, which fails on a machine without a GPU and ends at the first bad image."""

    def __call__(
        self, request: Mapping[str, Any], datastore: Datastore, infer: Infer
    ) -> dict[str, Any]:
        """Segment the images that `request["images"]` names, one after another or in threads.

        Returns:
            For each image what `infer` returned, or `{"error": explanation}`.
        """

        def go_on(request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
            try:
                return infer(request, datastore)
            except HTTPException as error:
                return {"error": error.detail}

        if not torch.cuda.is_available():
            # MONAI Label would choose among no GPUs at all
            request = {**request, "multi_gpu": False}
        return dict(super().__call__(request, datastore, go_on))
