"""Whether a CT's values can be Hounsfield units, which a fixed window needs.

A CT whose rescale intercept got lost, or that somebody scaled for a network, is read without a
fault and gives an empty mask. The signs below are those that no CT in Hounsfield units has, however
it is cropped: a crop of soft tissue alone, or one without air, shows none of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.errors import InputError
from esp_medsam_app.modalities import Modality

# Voxels that are looked at, evenly spread.
_LOOKED_AT = 2_000_000
# Noise alone spreads a CT's values further.
_LEAST_SPAN = 16.0
# The range of bytes: pictures stretched to it touch the upper end, or nearly, and black.
_BYTE, _NEARLY_BYTE, _BLACK = 255.0, 240.0, 0.01
# Fat and air: what a CT that lost its intercept has none of.
_BELOW_WATER, _PADDING, _NONE = -60.0, -1500.0, 0.001
# Soft tissue and air where 1024 or 1000 was added to them.
_SHIFTED_TISSUE, _SHIFTED_AIR = (924.0, 1224.0), (-100.0, 15.0)
_MUCH_TISSUE, _SOME_TISSUE, _BOTH = 0.25, 0.1, 0.6
# A crop of dense bone has as much above it.
_SHIFTED_BONE, _OVER_BONE = (1224.0, 1524.0), 2.0
# Few metals are brighter, and none is large.
_BRIGHTEST, _LARGE = 4096.0, 0.01


def check_units(image: MedicalImage, modality: Modality, remedy: str) -> None:
    """Refuse a CT that is not in Hounsfield units, for a modality with a window in these.

    8-bit pictures count as windowed already and pass.

    Args:
        image: picture or volume.
        modality: that was chosen for it.
        remedy: for the message: how to go on all the same.

    Raises:
        InputError: says what in the values cannot be Hounsfield units.
    """
    if not needs_hounsfield_units(modality) or image.is_rgb or image.voxels.dtype == np.uint8:
        return
    sign = contradiction(image.voxels)
    if sign is not None:
        raise InputError(
            f"its values are not Hounsfield units, which {modality.name} needs: {sign}",
            path=image.path,
            remedy="Convert the CT again from its DICOM series, with rescale slope and intercept. "
            f"{remedy}",
        )


def needs_hounsfield_units(modality: Modality) -> bool:
    """Whether a modality's window is one of a CT; one that names no DICOM modality may be too."""
    rule, meant_for = modality.intensity, modality.dicom_modalities
    if rule.kind != "window":
        return False
    return "CT" in meant_for or (not meant_for and rule.high - rule.low >= _LEAST_SPAN)


def contradiction(voxels: NDArray[Any]) -> str | None:
    """What cannot be in a CT in Hounsfield units; None where nothing speaks against them."""
    low, high = float(voxels.min()), float(voxels.max())
    # what is all one value, others tell
    if not (np.isfinite(low) and np.isfinite(high)) or low == high:
        return None
    between = f"they lie between {low:g} and {high:g}"
    if high - low < _LEAST_SPAN:
        return f"{between}, as of an image that was normalised"
    flat = voxels.ravel(order="K")
    values = flat[:: max(1, flat.size // _LOOKED_AT)].astype(np.float32)

    def share(first: float, last: float) -> float:
        return float(np.mean((values >= first) & (values <= last)))

    nearly = low == 0 and _NEARLY_BYTE <= high <= _BYTE and share(0, 0) >= _BLACK
    if nearly or (low >= 0 and high == _BYTE):
        return f"{between}, as of a picture that was windowed to 8 bits"
    if share(_PADDING, _BELOW_WATER) >= _NONE:
        return None
    tissue, air = share(*_SHIFTED_TISSUE), share(*_SHIFTED_AIR)
    much = tissue >= _MUCH_TISSUE or (tissue >= _SOME_TISSUE and tissue + air >= _BOTH)
    if much and tissue >= _OVER_BONE * share(*_SHIFTED_BONE):
        return (
            f"{between}, and soft tissue near 1024 in place of 0, as where the rescale intercept "
            "of -1024 was left out"
        )
    if share(_BRIGHTEST, np.inf) >= _LARGE:
        return f"{between}, brighter than any tissue, and nothing is as dark as fat or air"
    return None
