"""What clients may tell of images and labels: names that can be files, and not too much."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from fastapi import HTTPException

from esp_medsam_app.errors import InputError
from esp_medsam_app.server.datastore_file import Change

TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# with a suffix, and what `written_whole` puts in front, still a file name
_LONGEST_NAME = 180
# what somebody may tell of an image or a label, and of all images, bytes: the file that holds it
# is read and written with every change
_LARGEST_INFO = 64 << 10
_LARGEST_FILE, _LARGEST_SHARE = 4 << 20, 4 << 10
MOST_TAGS = 64


def checked_tag(tag: Any) -> str:
    """A label's tag, which is also a folder's name; raises InputError if it cannot be one."""
    text = text_of(tag)
    if not TAG.fullmatch(text):
        raise InputError(
            f"{quoted(text)} cannot be a label's tag",
            remedy="Take up to 64 letters, digits, dots, hyphens and underscores",
        )
    return text


def checked_name(image_id: Any) -> str:
    """An image's id, which is also a file's name; raises InputError if it cannot be one."""
    if (
        not isinstance(image_id, str)
        or not image_id
        or image_id.startswith(".")
        or any(char in "/\\" or not char.isprintable() for char in image_id)
        or len(image_id.encode(errors="replace")) > _LONGEST_NAME
    ):
        raise InputError(
            f"{quoted(image_id)} cannot be an image's id",
            remedy=f"Take up to {_LONGEST_NAME} characters of a file name: no / and \\, and no dot "
            "in front",
        )
    return image_id


def quoted(text: Any) -> str:
    """What a client sent, to be told back: no path, of which the answer would leave a part out."""
    told = repr(text)
    return "a path" if "/" in told or "\\\\" in told else told[:200]


def check_size(info: Mapping[str, Any]) -> int:
    """The size of an info, if it may be kept.

    Raises:
        HTTPException: 413.
    """
    size = len(json.dumps(info))
    if size > _LARGEST_INFO:
        raise HTTPException(
            413,
            f"What is told of an image or a label has {size >> 10} kB: "
            f"{_LARGEST_INFO >> 10} kB at most",
        )
    return size


def check_told(change: Change, info: Mapping[str, Any]) -> None:
    """Whether an info may be kept beside all others.

    Raises:
        HTTPException: 413.
    """
    most = max(_LARGEST_FILE, _LARGEST_SHARE * len(change.model.objects))
    if check_size(info) + len(change.content) > most:
        raise HTTPException(
            413,
            f"What is told of all images together has reached {most >> 20} MB, which is the most. "
            "Tell less of them",
        )


def text_of(tag: Any) -> str:
    """A tag as text."""
    # MONAI Label's own tags are both; as text they would be `DefaultLabelTag.FINAL`
    return str(tag.value if isinstance(tag, Enum) else tag)
