"""The inference task of one modality."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from numpy.typing import NDArray

from esp_medsam_app.data.dicom import series_tags
from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.data.names import label_map_suffix
from esp_medsam_app.data.writing import write_label_map
from esp_medsam_app.errors import EspMedSamError, InputError
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.inference.hounsfield import check_units, needs_hounsfield_units
from esp_medsam_app.inference.modality_reader import ModalityReading
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.conf import model_name
from esp_medsam_app.server.disks import TEMPORARY, advice_on_room
from esp_medsam_app.server.options import InferOptions
from esp_medsam_app.server.reading import read_image
from esp_medsam_app.server.shared_segmenter import SharedSegmenter

logger = logging.getLogger(__name__)

MODALITY_READ = "modality_read"
# so many of what an image may be of are told
_CANDIDATES = 3
_NIFTI = ".nii.gz"
# of one that is not in Hounsfield units
_ANYWAY = "Or set the option any_image: it is then segmented as it is"
# of an image that looks like one of another modality
_REMEDY = "Run the model of its modality, or set the option any_image of this one"


class EspMedSamInferTask(InferTask):
    """Prompt-free segmentation with one modality.

    Not a `BasicInferTask`: reading, geometry and memory are the package's own, the same as on the
    command line, so that the served label map is the one that `esp-medsam segment` writes.

    Args:
        modality: labels, dimension and description for the viewers.
        segmenters: shared by the tasks of all modalities.
        config: options that viewers are shown beside those of all models, with their defaults.
        check_images: refuse an image that looks like one of another modality, unless the request
            says `any_image`.
        check_units: likewise a CT that cannot be in Hounsfield units, for a modality with a window
            in these.
    """

    # whether its segmenter can tell how sure it is, for active learning
    assesses = True

    def __init__(
        self,
        modality: Modality,
        segmenters: SharedSegmenter,
        config: dict[str, Any] | None = None,
        *,
        check_images: bool = True,
        check_units: bool = True,
    ) -> None:
        self.check_images = check_images
        self.check_units = check_units and needs_hounsfield_units(modality)
        asked = self.check_images or self.check_units
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=dict(modality.labels),
            dimension=modality.dimension,
            description=f"{modality.title}. {modality.description}",
            config={**(config or {}), **({"any_image": False} if asked else {})},
        )
        self.modality = modality
        self.segmenters = segmenters

    def is_valid(self) -> bool:
        """Always: viewers are to offer a modality that is not trained yet as well."""
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment `request["image"]`, the path of a file or of a DICOM series' folder.

        Returns:
            The label map's file, which the caller removes, on the image's grid, also where nothing
            was found; and what viewers read: `label_names` (name to voxel value, all labels of the
            model, found or not), `latencies` (seconds), `centroids` (none), `version` (`modality`
            and `number` of the weights; 0: the bundle's own), `modality` (whose labels these are)
            and what the image itself says of that, see `told_of`; `warnings`, sentences about how
            the image was read, where there are any.

        Raises:
            EspMedSamError: bad options, an image that cannot be used, is of another modality or not
                in Hounsfield units, no weights, no memory.
        """
        options = InferOptions.parse(request)
        dropped = options.dropped_labels(self.modality.labels)
        clock = _Clock()
        with clock.measure("pre"):
            image = read_image(request["image"])
        suffix = options.result_extension or label_map_suffix(image.grid)
        if suffix == ".png" and len(image.grid.shape) != 2:
            raise InputError(
                "params.result_extension: .png holds pictures only, and this is a volume",
                remedy="Ask for .nrrd, .nii.gz or .nii",
            )
        with clock.measure("infer"):
            segmenter = self.prompted(self.segmenters.get(options.device), request)
            if self.check_images and not options.any_image:
                self.check(segmenter, image)
            if self.check_units and not options.any_image:
                check_units(image, self.modality, _ANYWAY)
            labels, told = self.segment(segmenter, image)
            if MODALITY_READ not in told:
                told = {**told, **self.told_reading(segmenter, image)}
        with clock.measure("post"):
            if dropped:
                labels = np.where(np.isin(labels, dropped), np.uint8(0), labels)
            labels = labels.astype(options.result_dtype, copy=False)
        with clock.measure("write"):
            file = _write(labels, image.grid, suffix, options.result_compress)
        latencies = clock.latencies()
        if options.log_level in ("DEBUG", "INFO"):
            logger.info(
                "%s: %s of %s, client %s, seconds: %s",
                self.modality.name,
                suffix,
                " x ".join(map(str, image.grid.shape)),
                options.client_id,
                latencies,
            )
        for warning in image.warnings:
            logger.warning("%s: %s", request["image"], warning)
        return str(file), {
            "label_names": dict(self.modality.labels),
            "latencies": latencies,
            "centroids": {},
            **({"warnings": list(image.warnings)} if image.warnings else {}),
            **told,
        }

    def prompted(self, segmenter: Segmenter, request: Mapping[str, Any]) -> Segmenter:
        """The segmenter as a request wants it prompted, in a family of models that is prompted."""
        del request
        return segmenter

    def check(self, segmenter: Segmenter, image: MedicalImage) -> None:
        """Raises InputError where an image looks like one of another modality."""
        segmenter.check_modality(with_tags(image), self.modality.name, _REMEDY)

    def reader(self, segmenter: Segmenter) -> Segmenter | None:
        """What can read the modality of an image, if anything can."""
        return segmenter

    def told_reading(self, segmenter: Segmenter, image: MedicalImage) -> dict[str, Any]:
        """Which modality the image itself seems to be of, for the answer; it decides nothing."""
        reader = self.reader(segmenter)
        try:
            reading = reader.read_modality(with_tags(image)) if reader is not None else None
        except EspMedSamError as error:
            logger.warning("The modality of an image was not read: %s", error)
            reading = None
        return told_of(reading)

    def serving(self, modality: str) -> int:
        """Which version of a modality's weights serves; 0: the bundle's own."""
        store = self.segmenters.versions
        return store.serving().get(modality, 0) if store is not None else 0

    def segment(
        self, segmenter: Segmenter, image: MedicalImage
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """The label map, and what to add to the answer."""
        name = self.modality.name
        labels = segmenter.segment(image, name)
        return labels, {"modality": name, "version": version_of(segmenter, name)}


class AddedInferTask(EspMedSamInferTask):
    """The task of a modality that the bundle lacks: it segments from its first training on."""

    @property
    def model(self) -> str:
        """What viewers call it."""
        return model_name(self.modality.name)

    def info(self) -> dict[str, Any]:
        """What viewers read; the description tells whether there is something to run yet."""
        info = dict(super().info())
        store = self.segmenters.versions
        if store is not None and not store.serving().get(self.modality.name):
            info["description"] += " Not trained yet."
        return info

    def segment(
        self, segmenter: Segmenter, image: MedicalImage
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """The label map, and what to add to the answer.

        Raises:
            InputError: the modality was not trained yet, or for other labels.
        """
        if self.modality.name not in segmenter.bundle.modalities:
            model = self.model
            raise InputError(
                f"{model} is not trained yet",
                remedy=f"Submit labels of {', '.join(self.modality.labels)} and train {model}",
            )
        return super().segment(segmenter, image)


def with_tags(image: MedicalImage) -> MedicalImage:
    """The image with its series' tags, which MONAI Label's conversion to NIfTI lost.

    What it fetches from a DICOMweb server lies in a folder beside the NIfTI file, of its name.
    """
    path = str(image.path or "")
    folder = Path(path.removesuffix(_NIFTI))
    if image.dicom_modality or not path.endswith(_NIFTI) or not folder.is_dir():
        return image
    tags = series_tags(folder)
    return replace(
        image,
        dicom_modality=tags.modality,
        dicom_body_part=tags.body_part,
        dicom_description=tags.description,
    )


def told_of(reading: ModalityReading | None) -> dict[str, Any]:
    """What was read of an image's modality, for the answer.

    `modality_read` is the modality that the image is of, none where that is not certain enough;
    `modality_confidence` the probability of the likeliest, 0 where nothing could look;
    `modality_source` `dicom` or `classifier`; `modality_candidates` the likeliest by probability.
    """
    if reading is None:
        reading = ModalityReading(None, 0.0)
    likeliest = sorted(reading.candidates.items(), key=lambda item: item[1], reverse=True)
    return {
        MODALITY_READ: reading.name,
        "modality_confidence": round(reading.confidence, 4),
        "modality_source": reading.source,
        "modality_candidates": {
            name: round(float(share), 4) for name, share in likeliest[:_CANDIDATES] if share
        },
    }


def version_of(segmenter: Segmenter, modality: str) -> dict[str, Any]:
    """Which weights make the mask, for the answer; 0: the bundle's own."""
    return {"modality": modality, "number": segmenter.version(modality)}


def _write(labels: NDArray[Any], grid: Grid, suffix: str, compress: bool) -> Path:
    handle, name = tempfile.mkstemp(prefix="esp_medsam_", suffix=suffix)
    os.close(handle)
    try:
        return write_label_map(name, labels, grid, compress=compress)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise EspMedSamError(
            f"the label map cannot be written ({error.strerror or error})",
            remedy=advice_on_room(TEMPORARY, Path(name).parent),
        ) from error
    except EspMedSamError:
        Path(name).unlink(missing_ok=True)
        raise


class _Clock:
    """Seconds spent in each step; MONAI Label's own names of the steps."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[step] = time.perf_counter() - start

    def latencies(self) -> dict[str, float]:
        seconds = {**self._seconds, "total": sum(self._seconds.values())}
        return {step: round(value, 3) for step, value in seconds.items()}
