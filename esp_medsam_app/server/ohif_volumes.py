"""Which images OHIF can show: its mode MONAI Label has three planes of a volume, no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# what a request for the next image says of the viewer
OHIF = "ohif"
# in an image's info: how many instances its series has, and whether all of them are one volume
INSTANCES, IS_VOLUME = "instances", "is_volume"
# of these alone does OHIF's study list offer the mode
_MODALITIES = ("CT", "MR")


def ohif_shows(info: Mapping[str, Any]) -> bool:
    """Whether OHIF shows an image, by what is known of it.

    A series that was never downloaded counts as a volume if it has several instances. A single one
    may be a volume of many frames, which only the download tells.
    """
    if info.get("Modality") not in _MODALITIES:
        return False
    known = info.get(IS_VOLUME)
    if known is not None:
        return bool(known)
    count = info.get(INSTANCES)
    return not isinstance(count, int) or count != 1
