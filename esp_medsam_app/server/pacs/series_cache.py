"""Series of the PACS on this disk: whole, checked, and no more of them than there is room for."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydicom.dataset import Dataset

from esp_medsam_app.data.dicom import read_header
from esp_medsam_app.data.dicom_parts import SeriesParts, parts_of
from esp_medsam_app.data.dicom_syntaxes import is_encapsulated
from esp_medsam_app.errors import EspMedSamError, UnreachableError
from esp_medsam_app.server.disks import advice_on_room
from esp_medsam_app.server.pacs.archive_index import Series
from esp_medsam_app.server.pacs.client import PacsClient

GIGABYTE = 2**30
# What was used so many seconds ago is in nobody's hands any more.
IN_USE = 600.0
_MANIFEST = "series.json"
_OTHER_PIXELS = ("FloatPixelData", "DoubleFloatPixelData")
_ASIDE = "aside"
# How long to wait for another thread or process that downloads the same series.
_LOCK_SECONDS = 600
# What a download left that was killed is removed after so many seconds.
_ABANDONED = 3600.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartOnDisk:
    """An image of a series.

    Attributes:
        folder: name of its folder within the series'.
        told_by: what distinguishes it from the others, for people.
        files: names and sizes.
    """

    folder: str
    told_by: str
    files: dict[str, int]


@dataclass(frozen=True)
class CachedSeries:
    """A series on disk.

    Attributes:
        folder: of the series.
        parts: its images.
        count: instances that the PACS had when it was downloaded.
    """

    folder: Path
    parts: tuple[PartOnDisk, ...]
    count: int

    def path(self, part: int) -> Path:
        """The folder of an image."""
        return self.folder / self.parts[part].folder


class SeriesCache:
    """Downloads series and keeps those that were used last.

    A series appears when all of its instances have arrived and could be read, or not at all.

    Args:
        folder: of the cache.
        client: of the PACS.
        largest: bytes that it may take; a series that is in use may go beyond.
    """

    def __init__(self, folder: Path, client: PacsClient, largest: float) -> None:
        self.folder = folder
        self._client = client
        self._largest = largest

    def get(self, series: Series | None, uid: str) -> CachedSeries:
        """A series, downloaded if it is not there whole.

        Args:
            series: what the PACS tells of it now; none if it could not be asked.
            uid: of the series.

        Raises:
            UnreachableError: it is not here, and the PACS does not give all of it.
            InputError: it holds no image, or what is no DICOM.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / f".{uid}.lock", timeout=_LOCK_SECONDS):
                found = self.find(uid)
                if found is not None and (series is None or series.instances in (-1, found.count)):
                    return found
                if series is None:
                    raise UnreachableError(
                        "the series is not on this server, and the PACS does not answer",
                        remedy="Try again when the PACS is back",
                    )
                try:
                    return self._download(series)
                except UnreachableError:
                    if found is None:
                        raise
                    logger.warning("Series %s has grown, but cannot be downloaded again", uid)
                    return found
        except Timeout as error:
            raise UnreachableError(
                "the series is still being downloaded", remedy="Try again in a minute"
            ) from error

    def find(self, uid: str) -> CachedSeries | None:
        """A series that is here whole; none if a file of it is missing or damaged in size."""
        folder = self.folder / uid
        try:
            stored = json.loads((folder / _MANIFEST).read_bytes())
            parts = tuple(PartOnDisk(**part) for part in stored["parts"])
            for part in parts:
                for name, size in part.files.items():
                    if (folder / part.folder / name).stat().st_size != size:
                        raise ValueError(f"{name} is damaged")
            os.utime(folder)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("Series %s has to be downloaded again: %s", uid, error)
            return None
        return CachedSeries(folder, parts, int(stored["count"]))

    def drop(self, uid: str) -> None:
        """Forget a series."""
        _discard(self.folder / uid)

    def _download(self, series: Series) -> CachedSeries:
        start = time.monotonic()
        self._make_room()
        partial = self.folder / f".{series.series}.{uuid.uuid4().hex[:8]}.partial"
        try:
            count = self._fetch(series, partial)
            parts = _arranged(partial)
            content = {"count": count, "parts": [asdict(part) for part in parts]}
            (partial / _MANIFEST).write_text(json.dumps(content, indent=1))
            target = self.folder / series.series
            _discard(target)
            os.replace(partial, target)
        except OSError as error:
            raise EspMedSamError(
                f"the series cannot be kept on this server ({error.strerror or error})",
                remedy=advice_on_room("images of the PACS", self.folder),
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        logger.info(
            "Downloaded series %s: %d instances, %d images, %.1f s",
            series.series,
            count,
            len(parts),
            time.monotonic() - start,
        )
        return CachedSeries(target, tuple(parts), count)

    def _fetch(self, series: Series, folder: Path) -> int:
        """All instances, as files by their UID; how many."""
        listed = self._client.instances(series.study, series.series)
        expected = {str(instance.SOPInstanceUID) for instance in listed}
        folder.mkdir()
        arrived: set[str] = set()
        for instance in self._client.download(series.study, series.series):
            uid = str(instance.get("SOPInstanceUID", ""))
            if uid not in expected or str(instance.get("SeriesInstanceUID")) != series.series:
                continue
            _check_whole(instance)
            instance.save_as(folder / f"{uid}.dcm", write_like_original=False)
            arrived.add(uid)
        missing = len(expected - arrived)
        if missing or not expected:
            raise UnreachableError(
                f"{missing} of {len(expected)} instances of the series have not arrived",
                remedy="Try again; if it stays so, the PACS holds the series in part only",
            )
        return len(arrived)

    def _make_room(self) -> None:
        """Remove what was used longest ago, and what killed downloads left."""
        known: list[tuple[float, int, Path]] = []
        for folder in self.folder.iterdir():
            if not folder.is_dir():
                continue
            age = time.time() - folder.stat().st_mtime
            if folder.name.startswith("."):
                if age > _ABANDONED:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            known.append((age, _size(folder), folder))
        total = sum(size for _, size, _ in known)
        for age, size, folder in sorted(known, key=lambda item: item[0], reverse=True):
            if total <= self._largest or age < IN_USE:
                break
            logger.info("Series %s gives way to others", folder.name)
            _discard(folder)
            total -= size


def _check_whole(instance: Dataset) -> None:
    """Whether an image has all the pixels that it announces, as far as that shows.

    Orthanc sends a series without its length: where the connection breaks, the last instance ends
    early, and pydicom leaves out the element that is not whole.
    """
    if "Rows" not in instance or any(name in instance for name in _OTHER_PIXELS):
        return
    if "PixelData" not in instance:
        raise UnreachableError("an instance arrived without its pixels", remedy="Try again")
    if is_encapsulated(instance):
        return
    sizes = [instance.Rows, instance.Columns, instance.get("SamplesPerPixel", 1)]
    sizes += [instance.get("NumberOfFrames", 1) or 1, instance.get("BitsAllocated", 16)]
    announced = math.prod(map(int, sizes)) // 8
    if "422" in str(instance.get("PhotometricInterpretation", "")):
        announced = announced * 2 // 3
    if len(instance.PixelData) < announced:
        raise UnreachableError("an instance arrived without all of its pixels", remedy="Try again")


def _arranged(folder: Path) -> list[PartOnDisk]:
    """Put the files of each image into a folder of its own."""
    found: SeriesParts = parts_of([read_header(file) for file in sorted(folder.glob("*.dcm"))])
    parts = []
    for number, part in enumerate(found.parts, start=1):
        name = str(number)
        files = _moved(part.headers, folder / name)
        parts.append(PartOnDisk(name, part.told_by, files))
    _moved(found.aside, folder / _ASIDE)
    return parts


def _moved(headers: Iterable[Any], target: Path) -> dict[str, int]:
    target.mkdir()
    sizes = {}
    for header in headers:
        file = Path(header.filename)
        sizes[file.name] = file.stat().st_size
        os.replace(file, target / file.name)
    return sizes


def _discard(folder: Path) -> None:
    """Remove a folder so that nobody ever sees the half of it."""
    trash = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.gone")
    try:
        os.replace(folder, trash)
    except FileNotFoundError:
        return
    shutil.rmtree(trash, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
