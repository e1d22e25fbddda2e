"""Errors as a client of the server sees them."""

from __future__ import annotations

import logging
import uuid

from fastapi import HTTPException

from esp_medsam_app.errors import (
    BusyError,
    EspMedSamError,
    FullDiskError,
    InputError,
    OutOfMemoryError,
    UnknownNameError,
    UnreachableError,
    WeightsError,
)
from esp_medsam_app.server.disks import full_disk
from esp_medsam_app.server.sources import ImageSource

_STATUS: dict[type[EspMedSamError], int] = {
    InputError: 422,
    UnknownNameError: 404,
    OutOfMemoryError: 503,
    WeightsError: 503,
    UnreachableError: 503,
    BusyError: 503,
    FullDiskError: 507,
}
# Seconds after which the PACS may be back; its outages are seldom shorter.
_ASK_AGAIN = {"Retry-After": "30"}

logger = logging.getLogger(__name__)


def as_http_error(error: Exception, source: ImageSource | None = None) -> HTTPException:
    """The response to a request that failed; the log gets what the client does not see.

    Args:
        error: an EspMedSamError is explained to the client; anything else is a defect of ours,
            whose traceback goes to the log under a number that the client is told.
        source: the image, whose path on the server gives way to its name.
    """
    error = full_disk(error) or error
    if isinstance(error, MemoryError):
        error = OutOfMemoryError(
            "the image needs more main memory than there is", remedy="Crop or downsample it"
        )
    if isinstance(error, EspMedSamError):
        status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
        detail = _explain(error, source)
        place = f" ({error.path})" if error.path is not None else ""
        logger.warning("Answered %d: %s%s", status, detail, place)
        again = _ASK_AGAIN if isinstance(error, UnreachableError | BusyError) else None
        return HTTPException(status, detail, headers=again)
    number = uuid.uuid4().hex[:8]
    logger.error("Failed unexpectedly, error %s", number, exc_info=error)
    return HTTPException(
        500, f"The server failed unexpectedly. Its log tells more under error {number}."
    )


def _explain(error: EspMedSamError, source: ImageSource | None) -> str:
    text = f"{error.problem}. {error.remedy}" if error.remedy else error.problem
    if source is None:
        return text
    text = text.replace(str(source.path), source.name)
    about_image = error.path is not None and str(error.path).startswith(str(source.path))
    return f"{source.name}: {text}" if about_image else text
