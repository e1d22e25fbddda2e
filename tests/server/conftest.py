"""A server without a network: the same app and endpoints around a segmenter of a few lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from monailabel.app import app as endpoints
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.config import TaskConfig
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.utils import app as registry
from PIL import Image
from support.fake_server import AFFINE, ORGANS, SPOTS, FakeSegmenters

from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.audit import AUDIT_FILE
from esp_medsam_app.server.conf import model_name
from esp_medsam_app.server.infer_task import EspMedSamInferTask
from esp_medsam_app.server.plain_server import Unblocked


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """Undoes what a starting server does to its process: the way to threads, the audit's file."""
    file = os.environ.get(AUDIT_FILE)
    yield
    routes = endpoints.router.routes
    routes[:] = [route for route in routes if not isinstance(route, Unblocked)]
    os.environ.pop(AUDIT_FILE, None)
    if file is not None:
        os.environ[AUDIT_FILE] = file


@pytest.fixture
def segmenters() -> FakeSegmenters:
    return FakeSegmenters()


@pytest.fixture
def organs() -> np.ndarray:
    """A volume `[6, 5, 4]` with both organs of ORGANS as values 100 and 200."""
    voxels = np.full((6, 5, 4), 7, np.int16)
    voxels[1:3, 1:4, 1:3] = 100
    voxels[4, 2, 0] = 200
    return voxels


@pytest.fixture
def studies(tmp_path: Path, organs: np.ndarray) -> Path:
    """The volume `case` and the picture `photo`."""
    folder = tmp_path / "studies"
    folder.mkdir()
    nib.save(nib.Nifti1Image(organs, AFFINE), folder / "case.nii.gz")
    picture = np.full((10, 12), 7, np.uint8)
    picture[2:5, 3:9] = 100
    Image.fromarray(picture).save(folder / "photo.png")
    return folder


@pytest.fixture
def make_app(
    tmp_path: Path, studies: Path, segmenters: FakeSegmenters, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., EspMedSamApp]:
    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))

    def make(tasks: Mapping[str, InferTask] | None = None, **conf: str) -> EspMedSamApp:
        """An app with these models; one for each of ORGANS and SPOTS by default."""
        if tasks is None:
            tasks = {model_name(m.name): EspMedSamInferTask(m, segmenters) for m in (ORGANS, SPOTS)}

        class Family(TaskConfig):
            def infer(self) -> dict[str, InferTask]:
                return dict(tasks)

            def trainer(self) -> None:
                return None

        class App(EspMedSamApp, MONAILabelApp):
            families = {"fake": Family}  # noqa: RUF012

        return App(str(tmp_path / "app"), str(studies), conf)

    return make


@pytest.fixture
def app(make_app: Callable[..., EspMedSamApp]) -> EspMedSamApp:
    return make_app()


@pytest.fixture
def client(app: EspMedSamApp, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """MONAI Label's endpoints in this process, around `app`."""
    monkeypatch.setattr(settings, "MONAI_LABEL_APP_DIR", app.app_dir)
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", app.studies)
    monkeypatch.setitem(registry.apps, f"{app.app_dir}{app.studies}", app)
    # no `with`: the life cycle's background jobs are not wanted
    client = TestClient(endpoints, raise_server_exceptions=False)
    yield client
    client.close()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder where temporary files of this process go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder
