"""Whether a PACS does what a server needs of it."""

from __future__ import annotations

from typing import Literal

from esp_medsam_app.errors import UnknownNameError, UnreachableError
from esp_medsam_app.server.pacs.client import PacsClient


def probed(url: str) -> tuple[Literal["ok", "warning", "failed"], str, str]:
    """Search a PACS, and read an instance: how it went, what was found, what to do about it.

    Args:
        url: of its DICOMweb root; credentials are MONAI Label's settings.
    """
    try:
        series = PacsClient.from_settings(url).probe()
    except UnknownNameError:
        remedy = "Name the root of its DICOMweb; Orthanc's is http://HOST:8042/dicom-web"
        return "failed", f"{url} answers, but there is no DICOMweb (HTTP 404)", remedy
    except UnreachableError as error:
        remedy = error.remedy
        if "credentials" not in error.problem:
            remedy = "Look whether it runs, and whether this machine reaches that address"
        return "failed", f"{url}: {error.problem}", remedy
    if series is None:
        remedy = "Send it images, or look whether this user may see them"
        return "warning", f"{url} answers, and holds no series", remedy
    return "ok", f"{url} answers; a series of {series.get('Modality', 'images')} was read", ""
