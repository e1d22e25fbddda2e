"""From images to label maps: pre-processing, the network's passes, memory, precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esp_medsam_app.inference.segmenter import Segmenter

__all__ = ["Segmenter"]


def __getattr__(name: str) -> Any:
    """The segmenter, when it is asked for: training takes its pre-processing alone from here."""
    if name == "Segmenter":
        from esp_medsam_app.inference.segmenter import Segmenter

        return Segmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
