"""DICOM segmentations that a viewer stores in the PACS by way of this server are labels here.

OHIF has no button to submit a label: it exports segmentations to the PACS. A datastore that has
a method `receive` gets each of them: a dataset in, the image's id out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from email.message import Message
from io import BytesIO

from fastapi import HTTPException
from pydicom.dataset import Dataset

from esp_medsam_app.data.dicom_bytes import read_dataset
from esp_medsam_app.errors import EspMedSamError
from esp_medsam_app.server.audit import audit
from esp_medsam_app.server.door.bodies import Body
from esp_medsam_app.server.door.uploads import the_app

# Segmentation Storage, and Label Map Segmentation Storage
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_LARGEST = 512 << 20

logger = logging.getLogger(__name__)


def take_segmentations(content_type: str, body: Body) -> int:
    """Make labels of the segmentations in a request that the PACS has accepted; of how many.

    What is no label here is named in the log: it is in the PACS all the same.

    Args:
        content_type: of the request.
        body: of it, multipart/related.
    """
    app = the_app()
    receive = getattr(app.datastore(), "receive", None)
    if receive is None or body.size > _LARGEST:
        return 0
    count = 0
    for dataset in segmentations(content_type, body.read()):
        try:
            image = str(receive(dataset))
        except (EspMedSamError, HTTPException) as error:
            reason = error.detail if isinstance(error, HTTPException) else str(error)
            logger.warning("A segmentation that was stored is no label here: %s", reason)
            continue
        app.on_save_label(image, image)
        audit("label.save", image=image, tag="final", label=image, instance=dataset.SOPInstanceUID)
        count += 1
    return count


def segmentations(content_type: str, content: bytes) -> Iterator[Dataset]:
    """Those among the parts of a body; what cannot be read is left out."""
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    if not boundary:
        return
    for part in (b"\r\n" + content).split(b"\r\n--" + boundary.encode("latin-1", "replace"))[1:]:
        _, found, instance = part.partition(b"\r\n\r\n")
        if not found:
            continue
        try:
            kind = read_dataset(BytesIO(instance), specific_tags=["SOPClassUID"])
            if kind.get("SOPClassUID") in _SEGMENTATIONS:
                yield read_dataset(BytesIO(instance))
        except Exception as error:  # pydicom raises anything for damaged files
            logger.warning("An instance that was stored cannot be read: %s", error)
