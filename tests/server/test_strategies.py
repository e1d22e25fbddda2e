"""What `POST /activelearning/{strategy}` answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from support.bundles import bundle_of
from support.fake_server import ORGANS, FakeSegmenters

from esp_medsam_app.active_learning.score_cache import ScoreKey
from esp_medsam_app.errors import WeightsError
from esp_medsam_app.inference.assessment import Assessment
from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.scored_models import ScoredModels

STRATEGIES = ["random", "first", "uncertainty", "diversity", "hybrid"]
SCORED = STRATEGIES[2:]
# A picture's brightness is its uncertainty to the fake segmenter.
BRIGHTNESS = {"dark": 10, "dim": 60, "grey": 120, "bright": 200}


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    for name, brightness in BRIGHTNESS.items():
        Image.fromarray(np.full((9, 11), brightness, np.uint8)).save(folder / f"{name}.png")
    return folder


def ask(client: TestClient, strategy: str, who: str | None = None, **params: Any) -> dict[str, Any]:
    if who is not None:
        params["client_id"] = who
    response = client.post(f"/activelearning/{strategy}", json=params)
    assert response.status_code == 200, response.text
    return dict(response.json())


def submit(client: TestClient, studies: Path, image: str, **info: Any) -> None:
    path = studies.parent / "label.png"
    Image.fromarray(np.zeros((9, 11), np.uint8)).save(path)
    with path.open("rb") as file:
        saved = client.put(
            "/datastore/label",
            params={"image": image},
            data={"params": json.dumps(info)},
            files={"label": ("label.png", file)},
        )
    assert saved.status_code == 200, saved.text


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_answer_has_what_viewers_read(
    client: TestClient, app: EspMedSamApp, segmenters: FakeSegmenters, studies: Path, strategy: str
) -> None:
    sample = ask(client, strategy, "anna")
    assert sample["id"] in BRIGHTNESS
    assert sample["path"] == str(studies / f"{sample['id']}.png")
    assert sample["name"] == f"{sample['id']}.png"
    shown = app.datastore().get_image_info(sample["id"])["strategy"][strategy]
    assert shown["client_id"] == "anna"
    # the answer comes at once: nothing was loaded or computed for it
    assert segmenters.devices == segmenters.assessed == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_everybody_gets_another_case_until_none_is_left(
    client: TestClient, studies: Path, strategy: str
) -> None:
    people = ["anna", "ben", "carl", "dora"]
    given = {who: ask(client, strategy, who)["id"] for who in people}
    assert sorted(given.values()) == sorted(BRIGHTNESS)
    # all are lent: the oldest of another's, and nobody waits
    assert ask(client, strategy, "emil")["id"] == given["anna"]
    for image in BRIGHTNESS:
        submit(client, studies, image)
    assert ask(client, strategy, "anna") == {}


def test_different_strategies_do_not_lend_the_same(client: TestClient) -> None:
    given = [ask(client, name, name)["id"] for name in ("random", "first", "hybrid", "diversity")]
    assert sorted(given) == sorted(BRIGHTNESS)


def test_the_same_person_moves_on_and_comes_back(client: TestClient) -> None:
    names = sorted(BRIGHTNESS)
    assert [ask(client, "first", "anna")["id"] for _ in range(5)] == [*names, names[0]]


def test_people_without_a_name_are_one(client: TestClient) -> None:
    given = [ask(client, "first")["id"] for _ in range(3)] + [ask(client, "first", "anna")["id"]]
    assert given == sorted(BRIGHTNESS)


def test_a_submitted_case_is_lent_no_more(
    client: TestClient, studies: Path, app: EspMedSamApp
) -> None:
    first = ask(client, "first", "anna")["id"]
    assert app.active_learning.leases.held() == {first: "anna"}
    submit(client, studies, first)
    assert app.active_learning.leases.held() == {}


@pytest.mark.parametrize(
    ("strategy", "order"),
    [
        ("uncertainty", ["bright", "grey", "dim", "dark"]),
        # `dim` is nearest to the mean; then the farthest each time
        ("diversity", ["grey", "dark", "bright", "dim"]),
    ],
)
def test_scores_decide(
    client: TestClient, app: EspMedSamApp, strategy: str, order: list[str]
) -> None:
    assert app.active_learning.background.round() == 4
    assert [ask(client, strategy, who)["id"] for who in "abcd"] == order


@pytest.mark.parametrize("strategy", SCORED)
def test_images_without_a_score_are_average(
    client: TestClient, app: EspMedSamApp, studies: Path, strategy: str
) -> None:
    app.active_learning.background.round()
    for name in ("aaa", "zzz"):
        Image.fromarray(np.full((9, 11), 3, np.uint8)).save(studies / f"{name}.png")
    app.datastore().refresh()
    given = [ask(client, strategy, who)["id"] for who in "abcdef"]
    assert given[2:4] == ["aaa", "zzz"]


def test_what_is_like_the_annotated_comes_last(
    client: TestClient, app: EspMedSamApp, studies: Path
) -> None:
    submit(client, studies, "bright")
    app.active_learning.background.round()
    assert [ask(client, "diversity", who)["id"] for who in "abc"] == ["dark", "grey", "dim"]


def test_the_scores_of_the_model_that_is_asked_for(client: TestClient, app: EspMedSamApp) -> None:
    learning = app.active_learning
    learning.background.round()
    version = learning.models.version("spots")
    for name, brightness in BRIGHTNESS.items():
        darkness = 1 - brightness / 255
        learning.cache.put(
            ScoreKey(name, "1 1", "spots", version),
            Assessment(darkness, darkness, darkness, np.zeros(2, np.float32), 1),
        )
    assert ask(client, "uncertainty", "anna")["id"] == "bright"
    assert ask(client, "uncertainty", "ben", model="esp_medsam_spots")["id"] == "dark"
    assert learning.cache.asked() == ["spots"]


def test_a_disk_that_is_full_stops_nobody(
    client: TestClient, app: EspMedSamApp, caplog: pytest.LogCaptureFixture
) -> None:
    folder = app.active_learning.cache.path.parent
    folder.parent.mkdir(parents=True)
    folder.touch()  # a file where the folder should be
    for strategy in STRATEGIES:
        assert ask(client, strategy, "anna")["id"] in BRIGHTNESS
    assert "Two annotators may get the same image" in caplog.text
    assert "scores of images cannot be used" in caplog.text


def test_a_label_is_kept_when_its_lease_cannot_be_ended(
    client: TestClient, app: EspMedSamApp, studies: Path
) -> None:
    folder = app.active_learning.leases.path.parent
    folder.parent.mkdir(parents=True)
    folder.touch()
    submit(client, studies, "dim")
    assert app.datastore().get_labeled_images() == ["dim"]


# --- which modality ------------------------------------------------------------------------------


def test_the_modality_that_is_annotated_counts(
    client: TestClient, app: EspMedSamApp, studies: Path
) -> None:
    models: ScoredModels = app.active_learning.models
    assert models.chosen({}, app.datastore()) == "ct_organs"
    submit(client, studies, "dim", model="esp_medsam_spots")
    assert models.chosen({}, app.datastore()) == "spots"
    submit(client, studies, "dark", label_info=[{"name": "liver", "idx": 1}])
    assert models.chosen({}, app.datastore()) == "ct_organs"
    submit(client, studies, "grey", label_info=[{"name": "Spot", "idx": 1}])
    assert models.chosen({}, app.datastore()) == "spots"
    for model in ("esp_medsam_ct_organs", "ct_organs"):
        assert models.chosen({"model": model}, app.datastore()) == "ct_organs"
    assert models.chosen({"model": "nobody"}, app.datastore()) == "spots"


def test_only_served_models_count(make_app: Callable[..., EspMedSamApp]) -> None:
    app = make_app(models="spots")
    assert app.active_learning.models.chosen({}, app.datastore()) == "spots"


def test_a_volume_is_shown_as_well(client: TestClient, app: EspMedSamApp, studies: Path) -> None:
    nib.save(nib.Nifti1Image(np.full((4, 4, 3), 250, np.int16), np.eye(4)), studies / "ct.nii.gz")
    app.datastore().refresh()
    app.active_learning.background.round()
    assert ask(client, "uncertainty", "anna")["id"] == "ct"


# --- images of another modality ------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_images_of_another_modality_come_last_and_are_not_assessed(
    client: TestClient, app: EspMedSamApp, segmenters: FakeSegmenters, studies: Path, strategy: str
) -> None:
    segmenters.modality_of = {"bright": "ct_organs", "dark": "spots"}
    submit(client, studies, "dim", model="esp_medsam_spots")
    assert app.active_learning.background.round() == 3
    assert sorted(Path(path).stem for path in segmenters.assessed) == ["dark", "dim", "grey"]
    assert app.active_learning.background.round() == 0  # nothing is looked at again
    assert len(segmenters.assessed) == 3
    given = [ask(client, strategy, who)["id"] for who in "abc"]
    assert given[2] == "bright"


def test_without_a_hint_of_what_is_annotated_every_image_counts(
    client: TestClient, app: EspMedSamApp, segmenters: FakeSegmenters
) -> None:
    segmenters.modality_of = dict.fromkeys(BRIGHTNESS, "spots")
    segmenters.modality_of["grey"] = "ct_organs"
    app.active_learning.background.round()
    assert ask(client, "first", "anna")["id"] == "bright"


def test_a_modality_that_cannot_be_read_from_images_takes_all(
    client: TestClient, app: EspMedSamApp, segmenters: FakeSegmenters, studies: Path
) -> None:
    """One by YAML: the classifier does not know it, and would take its images for others."""
    segmenters.modality_of = {"bright": "ct_organs"}
    segmenters.bundle = bundle_of(ORGANS)
    submit(client, studies, "dim", model="esp_medsam_spots")
    assert app.active_learning.background.round() == 4
    assert ask(client, "first", "anna")["id"] == "bright"


def test_another_file_is_looked_at_again(
    client: TestClient, app: EspMedSamApp, segmenters: FakeSegmenters, studies: Path
) -> None:
    submit(client, studies, "dim", model="esp_medsam_spots")
    segmenters.modality_of = {"bright": "ct_organs"}
    app.active_learning.background.round()
    segmenters.modality_of = {"bright": "spots"}
    Image.fromarray(np.full((9, 12), 201, np.uint8)).save(studies / "bright.png")
    assert app.active_learning.background.round() == 1


def test_a_damaged_classifier_does_not_stop_the_scores(
    app: EspMedSamApp,
    segmenters: FakeSegmenters,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: Any) -> None:
        raise WeightsError("damaged")

    monkeypatch.setattr(segmenters, "read_modality", fail)
    assert app.active_learning.background.round() == 4
    assert caplog.text.count("What images are of is not looked at: damaged") == 1
