"""How large the network's input is: one set of weights works at any size.

The time of a pass grows with the square of the side. A small input finds large structures as well
as a large one does, or better; thin and small ones need a large input.
"""

from __future__ import annotations

from typing import Literal, get_args

from esp_medsam_app.errors import InputError
from esp_medsam_app.weights.bundle import Bundle

Quality = Literal["fast", "balanced", "best"]
QUALITIES: tuple[Quality, ...] = get_args(Quality)
DEFAULT_QUALITY: Quality = "balanced"
# Sides in pixels, where the bundle names none that suits a modality better; `balanced` is the
# bundle's own input.
_FAST, _BEST = 128, 320
SMALLEST, LARGEST, MULTIPLE = 64, 1024, 16


def input_size(bundle: Bundle, modality: str, quality: str, size: int | None = None) -> int:
    """Side of the network's square input for a modality, pixels.

    Args:
        bundle: may name the sides that suit a modality, by quality.
        modality: a name.
        quality: `fast`, `balanced` or `best`.
        size: the side itself, in place of a quality.

    Raises:
        InputError: there is no such quality, or the network cannot have an input of this side.
    """
    check_input_size(quality, size)
    if size is not None:
        return size
    suits = bundle.description.sizes.get(modality, {})
    usual = bundle.usual_size(modality)
    # where a size was found to suit a modality, a larger one is no better
    best = usual if "balanced" in suits else max(usual, _BEST)
    return ({"fast": min(usual, _FAST), "balanced": usual, "best": best} | suits)[quality]


def check_input_size(quality: str, size: int | None = None) -> None:
    """Check a quality and a side before any weights are loaded.

    Raises:
        InputError: there is no such quality, or the network cannot have an input of this side.
    """
    if quality not in QUALITIES:
        raise InputError(f"there is no quality {quality!r}", remedy=f"Use {', '.join(QUALITIES)}")
    if size is not None and (size % MULTIPLE or not SMALLEST <= size <= LARGEST):
        raise InputError(
            f"the network cannot have an input of {size} x {size} pixels",
            remedy=f"Use a multiple of {MULTIPLE} from {SMALLEST} to {LARGEST}",
        )
