"""The datastore whose images are in the PACS, and whose labels go there."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.utils.others.generic import md5_digest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from esp_medsam_app.data.dicom import read_planes
from esp_medsam_app.data.dicom_seg_reading import (
    SegmentationHead,
    head_of,
    labels_on,
    read_segmentation_file,
)
from esp_medsam_app.data.dicom_seg_writing import no_patient_space
from esp_medsam_app.data.formats import is_dicom_file
from esp_medsam_app.data.image import Grid
from esp_medsam_app.data.writing import write_label_map
from esp_medsam_app.errors import (
    EspMedSamError,
    InputError,
    UnknownNameError,
    UnreachableError,
)
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.disks import advice_on_room
from esp_medsam_app.server.http_errors import as_http_error
from esp_medsam_app.server.local_datastore import PREDICTED, SafeDatastore
from esp_medsam_app.server.ohif_volumes import INSTANCES, IS_VOLUME
from esp_medsam_app.server.pacs.archive_index import ArchiveIndex, Series
from esp_medsam_app.server.pacs.archived_labels import INSTANCE, ArchivedLabels
from esp_medsam_app.server.pacs.client import PacsClient, is_default
from esp_medsam_app.server.pacs.conversions import Conversions
from esp_medsam_app.server.pacs.outbox import Outbox
from esp_medsam_app.server.pacs.pointers import SUFFIX, Place, grid_of, place_of, pointer
from esp_medsam_app.server.pacs.seen import SeenSegmentations
from esp_medsam_app.server.pacs.segments import (
    algorithm_of,
    segmentation,
    submitted_segmentation,
)
from esp_medsam_app.server.pacs.series_cache import GIGABYTE, CachedSeries, SeriesCache
from esp_medsam_app.server.submitted_labels import (
    SubmittedLabels,
)
from esp_medsam_app.server.told_texts import checked_tag
from esp_medsam_app.weights.integrity import sha256_of

FINAL = str(DefaultLabelTag.FINAL.value)
# In a label's info: why it is on this server only.
NOT_STORED = "not_in_pacs"
# In a label's info: which of all submissions it is.
_SUBMISSION = "submission"
# In an image's info: why it cannot be segmented, and why viewers cannot show it as a volume.
PROBLEM = "problem"
NOT_SHOWN = "not_shown"

_LABELS = ("*.nii.gz", "*.nii", "*.seg.nrrd", "*.nrrd", "*.png", f"*{SUFFIX}")

logger = logging.getLogger(__name__)


class _LocalFolder(DICOMWebDatastore):
    """MONAI Label's DICOMweb datastore, but for its way of starting."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        LocalDatastore.__init__(self, *args, **kwargs)


class PacsDatastore(SafeDatastore, _LocalFolder):
    """Images of a DICOMweb archive; labels on this server first, and then in the archive too.

    An image's id is its SeriesInstanceUID. A series that holds several images (phases, X-rays)
    has `<UID>_1`, `<UID>_2`, ... instead, from the moment that it was first looked into.

    In the folder: `images/` has a small file for each image that was ever used (its grid),
    `labels/` and `label_versions/` are as `SafeDatastore` has them, `series/` holds the instances
    of the series used last, `converted/` what viewers download, `outbox/` names the labels that
    the PACS has not got yet.

    Every label that somebody submits is kept here at once and goes to the PACS as DICOM SEG in the
    background. A segmentation that somebody else put into the PACS counts as a label if a person
    drew it, its segments have the names of one modality's labels, and it is newer than the label
    here; it is fetched when it is wanted.

    Args:
        client: of the PACS.
        folder: on this server.
        labels: checks and renumbers what is submitted; knows the modality of each model.
        modalities: DICOM modalities (0008,0060) of the images to offer.
        search_filter: of the admin's own.
        largest_cache: bytes that images may take.
        max_age: seconds after which the PACS is asked again what it holds.
    """

    # said by a client, the label would not go to the PACS
    _own_notes: ClassVar[frozenset[str]] = frozenset({PREDICTED, INSTANCE, NOT_STORED, _SUBMISSION})

    def __init__(
        self,
        client: PacsClient,
        folder: Path,
        labels: SubmittedLabels,
        modalities: Callable[[], Sequence[str]],
        search_filter: Mapping[str, Any] | None = None,
        largest_cache: float = 20 * GIGABYTE,
        max_age: float = 30.0,
    ) -> None:
        self._client = client.web
        self._models = labels.models
        self.client = client
        self.cache = SeriesCache(folder / "series", client, largest_cache)
        self.index = ArchiveIndex(
            client, modalities, search_filter or {}, folder / "segmentations.json", max_age
        )
        self.outbox = Outbox(folder / "outbox", self._send, self._refused)
        self._seen = SeenSegmentations(folder / "seen_segmentations.txt")
        self._archived = ArchivedLabels(self.index, self.cache, self._seen, labels.models)
        self._conversions = Conversions(folder / "converted", self.cache.folder)
        super().__init__(
            str(folder),
            labels,
            images_dir="images",
            labels_dir="labels",
            extensions=_LABELS,
        )

    @classmethod
    def from_settings(
        cls,
        url: str,
        labels: SubmittedLabels,
        modalities: Callable[[], Sequence[str]],
        largest_cache: float,
    ) -> PacsDatastore:
        """With MONAI Label's own settings; its default of CT alone gives way to the models'."""
        client = PacsClient.from_settings(url)
        search = "MONAI_LABEL_DICOMWEB_SEARCH_FILTER"
        age = "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY"
        options: dict[str, Any] = {} if is_default(age) else {"max_age": getattr(settings, age)}
        return cls(
            client,
            labels_folder(client.url),
            labels,
            modalities,
            {} if is_default(search) else getattr(settings, search),
            largest_cache,
            **options,
        )

    def start(self) -> None:
        """The server is about to answer: list the PACS and send labels from now on."""
        threading.Thread(target=self.index.snapshot, name="pacs-index", daemon=True).start()
        self.outbox.start()

    def stop(self) -> None:
        """Send no more labels; those that wait are sent after the next start."""
        self.outbox.stop()

    def status(self) -> dict[str, Any]:
        """Counts for viewers; `problem`: why the PACS could not be listed, if it could not."""
        found, problem = dict(super().status()), self.index.snapshot().problem
        return {**found, "problem": problem} if problem else found

    # --- images -----------------------------------------------------------------------------

    def name(self) -> str:
        """The address of the PACS."""
        return self.client.url

    def list_images(self) -> list[str]:
        """Ids of the images that the PACS offers to the models served."""
        snapshot = self.index.snapshot()
        objects = self._datastore.objects
        known: dict[str, list[str]] = {}
        for image_id in objects:
            place = place_of(image_id)
            if place is not None:
                known.setdefault(place.series, []).append(image_id)
        if not snapshot.complete:
            return sorted(objects)
        return [image for uid in snapshot.series for image in sorted(known.get(uid, [uid]))]

    def get_labeled_images(
        self, label_tag: str | None = None, labels: list[str] | None = None
    ) -> list[str]:
        """Ids of the images that have a finished label, here or in the PACS."""
        objects = self._datastore.objects
        return [
            image
            for image in self.list_images()
            if (image in objects and FINAL in objects[image].labels) or self._newer(image)
        ]

    def get_unlabeled_images(
        self, label_tag: str | None = None, labels: list[str] | None = None
    ) -> list[str]:
        """Ids of the images to annotate; those that cannot be segmented are none of them."""
        labelled, objects = set(self.get_labeled_images()), self._datastore.objects
        return [
            image
            for image in self.list_images()
            if image not in labelled
            and not (image in objects and _flawed(objects[image].image.info))
        ]

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known of an image; empty for an unknown one."""
        entry = self._datastore.objects.get(image_id)
        place = place_of(image_id)
        series = self.index.snapshot().series.get(place.series) if place else None
        known = {
            **(_told_of(series) if series is not None else {}),
            **(dict(entry.image.info) if entry is not None else {}),
        }
        # viewers keep what they download by this name, and know by its end how to read it
        return {**known, "name": self._conversions.name(image_id)} if known else {}

    def update_image_info(self, image_id: str, info: Mapping[str, Any]) -> None:
        """Add to an image's info, or alter it.

        Raises:
            HTTPException: 404 unknown image.
        """
        with _told():
            self._noted(image_id)
        if isinstance(info, Mapping):
            own = (PROBLEM, NOT_SHOWN, INSTANCES, IS_VOLUME)
            info = {key: value for key, value in info.items() if key not in own}
        super().update_image_info(image_id, info)

    def original(self, image_id: str) -> Path:
        """The folder of an image's instances, downloaded if need be.

        Raises:
            UnknownNameError: there is no such image.
            UnreachableError: it is not here, and the PACS does not give it.
            InputError: the series is no image, or several: tells their ids.
        """
        return self._located(image_id, self.cache)

    @contextmanager
    def borrowed(self, image_id: str) -> Iterator[Path]:
        """As `original`, for a block; a series that is not here is fetched for the moment only.

        For work through the whole archive, which is not to drive the viewers' images out of the
        cache, nor to leave every patient's on this disk.
        """
        if self.cache.find(self._place(image_id).series) is not None:
            yield self.original(image_id)
            return
        with tempfile.TemporaryDirectory(prefix="esp_medsam_") as folder:
            yield self._located(image_id, SeriesCache(Path(folder), self.client, float("inf")))

    def get_image_uri(self, image_id: str) -> str:
        """A file of the image that viewers can show.

        Raises:
            HTTPException: 404 unknown, 422 what viewers would show in the wrong place, 503 no PACS.
        """
        with _told():
            try:
                return str(self._converted(image_id))
            except InputError as error:
                self._note_problem(image_id, error)
                raise

    def add_image(self, image_id: str, image_filename: str, image_info: Mapping[str, Any]) -> str:
        """Not here.

        Raises:
            HTTPException: 405.
        """
        raise HTTPException(405, "Images come from the PACS. Send them there, or use a session.")

    def remove_image(self, image_id: str) -> None:
        """Not here.

        Raises:
            HTTPException: 405.
        """
        raise HTTPException(405, "Images are in the PACS. Remove them there.")

    # --- labels -----------------------------------------------------------------------------

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """The file of a label; the newest one, which may come from the PACS.

        Raises:
            HTTPException: 422 a segmentation in the PACS that does not fit, 503 no PACS.
        """
        label_id = image_id or label_id
        if _is_final(label_tag):
            with _told():
                self._take_newest_if_possible(label_id)
        return str(LocalDatastore.get_label_uri(self, label_id, label_tag))

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """A label's info; of a newer one in the PACS, what is known without fetching it."""
        head = self._newer(label_id) if _is_final(label_tag) else None
        return (
            super().get_label_info(label_id, label_tag)
            if head is None
            else self._archived.info(head)
        )

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """The tags of an image's labels."""
        found = dict(super().get_labels_by_image_id(image_id))
        return {**found, FINAL: image_id} if self._newer(image_id) else found

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Images and their finished labels, those in the PACS too."""
        found = []
        for image in self.get_labeled_images():
            try:
                label = self.get_label_uri(image, FINAL)
                found.append({"image": str(self._converted(image)), "label": label})
            except (EspMedSamError, HTTPException) as error:
                logger.warning("Left out of the list of labelled images: %s", error)
        return found

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: Mapping[str, Any]
    ) -> str:
        """Keep a label that somebody submits, and send it to the PACS when it is there.

        Args:
            image_id: of the image.
            label_filename: a label map; bare voxels (.bin, uint8, as old versions of OHIF send
                them); or a DICOM SEG.
            label_tag: `final` goes to the PACS.
            label_info: as for any datastore.

        Raises:
            HTTPException: 404 unknown image; 422 for what does not fit it.
        """
        with _told(), tempfile.TemporaryDirectory(prefix="esp_medsam_") as folder:
            checked_tag(label_tag)
            self._noted(image_id)
            file, info = self._as_label_map(
                image_id, Path(label_filename), Path(folder), label_info or {}
            )
            return super().save_label(image_id, str(file), label_tag, info)

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Take a label away; it becomes a version. What the PACS has stays, but counts no more.

        Raises:
            HTTPException: 404 unknown label.
        """
        place = place_of(label_id)
        if _is_final(label_tag) and place is not None:
            remote = self._newer(label_id)
            self._seen.add(head.instance for head in self._archived.of_series(place.series))
            if remote is not None and not super().get_labels_by_image_id(label_id).get(FINAL):
                return
        super().remove_label(label_id, label_tag)

    def receive(self, dataset: Dataset) -> str:
        """Take a DICOM SEG that a viewer has stored in the PACS as its image's finished label.

        For the route that passes a viewer's STOW request on: to be called for each segmentation
        that the PACS has accepted.

        Returns:
            The image's id.

        Raises:
            UnknownNameError: it is of no image that is offered here.
            InputError: its names are no labels of one modality, or it does not lie on the image.
            UnreachableError: the image is not here, and the PACS does not answer.
        """
        head = head_of(dataset)
        if self._archived.modality(head) is None:
            raise InputError(
                f"no model has all the labels {', '.join(map(repr, head.names.values()))}",
                remedy="Name each segment as the model that was run does",
            )
        for uid in head.images:
            if self._series(uid) is not None:
                image_id = self._image_of(head, uid)
                self._take(image_id, head, dataset)
                logger.info("Segmentation %s is now the label of %s", head.instance, image_id)
                return image_id
        raise UnknownNameError("the segmentation refers to no image that is offered here")

    def check_dicom_seg(self, image_id: str) -> None:
        """Whether an image can have a DICOM SEG.

        Raises:
            EspMedSamError: it cannot, or cannot be had.
        """
        self.original(image_id)
        if not self._grid(image_id).has_patient_space:
            raise no_patient_space()

    def dicom_seg(
        self, image_id: str, label: Path, modality: Modality, version: object = None
    ) -> Dataset:
        """What a model drew, as a DICOM segmentation.

        Raises:
            InputError: the image has no place in the patient.
            UnreachableError: the image is not here, and the PACS does not answer.
        """
        origin = algorithm_of(modality.name, version, corrected=False)
        return segmentation(self.original(image_id), label, {}, modality, origin)

    def _keep_label(self, image_id: str, tag: str, source: Path, info: dict[str, Any]) -> None:
        # a segmentation that came from the PACS need not go there
        to_send = tag == FINAL and not info.get(PREDICTED) and not info.get(INSTANCE)
        if to_send:
            info = {**info, _SUBMISSION: uuid.uuid4().hex}
        with self._file.transaction() as change:
            super()._keep_label(image_id, tag, source, info)
            if to_send:
                change.files.append((self.outbox.file(image_id), self.outbox.content(image_id)))
        if to_send:
            self.outbox.wake()

    # --- images, in detail ------------------------------------------------------------------

    def _place(self, image_id: Any) -> Place:
        place = place_of(image_id)
        if place is None:
            raise _unknown(image_id)
        return place

    def _series(self, uid: str) -> Series | None:
        """What the PACS tells of a series; none if it has none such, or is away."""
        try:
            return self.index.series(uid)
        except UnreachableError:
            return None

    def _located(self, image_id: str, cache: SeriesCache) -> Path:
        place = self._place(image_id)
        cached = self._cached(place, cache)
        self._note(place, cached)
        number = place.number
        if number is None and len(cached.parts) > 1:
            listed = "; ".join(
                f"{place.series}_{index} ({part.told_by}, {len(part.files)} instances)"
                for index, part in enumerate(cached.parts[:20], start=1)
            )
            raise InputError(
                f"the series holds {len(cached.parts)} images: {listed}",
                remedy="Ask for one of them",
            )
        if number is not None and (number > len(cached.parts) or len(cached.parts) == 1):
            raise _unknown(image_id)
        problem = self._datastore.objects[image_id].image.info.get(PROBLEM)
        if problem:
            raise InputError(str(problem))
        return cached.path((number or 1) - 1)

    def _cached(self, place: Place, cache: SeriesCache) -> CachedSeries:
        try:
            series = self.index.series(place.series)
        except UnreachableError:
            cached = cache.find(place.series)
            if cached is None:
                raise
            return cached
        if series is None:
            raise _unknown(place.series)
        return cache.get(series, place.series)

    def _ids(self, place: Place, cached: CachedSeries) -> list[str]:
        if len(cached.parts) == 1:
            return [place.series]
        return [f"{place.series}_{number}" for number in range(1, len(cached.parts) + 1)]

    def _note(self, place: Place, cached: CachedSeries) -> None:
        """Remember the images of a series, their grids and what is wrong with them."""
        objects = self._datastore.objects
        ids = self._ids(place, cached)
        old = [image for image in objects if (p := place_of(image)) and p.series == place.series]
        if all(
            image in objects and objects[image].image.info.get(INSTANCES) == cached.count
            for image in ids
        ) and set(old) == set(ids):
            return
        found = self._grids(cached, ids)
        series = self.index.snapshot().series.get(place.series)
        told = series.info() if series is not None else {"SeriesInstanceUID": place.series}
        with self._file.transaction() as change:
            for image in set(old) - set(ids):
                # the series' own id, under which nobody could know yet that it holds several
                if not change.model.objects[image].labels:
                    del change.model.objects[image]
                    change.removed.append(self._pointer(image))
            for image, (grid, problem) in found.items():
                entry = change.model.objects.setdefault(
                    image, ImageLabelModel(image=DataModel(ext=SUFFIX))
                )
                entry.image.info.update(
                    told,
                    instances=cached.count,
                    name=self._conversions.name(image),
                    ts=int(time.time()),
                )
                entry.image.info[PROBLEM] = problem
                entry.image.info[IS_VOLUME] = _is_volume(cached, grid)
                entry.image.info.pop(NOT_SHOWN, None)
                change.files.append((self._pointer(image), pointer(grid)))

    def _grids(
        self, cached: CachedSeries, ids: Sequence[str]
    ) -> dict[str, tuple[Grid | None, str]]:
        found: dict[str, tuple[Grid | None, str]] = {}
        for index, image in enumerate(ids):
            try:
                found[image] = read_planes(cached.path(index)).grid, ""
            except InputError as error:
                logger.warning("Image %s cannot be segmented: %s", image, error)
                found[image] = None, f"{error.problem}. {error.remedy}".rstrip(". ")
        return found

    def _note_problem(self, image_id: str, error: InputError) -> None:
        """An image that viewers cannot show is not offered to annotate either."""
        if image_id in self._datastore.objects:
            with self._file.transaction() as change:
                info = change.model.objects[image_id].image.info
                info[NOT_SHOWN] = error.problem

    def _noted(self, image_id: str) -> None:
        """Know an image, if only by its id while the PACS is away."""
        if image_id in self._datastore.objects:
            return
        place = self._place(image_id)
        try:
            self.original(image_id)
        except UnreachableError:
            if place.series not in self.index.snapshot().series:
                raise
            logger.warning("The PACS is away: labels of %s are kept as they come", image_id)
            with self._file.transaction() as change:
                info = {"name": self._conversions.name(image_id), "ts": int(time.time())}
                change.model.objects[image_id] = ImageLabelModel(
                    image=DataModel(ext=SUFFIX, info=info)
                )
                change.files.append((self._pointer(image_id), pointer(None)))

    def _pointer(self, image_id: str) -> Path:
        return Path(self._datastore.image_path()) / f"{image_id}{SUFFIX}"

    def _grid(self, image_id: str) -> Grid:
        grid = grid_of(self._pointer(image_id))
        if grid is None:
            self.original(image_id)
            grid = grid_of(self._pointer(image_id))
        assert grid is not None
        return grid

    def _converted(self, image_id: str) -> Path:
        return self._conversions.file(image_id, self.original(image_id))

    # --- labels, in detail ------------------------------------------------------------------

    def _as_label_map(
        self, image_id: str, file: Path, folder: Path, info: Mapping[str, Any]
    ) -> tuple[Path, Mapping[str, Any]]:
        if file.name.endswith(".bin"):
            grid = self._grid(image_id)
            voxels = np.fromfile(file, np.uint8)
            if voxels.size != np.prod(grid.shape):
                raise InputError(
                    f"the label has {voxels.size} voxels, the image "
                    f"{' x '.join(map(str, grid.shape))}"
                )
            shaped = voxels.reshape(grid.shape, order="F")
            return write_label_map(folder / "label.nii.gz", shaped, grid), info
        if is_dicom_file(file):
            dataset = read_segmentation_file(file)
            head = head_of(dataset)
            grid = self._grid(image_id)
            labels = labels_on(dataset, grid)
            named = {**info, "label_info": self._archived.entries(head)}
            return write_label_map(folder / "label.nii.gz", labels, grid), named
        return file, info

    def _newer(self, image_id: str) -> SegmentationHead | None:
        """The segmentation in the PACS that counts instead of the label here, if there is one."""
        place = place_of(image_id)
        # most images have none: lists of all ask here for each, and need not look at its label then
        if place is None or not self._archived.of_series(place.series):
            return None
        entry = self._datastore.objects.get(image_id)
        label = entry.labels.get(FINAL) if entry is not None else None
        since = float(label.info.get("ts", 0)) if label is not None else None
        return self._archived.newest(place, since)

    def _image_of(self, head: SegmentationHead, uid: str) -> str:
        place = Place(uid, None)
        cached = self._cached(place, self.cache)
        self._note(place, cached)
        ids = self._ids(place, cached)
        if len(ids) == 1:
            return ids[0]
        for image in ids:
            if self._archived.refers_to(head, self._place(image)):
                return image
        raise InputError("the segmentation does not tell which image of the series it is of")

    def _take_newest_if_possible(self, image_id: str) -> None:
        try:
            self._take_newest(image_id)
        except UnreachableError as error:
            if self._datastore.label(image_id, FINAL) is None:
                raise
            logger.warning("The label of %s here may not be the newest: %s", image_id, error)

    def _take_newest(self, image_id: str) -> None:
        head = self._newer(image_id)
        if head is None:
            return
        for dataset in self.client.download(head.study, head.series):
            if str(dataset.SOPInstanceUID) == head.instance:
                try:
                    self._take(image_id, head, dataset)
                except InputError:
                    # it will never fit: what is here counts again
                    self._seen.add([head.instance])
                    raise
                return

    def _take(self, image_id: str, head: SegmentationHead, dataset: Dataset) -> None:
        """Make a segmentation the image's label."""
        self.original(image_id)
        grid = self._grid(image_id)
        labels = labels_on(dataset, grid)
        info = {"label_info": self._archived.entries(head), **self._archived.origin(head)}
        with tempfile.TemporaryDirectory(prefix="esp_medsam_") as folder:
            file = write_label_map(Path(folder) / "label.nii.gz", labels, grid)
            with self._prepare(file, self._pointer(image_id), info) as (prepared, told):
                self._keep_label(image_id, FINAL, prepared, told)
        self._seen.add([head.instance])
        self.index.invalidate()

    def _send(self, image_id: str) -> None:
        """Put the label of an image into the PACS."""
        label = self._datastore.label(image_id, FINAL)
        if label is None or label.info.get(INSTANCE):
            return
        info = dict(label.info)
        file = Path(str(LocalDatastore.get_label_uri(self, image_id, FINAL)))
        submission = str(info.get(_SUBMISSION))
        dataset = submitted_segmentation(
            self.original(image_id),
            file,
            info,
            self._models(),
            # the same submission gets the same UID: sent twice, it is in the PACS once
            instance_uid=generate_uid(entropy_srcs=[image_id, submission, sha256_of(file)]),
            series_number=1000 + len(self.label_versions(image_id, FINAL)),
        )
        instance = str(dataset.SOPInstanceUID)
        self._seen.add([instance])
        self.client.store(dataset)
        sent = {
            INSTANCE: instance,
            "SeriesInstanceUID": str(dataset.SeriesInstanceUID),
            "StudyInstanceUID": str(dataset.StudyInstanceUID),
            NOT_STORED: "",
        }
        self._told_of_label(image_id, submission, sent)
        self.index.invalidate()

    def _refused(self, image_id: str, problem: str) -> None:
        label = self._datastore.label(image_id, FINAL)
        if label is not None:
            submission = str(label.info.get(_SUBMISSION))
            self._told_of_label(image_id, submission, {NOT_STORED: problem})

    def _told_of_label(self, image_id: str, submission: str, info: Mapping[str, Any]) -> None:
        """Add to the info of the label that was sent, not of one submitted meanwhile."""
        with self._file.transaction() as change:
            entry = change.model.objects.get(image_id)
            label = entry.labels.get(FINAL) if entry is not None else None
            if label is not None and str(label.info.get(_SUBMISSION)) == submission:
                label.info.update(info)


def cache_folder() -> Path:
    """Where each PACS has a folder of its own, by MONAI Label's settings."""
    chosen = settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or settings.MONAI_LABEL_DATASTORE_CACHE_PATH
    return Path(chosen) if chosen else Path.home() / ".cache" / "monailabel" / "dicom"


def labels_folder(url: str, cache: Path | None = None) -> Path:
    """The folder of a PACS, by its address."""
    return (cache or cache_folder()) / str(md5_digest(url.strip().rstrip("/")))


def _told_of(series: Series) -> dict[str, Any]:
    count = {INSTANCES: series.instances} if series.instances >= 0 else {}
    return {**series.info(), **count}


def _is_volume(cached: CachedSeries, grid: Grid | None) -> bool:
    """Whether all instances of a series are one volume of several slices."""
    if grid is None or not grid.has_patient_space or len(cached.parts) != 1:
        return False
    whole = len(cached.parts[0].files) == cached.count
    return whole and len(grid.shape) == 3 and grid.shape[2] > 1


def _flawed(info: Mapping[str, Any]) -> bool:
    return bool(info.get(PROBLEM) or info.get(NOT_SHOWN))


def _is_final(tag: Any) -> bool:
    return str(getattr(tag, "value", tag)) == FINAL


def _unknown(image_id: Any) -> UnknownNameError:
    return UnknownNameError(
        f"there is no image {image_id!r} in the PACS",
        remedy="GET /datastore/?output=all and the study list tell which there are",
    )


@contextmanager
def _told() -> Iterator[None]:
    """Errors as the client shall see them."""
    try:
        yield
    except EspMedSamError as error:
        raise as_http_error(error) from error
    except OSError as error:
        told = EspMedSamError(
            f"the images cannot be kept on this server ({error.strerror or error})",
            remedy=advice_on_room("labels and images of the PACS", cache_folder()),
        )
        raise as_http_error(told) from error
