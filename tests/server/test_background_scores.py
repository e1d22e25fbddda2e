"""Scores that are made while nobody waits."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from fastapi import HTTPException
from filelock import FileLock
from monailabel.datastore.dicom import DICOMWebDatastore
from PIL import Image
from support.fake_server import FakeSegmenters

from esp_medsam_app.errors import OutOfMemoryError, WeightsError
from esp_medsam_app.server.active_learning import ActiveLearning
from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.background_scores import BackgroundScores
from esp_medsam_app.server.image_scores import image_fingerprint
from esp_medsam_app.server.originals import borrowed

SECONDS = 20


def picture(folder: Path, name: str, brightness: int) -> None:
    Image.fromarray(np.full((9, 11), brightness, np.uint8)).save(folder / f"{name}.png")


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    for name, brightness in {"a": 10, "b": 60, "c": 120}.items():
        picture(folder, name, brightness)
    return folder


@pytest.fixture
def learning(app: EspMedSamApp) -> ActiveLearning:
    return app.active_learning


def names(segmenters: FakeSegmenters) -> list[str]:
    """What was assessed since the last time this was asked."""
    found = [Path(path).stem for path in segmenters.assessed]
    segmenters.assessed.clear()
    return found


def new_weights(segmenters: FakeSegmenters, name: str) -> None:
    files = {"controllers/ct_organs.safetensors": name}
    description = segmenters.bundle.description.model_copy(update={"files": files})
    segmenters.bundle = type(segmenters.bundle)(segmenters.bundle.path, description)


def test_only_what_is_missing(
    learning: ActiveLearning, app: EspMedSamApp, segmenters: FakeSegmenters, studies: Path
) -> None:
    background = learning.background
    assert background.round() == 3
    assert names(segmenters) == ["a", "b", "c"]
    assert background.round() == 0
    picture(studies, "d", 5)
    app.datastore().refresh()
    background.round()
    assert names(segmenters) == ["d"]
    os.utime(studies / "b.png", ns=(0, 0))
    background.round()
    assert names(segmenters) == ["b"]


def test_new_weights_ask_for_new_scores(
    learning: ActiveLearning, segmenters: FakeSegmenters
) -> None:
    old, other = (learning.models.version(name) for name in ("ct_organs", "spots"))
    learning.background.round()
    new_weights(segmenters, "another")
    assert learning.models.version("ct_organs") != old
    assert learning.background.round() == 3
    assert learning.models.version("spots") == other
    assert len(learning.cache.scores("ct_organs", old)) == 3


def test_new_weights_in_the_middle(learning: ActiveLearning, segmenters: FakeSegmenters) -> None:
    """The rest is not assessed for nothing, and no score is put down to weights it is not of."""
    assess = segmenters.assess

    def publishing(*arguments: Any, **options: Any) -> Any:
        new_weights(segmenters, "another")
        return assess(*arguments, **options)

    segmenters.assess = publishing  # type: ignore[method-assign]
    old = learning.models.version("ct_organs")
    assert learning.background.round() == 1
    new = learning.models.version("ct_organs")
    assert learning.cache.scores("ct_organs", old) == {}
    assert list(learning.cache.scores("ct_organs", new)) == ["a"]
    assert learning.background.round() == 2


def test_labelled_images_come_last(
    learning: ActiveLearning, app: EspMedSamApp, segmenters: FakeSegmenters, studies: Path
) -> None:
    (studies / "labels" / "final" / "a.png").write_bytes((studies / "a.png").read_bytes())
    app.datastore().refresh()
    assert app.datastore().get_labeled_images() == ["a"]
    learning.background.round()
    assert names(segmenters) == ["b", "c", "a"]


def test_a_bad_image_is_left_alone_until_it_changes(
    learning: ActiveLearning,
    segmenters: FakeSegmenters,
    studies: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (studies / "b.png").write_bytes(b"no picture")
    assert learning.background.round() == 2
    assert caplog.text.count("'b' cannot be assessed") == 1
    new_weights(segmenters, "another")
    learning.background.round()
    assert caplog.text.count("'b' cannot be assessed") == 1
    assert "b" not in names(segmenters)
    picture(studies, "b", 1)
    learning.background.round()
    assert names(segmenters) == ["b"]
    assert learning.cache.failed() == {}


def test_a_defect_of_ours_is_not_the_images(
    learning: ActiveLearning, segmenters: FakeSegmenters, caplog: pytest.LogCaptureFixture
) -> None:
    segmenters.error = RuntimeError("the device fell off the bus")
    assert learning.background.round() == 0
    assert caplog.text.count("fell off the bus") == 3
    assert learning.background.round() == 0
    assert caplog.text.count("fell off the bus") == 3
    assert learning.cache.failed() == {}


@pytest.mark.parametrize("error", [WeightsError("damaged"), OutOfMemoryError("full")])
def test_no_image_is_blamed_for_weights_and_memory(
    learning: ActiveLearning, segmenters: FakeSegmenters, error: Exception
) -> None:
    segmenters.error = error
    with pytest.raises(type(error)):
        learning.background.round()
    segmenters.error = None
    assert learning.background.round() == 3


def test_removed_images_are_forgotten(
    learning: ActiveLearning, app: EspMedSamApp, studies: Path
) -> None:
    learning.background.round()
    (studies / "c.png").unlink()
    app.datastore().refresh()
    learning.background.round()
    version = learning.models.version("ct_organs")
    assert sorted(learning.cache.scores("ct_organs", version)) == ["a", "b"]


def test_models_that_were_asked_for_are_scored_too(learning: ActiveLearning) -> None:
    learning.cache.ask("spots")
    learning.cache.ask("no longer served")
    assert learning.background.round() == 6


def test_one_worker_does_it(learning: ActiveLearning, segmenters: FakeSegmenters) -> None:
    learning.scores.lock.parent.mkdir(parents=True)
    with FileLock(learning.scores.lock):
        assert learning.background.round() == 0
    assert segmenters.assessed == []
    assert learning.background.round() == 3


# --- the thread ----------------------------------------------------------------------------------


class Scored:
    """Lets a test wait for the thread."""

    def __init__(self, background: BackgroundScores) -> None:
        self.rounds = threading.Semaphore(0)
        whole = background.round

        def counted() -> int:
            try:
                return whole()
            finally:
                self.rounds.release()

        background.round = counted  # type: ignore[method-assign]

    def wait(self) -> None:
        assert self.rounds.acquire(timeout=SECONDS)


def test_it_starts_with_the_server_and_is_woken_by_a_label(
    app: EspMedSamApp,
    learning: ActiveLearning,
    segmenters: FakeSegmenters,
    studies: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("monailabel.interfaces.app.Timeloop.start", lambda *_, **__: None)
    scored = Scored(learning.background)
    assert not learning.background.is_running
    app.on_init_complete()
    try:
        scored.wait()
        assert names(segmenters) == ["a", "b", "c"]
        picture(studies, "d", 5)
        app.datastore().refresh()
        app.on_save_label("a", "a")
        scored.wait()
        assert names(segmenters) == ["d"]
    finally:
        learning.background.stop()
    assert not learning.background.is_running


def test_it_can_be_switched_off(
    make_app: Callable[..., EspMedSamApp], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monailabel.interfaces.app.Timeloop.start", lambda *_, **__: None)
    app = make_app(background_scores="false")
    app.on_init_complete()
    assert not app.active_learning.background.is_running


def test_it_gives_way_to_requests(learning: ActiveLearning, segmenters: FakeSegmenters) -> None:
    background = learning.background
    worker = threading.Thread(target=background.round)
    with background.request():
        with background.request():
            worker.start()
        worker.join(0.1)
        assert worker.is_alive()
        assert segmenters.assessed == []
    worker.join(SECONDS)
    assert names(segmenters) == ["a", "b", "c"]


def test_the_device_is_left_to_an_inference(
    app: EspMedSamApp, learning: ActiveLearning, segmenters: FakeSegmenters
) -> None:
    requests: list[int] = []
    segment = segmenters.segment

    def noting(*arguments: Any) -> Any:
        requests.append(learning.background._requests)
        return segment(*arguments)

    segmenters.segment = noting  # type: ignore[method-assign]
    Path(app.infer({"model": "esp_medsam_spots", "image": "a"})["file"]).unlink()
    segmenters.error = WeightsError("damaged")
    with pytest.raises(HTTPException):
        app.infer({"model": "esp_medsam_spots", "image": "a"})
    assert requests == [1, 1]
    assert learning.background._requests == 0


def test_the_end_of_the_server_does_not_wait_for_a_request(
    learning: ActiveLearning, segmenters: FakeSegmenters
) -> None:
    background = learning.background
    with background.request():
        background.start()
        background.stop()
        assert not background.is_running
    assert segmenters.assessed == []


def test_it_survives_what_goes_wrong(
    learning: ActiveLearning, segmenters: FakeSegmenters, caplog: pytest.LogCaptureFixture
) -> None:
    background = learning.background
    scored = Scored(background)
    segmenters.error = WeightsError("not there yet")
    background.start()
    try:
        scored.wait()
        segmenters.error = None
        background.wake()
        scored.wait()
    finally:
        background.stop()
    assert "Images cannot be assessed now: not there yet" in caplog.text
    assert "a" in names(segmenters)


# --- images of an archive ------------------------------------------------------------------------


def test_a_series_is_fetched_for_the_moment_only(tmp_path: Path) -> None:
    """What a PACS lends is not fetched into the viewers' cache."""
    lent: list[str] = []

    class Archive:
        def original(self, image_id: str) -> Path:
            raise AssertionError("to stay")

        @contextmanager
        def borrowed(self, image_id: str) -> Iterator[Path]:
            lent.append(image_id)
            yield tmp_path

    with borrowed(cast(Any, Archive()), "1.2.3") as folder:
        assert folder == tmp_path
    assert lent == ["1.2.3"]
    archive = DICOMWebDatastore.__new__(DICOMWebDatastore)
    # a series' content never changes: nothing has to be fetched to know that
    assert image_fingerprint(archive, "1.2.3") == image_fingerprint(archive, "1.2.3")


def test_an_archive_is_asked_again_after_a_label(learning: ActiveLearning) -> None:
    archive = DICOMWebDatastore.__new__(DICOMWebDatastore)
    learning.datastore = lambda: archive
    asked = DICOMWebDatastore.get_labeled_images.cache
    asked["what MONAI Label remembers"] = ["1.2.3"]
    learning.submitted("1.2.4")
    assert len(asked) == 0


@pytest.fixture(autouse=True)
def loud(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "esp_medsam_app")
