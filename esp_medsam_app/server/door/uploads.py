"""Files and parameters that come with a request."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from fastapi import UploadFile
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.utils.app import app_instance

from esp_medsam_app.data.formats import suffix_of
from esp_medsam_app.server.disks import TEMPORARY, current_room
from esp_medsam_app.server.door.refusal import RefusedError

_DEFAULT_SUFFIX = ".nii.gz"
_HARMLESS = re.compile(r"\.[A-Za-z0-9]{1,10}")
_DEEPEST = 40
_PARAMETERS = "params"


def the_app() -> MONAILabelApp:
    """The app that this server runs."""
    return app_instance()


def file_name(upload: UploadFile) -> str:
    """The last part of the name that a client gave a file, whatever its system writes between."""
    return PurePosixPath((upload.filename or "").replace("\\", "/")).name


def suffix(upload: UploadFile) -> str:
    """Of the file's name: one of an image, else its last if that is harmless; `.nii.gz` without."""
    name = file_name(upload)
    if not name:
        return _DEFAULT_SUFFIX
    known = suffix_of(name)
    if known:
        return name[len(name) - len(known) :]
    last = PurePosixPath(name).suffix
    return last if _HARMLESS.fullmatch(last) else ""


@contextmanager
def received(upload: UploadFile) -> Iterator[Path]:
    """A file of the server with the upload's content and suffix, for the time of a block."""
    handle, name = tempfile.mkstemp(suffix=suffix(upload))
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            shutil.copyfileobj(upload.file, file, 1 << 20)
        all_received()
        yield path
    finally:
        path.unlink(missing_ok=True)


def all_received() -> None:
    """All that a request sent lies on the disk, which tells so itself from now on."""
    room = current_room()
    if room is not None:
        room.all_written(TEMPORARY)


def mapping(text: str | None, name: str = _PARAMETERS) -> dict[str, Any]:
    """Parameters that came as JSON.

    Raises:
        RefusedError: 422 not JSON, or no mapping of names to values.
    """
    if not text or not text.strip():
        return {}
    try:
        found = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise RefusedError(422, f"{name}: not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise RefusedError(422, f"{name}: a mapping of names to values is needed")
    check_plain(found, name)
    return found


def check_plain(value: Any, name: str = _PARAMETERS, depth: int = 0) -> None:
    """Whether what was sent can be worked with: not too deep, and text that is text.

    Raises:
        RefusedError: 422.
    """
    if depth > _DEEPEST:
        raise RefusedError(422, f"{name}: nested too deeply")
    if isinstance(value, str):
        checked_text(value, name)
    elif isinstance(value, dict):
        for key, item in value.items():
            checked_text(key, name)
            check_plain(item, name, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_plain(item, name, depth + 1)


def checked_text(text: str, name: str) -> str:
    """A text without what files and databases stumble over.

    Raises:
        RefusedError: 422 half a character, or a zero.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RefusedError(422, f"{name}: not valid Unicode") from None
    if "\0" in text:
        raise RefusedError(422, f"{name}: has a character that is none")
    return text


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
