"""Which file the `image` of a request stands for."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import ImageNotFoundException
from monailabel.utils.sessions import Sessions

from esp_medsam_app.errors import InputError, UnknownNameError
from esp_medsam_app.server.originals import KeepsOriginals

# What MONAI Label's endpoint calls the file that came with the request.
_UPLOAD = re.compile(r"tmp[a-z0-9_]{8}(\..*)?")


@dataclass(frozen=True)
class ImageSource:
    """An image to segment.

    Attributes:
        path: file, or folder of a DICOM series.
        image_id: in the datastore; empty for uploads and sessions.
        name: for messages to the client, which shall not learn the server's paths.
        is_upload: came with the request, and is of no use after it.
    """

    path: Path
    image_id: str
    name: str
    is_upload: bool = False


def find_source(image: Any, datastore: Datastore, sessions: Sessions | None) -> ImageSource:
    """Resolve `image`: an id of the datastore, the request's upload, or a session's image.

    MONAI Label reads any path of the server that a client sends as `image`; here a path is only
    accepted where MONAI Label put an upload or a session's image itself.

    Raises:
        UnknownNameError: none of these.
        InputError: not a string; a series of the PACS that is no image.
        UnreachableError: the PACS does not answer.
    """
    if not isinstance(image, str):
        raise InputError("image: an id of the datastore is needed")
    if not image:
        # The endpoint asks for one of image, file and session; what it found was no session.
        raise UnknownNameError(
            "there is no such session, or it has expired", remedy="Upload the image again"
        )
    if "/" in image or "\\" in image:
        return _put_there_by_monai_label(Path(image), sessions)
    if isinstance(datastore, KeepsOriginals):
        return ImageSource(datastore.original(image), image, f"image {image!r}")
    try:
        uri = datastore.get_image_uri(image)
    except ImageNotFoundException:
        uri = ""
    if not uri or not Path(uri).exists():
        raise _unknown(image)
    return ImageSource(Path(uri), image, f"image {image!r}")


def _put_there_by_monai_label(path: Path, sessions: Sessions | None) -> ImageSource:
    temporary = Path(tempfile.gettempdir())
    if path.parent == temporary and _UPLOAD.fullmatch(path.name) and path.is_file():
        return ImageSource(path, "", "the uploaded image", is_upload=True)
    if sessions is not None and _is_session_image(path, sessions):
        return ImageSource(path, "", "the session's image")
    # without the path: what the answer leaves of it would tell whether there is such a folder
    raise UnknownNameError(
        "there is no image of this name in the datastore: an id is needed, and an id is no path",
        remedy="GET /datastore/?output=all lists them; other images go into a session",
    )


def _is_session_image(path: Path, sessions: Sessions) -> bool:
    store = Path(sessions.store_path)
    if not path.is_relative_to(store):
        return False
    session_id = next(iter(path.relative_to(store).parts), "")
    session = sessions.get_session(session_id, update_ts=False)
    return session is not None and Path(session.image) == path


def _unknown(image: str) -> UnknownNameError:
    return UnknownNameError(
        f"there is no image {image!r} in the datastore",
        remedy="GET /datastore/?output=all lists them; other images go into a session",
    )
