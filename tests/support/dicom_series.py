"""DICOM series made for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_series(
    folder: Path, voxels: NDArray[np.int16], affine: NDArray[np.float64], order: list[int]
) -> None:
    """A CT series on this grid; file names follow `order`, not the position."""
    folder.mkdir(parents=True, exist_ok=True)
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    series = generate_uid()
    for name, index in enumerate(order):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_ = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID = CTImageStorage
        slice_.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        slice_.SeriesInstanceUID = series
        slice_.Modality = "CT"
        slice_.Rows, slice_.Columns = voxels.shape[1], voxels.shape[0]
        slice_.SamplesPerPixel = 1
        slice_.PhotometricInterpretation = "MONOCHROME2"
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit = 15
        slice_.PixelRepresentation = 1
        slice_.RescaleSlope, slice_.RescaleIntercept = "1", "-10"
        slice_.PixelSpacing = [f"{spacing[1]:.9g}", f"{spacing[0]:.9g}"]
        directions = np.concatenate([lps[:3, 0] / spacing[0], lps[:3, 1] / spacing[1]])
        slice_.ImageOrientationPatient = [f"{value:.9f}" for value in directions]
        position = (lps @ [0, 0, index, 1])[:3]
        slice_.ImagePositionPatient = [f"{value:.6f}" for value in position]
        slice_.is_little_endian, slice_.is_implicit_VR = True, False
        slice_.PixelData = (voxels[:, :, index].T + 10).astype("<i2").tobytes()
        pydicom.dcmwrite(folder / f"{name:03d}.dcm", slice_, write_like_original=False)
