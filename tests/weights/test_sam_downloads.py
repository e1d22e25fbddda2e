"""Fetching SAM's encoders, from a server of this machine with made-up files."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from esp_medsam_app import cli
from esp_medsam_app.errors import UnknownNameError, WeightsError
from esp_medsam_app.weights import sam_downloads
from esp_medsam_app.weights.desam_encoders import load_feature_encoder
from esp_medsam_app.weights.sam_downloads import (
    OFFICIAL,
    SAM_RELEASES,
    SamRelease,
    get_release,
    pull,
)

CONTENT = b"made up" * 400_000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ESP_MEDSAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def release(cache: Path, monkeypatch: pytest.MonkeyPatch) -> SamRelease:
    made = SamRelease("sam_vit_b", "sam_vit_b.pth", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(sam_downloads.SAM_RELEASES, "sam_vit_b", made)
    return made


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "sam_vit_b.pth").write_bytes(CONTENT)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_releases_are_the_authors() -> None:
    assert set(SAM_RELEASES) == {"sam_vit_b", "sam_vit_l", "sam_vit_h"}
    for release in SAM_RELEASES.values():
        assert re.fullmatch(r"sam_vit_[blh]_[0-9a-f]{6}\.pth", release.file)
        # the file's name ends with the start of what torch's hub calls its hash
        assert re.fullmatch(r"[0-9a-f]{64}", release.sha256)
    assert OFFICIAL.startswith("https://")


def test_a_file_is_fetched_once(release: SamRelease, mirror: str) -> None:
    told: list[tuple[int, int]] = []
    path = pull(release, source=mirror, on_bytes=lambda done, total: told.append((done, total)))
    assert path == release.fetched()
    assert path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    # nobody is asked again
    assert pull(release, source="http://127.0.0.1:1/") == path


def test_a_damaged_file_is_fetched_again(release: SamRelease, mirror: str) -> None:
    release.path.parent.mkdir()
    release.path.write_bytes(b"half")
    assert pull(release, source=mirror).read_bytes() == CONTENT


def test_what_is_not_the_release_is_not_kept(
    release: SamRelease, mirror: str, tmp_path: Path
) -> None:
    (tmp_path / "web" / release.file).write_bytes(b"something else")
    with pytest.raises(WeightsError, match="not what was released"):
        pull(release, source=mirror)
    assert list(release.path.parent.iterdir()) == []


@pytest.mark.parametrize("where", ["missing/", "refused"])
def test_what_cannot_be_fetched_is_told(release: SamRelease, mirror: str, where: str) -> None:
    source = mirror + where if where == "missing/" else "http://127.0.0.1:1/"
    with pytest.raises(WeightsError, match="cannot be fetched"):
        pull(release, source=source)


def test_the_command_fetches(
    release: SamRelease, mirror: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["weights", "pull", "sam_vit_b", "--source", mirror])
    assert not ended.value.code
    assert str(release.path) in capsys.readouterr().out


def test_an_encoder_that_was_not_fetched_says_how(cache: Path) -> None:
    with pytest.raises(WeightsError, match="weights pull sam_vit_h"):
        load_feature_encoder("sam_vit_h")
    with pytest.raises(UnknownNameError, match="sam_vit_l"):
        get_release("sam_vit_x")
