"""Segmentations in the PACS that count as labels of this server's images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from esp_medsam_app.data.dicom_seg_reading import SegmentationHead
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.pacs.archive_index import ArchiveIndex
from esp_medsam_app.server.pacs.pointers import Place
from esp_medsam_app.server.pacs.seen import SeenSegmentations
from esp_medsam_app.server.pacs.series_cache import SeriesCache
from esp_medsam_app.server.submitted_labels import match_name, modality_of_names

# In a label's info: the DICOM SEG in the PACS that it is, or was made from.
INSTANCE = "SOPInstanceUID"


class ArchivedLabels:
    """Tells which segmentations count, and what they say.

    One counts if a person drew it, its segments have the names of one modality's labels, it is
    newer than the label here, and this server has not dealt with it yet.

    Args:
        index: of the PACS.
        cache: of series; of several images in a series, only those that are in it are known apart.
        seen: segmentations that were dealt with.
        models: the modality of each model of the server, by the model's name.
    """

    def __init__(
        self,
        index: ArchiveIndex,
        cache: SeriesCache,
        seen: SeenSegmentations,
        models: Callable[[], Mapping[str, Modality]],
    ) -> None:
        self._index = index
        self._cache = cache
        self._seen = seen
        self._models = models

    def of_series(self, uid: str) -> tuple[SegmentationHead, ...]:
        """All that the PACS has of a series, the newest last; they may count or not."""
        return self._index.snapshot().segmentations.get(uid, ())

    def newest(self, place: Place, since: float | None) -> SegmentationHead | None:
        """The newest one that counts, if there is one.

        Args:
            place: of the image.
            since: Unix time of the label here; none if there is none.
        """
        for head in reversed(self.of_series(place.series)):
            if (
                head.instance not in self._seen
                and not head.automatic
                and self.modality(head) is not None
                and (since is None or _seconds(head.created) > since)
                and (place.number is None or self.refers_to(head, place))
            ):
                return head
        return None

    def modality(self, head: SegmentationHead) -> Modality | None:
        """Whose labels it has; none if no model of the server has all of them."""
        return modality_of_names(set(self._names(head).values()), self._models().values())

    def refers_to(self, head: SegmentationHead, place: Place) -> bool:
        """Whether it is of this one of several images of a series that is in the cache."""
        cached = self._cache.find(place.series)
        if cached is None or place.number is None or place.number > len(cached.parts):
            return False
        files = cached.parts[place.number - 1].files
        return any(f"{instance}.dcm" in files for instance in head.instances)

    def entries(self, head: SegmentationHead) -> list[dict[str, Any]]:
        """`label_info` of a label map made from it: names as they stand there."""
        return [{"name": name, "idx": number} for number, name in sorted(self._names(head).items())]

    def origin(self, head: SegmentationHead) -> dict[str, Any]:
        """Where it is in the PACS, for a label's info."""
        return {
            "SeriesInstanceUID": head.series,
            "StudyInstanceUID": head.study,
            INSTANCE: head.instance,
        }

    def info(self, head: SegmentationHead) -> dict[str, Any]:
        """A label's info as it will be once it is fetched: the modality's names and values."""
        modality = self.modality(head)
        labels = modality.labels if modality is not None else {}
        matched = [match_name(name, labels) for name in self._names(head).values()]
        named = [{"name": name, "idx": labels[name]} for name in matched if name]
        return {"label_info": named, **self.origin(head)}

    def _names(self, head: SegmentationHead) -> Mapping[int, str]:
        """Of its segments; of those drawn if only these are labels of one model.

        OHIF describes the labels of all models that it knows, whichever of them was run.
        """
        names = (head.names, head.drawn)
        models = self._models().values()
        fitting = (one for one in names if modality_of_names(set(one.values()), models) is not None)
        return next(fitting, head.names)


def _seconds(created: str) -> float:
    """Unix time of DICOM's date and time, taken for this server's own; 0 if there is none."""
    for pattern, length in (("%Y%m%d%H%M%S", 14), ("%Y%m%d", 8)):
        try:
            return datetime.strptime(created[:length], pattern).timestamp() + 0.999
        except ValueError:
            continue
    return 0.0
