"""ESP-MedSAM for MONAI Label: prompt-free segmentation of medical images."""

__version__ = "0.1.0"
