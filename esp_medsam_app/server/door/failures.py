"""What a client is told of an error: a status, a reason, never a traceback."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Mapping
from typing import Any

import requests
from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from starlette.exceptions import HTTPException as StarletteHTTPException

from esp_medsam_app.errors import EspMedSamError
from esp_medsam_app.server.disks import full_disk
from esp_medsam_app.server.door.refusal import RefusedError
from esp_medsam_app.server.http_errors import as_http_error

_MOST_PROBLEMS = 3

logger = logging.getLogger(__name__)


def failure(error: BaseException, request_id: str) -> RefusedError:
    """The answer to an error; the log gets what the client does not see.

    Args:
        error: whatever was raised.
        request_id: under which the log tells of it.
    """
    if isinstance(error, RefusedError):
        return error
    # whatever was made of it on the way
    error = full_disk(error) or error
    if isinstance(error, RequestValidationError):
        return RefusedError(422, problems(error.errors()))
    if isinstance(error, HTTPException | StarletteHTTPException):
        return RefusedError(error.status_code, reason_of(error.detail), error.headers)
    if isinstance(error, EspMedSamError | MemoryError):
        told = as_http_error(error)
        return RefusedError(told.status_code, reason_of(told.detail), told.headers)
    if isinstance(error, ImageNotFoundException | LabelNotFoundException):
        return RefusedError(404, str(error.msg) or "There is no such image or label.")
    if isinstance(error, MONAILabelException) and error.error == MONAILabelError.INVALID_INPUT:
        return RefusedError(422, str(error.msg))
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return RefusedError(422, "A name in the request is too long.")
    if isinstance(error, requests.RequestException):
        return _of_another_server(error)
    logger.error("Failed unexpectedly, request %s", request_id, exc_info=error)
    return RefusedError(
        500,
        f"The server failed unexpectedly. Its log tells more under request {request_id}.",
    )


def reason_of(detail: Any) -> str:
    """A sentence of what MONAI Label or FastAPI put into `detail`."""
    if isinstance(detail, str):
        return detail
    if isinstance(detail, list) and all(isinstance(item, Mapping) for item in detail):
        return problems(detail)
    return json.dumps(detail, default=str)


def problems(found: Any) -> str:
    """What is wrong with a request's parameters, by their names; not what was sent."""
    told = [
        f"{'.'.join(str(part) for part in one.get('loc', ()))}: {one.get('msg', 'not valid')}"
        for one in list(found)[:_MOST_PROBLEMS]
    ]
    return "; ".join(told) or "The request is not valid."


def _of_another_server(error: requests.RequestException) -> RefusedError:
    """The studies' server, or the one that knows the users."""
    logger.warning("Another server failed: %s", error)
    if isinstance(error, requests.Timeout):
        return RefusedError(504, "The server of the studies or users does not answer in time.")
    if isinstance(error, requests.ConnectionError):
        return RefusedError(
            503,
            "The server of the studies or users cannot be reached. Try again later.",
            {"retry-after": "10"},
        )
    status = getattr(error.response, "status_code", None)
    if status == 404:
        return RefusedError(404, "The server of the studies does not have this.")
    return RefusedError(502, f"The server of the studies or users answered {status}.")
