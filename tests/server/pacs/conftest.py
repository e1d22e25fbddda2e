"""A datastore in front of an archive of this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from support.dicom_phantoms import volume
from support.fake_pacs import FakePacs
from support.pacs_stores import MODELS, PATIENT, MakeStore, WriteLabel

from esp_medsam_app.server.pacs.client import PacsClient, TimeOuts
from esp_medsam_app.server.pacs.datastore import PacsDatastore
from esp_medsam_app.server.pacs.pointers import grid_of
from esp_medsam_app.server.submitted_labels import SubmittedLabels


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    """With one CT series of six slices."""
    archive = FakePacs(volume(6))
    yield archive
    archive.close()


@pytest.fixture
def series(pacs: FakePacs) -> str:
    """The UID of that series."""
    return str(pacs.instances[0].SeriesInstanceUID)


@pytest.fixture
def make(pacs: FakePacs, tmp_path: Path) -> MakeStore:
    """A datastore; each on the same folder, as after a restart."""

    def made(
        modalities: tuple[str, ...] = ("CT", "MR", "CR", "DX", "US", "XA", "XC"),
        time_outs: TimeOuts = PATIENT,
        credentials: tuple[str, str] | None = None,
        folder: str = "cache",
        **options: Any,
    ) -> PacsDatastore:
        return PacsDatastore(
            PacsClient(pacs.url, credentials, time_outs),
            tmp_path / folder,
            SubmittedLabels(lambda: MODELS, grid_of=grid_of),
            lambda: modalities,
            **options,
        )

    return made


@pytest.fixture
def store(make: MakeStore) -> PacsDatastore:
    return make()


@pytest.fixture
def label_map(tmp_path: Path) -> WriteLabel:
    """Writes a label map on the grid of an image of a datastore."""

    def written(store: PacsDatastore, image: str, *values: int, shift: float = 0) -> str:
        source = nib.load(store.get_image_uri(image))
        voxels = np.zeros(source.shape, np.uint8)
        for place, value in enumerate(values):
            voxels[2 + 2 * place : 4 + 2 * place, 3:6, min(1, voxels.shape[2] - 1)] = value
        affine = source.affine.copy()
        affine[0, 3] += shift
        path = tmp_path / f"label_{'_'.join(map(str, values))}_{shift:g}.nii.gz"
        nib.save(nib.Nifti1Image(voxels, affine), path)
        return str(path)

    return written
