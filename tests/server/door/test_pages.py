"""Pages: OHIF, the endpoints, the log; none of them needs another server."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fastapi.testclient import TestClient

from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.door.ohif import ohif_folder
from esp_medsam_app.server.door.ohif_edits import EDITS, edited_files

LOADED = re.compile(r"(?:src|href)=[\"']?([^\"' >]+)|@import[^;]*?[\"'(](https?:[^\"')]+)")


def foreign(page: str) -> list[str]:
    """Addresses on other servers that a page or style sheet would load."""
    found = [one or other for one, other in LOADED.findall(page)]
    return [address for address in found if urlsplit(address).netloc]


@pytest.mark.parametrize("path", ["/", "/docs", "/ohif/", "/ohif/viewer?StudyInstanceUIDs=1.2"])
def test_pages_load_nothing_from_elsewhere(either: TestClient, path: str) -> None:
    page = either.get(path)
    assert page.status_code == 200
    assert "<html" in page.text
    assert foreign(page.text) == []
    assert "content-security-policy" in page.headers


def test_style_sheets_of_ohif_load_nothing_from_elsewhere(door: TestClient) -> None:
    sheets = list(ohif_folder().glob("*.css"))
    assert any(foreign(sheet.read_text()) for sheet in sheets)
    for sheet in sheets:
        answer = door.get(f"/ohif/{sheet.name}")
        assert answer.headers["content-type"].startswith("text/css")
        assert foreign(answer.text) == []
        assert len(answer.text) > 0.9 * len(sheet.read_text())


def test_files_of_ohif_in_folders(either: TestClient) -> None:
    inner = next(path for path in sorted(ohif_folder().glob("assets/*.png")))
    answer = either.get(f"/ohif/assets/{inner.name}")
    assert answer.content == inner.read_bytes()
    assert answer.headers["content-type"] == "image/png"


@pytest.mark.parametrize("path", ["assets", "%2e%2e"])
def test_folders_are_no_files_of_ohif(either: TestClient, path: str) -> None:
    assert either.get(f"/ohif/{path}").status_code in (200, 404)


@pytest.mark.parametrize(
    "path", ["%2e%2e/%2e%2e/info.py", "..%2f..%2finfo.py", "%00", "%2fetc/passwd", "//etc/passwd",
             "assets/%2e%2e/%2e%2e/%2e%2e/info.py", "%2e%2e%2findex.html"],
)  # fmt: skip
def test_ohif_s_folder_is_not_left(door: TestClient, path: str) -> None:
    answer = door.get(f"/ohif/{path}")
    assert answer.status_code == 404 or "<title>OHIF Viewer" in answer.text


def test_ohif_finds_the_server_by_itself(door: TestClient) -> None:
    """What a browser makes of it: tests/e2e/test_ohif.py."""
    page = door.get("/ohif/monai-label?StudyInstanceUIDs=1.2")
    head = page.text.index("document.cookie = 'MONAILABEL_SERVER_URL='")
    # before any code of the viewer can read it
    assert head < page.text.index("</script>") < page.text.index("PUBLIC_URL")
    # of the page's own address: the server does not know under which name it is reached
    assert "location.origin" in page.text
    assert "set-cookie" not in page.headers


def test_ohif_corrects_and_exports(door: TestClient) -> None:
    """Every edit is found in one file of this very OHIF; what the viewer makes of it: e2e."""
    files = edited_files(ohif_folder())
    assert len(files) == len(EDITS)
    for edits in EDITS:
        name = next(name for name, text in files.items() if edits[0][1] in text)
        own = (ohif_folder() / name).read_text()
        assert [own.count(before) for before, _ in edits] == [1] * len(edits)
        assert [files[name].count(after) for _, after in edits] == [1] * len(edits)
    for name, text in files.items():
        answer = door.get(f"/ohif/{name}")
        assert answer.text == text
        assert answer.headers["content-type"].startswith("text/javascript")
        # a browser may have the other one, from a server without the door
        assert answer.headers["cache-control"] == "no-cache"


def test_another_ohif_stays_as_it_is(tmp_path: Path) -> None:
    some = "".join(before for before, _ in EDITS[0][:-1])
    (tmp_path / "1.bundle.2.js").write_text(some)
    assert edited_files(tmp_path) == {}


def test_the_endpoints_are_listed(door: TestClient) -> None:
    page = door.get("/").text
    schema = door.get("/openapi.json").json()
    for path in ("/infer/{model}", "/train/", "/datastore/label", "/info/", "/session/", "/logs/"):
        assert path in page
        assert path in schema["paths"]
    assert set(schema["paths"]["/train/"]) >= {"get", "delete"}


@pytest.fixture
def log(app: EspMedSamApp, studies: Path) -> Path:
    file = Path(app.app_dir) / "logs" / "app.log"
    file.parent.mkdir(parents=True)
    file.write_text(
        "\n".join(f"line {n} <script> {studies}/case.nii.gz" for n in range(100)), encoding="utf-8"
    )
    return file


def test_the_log_is_a_page_of_its_own(either: TestClient, log: Path, studies: Path) -> None:
    page = either.get("/logs/", params={"refresh": 1})
    assert foreign(page.text) == []
    assert "line 99" in page.text
    assert "<script>" not in page.text
    assert str(studies) not in page.text


def test_the_log_as_text(door: TestClient, log: Path, studies: Path) -> None:
    text = door.get("/logs/", params={"text": True, "lines": 2})
    assert text.headers["content-type"].startswith("text/plain")
    assert text.text.count("line") == 2
    assert "case.nii.gz" in text.text
    assert str(studies) not in text.text
    assert door.get("/logs/", params={"lines": 0}).status_code == 422
    assert door.get("/logs/", params={"lines": 10**9}).status_code == 422
