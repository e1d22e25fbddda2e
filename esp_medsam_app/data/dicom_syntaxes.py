"""Transfer syntaxes: which ones are compressed, their names, and a decoder that helps out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_pixel_data_frame
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from esp_medsam_app.errors import InputError

_NATIVE = {
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
}  # fmt: skip
# Younger than the dictionary of pydicom 2 (PS3.6 annex A).
_YOUNGER = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.4.201": "High-Throughput JPEG 2000 Lossless",
    "1.2.840.10008.1.2.4.202": "High-Throughput JPEG 2000 with RPCL, Lossless",
    "1.2.840.10008.1.2.4.203": "High-Throughput JPEG 2000",
    "1.2.840.10008.1.2.4.204": "JPIP HTJ2K Referenced",
    "1.2.840.10008.1.2.4.205": "JPIP HTJ2K Referenced Deflate",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
}
# How streams begin, and JPEG's kinds by their start of frame (ITU-T T.81, T.87, T.800).
_JPEG_START, _WAVELET_START = b"\xff\xd8\xff", b"\xff\x4f\xff\x51"
_BY_FRAME = {
    0xC0: JPEGBaseline8Bit, 0xC1: JPEGExtended12Bit, 0xC3: JPEGLosslessSV1, 0xF7: JPEGLSLossless,
}  # fmt: skip
_PIXEL_DESCRIPTION = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames",
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData", "PixelData",
)  # fmt: skip


def syntax_of(dataset: Dataset) -> UID | None:
    """The transfer syntax; None in files without meta information."""
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    return UID(str(syntax)) if syntax else None


def is_encapsulated(dataset: Dataset) -> bool:
    """Whether the pixels are compressed, also by what pydicom never heard of (PS3.5 annex A.4).

    Private syntaxes may be either; the pixel data's length tells.
    """
    syntax = syntax_of(dataset)
    if syntax is None or syntax in _NATIVE:
        return False
    if syntax.is_private:
        return "PixelData" in dataset and bool(dataset["PixelData"].is_undefined_length)
    return True


def name_of(syntax: UID) -> str:
    """For people: its name, where it has one, and its UID."""
    name = _YOUNGER.get(str(syntax)) or syntax.name
    if name == str(syntax):
        name = "a private one" if syntax.is_private else "one that is not known here"
    return f"{name}, {syntax}"


def decoded_by_itk(dataset: Dataset, path: Path, reason: Exception) -> NDArray[Any]:
    """What pydicom cannot decode with the libraries at hand (JPEG-LS, HTJ2K), ITK may.

    ITK gets the pixels in a plain picture of their own, so that it applies no rescaling.

    Returns:
        Stored values `[frames, rows, columns]`, or RGB `[frames, rows, columns, 3]`.

    Raises:
        InputError: neither can.
    """
    syntax = syntax_of(dataset)
    if syntax is None or syntax in _NATIVE:
        raise InputError(
            f"its pixels are truncated or damaged ({reason})",
            path=path,
            remedy="Export or copy it again",
        ) from reason
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pixels.dcm")
        try:
            file.write_bytes(_plain(dataset, _standard(dataset, syntax)))
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(file), imageIO="GDCMImageIO"))
        except Exception as error:  # the pixels may be anything
            raise InputError(
                f"its pixels are damaged or cannot be decoded (transfer syntax {name_of(syntax)})",
                path=path,
                remedy="Export it uncompressed, as Explicit VR Little Endian, or have the PACS "
                "send it so",
            ) from error
    return np.asarray(array)


def _standard(dataset: Dataset, syntax: UID) -> UID:
    """For a syntax of a vendor's own: the standard one whose streams its pixels are, if any."""
    if not syntax.is_private:
        return syntax
    stream = next(generate_pixel_data_frame(dataset.PixelData, 1), b"")
    if stream.startswith(_WAVELET_START):
        return JPEG2000Lossless
    place = 2
    while stream.startswith(_JPEG_START) and place + 4 <= len(stream) and stream[place] == 0xFF:
        if stream[place + 1] in _BY_FRAME:
            return _BY_FRAME[stream[place + 1]]
        place += 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
    return syntax


def _plain(dataset: Dataset, syntax: UID) -> bytes:
    """A picture of the same pixels as a file; pydicom writes no syntax that it does not know."""
    plain, meta = Dataset(), _meta(dataset, syntax)
    plain.SOPClassUID, plain.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    for name in _PIXEL_DESCRIPTION:
        if name in dataset:
            plain[name] = dataset[name]
    plain["PixelData"].is_undefined_length = True
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, False
    file.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(file, meta, enforce_standard=True)
    write_dataset(file, plain)
    return bytes(file.getvalue())


def _meta(dataset: Dataset, syntax: UID) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    several = int(dataset.get("NumberOfFrames", 1) or 1) > 1
    meta.MediaStorageSOPClassUID = _film_class(dataset) if several else SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    return meta


def _film_class(dataset: Dataset) -> UID:
    if int(dataset.get("SamplesPerPixel", 1)) > 1:
        return MultiFrameTrueColorSecondaryCaptureImageStorage
    if int(dataset.get("BitsAllocated", 16)) > 8:
        return MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    return MultiFrameGrayscaleByteSecondaryCaptureImageStorage
