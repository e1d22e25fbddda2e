"""Images of a datastore as they came: files of any format, folders of DICOM series."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from monailabel.interfaces.datastore import Datastore


@runtime_checkable
class KeepsOriginals(Protocol):
    """A datastore that converts its images for viewers, and has them as they came as well."""

    def original(self, image_id: str) -> Path:
        """File or folder of an image, to stay."""

    def borrowed(self, image_id: str) -> AbstractContextManager[Path]:
        """File or folder of an image, for a block."""


def original(datastore: Datastore, image_id: str) -> Path:
    """Where an image is, whatever viewers get.

    Raises:
        EspMedSamError: a PACS does not have it, or does not give it.
    """
    if isinstance(datastore, KeepsOriginals):
        return datastore.original(image_id)
    return Path(datastore.get_image_uri(image_id))


@contextmanager
def borrowed(datastore: Datastore, image_id: str) -> Iterator[Path]:
    """Likewise, for a block only."""
    if isinstance(datastore, KeepsOriginals):
        with datastore.borrowed(image_id) as path:
            yield path
    else:
        yield Path(datastore.get_image_uri(image_id))
