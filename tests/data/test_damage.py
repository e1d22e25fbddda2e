"""Whatever bytes are damaged: it is read, or refused with an InputError, never anything else."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from support.dicom_series import write_series

from esp_medsam_app.data.reading import read_image
from esp_medsam_app.errors import InputError

VOXELS = np.random.default_rng(0).integers(0, 99, (6, 7, 5)).astype(np.int16)
TRIALS = 60


def _nifti(path: Path) -> None:
    nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), path)


def _itk(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(path))


def _picture(path: Path) -> None:
    Image.fromarray(np.repeat(VOXELS[:, :, :1].astype(np.uint8), 3, axis=2)).save(path)


def _dicom(path: Path) -> None:
    write_series(path.parent, VOXELS[:, :, :1], np.eye(4), [0])
    (path.parent / "000.dcm").rename(path)


MAKERS: dict[str, Callable[[Path], None]] = {
    **dict.fromkeys((".nii", ".nii.gz"), _nifti),
    **dict.fromkeys((".nrrd", ".mha"), _itk),
    **dict.fromkeys((".png", ".jpg", ".tif", ".bmp", ".gif", ".ppm"), _picture),
    ".dcm": _dicom,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", MAKERS)
def test_damaged_bytes(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    MAKERS[suffix](path)
    whole, luck, refused = path.read_bytes(), random.Random(suffix), 0
    for _ in range(TRIALS):
        content = bytearray(whole)
        for _ in range(luck.choice([1, 2, 5, 20])):
            # headers are at the front, and matter most
            place = luck.randrange(min(len(content), luck.choice([400, len(content)])))
            content[place] = luck.choice([0, 255, content[place] ^ (1 << luck.randrange(8))])
        if luck.random() < 0.3:
            content = content[: luck.randrange(1, len(content))]
        path.write_bytes(content)
        try:
            read_image(path)
        except InputError:
            refused += 1
    assert refused > TRIALS / 10
