"""Inference: an image by its id, by a session's, or with the request.

Not `output=dicom_seg`, which goes past these routes: see `is_dicom_seg`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, File, Form, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import JSONResponse, Response
from monailabel.config import settings
from monailabel.endpoints import infer as endpoint
from monailabel.endpoints.user.auth import RBAC
from monailabel.utils.others.generic import get_mime_type, remove_file

from esp_medsam_app.server.door.asgi_types import Scope
from esp_medsam_app.server.door.refusal import RefusedError
from esp_medsam_app.server.door.sent_once import SentOnce
from esp_medsam_app.server.door.uploads import checked_text, mapping, received, the_app
from esp_medsam_app.server.modality_headers import modality_headers

# what the address says, and no parameter changes
_OWN = ("model", "image", "session", "file", "label", "timeout")


def is_dicom_seg(scope: Scope) -> bool:
    """Whether a DICOM SEG is wanted, which the app's own route beside MONAI Label's makes."""
    asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("output")
    return str(scope["path"]).startswith("/infer/") and asked == ["dicom_seg"]


router = APIRouter(
    prefix="/infer",
    tags=["Infer"],
    dependencies=[Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))],
)


class Output(str, Enum):
    """What to answer with."""

    IMAGE = "image"
    JSON = "json"
    ALL = "all"


@router.post("/wsi/{model}", include_in_schema=False)
@router.post("/wsi_v2/{model}", include_in_schema=False)
def whole_slide(model: str) -> None:
    """Not here."""
    raise RefusedError(
        404, f"Whole-slide images are not segmented here. Send a picture to /infer/{model}."
    )


@router.post("/{model}", summary="Segment an image")
def infer(
    background: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    label: Annotated[UploadFile | None, File()] = None,
    output: Output | None = None,
) -> Response:
    """The label map (`image`), what is told of it (`json`), or both as multipart (`all`)."""
    app = the_app()
    options = {k: v for k, v in mapping(params).items() if k not in _OWN}
    checked_text(image, "image")
    if model not in app._infers:
        known = ", ".join(app._infers)
        raise RefusedError(404, f"there is no model {model!r}. Available: {known}")
    with _image(image, session_id, file) as source:
        result = app.infer({**options, "model": model, "image": source})
    return _answer(result, output, background)


@contextmanager
def _image(image: str, session_id: str, file: UploadFile | None) -> Iterator[str]:
    if file is not None:
        with received(file) as path:
            yield str(path)
        return
    if session_id:
        sessions = the_app().sessions()
        session = sessions.get_session(session_id) if sessions is not None else None
        if session is None:
            raise RefusedError(
                404, "there is no such session, or it has expired. Upload the image again"
            )
        yield session.image
        return
    if not image:
        raise RefusedError(422, "an image is needed: its id, a session, or a file")
    yield image


def _answer(result: dict[str, Any], output: Output | None, background: BackgroundTasks) -> Response:
    file, told = str(result["file"]), result["params"]
    if output is Output.JSON:
        remove_file(file)
        return JSONResponse(told)
    if output is Output.IMAGE:
        name = file.rsplit("/", 1)[-1]
        return SentOnce(
            file, media_type=get_mime_type(file), filename=name, headers=modality_headers(told)
        )
    try:
        answer = endpoint.send_response(the_app().datastore(), result, "all", background)
    except BaseException:
        remove_file(file)
        raise
    return answer if isinstance(answer, Response) else JSONResponse(answer)
