"""What the PACS holds: series to segment, and segmentations of them."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from esp_medsam_app.data.dicom_seg_reading import SegmentationHead, head_of
from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import EspMedSamError, UnreachableError
from esp_medsam_app.server.pacs.client import PacsClient

# Seconds after which the PACS is asked again, in the background.
MAX_AGE = 30.0
SEG = "SEG"
# Series of these describe images, and are never offered as such (PS3.3 C.7.3.1.1.1).
NO_IMAGES = frozenset(
    ("SEG", "SR", "PR", "KO", "DOC", "REG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "RWV",
     "AU", "ECG", "EPS", "HD", "PLAN", "FID", "STAIN", "TEXTUREMAP", "M3D", "ANN")
)  # fmt: skip
_PROXY = "/proxy/dicom/wado"
_INFO = {
    "Modality": "modality",
    "StudyDate": "study_date",
    "StudyTime": "study_time",
    "PatientID": "patient",
    "StudyInstanceUID": "study",
    "SeriesInstanceUID": "series",
    "SeriesDescription": "description",
    "BodyPartExamined": "body_part",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Series:
    """A series in the PACS; what the PACS does not tell is empty.

    Attributes:
        instances: how many there are; -1 if the PACS does not tell.
    """

    series: str
    study: str
    modality: str = ""
    patient: str = ""
    study_date: str = ""
    study_time: str = ""
    description: str = ""
    body_part: str = ""
    instances: int = -1

    @classmethod
    def of(cls, dataset: Dataset) -> Series:
        """From an answer to a search."""
        texts = {name: str(dataset.get(tag) or "") for tag, name in _INFO.items()}
        count = dataset.get("NumberOfSeriesRelatedInstances")
        return cls(**texts, instances=-1 if count is None else int(count))

    def info(self) -> dict[str, Any]:
        """By DICOM's names, as MONAI Label and OHIF know them.

        RetrieveURL is this server's: viewers need not know the PACS', and may not reach it.
        """
        told = {tag: getattr(self, name) or "UNK" for tag, name in _INFO.items()}
        return {**told, "RetrieveURL": f"{_PROXY}/studies/{self.study}/series/{self.series}"}


@dataclass(frozen=True)
class Snapshot:
    """What the PACS held at some moment.

    Attributes:
        series: to segment, by UID.
        segmentations: of those, the newest last, by the UID of the series they refer to.
        complete: whether the PACS has ever told; else it is not known what there is.
        problem: why the last question failed; empty if it did not.
    """

    series: Mapping[str, Series] = field(default_factory=dict)
    segmentations: Mapping[str, tuple[SegmentationHead, ...]] = field(default_factory=dict)
    complete: bool = False
    problem: str = ""


class ArchiveIndex:
    """Asks the PACS what it holds, at most once in `max_age` seconds and in the background.

    Whoever wants to know gets the answer of the last time at once: a PACS that is slow, frozen or
    away holds nobody up.

    Args:
        client: of the PACS.
        modalities: which DICOM modalities the models served are meant for; asked each time.
        chosen: a search filter of the admin's own, `Modality` included or not.
        known: file that remembers segmentations, which never change.
        max_age: seconds.
    """

    def __init__(
        self,
        client: PacsClient,
        modalities: Callable[[], Iterable[str]],
        chosen: Mapping[str, Any],
        known: Path,
        max_age: float = MAX_AGE,
    ) -> None:
        self._client = client
        self._modalities = modalities
        self._chosen = dict(chosen)
        self._known = known
        self._max_age = max_age
        self._snapshot = Snapshot()
        self._asked = float("-inf")
        self._asking = threading.Lock()
        self._heads: dict[str, list[SegmentationHead]] | None = None

    def snapshot(self) -> Snapshot:
        """What is known; only the very first call waits for the PACS."""
        if self._asked == float("-inf"):
            with self._asking:
                # another thread may have been first
                return self._refreshed() if self._asked == float("-inf") else self._snapshot
        if time.monotonic() - self._asked > self._max_age and not self._asking.locked():
            threading.Thread(target=self.refresh, name="pacs-index", daemon=True).start()
        return self._snapshot

    def invalidate(self) -> None:
        """Something has changed: the next call has the PACS asked again, in the background."""
        if self._asked != float("-inf"):
            self._asked = min(self._asked, time.monotonic() - self._max_age - 1)

    def refresh(self) -> Snapshot:
        """Ask the PACS now; after a failure what was known still counts."""
        with self._asking:
            return self._refreshed()

    def _refreshed(self) -> Snapshot:
        try:
            self._snapshot = self._ask()
        except EspMedSamError as error:
            known = error.problem == self._snapshot.problem
            logger.log(
                logging.DEBUG if known else logging.WARNING, "The PACS was not listed: %s", error
            )
            self._snapshot = replace(self._snapshot, problem=error.problem)
        self._asked = time.monotonic()
        return self._snapshot

    def series(self, uid: str) -> Series | None:
        """One series, which may be newer than what is known.

        Raises:
            UnreachableError: it is not known, and the PACS does not answer.
        """
        known = self._snapshot.series.get(uid)
        if known is not None:
            return known
        found = [Series.of(d) for d in self._client.search_series({"SeriesInstanceUID": uid})]
        # an archive that ignores the filter sends everything
        exact = [series for series in found if series.series == uid]
        return exact[0] if exact and exact[0].modality not in NO_IMAGES else None

    def _ask(self) -> Snapshot:
        series: dict[str, Series] = {}
        for filters in self._filters():
            for dataset in self._client.search_series(filters):
                found = Series.of(dataset)
                wanted = filters.get("Modality", found.modality)
                if found.modality not in NO_IMAGES and found.modality == wanted:
                    series[found.series] = found
        studies = {found.study for found in series.values()}
        try:
            segmentations = self._segmentations(studies, set(series))
        except UnreachableError as error:
            # one that the PACS cannot give is not to hide the images
            return Snapshot(series, self._snapshot.segmentations, True, error.problem)
        return Snapshot(series, segmentations, complete=True)

    def _filters(self) -> list[dict[str, Any]]:
        """One search for each modality: no archive takes several at once."""
        given = self._chosen.get("Modality")
        if isinstance(given, str) and given:
            given = given.replace(",", "\\").split("\\")
        wanted = {str(name).strip().upper() for name in (given or self._modalities()) if name}
        others = {key: value for key, value in self._chosen.items() if key != "Modality"}
        return [{**others, "Modality": name} for name in sorted(wanted - NO_IMAGES)]

    def _segmentations(
        self, studies: set[str], images: set[str]
    ) -> dict[str, tuple[SegmentationHead, ...]]:
        heads = self._remembered()
        listed = [Series.of(d) for d in self._client.search_series({"Modality": SEG})]
        new = 0
        for found in listed:
            known = heads.get(found.series)
            counted = known is not None and found.instances in (-1, len(known))
            if found.modality != SEG or found.study not in studies or counted:
                continue
            try:
                heads[found.series] = _heads(self._client.metadata(found.study, found.series))
                new += 1
            except UnreachableError:
                raise
            except EspMedSamError as error:
                logger.warning("Segmentation %s is left out: %s", found.series, error)
        if new:
            self._remember(heads)
        there = {found.series for found in listed}
        by_image: dict[str, list[SegmentationHead]] = defaultdict(list)
        for series, members in heads.items():
            for head in members if series in there else ():
                for image in set(head.images) & images:
                    by_image[image].append(head)
        return {
            image: tuple(sorted(found, key=lambda head: head.created))
            for image, found in by_image.items()
        }

    def _remembered(self) -> dict[str, list[SegmentationHead]]:
        if self._heads is None:
            try:
                stored = json.loads(self._known.read_bytes())
                self._heads = {
                    uid: [_head(item) for item in items] for uid, items in stored.items()
                }
            except (OSError, ValueError, TypeError, KeyError):
                self._heads = {}
        return self._heads

    def _remember(self, heads: Mapping[str, list[SegmentationHead]]) -> None:
        stored = {
            uid: [{**asdict(head), "instances": sorted(head.instances)} for head in members]
            for uid, members in heads.items()
        }
        try:
            with written_whole(self._known) as partial:
                partial.write_text(json.dumps(stored))
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._known, error)


def _heads(instances: Iterable[Dataset]) -> list[SegmentationHead]:
    return [head_of(dataset) for dataset in instances if "SegmentSequence" in dataset]


def _head(stored: Mapping[str, Any]) -> SegmentationHead:
    return SegmentationHead(**{
        **stored,
        "images": tuple(stored["images"]),
        "instances": frozenset(stored["instances"]),
        "names": _numbered(stored["names"]),
        "drawn": _numbered(stored["drawn"]),
    })  # fmt: skip


def _numbered(names: Mapping[str, str]) -> dict[int, str]:
    return {int(number): name for number, name in names.items()}
