"""Colours of JPEG and JPEG 2000 in DICOM whose tag and whose stream say different things."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import generate_pixel_data_frame
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit

from esp_medsam_app.data.dicom_syntaxes import syntax_of

_APP0, _APP14, _SCAN = 0xE0, 0xEE, 0xDA
# JPEG 2000 and its high-throughput kind.
_WAVELETS = {f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 92, 93, 201, 202, 203)}
# Coding style (ITU-T T.800 A.6.1), and start of a tile part.
_COD, _SOT = 0x52, 0x90
# Start of frame; the gaps are tables and restarts (ITU-T T.81 table B.1).
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def colours_told_by_the_stream(dataset: Dataset) -> NDArray[np.uint8] | None:
    """RGB `[frames, rows, columns, 3]` of a colour JPEG whose stream contradicts DICOM's tag.

    Cameras and converters write JFIF, whose colours are YCbCr, and tag it RGB. Decoders of JPEG
    believe the stream, those of DICOM the tag; what was encoded is what the stream says.

    Returns:
        None where both agree, where the stream says nothing, and for anything but 8-bit JPEG.
    """
    if syntax_of(dataset) not in (JPEGBaseline8Bit, JPEGExtended12Bit):
        return None
    if int(dataset.get("SamplesPerPixel", 1)) != 3 or int(dataset.get("BitsAllocated", 8)) != 8:
        return None
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    frames = list(generate_pixel_data_frame(dataset.PixelData, count))
    tagged_rgb = str(dataset.get("PhotometricInterpretation", "")) == "RGB"
    told = {is_rgb(frame) for frame in frames} - {None}
    if told != {not tagged_rgb}:
        return None
    return np.stack([_decoded(frame) for frame in frames])


def kind_after_decoding(dataset: Dataset, kind: str) -> str:
    """What decoded colours are: RGB where a JPEG 2000 stream has a colour transformation.

    Its decoders undo that, whatever photometric interpretation DICOM's tag gives.
    """
    if not kind.startswith("YBR") or str(syntax_of(dataset)) not in _WAVELETS:
        return kind
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    return (
        "RGB"
        if _is_transformed(next(generate_pixel_data_frame(dataset.PixelData, count)))
        else kind
    )


def _is_transformed(stream: bytes) -> bool:
    place = max(0, stream.find(b"\xff\x4f\xff\x51")) + 2
    while place + 12 <= len(stream) and stream[place] == 0xFF and stream[place + 1] != _SOT:
        if stream[place + 1] == _COD:
            return stream[place + 8] == 1
        place += 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
    return False


def is_rgb(stream: bytes) -> bool | None:
    """Whether a JPEG's three components are RGB, not YCbCr; None where it does not say."""
    place, adobe, jfif = 2, None, False
    while place + 4 <= len(stream) and stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker == 0xFF:
            place += 1
            continue
        length = int.from_bytes(stream[place + 2 : place + 4], "big")
        content = stream[place + 4 : place + 2 + length]
        if marker == _APP0 and content.startswith(b"JFIF\0"):
            jfif = True
        elif marker == _APP14 and content.startswith(b"Adobe") and len(content) >= 12:
            adobe = content[11]
        elif marker in _FRAMES:
            return _of_components(content, adobe, jfif)
        elif marker == _SCAN:
            break
        place += 2 + length
    return None


def _of_components(frame: bytes, adobe: int | None, jfif: bool) -> bool | None:
    if len(frame) < 15 or frame[5] != 3:
        return None
    # as libjpeg decides
    if jfif:
        return False
    if adobe is not None:
        return adobe == 0
    return True if (frame[6], frame[9], frame[12]) == tuple(b"RGB") else None


def _decoded(stream: bytes) -> NDArray[Any]:
    with Image.open(io.BytesIO(stream)) as picture:
        return np.asarray(picture.convert("RGB"))
