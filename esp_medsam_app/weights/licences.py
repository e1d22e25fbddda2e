"""What the licences of the training data say about using a modality's weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from esp_medsam_app.weights.bundle import Bundle

CommercialUse = Literal["yes", "unclear", "no"]

# From the freest to the strictest; data of an unknown data set counts as unclear.
CLASSES = ("permissive", "mixed", "unclear", "non-commercial", "research only")
_FORBIDDING, _OPEN = ("non-commercial", "research only"), ("mixed", "unclear")


@dataclass(frozen=True)
class ModalityLicence:
    """Licence classes of the data that a modality's weights were trained on.

    Attributes:
        own: classes of the data that its own controller and queries were trained on.
        shared: classes of the data that the decoder was trained on, which all modalities share.
    """

    own: tuple[str, ...]
    shared: tuple[str, ...]

    @property
    def commercial_use(self) -> CommercialUse:
        """Whether the licences of the modality's own training data allow commercial use.

        `unclear` where a licence is mixed, not stated or not known. This is a summary of what the
        publishers state, not legal advice.
        """
        return _commercial_use(self.own)

    @property
    def shared_commercial_use(self) -> CommercialUse:
        """The same for the data that the shared decoder was trained on."""
        return _commercial_use(self.shared)


def licences(bundle: Bundle) -> dict[str, ModalityLicence]:
    """Licence classes of each modality of a bundle, from the training runs that it records.

    The decoder is trained by the first run, and by later ones that say so (`shared`).
    """
    runs = bundle.description.training.get("runs", [])
    shared = _classes(
        data
        for number, run in enumerate(runs)
        if run.get("shared", number == 0)
        for data in run["data"].values()
    )
    return {
        name: ModalityLicence(
            _classes(run["data"][name] for run in runs if name in run["data"]), shared
        )
        for name in bundle.modalities
    }


def _classes(data: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    found = {source.get("licence_class", "unclear") for part in data for source in part["sources"]}
    known = [name for name in CLASSES if name in found]
    return tuple(known + sorted(found - set(CLASSES)))


def _commercial_use(classes: Iterable[str]) -> CommercialUse:
    classes = tuple(classes)
    if any(name in _FORBIDDING for name in classes):
        return "no"
    if not classes or any(name in _OPEN or name not in CLASSES for name in classes):
        return "unclear"
    return "yes"
