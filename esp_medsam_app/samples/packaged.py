"""Real images that lie inside installed packages: where, of what origin, under which licence."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from esp_medsam_app.errors import InputError


@dataclass(frozen=True)
class PackagedImage:
    """An image file of an installed package.

    Attributes:
        case: name of the sample.
        modality: entry of the catalogue it is meant for.
        package: import name of the package.
        distribution: its name for pip.
        file: path inside the package.
        sha256: of the file.
        title: what it shows.
        origin: who made it and where it was published.
        licence: as stated by the package or by the image's author.
    """

    case: str
    modality: str
    package: str
    distribution: str
    file: str
    sha256: str
    title: str
    origin: str
    licence: str

    def read(self) -> bytes:
        """The file's bytes. The package is found, but not imported.

        Raises:
            InputError: package or file is missing, or another image than the one described here.
        """
        remedy = f"Install {self.distribution} as requirements.txt names it"
        spec = importlib.util.find_spec(self.package)
        folders = list(spec.submodule_search_locations or []) if spec is not None else []
        if not folders:
            raise InputError(f"package {self.distribution} is not installed", remedy=remedy)
        path = Path(folders[0], self.file)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"missing ({error.strerror})", path=path, remedy=remedy) from error
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise InputError("not the image this release knows", path=path, remedy=remedy)
        return content


# Looked at and left out: cell.png and microaneurysms.png (scikit-image; one whole cell, a crop of
# 102 pixels), CQ500 in pydicom (non-commercial), the fMRI volumes of nibabel (no modality here).
PACKAGED_IMAGES = (
    PackagedImage(
        case="retina",
        modality="fundus_vessels",
        package="skimage",
        distribution="scikit-image",
        file="data/retina.jpg",
        sha256="38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
        title="Fundus photograph of a normal left eye",
        origin="Mikael Häggström, Medical gallery 2014, WikiJournal of Medicine 1 (2), "
        "doi:10.15347/wjm/2014.008, from Wikimedia Commons",
        licence="CC0-1.0",
    ),
    PackagedImage(
        case="immunohistochemistry",
        modality="microscopy_nuclei",
        package="skimage",
        distribution="scikit-image",
        file="data/ihc.png",
        sha256="f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
        title="Colonic glands, FHL2 stained with DAB, nuclei counterstained with haematoxylin",
        origin="Center for Microscopy and Molecular Imaging (CMMI)",
        licence="No known copyright restrictions, as scikit-image states",
    ),
    PackagedImage(
        case="brain_mr",
        modality="mr_hippocampus",
        package="nibabel",
        distribution="nibabel",
        file="tests/data/anatomical.nii",
        sha256="1c089f37b6597a38bb4157a1e1b3f7f13f1bc9d4e7a8cfdfaf91d85cd8f66594",
        title="T1-weighted MR of the middle of the brain at 2 mm; shows reading of volumes, since "
        "it is no crop of the temporal lobe",
        origin="Test data of nibabel",
        licence="MIT, nibabel's own; it states no other for this file",
    ),
    PackagedImage(
        case="ct_spine_slice",
        modality="ct_liver",
        package="pydicom",
        distribution="pydicom",
        file="data/test_files/CT_small.dcm",
        sha256="3dd31e5cc835b3f2cdd46c9da1982f59251e78518fefa8163d914631c66437d6",
        title="One CT slice of a vertebra, 128 x 128; there is no liver in it",
        origin="CT1_UNC of the NEMA working group 4 sample set, made smaller by pydicom",
        licence='MIT, pydicom\'s own; its README: "no restriction on using any of these files"',
    ),
)
