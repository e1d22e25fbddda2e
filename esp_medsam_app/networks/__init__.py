"""The networks: pure torch, free of files, images and MONAI Label."""

from esp_medsam_app.networks.desam import DeSam, DeSamDecoder
from esp_medsam_app.networks.esp_medsam import EspMedSam, Segmentation
from esp_medsam_app.networks.modality_controller import ModalityController
from esp_medsam_app.networks.modality_decoder import ModalityDecoder, ModalityQueries
from esp_medsam_app.networks.patch_prompt_generator import PatchPromptGenerator
from esp_medsam_app.networks.tiny_vit import TinyViT

__all__ = [
    "DeSam",
    "DeSamDecoder",
    "EspMedSam",
    "ModalityController",
    "ModalityDecoder",
    "ModalityQueries",
    "PatchPromptGenerator",
    "Segmentation",
    "TinyViT",
]
