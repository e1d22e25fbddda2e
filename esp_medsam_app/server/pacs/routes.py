"""`POST /infer/{model}?output=dicom_seg`: MONAI Label's own names and codes segments wrongly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from fastapi import Depends, FastAPI, Form, HTTPException, Response
from fastapi.routing import APIRoute
from monailabel.config import RBAC_USER, settings
from monailabel.endpoints.user.auth import RBAC
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import remove_file
from starlette.routing import Match

from esp_medsam_app.data.names import label_map_suffix
from esp_medsam_app.data.writing import write_label_map
from esp_medsam_app.errors import EspMedSamError, InputError
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.http_errors import as_http_error
from esp_medsam_app.server.modality_headers import modality_headers
from esp_medsam_app.server.pacs.datastore import PacsDatastore
from esp_medsam_app.server.reading import read_label_map

_MARK = "esp_medsam_dicom_seg"
_OUTPUT = "dicom_seg"


def add_dicom_seg_route(endpoints: FastAPI) -> None:
    """Answer requests for DICOM SEG before MONAI Label does; a second time changes nothing."""
    if getattr(endpoints.state, _MARK, False):
        return
    path = f"{settings.MONAI_LABEL_API_STR}/infer/{{model}}"
    summary = f"{RBAC_USER}Run Inference, answered as DICOM SEG"
    route = _SegmentationRoute(
        path,
        infer_dicom_seg,
        methods=["POST"],
        tags=["Infer"],
        summary=summary,
        dependencies=[Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))],
        # else nobody tells it who asks: see `rooms`
        dependency_overrides_provider=endpoints,
    )
    endpoints.router.routes.insert(0, route)
    setattr(endpoints.state, _MARK, True)
    endpoints.openapi_schema = None


# Not `async`: inference takes seconds, for which the server's other requests are not to wait.
def infer_dicom_seg(
    model: str,
    image: str = "",
    output: str = _OUTPUT,
    params: str = Form("{}"),
) -> Response:
    """Segment an image of the PACS; the answer is a DICOM segmentation of it."""
    try:
        given = json.loads(params or "{}")
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"params: no JSON ({error})") from error
    if not isinstance(given, dict):
        raise HTTPException(422, "params: a mapping of names to values is needed")
    content, told = dicom_seg_of(app_instance(), {**given, "model": model, "image": image})
    return Response(content, media_type="application/dicom", headers=modality_headers(told))


def dicom_seg_of(app: MONAILabelApp, request: Mapping[str, Any]) -> tuple[bytes, Mapping[str, Any]]:
    """Segment an image of the PACS.

    Args:
        app: of this project.
        request: of an inference; `image` is an image's id. What it says of `label_info` does not
            matter: names, numbers, codes and colours are the catalogue's.

    Returns:
        A DICOM file, and what is told of the mask.

    Raises:
        HTTPException: as `EspMedSamApp.infer`; 422 for an image that is no DICOM, or has no place
            in the patient.
    """
    datastore = app.datastore()
    image = request.get("image")
    if not isinstance(datastore, PacsDatastore):
        raise HTTPException(
            422, "The studies are no PACS: DICOM SEG can only be made of images in DICOM."
        )
    try:
        # before the network runs for nothing
        datastore.check_dicom_seg(str(image))
    except EspMedSamError as error:
        raise as_http_error(error) from error
    # all labels, as the segments' numbers want it
    plain = {"restore_label_idx": False, "result_extension": ".nii.gz", "result_dtype": "uint8"}
    result = app.infer({**request, **plain})
    file = Path(str(result["file"]))
    try:
        told = result["params"]
        modality, label = _drawn(app, str(request["model"]), told, file)
        version = told.get("version")
        number = version.get("number") if isinstance(version, Mapping) else None
        dataset = datastore.dicom_seg(str(image), label, modality, number)
        buffer = BytesIO()
        dataset.save_as(buffer, write_like_original=False)
        return buffer.getvalue(), told
    except Exception as error:
        raise as_http_error(error) from error
    finally:
        with suppress(OSError):
            remove_file(str(file))


def _drawn(
    app: MONAILabelApp, model: str, told: Mapping[str, Any], file: Path
) -> tuple[Modality, Path]:
    """The modality, and the label map in its numbers."""
    task = app._infers[model]
    found = getattr(task, "modalities", {}).get(told.get("modality"))
    if found is None:
        if not isinstance(getattr(task, "modality", None), Modality):
            raise InputError(f"{model} tells no labels that a DICOM SEG could have")
        return task.modality, file
    # of the model that reads the modality, the ids are those of all modalities together
    given = read_label_map(file, kept=True)
    table = np.zeros(256, np.uint8)
    for name, value in told["modality_labels"].items():
        table[value] = found.labels[name]
    suffix = label_map_suffix(given.grid)
    return found, write_label_map(
        file.with_name(file.name.split(".")[0] + suffix), table[given.voxels], given.grid
    )


class _SegmentationRoute(APIRoute):
    """Only for requests whose query says `output=dicom_seg`; MONAI Label has the others."""

    def matches(self, scope: Any) -> tuple[Match, Any]:
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        if query.get("output") != [_OUTPUT]:
            return Match.NONE, {}
        return super().matches(scope)
