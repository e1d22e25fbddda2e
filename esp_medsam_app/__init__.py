"""ESP-MedSAM for MONAI Label: prompt-free segmentation of medical images."""

from esp_medsam_app.telemetry import switch_off

__version__ = "0.1.0"

switch_off()
