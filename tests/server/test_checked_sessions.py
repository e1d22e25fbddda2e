"""Sessions: ids are no paths, remains are no obstacle."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from esp_medsam_app.server.sessions import CheckedSessions

LONG_AGO = time.time() - 100_000


@pytest.fixture
def sessions(tmp_path: Path) -> CheckedSessions:
    return CheckedSessions(str(tmp_path / "sessions"), expiry=3600)


def add(sessions: CheckedSessions, tmp_path: Path) -> str:
    image = tmp_path / "image.nii.gz"
    image.write_bytes(b"voxels")
    return str(sessions.add_session(str(image))[0])


def test_a_session_is_found_again(sessions: CheckedSessions, tmp_path: Path) -> None:
    session = sessions.get_session(add(sessions, tmp_path))
    assert session is not None
    assert Path(session.image).read_bytes() == b"voxels"


def test_an_id_is_never_a_path(sessions: CheckedSessions, tmp_path: Path) -> None:
    session_id = add(sessions, tmp_path)
    victim = tmp_path / "victim"
    victim.mkdir()
    # the description of a session whose image is gone: MONAI Label would remove the folder
    (victim / "meta.info").write_text('{"image": "/nowhere"}')
    for forged in ("../victim", str(victim), f"{session_id}/../../victim", "", "..", "x" * 36):
        assert sessions.get_session(forged) is None
    assert victim.is_dir()


def test_remains_do_not_stop_the_start(sessions: CheckedSessions, tmp_path: Path) -> None:
    kept = add(sessions, tmp_path)
    store = Path(sessions.store_path)
    without, damaged, fresh = (store / f"{i}2345678-1234-1234-1234-123456789012" for i in "abc")
    for folder in (without, damaged, fresh):
        folder.mkdir()
    (damaged / "meta.info").write_text("{")
    for folder in (without, damaged):
        os.utime(folder, (LONG_AGO, LONG_AGO))
    (store / "somebody's notes").mkdir()
    assert CheckedSessions(str(store), expiry=3600).remove_expired() == 2
    assert {path.name for path in store.iterdir()} == {kept, fresh.name, "somebody's notes"}


def test_expired_sessions_go(sessions: CheckedSessions, tmp_path: Path) -> None:
    session_id = add(sessions, tmp_path)
    assert sessions.remove_expired() == 0
    session = sessions.get_session(session_id, update_ts=False)
    assert session is not None
    session.last_access_ts = int(LONG_AGO)
    sessions._write_meta_info(session_id, session)
    assert sessions.remove_expired() == 1
    assert sessions.get_session(session_id) is None
    assert not (Path(sessions.store_path) / session_id).exists()


def test_no_store_yet(tmp_path: Path) -> None:
    assert CheckedSessions(str(tmp_path / "none"), expiry=3600).remove_expired() == 0
