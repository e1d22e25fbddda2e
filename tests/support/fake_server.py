"""A segmenter of a few lines, and models around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from support.bundles import bundle_of

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.errors import OtherModalityError
from esp_medsam_app.inference.assessment import Assessment
from esp_medsam_app.inference.modality_reader import ModalityReading
from esp_medsam_app.modalities import Modality

ORGANS = Modality(
    name="ct_organs", title="Organs in CT", description="Two.", dimension=3,
    labels={"liver": 1, "spleen": 2},
)  # fmt: skip
SPOTS = Modality(
    name="spots", title="Spots", description="One.", dimension=2, labels={"spot": 1}
)  # fmt: skip
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 1.5, 0, -40], [0, 0, 4, 7], [0, 0, 0, 1]])


class FakeSegmenters:
    """Stands for the shared segmenter and the segmenter: label n where a voxel is n * 100."""

    def __init__(self) -> None:
        self.devices: list[str] = []
        self.calls = 0
        self.error: BaseException | None = None
        self.assessed: list[str] = []
        self.modality_of: dict[str, str] = {}
        self.mistaken: dict[str, str] = {}
        self.bundle = bundle_of(ORGANS, SPOTS)
        self.versions = None

    def get(self, device: str = "auto") -> FakeSegmenters:
        self.devices.append(device)
        return self

    def segment(self, image: MedicalImage, modality: str) -> np.ndarray:
        self.calls += 1
        if self.error is not None:
            raise self.error
        grey = image.voxels[..., 0] if image.is_rgb else image.voxels
        return np.where(grey % 100 == 0, grey // 100, 0).astype(np.uint8)

    def assess(
        self, image: MedicalImage, modality: Modality, *, before_pass: Callable[[], None], **_: Any
    ) -> Assessment:
        """The brighter, the less certain; the embedding is the brightness too."""
        before_pass()
        self.assessed.append(str(image.path))
        if self.error is not None:
            raise self.error
        grey = float(image.voxels.mean()) / 255
        return Assessment(grey, grey, grey, np.array([grey, 0], np.float32), 1)

    def read_modality(self, image: MedicalImage) -> ModalityReading:
        """Whatever was set for a file's stem; else it cannot be told."""
        assert image.path is not None
        name = self.modality_of.get(image.path.stem)
        return ModalityReading(name, 1.0 if name else 0.0, dict.fromkeys(self.bundle.modalities, 0))

    def check_modality(self, image: MedicalImage, modality: str, remedy: str) -> None:
        """Refuses a file whose stem was set to look like another modality."""
        assert image.path is not None
        other = self.mistaken.get(image.path.stem)
        if other not in (None, modality):
            raise OtherModalityError(f"this looks like {other}", path=image.path, remedy=remedy)

    def version(self, modality: str) -> int:
        return 3


def detail(response: Any) -> str:
    """What a client is told of an error."""
    return str(response.json()["detail"])
