"""Which file names are images, and of which format."""

from __future__ import annotations

from pathlib import Path

NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".seg.nrrd", ".nhdr", ".mha", ".mhd")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".ppm")
DICOM = (".dcm", ".dicom", ".ima")
# Longest first: ".nii.gz" is one suffix; a dot elsewhere belongs to the name.
_ALL = tuple(sorted(NIFTI + ITK + PICTURES + DICOM, key=len, reverse=True))

# Deflate cannot shrink data further: a header that claims more does not tell the truth.
LARGEST_RATIO = 1040


def suffix_of(path: str | Path) -> str | None:
    """The suffix of an image's file name in lower case; None if it is none of ours."""
    name = Path(path).name.lower()
    return next((end for end in _ALL if name.endswith(end) and len(name) > len(end)), None)


def is_dicom_file(path: Path) -> bool:
    """Whether a file has DICOM's preamble and prefix (PS3.10 7.1)."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
