"""The catalogue: one YAML file a modality."""

from esp_medsam_app.modalities.catalogue import (
    catalogue,
    find_modality,
    get_modality,
    read_modality,
)
from esp_medsam_app.modalities.modality import Augmentation, Intensity, Modality, Tiles

__all__ = [
    "Augmentation",
    "Intensity",
    "Modality",
    "Tiles",
    "catalogue",
    "find_modality",
    "get_modality",
    "read_modality",
]
