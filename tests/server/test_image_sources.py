"""What `image` may stand for: no path that a client makes up."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from esp_medsam_app.errors import InputError, UnknownNameError
from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.sources import ImageSource, find_source


def _endpoint_s_name() -> Path:
    with tempfile.NamedTemporaryFile(suffix=".nii.gz") as file:
        return Path(file.name)


@pytest.fixture
def find(app: EspMedSamApp) -> Any:
    def find(image: Any) -> ImageSource:
        return find_source(image, app.datastore(), app.sessions())

    return find


def test_an_id_of_the_datastore(find: Any, studies: Path) -> None:
    source = find("case")
    assert (source.path, source.image_id, source.is_upload) == (
        (studies / "case.nii.gz").resolve(),
        "case",
        False,
    )


def test_paths_are_refused(find: Any, studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(studies)
    for image in (
        str(studies / "case.nii.gz"),
        "case.nii.gz",
        "./case.nii.gz",
        "../studies/case",
        "..",
        ".",
        "..\\case",
        "/etc/hostname",
    ):
        with pytest.raises(UnknownNameError, match="no image"):
            find(image)


def test_the_request_s_upload(find: Any, studies: Path, temporary: Path) -> None:
    upload = _endpoint_s_name()
    shutil.copy(studies / "case.nii.gz", upload)
    source = find(str(upload))
    assert source.path == upload
    assert source.is_upload
    assert source.image_id == ""


def test_other_temporary_files_are_refused(find: Any, studies: Path, temporary: Path) -> None:
    for name in ("secret.nii.gz", "tmpabcdefgh/case.nii.gz"):
        path = temporary / name
        path.parent.mkdir(exist_ok=True)
        shutil.copy(studies / "case.nii.gz", path)
        with pytest.raises(UnknownNameError):
            find(str(path))


def test_a_session_s_image(find: Any, app: EspMedSamApp, studies: Path, tmp_path: Path) -> None:
    copy = tmp_path / "uploaded.nii.gz"
    shutil.copy(studies / "case.nii.gz", copy)
    _, session = app.sessions().add_session(str(copy))
    source = find(session.image)
    assert source.path == Path(session.image)
    assert not source.is_upload


def test_other_files_of_the_sessions_are_refused(
    find: Any, app: EspMedSamApp, studies: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "uploaded.nii.gz"
    shutil.copy(studies / "case.nii.gz", copy)
    _, session = app.sessions().add_session(str(copy))
    for path in (
        Path(session.path) / "meta.info",
        Path(session.path) / ".." / "x.nii.gz",
        Path(app.sessions().store_path),
    ):
        with pytest.raises(UnknownNameError):
            find(str(path))


def test_an_image_that_was_deleted(find: Any, studies: Path) -> None:
    (studies / "case.nii.gz").unlink()
    with pytest.raises(UnknownNameError, match="'case'"):
        find("case")


def test_an_unknown_session_arrives_without_an_image(find: Any) -> None:
    with pytest.raises(UnknownNameError, match="session"):
        find("")


@pytest.mark.parametrize("image", [None, 3, ["case"], {"a": 1}])
def test_only_text_is_an_id(find: Any, image: Any) -> None:
    with pytest.raises(InputError, match="image"):
        find(image)
