"""Bundles without weights, for tests whose segmenter needs none."""

from __future__ import annotations

from pathlib import Path

from esp_medsam_app.modalities import Modality
from esp_medsam_app.weights.bundle import BackboneReference, Bundle, BundleDescription


def bundle_of(*modalities: Modality) -> Bundle:
    """A bundle that knows these modalities and has no files."""
    description = BundleDescription(
        name="test",
        backbone=BackboneReference(name="lite_medsam", sha256=""),
        input_size=256,
        modalities=list(modalities),
        files={},
    )
    return Bundle(Path("bundle"), description)
