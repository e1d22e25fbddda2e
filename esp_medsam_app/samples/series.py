"""The CT phantom as a DICOM series, for viewers and archives."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from esp_medsam_app.samples.phantoms import Volume

# Hounsfield units are stored unsigned, this much higher
_INTERCEPT = -1024


def dicom_series(volume: Volume, name: str) -> dict[str, bytes]:
    """The files of a CT series (PS3.3 A.3), by name; one a slice, the lowest first.

    UIDs are made from `name`, so that the same series is written each time.
    """
    slices = volume.hounsfield.shape[2]
    width = len(str(slices))
    return {
        f"{name}_{k + 1:0{width}}.dcm": _slice_file(volume, name, k)
        for k in range(volume.hounsfield.shape[2])
    }


def _slice_file(volume: Volume, name: str, k: int) -> bytes:
    # DICOM's patient coordinates run to the left and back, NIfTI's to the right and front
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    spacing = np.linalg.norm(to_lps[:3, :3], axis=0)
    directions = to_lps[:3, :3] / spacing
    position = to_lps @ [0, 0, k, 1]
    # rows of the picture run along index i, columns along index j
    stored = (volume.hounsfield[:, :, k].T.astype(np.int32) - _INTERCEPT).astype("<u2")

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(name, "instance", str(k))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("implementation")
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.is_little_endian, data.is_implicit_VR = True, False
    data.SpecificCharacterSet = "ISO_IR 192"
    data.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID = _uid(name, "study")
    data.SeriesInstanceUID = _uid(name, "series")
    data.FrameOfReferenceUID = _uid(name, "frame of reference")
    data.StudyDate = data.SeriesDate = data.ContentDate = "20260101"
    data.StudyTime = data.SeriesTime = data.ContentTime = "120000"
    data.StudyID, data.AccessionNumber, data.ReferringPhysicianName = "1", "", ""
    data.StudyDescription = "CT phantom, drawn"
    data.SeriesDescription = "Upper abdomen, drawn"
    data.Modality = "CT"
    data.Manufacturer = "esp-medsam-app"
    data.BodyPartExamined = "ABDOMEN"
    data.PatientName = "Phantom^Abdomen"
    data.PatientID = name
    data.PatientBirthDate, data.PatientSex = "", "O"
    data.PatientPosition, data.PositionReferenceIndicator = "HFS", ""
    data.KVP, data.AcquisitionNumber = None, 1
    data.SeriesNumber, data.InstanceNumber = 1, k + 1
    data.ImagePositionPatient = [round(float(value), 6) for value in position[:3]]
    data.ImageOrientationPatient = [
        float(value) for value in [*directions[:, 0], *directions[:, 1]]
    ]
    data.PixelSpacing = [float(spacing[1]), float(spacing[0])]
    data.SliceThickness = data.SpacingBetweenSlices = float(spacing[2])
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = _INTERCEPT, 1, "HU"
    data.WindowCenter, data.WindowWidth = 60, 400
    data.PixelData = stored.tobytes()
    file = BytesIO()
    dcmwrite(file, data, write_like_original=False)
    return file.getvalue()


def _uid(*names: str) -> UID:
    return generate_uid(entropy_srcs=["esp-medsam-app phantom", *names])
