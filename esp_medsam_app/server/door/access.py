"""Which role a request takes, and how much may be sent with it: one table for every log-in.

It is asked before a body is read. The routes look at roles again as MONAI Label does; a test keeps
both alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from esp_medsam_app.server.disks import APP, SESSIONS, STUDIES


class Role(Enum):
    """Who may ask."""

    ANYBODY = "anybody"
    LOGGED_IN = "logged in"
    USER = "user"
    ANNOTATOR = "annotator"
    ADMIN = "admin"


class Size(Enum):
    """How much may be sent."""

    LOG_IN = "a name and a password"
    PARAMETERS = "parameters"
    UPLOAD = "an upload"


@dataclass(frozen=True)
class Access:
    """What a request takes.

    Attributes:
        role: of who sends it.
        size: of its body.
        kept: the folder in which the body is kept, see `disks`; none if it is not.
    """

    role: Role = Role.USER
    size: Size = Size.PARAMETERS
    kept: str | None = None


_RULES: tuple[tuple[str, str, Access], ...] = (
    ("*", r"/(healthz|readyz|favicon\.ico)", Access(Role.ANYBODY)),
    ("POST", r"/auth/token", Access(Role.ANYBODY, Size.LOG_IN)),
    ("*", r"/auth/token/valid", Access(Role.LOGGED_IN)),
    ("*", r"/auth(/token)?", Access(Role.ANYBODY, Size.LOG_IN)),
    ("PUT", r"/model/[^/]*", Access(Role.ADMIN, Size.UPLOAD, APP)),
    ("*", r"/(model|versions|logs|metrics)(/.*)?", Access(Role.ADMIN)),
    ("POST DELETE", r"/(train|batch)(/.*)?", Access(Role.ADMIN)),
    ("DELETE", r"/datastore(/.*)?", Access(Role.ADMIN)),
    ("PUT", r"/datastore(/image|/label)?", Access(Role.ANNOTATOR, Size.UPLOAD, STUDIES)),
    ("PUT POST", r"/datastore/.*", Access(Role.ANNOTATOR)),
    ("GET HEAD", r"/datastore/dataset", Access(Role.ANNOTATOR)),
    ("POST DELETE", r"/scoring(/.*)?", Access(Role.ANNOTATOR)),
    ("PUT POST", r"/session", Access(Role.USER, Size.UPLOAD, SESSIONS)),
    ("POST", r"/infer/.*", Access(Role.USER, Size.UPLOAD)),
    ("POST", r"/proxy/dicom/.*", Access(Role.ANNOTATOR, Size.UPLOAD)),
)
_TABLE = [
    (set(methods.split()), re.compile(path, re.DOTALL), access) for methods, path, access in _RULES
]
_OTHERWISE = Access()


def access_of(method: str, path: str) -> Access:
    """What a request takes.

    Args:
        method: HTTP's.
        path: as it was sent, escapes resolved; a slash at its end does not count.
    """
    plain = re.sub("/+", "/", path).rstrip("/")
    for methods, pattern, access in _TABLE:
        if ("*" in methods or method in methods) and pattern.fullmatch(plain):
            return access
    return _OTHERWISE
