"""The scoring method `uncertainty`."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock
from support.fake_server import FakeSegmenters

from esp_medsam_app.server.app import EspMedSamApp


def score(app: EspMedSamApp, **request: str) -> dict[str, dict[str, object]]:
    return app.scoring({"method": "uncertainty", **request})


def test_every_image_is_scored_and_its_info_says_so(
    app: EspMedSamApp, segmenters: FakeSegmenters
) -> None:
    result = score(app)
    assert sorted(result) == ["case", "photo"]
    for image, found in result.items():
        assert set(found) == {"uncertainty", "disagreement", "entropy", "uncertainty_model"}
        assert found["uncertainty_model"] == "ct_organs"
        assert found.items() <= app.datastore().get_image_info(image).items()
    assert score(app) == result
    assert len(segmenters.assessed) == 2


def test_the_model_is_chosen(app: EspMedSamApp) -> None:
    assert score(app, model="esp_medsam_spots")["photo"]["uncertainty_model"] == "spots"


def test_nothing_is_written_twice(app: EspMedSamApp, studies: Path) -> None:
    score(app)
    before = (studies / "datastore_v2.json").stat().st_mtime_ns
    score(app)
    assert (studies / "datastore_v2.json").stat().st_mtime_ns == before


def test_a_bad_image_is_reported(app: EspMedSamApp, studies: Path) -> None:
    (studies / "photo.png").write_bytes(b"no picture")
    result = score(app)
    assert "error" in result["photo"]
    assert str(studies) not in str(result["photo"]["error"])
    assert result["case"]["uncertainty_model"] == "ct_organs"


def test_what_the_server_is_at_is_not_done_twice(
    app: EspMedSamApp, segmenters: FakeSegmenters
) -> None:
    lock = app.active_learning.scores.lock
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        assert score(app) == {}
    assert segmenters.assessed == []


def test_no_model_no_score(app: EspMedSamApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.active_learning.models, "modalities", {})
    assert score(app) == {}
