"""Writing the sample data folder.

```
manifest.json            every case: files, modality, origin, licence, SHA-256
studies/<case>.*         what a server offers: pictures and volumes
references/<case>.*      exact label maps of the phantoms
dicom/<case>/*.dcm       the CT phantom as a series, and a real CT slice
```
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np

from esp_medsam_app import __version__
from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import InputError
from esp_medsam_app.samples.packaged import PACKAGED_IMAGES

MANIFEST = "manifest.json"
_LICENCE = "Apache-2.0"
_ORIGIN = "Drawn by esp-medsam-app"


@dataclass(frozen=True)
class SampleCase:
    """One sample. Paths are relative to the sample data folder.

    Attributes:
        name: of the case; the stem of its study and reference.
        modality: entry of the catalogue it is meant for.
        kind: `real` or `phantom`.
        title: what it shows.
        origin: who made it.
        licence: of the image.
        source: package and file it was taken from; None if drawn here.
        study: image file, if a server can offer it from a folder.
        reference: label map, if there is one.
        dicom: folder of a DICOM series.
    """

    name: str
    modality: str
    kind: Literal["real", "phantom"]
    title: str
    origin: str
    licence: str
    source: str | None = None
    study: str | None = None
    reference: str | None = None
    dicom: str | None = None


@dataclass(frozen=True)
class SampleData:
    """What `build_sample_data` left behind.

    Attributes:
        folder: the sample data folder.
        cases: in it.
        written: files that were missing or different, and were written.
        left_out: why cases could not be made.
    """

    folder: Path
    cases: tuple[SampleCase, ...]
    written: int
    left_out: tuple[str, ...]


_PHANTOMS = (
    SampleCase(
        name="nuclei_phantom",
        modality="microscopy_nuclei",
        kind="phantom",
        title="Fluorescent nuclei, drawn",
        origin=_ORIGIN,
        licence=_LICENCE,
        study="studies/nuclei_phantom.png",
        reference="references/nuclei_phantom.png",
    ),
    SampleCase(
        name="fundus_phantom",
        modality="fundus_vessels",
        kind="phantom",
        title="Fundus photograph with vessels, drawn",
        origin=_ORIGIN,
        licence=_LICENCE,
        study="studies/fundus_phantom.png",
        reference="references/fundus_phantom.png",
    ),
    SampleCase(
        name="chest_phantom",
        modality="xray_chest",
        kind="phantom",
        title="Frontal chest radiograph, drawn",
        origin=_ORIGIN,
        licence=_LICENCE,
        study="studies/chest_phantom.png",
        reference="references/chest_phantom.png",
    ),
    SampleCase(
        name="abdomen_phantom",
        modality="ct_liver",
        kind="phantom",
        title="CT of the upper abdomen with contrast agent, drawn; Hounsfield units, 2 x 2 x 5 mm",
        origin=_ORIGIN,
        licence=_LICENCE,
        study="studies/abdomen_phantom.nii.gz",
        reference="references/abdomen_phantom.nii.gz",
        dicom="dicom/abdomen_phantom",
    ),
)


def sample_cases() -> tuple[SampleCase, ...]:
    """Every case there is, built or not."""
    real = []
    for image in PACKAGED_IMAGES:
        suffix = Path(image.file).suffix
        dicom = suffix == ".dcm"
        real.append(
            SampleCase(
                name=image.case,
                modality=image.modality,
                kind="real",
                title=image.title,
                origin=image.origin,
                licence=image.licence,
                source=f"{image.distribution}: {image.package}/{image.file}",
                study=None if dicom else f"studies/{image.case}{suffix}",
                dicom=f"dicom/{image.case}" if dicom else None,
            )
        )
    return (*_PHANTOMS, *real)


def build_sample_data(output: Path) -> SampleData:
    """Write all samples below `output`; takes about two seconds, and less when nothing changed.

    Only the files that are missing or different are written, each in one step, the manifest last.
    Anything else in the folder stays as it is: a server keeps its labels beside the studies.

    Raises:
        InputError: `output` cannot be written to.
    """
    left_out: list[str] = []
    try:
        if is_complete(output):
            return SampleData(output, sample_cases(), 0, ())
        cases: list[SampleCase] = []
        digests: dict[str, str] = {}
        written = 0
        for case in sample_cases():
            try:
                files = _files(case)
            except InputError as error:
                left_out.append(f"{case.name}: {error}")
                continue
            cases.append(case)
            for name, content in files.items():
                digests[name] = hashlib.sha256(content).hexdigest()
                written += _write(output / name, content)
        manifest = {**_description(cases), "files": digests}
        written += _write(output / MANIFEST, to_json(manifest))
    except OSError as error:
        raise InputError(
            f"the sample data cannot be written ({error.strerror or error})",
            path=output,
            remedy="Choose a folder you may write to with --output",
        ) from error
    return SampleData(output, tuple(cases), written, tuple(left_out))


def description() -> dict[str, Any]:
    """What the manifest says of all cases, without the digests of built files."""
    return _description(list(sample_cases()))


def to_json(content: dict[str, Any]) -> bytes:
    """As written to disk."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _description(cases: list[SampleCase]) -> dict[str, Any]:
    return {"made_by": f"esp-medsam-app {__version__}", "cases": [asdict(case) for case in cases]}


def is_complete(output: Path) -> bool:
    """Whether this release's samples lie there, all of them and unharmed."""
    try:
        found = json.loads((output / MANIFEST).read_bytes())
        digests = found.pop("files")
        return found == description() and all(
            hashlib.sha256((output / name).read_bytes()).hexdigest() == digest
            for name, digest in digests.items()
        )
    except (OSError, ValueError, AttributeError, KeyError):
        return False


def _files(case: SampleCase) -> dict[str, bytes]:
    """The files of a case by path below the sample data folder.

    Raises:
        InputError: it comes from a package that is missing or another one.
    """
    if case.kind == "real":
        image = next(image for image in PACKAGED_IMAGES if image.case == case.name)
        return {case.study or f"{case.dicom}/{Path(image.file).name}": image.read()}
    # scipy and pydicom load only when something is drawn
    from esp_medsam_app.samples import phantoms
    from esp_medsam_app.samples.series import dicom_series

    if case.name == "abdomen_phantom":
        volume = phantoms.abdomen()
        files = {
            str(case.study): _nifti(volume.hounsfield, volume.affine),
            str(case.reference): _nifti(volume.labels, volume.affine),
        }
        for name, content in dicom_series(volume, case.name).items():
            files[f"{case.dicom}/{name}"] = content
        return files
    draw: dict[str, Callable[[], phantoms.Picture]] = {
        "nuclei_phantom": phantoms.nuclei,
        "fundus_phantom": phantoms.fundus,
        "chest_phantom": phantoms.chest,
    }
    picture = draw[case.name]()
    return {str(case.study): _png(picture.pixels), str(case.reference): _png(picture.labels)}


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _nifti(voxels: np.ndarray, affine: np.ndarray) -> bytes:
    import nibabel as nib

    image = nib.Nifti1Image(voxels, affine)
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    # no time stamp: the same bytes each time
    return gzip.compress(image.to_bytes(), mtime=0)


def _write(path: Path, content: bytes) -> bool:
    """Write a file in one step, unless it is there as it should be; whether it was written."""
    if path.is_file() and path.read_bytes() == content:
        return False
    with written_whole(path) as partial:
        partial.write_bytes(content)
    return True
