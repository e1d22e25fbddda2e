"""Training of bundles: views, losses, the recipe and the loop. Knows no MONAI Label."""

from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.trainer import train

__all__ = ["Recipe", "train"]
