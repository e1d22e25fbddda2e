"""From images to label maps: pre-processing, the network's passes, memory, precision."""

from esp_medsam_app.inference.segmenter import Segmenter

__all__ = ["Segmenter"]
