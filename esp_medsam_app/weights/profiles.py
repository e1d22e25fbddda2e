"""Profiles: the bundles of the package, between which one chooses by name."""

from __future__ import annotations

from pathlib import Path

from esp_medsam_app.errors import InputError, UnknownNameError, WeightsError
from esp_medsam_app.weights.bundle import DESAM, DESCRIPTION, starter_bundle_path

FULL, COMPACT = "full", "compact"
PROFILES = (FULL, COMPACT, DESAM)
_MADE_BY = {
    COMPACT: "`esp-medsam distill compact`, scripts/train_compact.sh",
    DESAM: "`esp-medsam train --model desam`, scripts/train_desam.sh",
}


def packaged(name: str) -> Path:
    """Where a profile's bundle lies in the package, if it is there."""
    starter = starter_bundle_path()
    return starter if name == FULL else starter.with_name(f"starter_{name}")


def profile_path(name: str) -> Path:
    """Where a profile's bundle lies.

    Raises:
        UnknownNameError: there is no such profile.
        WeightsError: its bundle is not part of this installation.
    """
    if name not in PROFILES:
        raise UnknownNameError(f"there is no profile {name!r}", remedy=f"Use {', '.join(PROFILES)}")
    folder = packaged(name)
    if name != FULL and not (folder / DESCRIPTION).is_file():
        raise WeightsError(
            f"the {name} profile has no weights in this installation",
            path=folder,
            remedy=f"Make them ({_MADE_BY[name]}) and put them there, or give their folder as the "
            "bundle",
        )
    return folder


def chosen_bundle(bundle: Path | None, profile: str | None) -> Path | None:
    """The folder of a bundle that was named, or of a profile; none: the starter's.

    Raises:
        InputError: both were named.
        UnknownNameError, WeightsError: as `profile_path`.
    """
    if profile is None:
        return bundle
    if bundle is not None:
        raise InputError(
            "a profile and a bundle were named: each says which weights to use",
            remedy="Leave one of them out",
        )
    return profile_path(profile)
