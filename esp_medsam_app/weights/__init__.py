"""What a checkpoint is, where it comes from, how it is verified."""

from esp_medsam_app.weights.bundle import Bundle, load_bundle, save_bundle
from esp_medsam_app.weights.official import load_official_checkpoint

__all__ = ["Bundle", "load_bundle", "load_official_checkpoint", "save_bundle"]
