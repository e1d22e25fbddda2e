"""The inference task that reads the modality from the image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.inference.hounsfield import check_units
from esp_medsam_app.inference.modality_reader import AUTO
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.conf import model_name
from esp_medsam_app.server.infer_task import EspMedSamInferTask, version_of, with_tags
from esp_medsam_app.server.shared_segmenter import SharedSegmenter


class AutoInferTask(EspMedSamInferTask):
    """Prompt-free segmentation with the modality that the image is of.

    Its labels are those of all modalities together, and their ids are the same whatever the image
    shows. So viewers agree with the voxels: OHIF maps them by the ids of `/info`, and Slicer takes
    the names of the answer in their order, as if they were numbered 1..N without gaps.

    Args:
        modalities: of the bundle.
        segmenters: shared by the tasks of all modalities.
        check_units: refuse a CT that cannot be in Hounsfield units.
    """

    def __init__(
        self,
        modalities: Iterable[Modality],
        segmenters: SharedSegmenter,
        *,
        check_units: bool = True,
    ) -> None:
        self.modalities = {modality.name: modality for modality in modalities}
        super().__init__(everything(self.modalities.values()), segmenters, check_images=False)
        # of the modality that is read, not of all together
        self.check_units = check_units

    def segment(
        self, segmenter: Segmenter, image: MedicalImage
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """The label map with the ids of all modalities together, and what was read.

        Returns:
            The answer gets `modality`, `modality_confidence` (probability), `modality_source`
            (`dicom` or `classifier`), `modality_labels` (name to voxel value of that modality) and
            `version` (`modality` and `number` of the weights).

        Raises:
            InputError: the modality cannot be told, and the likeliest are named; or the image is
                not in Hounsfield units.
        """
        reading = segmenter.read_modality(with_tags(image))
        first = next(iter(reading.candidates), next(iter(self.modalities)))
        name = reading.decided(image, f"Run the model of its modality, such as {model_name(first)}")
        if self.check_units:
            anyway = f"Or run {model_name(name)} with the option any_image"
            check_units(image, self.modalities[name], anyway)
        labels = segmenter.segment(image, name)
        own = self.modalities[name].labels
        ids = np.zeros(256, np.uint8)
        for label, value in own.items():
            ids[value] = self.modality.labels[label]
        return ids[labels], {
            "modality": name,
            "modality_confidence": round(reading.confidence, 4),
            "modality_source": reading.source,
            "modality_labels": {label: self.modality.labels[label] for label in own},
            "version": version_of(segmenter, name),
        }


def everything(modalities: Iterable[Modality]) -> Modality:
    """A modality of all labels, each once, numbered by name."""
    modalities = list(modalities)
    names = sorted({label for modality in modalities for label in modality.labels})
    return Modality(
        name=AUTO,
        title="Any of the modalities",
        description="Reads from the image what it is and segments it: "
        + "; ".join(modality.title for modality in modalities)
        + ".",
        dimension=3 if any(modality.dimension == 3 for modality in modalities) else 2,
        labels={name: index for index, name in enumerate(names, start=1)},
    )
