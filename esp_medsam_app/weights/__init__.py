"""What a checkpoint is, where it comes from, how it is verified."""

from esp_medsam_app.weights.official import load_official_checkpoint

__all__ = ["load_official_checkpoint"]
