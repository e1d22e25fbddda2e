"""What was read of an image's modality, for answers that are nothing but a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HEADERS = {
    "x-modality": "modality",
    "x-modality-read": "modality_read",
    "x-modality-confidence": "modality_confidence",
    "x-modality-source": "modality_source",
}


def modality_headers(told: Mapping[str, Any]) -> dict[str, str]:
    """Headers of the same names as the keys in the JSON of an answer; none of what is not known.

    Args:
        told: that JSON.
    """
    return {
        name: str(told[key])
        for name, key in _HEADERS.items()
        if told.get(key) is not None and str(told[key]).isascii()
    }
