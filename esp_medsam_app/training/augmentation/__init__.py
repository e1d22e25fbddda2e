"""Random changes of training images: where they are cut, and how they look.

`cut_view` changes the geometry of one slice, `Appearance` the looks of a batch. Both run on the CPU
and on a GPU, and both take their random numbers from the caller, so that the same seed gives the
same view in every process.
"""

from esp_medsam_app.training.augmentation.appearance import Appearance
from esp_medsam_app.training.augmentation.geometry import cut_view

__all__ = ["Appearance", "cut_view"]
