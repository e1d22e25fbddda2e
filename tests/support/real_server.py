"""What the end-to-end tests know of the server they share."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import pydicom

from esp_medsam_app.server.launch import ServerProcess, app_folder

# Slices of the CT phantom that the tests use: a pass through the network takes about a second.
THIN = slice(7, 9)
START_SECONDS = 240


@dataclass(frozen=True)
class Served:
    """The server and what it works on.

    Attributes:
        process: of the server.
        studies: offered by it: `chest_phantom.png`, `thin_abdomen.nii.gz`.
        references: label maps by the same names.
        series: the slices of `thin_abdomen` as DICOM files.
        temporary: where the server's temporary files go.
        network_log: hosts it tried to reach.
        log: what it printed.
        app: its own copy of `apps/esp_medsam`.
        environment: of the process, beside the usual.
    """

    process: ServerProcess
    studies: Path
    references: Path
    series: list[Path]
    temporary: Path
    network_log: Path
    log: Path
    app: Path
    environment: dict[str, str]


def small_studies(samples: Path, folder: Path) -> None:
    """Copy what the tests need, volumes cut to a few slices."""
    for kind in ("studies", "references"):
        (folder / kind).mkdir()
        shutil.copy(samples / kind / "chest_phantom.png", folder / kind)
        volume = nib.load(samples / kind / "abdomen_phantom.nii.gz").slicer[:, :, THIN]
        nib.save(volume, folder / kind / "thin_abdomen.nii.gz")


def thin_series(samples: Path) -> list[Path]:
    """The DICOM files of the same slices."""
    files = sorted((samples / "dicom" / "abdomen_phantom").iterdir())
    files.sort(key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    return files[THIN]


def copy_app(folder: Path) -> Path:
    """The app without what a server may have left in it; the server writes its logs into it."""
    target = folder / "app"
    shutil.copytree(
        app_folder(), target, ignore=shutil.ignore_patterns("logs", "model", "bin", "__pycache__")
    )
    return target
