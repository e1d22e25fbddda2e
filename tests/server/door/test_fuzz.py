"""Thousands of bad requests: no 500, no traceback, no server path, no file where none belongs.

What is sent is drawn from a seed: a request that fails can be sent again by itself.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from monailabel.utils.async_tasks import task as async_task
from PIL import Image
from support.dicom_series import write_series
from support.fake_server import AFFINE
from support.fuzz import PASSWORDS, Fuzz, opened_files, send

from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.asgi import FrontDoor

REQUESTS, UPLOADS, NOTES = 2400, 800, 200


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sound file of each kind."""
    folder = tmp_path_factory.mktemp("samples")
    volume = np.zeros((6, 5, 4), np.int16)
    volume[1:3, 1:4, 1:3] = 1
    for name in ("a.nii.gz", "a.nii", "label.nii.gz"):
        nib.save(nib.Nifti1Image(volume, AFFINE), folder / name)
    label = sitk.GetImageFromArray(volume.T.astype(np.uint8))
    for name in ("a.nrrd", "a.mha"):
        sitk.WriteImage(label, str(folder / name))
    label.SetMetaData("Segment0_Name", "liver")
    label.SetMetaData("Segment0_LabelValue", "1")
    label.CopyInformation(sitk.ReadImage(str(folder / "a.nii")))
    sitk.WriteImage(label, str(folder / "a.seg.nrrd"))
    for name in ("a.png", "a.jpg", "a.tiff", "a.bmp"):
        Image.fromarray(volume[:, :, 1].astype(np.uint8)).save(folder / name)
    write_series(folder / "series", volume[:, :, :1], AFFINE, [0])
    (folder / "series" / "000.dcm").rename(folder / "a.dcm")
    (folder / "series").rmdir()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "a.dcm", "b/1.dcm")
        archive.write(folder / "a.nii.gz", "b/2.nii.gz")
    (folder / "a.zip").write_bytes(packed.getvalue())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def no_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that starts after all is not really started."""
    task = {"id": "1", "status": "DONE"}
    monkeypatch.setattr(async_task, "run_background_task", lambda request, method: dict(task))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(4))
def test_bad_requests(
    make_door: Callable[..., FrontDoor],
    app: EspMedSamApp,
    samples: dict[str, bytes],
    no_tasks: None,
    tmp_path: Path,
    studies: Path,
    temporary: Path,
    seed: int,
) -> None:
    fuzz = Fuzz(seed, samples)
    requests = [fuzz.request() for _ in range(REQUESTS // 4)]
    requests += [fuzz.upload() for _ in range(UPLOADS // 4)]
    requests += [fuzz.notes() for _ in range(NOTES // 4)]
    fuzz.random.shuffle(requests)
    secrets = [str(place).encode() for place in (tmp_path, sys.prefix, Path(__file__).parents[3])]
    before = (studies / "case.nii.gz").read_bytes()
    door = make_door(infer_queue=100)
    with opened_files() as opened:
        statuses = send(door, requests, secrets)
    assert sum(statuses.values()) >= len(requests)
    # bad requests are told to be bad, and those that are not are answered
    assert sum(count for status, count in statuses.items() if 400 <= status < 500) > 300
    assert statuses[200] > 20
    data = [studies, tmp_path / "sessions", tmp_path / "audit", tmp_path / "app", temporary]
    assert opened.outside(*data) == []
    assert PASSWORDS not in opened.read
    assert list(temporary.iterdir()) == []
    assert (studies / "case.nii.gz").read_bytes() == before
    assert {"case", "photo"} <= set(app.datastore().list_images())


def test_what_is_opened_is_noticed(tmp_path: Path) -> None:
    """Else nothing would be outside."""
    with opened_files() as opened:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a").write_text("x")
        (tmp_path / "in" / "a").rename(tmp_path / "b")
        (tmp_path / "b").read_text()
    (tmp_path / "c").write_text("x")
    assert opened.outside(tmp_path / "in") == [tmp_path / "b"]
    assert str(tmp_path / "b") in opened.read
