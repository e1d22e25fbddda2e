"""Sessions: a viewer's own volume, for a while."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Query, UploadFile
from fastapi.responses import FileResponse, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC
from monailabel.utils.others.generic import get_mime_type
from monailabel.utils.sessions import SessionInfo, Sessions

from esp_medsam_app.server.door.refusal import RefusedError
from esp_medsam_app.server.door.uploads import (
    all_received,
    checked_text,
    file_name,
    suffix,
    the_app,
)

_LONGEST_NAME = 120

router = APIRouter(
    prefix="/session",
    tags=["Session"],
    dependencies=[Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))],
)


@router.put("/", summary="Upload an image for a while")
def create(
    files: Annotated[list[UploadFile], File()],
    uncompress: bool = False,
    expiry: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> dict[str, Any]:
    """One file, or those of a DICOM series; `uncompress`: an archive (ZIP or TAR) of them."""
    sessions = _sessions()
    folder = Path(tempfile.mkdtemp(prefix="tmp"))
    try:
        for number, upload in enumerate(files):
            _keep(upload, folder, number)
        all_received()
        found = sorted(folder.iterdir())
        if not any(path.stat().st_size for path in found):
            raise RefusedError(422, "the uploaded file is empty")
        if len(found) > 1 and uncompress:
            raise RefusedError(422, "uncompress: one archive is needed, these are several files")
        source = found[0] if len(found) == 1 else folder
        session_id, session = sessions.add_session(str(source), expiry, uncompress)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"session_id": session_id, "session_info": _told(session)}


@router.get("/{session_id}", summary="A session, or its image")
def get(session_id: str, update_ts: bool = False, image: bool = False) -> Any:
    """`update_ts`: it is in use, and does not expire for a while."""
    session = _found(session_id, update_ts)
    if not image:
        return _told(session)
    file = Path(session.image)
    if not file.is_file():
        raise RefusedError(422, "this session's image is a series of several files")
    response: Response = FileResponse(file, media_type=get_mime_type(str(file)), filename=file.name)
    return response


@router.delete("/{session_id}", summary="End a session")
def remove(session_id: str) -> dict[str, Any]:
    """Its image is removed."""
    session = _found(session_id, False)
    _sessions().remove_session(session_id)
    return _told(session)


def _sessions() -> Sessions:
    sessions = the_app().sessions()
    if sessions is None:
        raise RefusedError(406, "Sessions are switched off on this server.")
    return sessions


def _found(session_id: str, update_ts: bool) -> SessionInfo:
    session = _sessions().get_session(session_id, update_ts=update_ts)
    if session is None:
        raise RefusedError(404, "there is no such session, or it has expired")
    return session


def _keep(upload: UploadFile, folder: Path, number: int) -> None:
    """Write a file under its own name, which 3D Slicer shows again, if it can be one."""
    name = checked_text(file_name(upload), "files")
    if (
        not name.isprintable()
        or name.startswith(".")
        or not name
        or len(name.encode()) > _LONGEST_NAME
        or (folder / name).exists()
    ):
        name = f"image{number}{suffix(upload)}"
    with (folder / name).open("wb") as file:
        shutil.copyfileobj(upload.file, file, 1 << 20)


def _told(session: SessionInfo) -> dict[str, Any]:
    """What a client may know: no paths."""
    told = session.to_json()
    return {key: value for key, value in told.items() if key not in ("path", "image")}
