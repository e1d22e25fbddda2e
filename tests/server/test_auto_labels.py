"""Labels that are drawn with the model `esp_medsam` train the modality that it read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from support.bundles import bundle_of
from support.fake_server import AFFINE, SPOTS, FakeSegmenters

from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.annotated_cases import annotated_cases, readable_cases
from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.auto_task import AutoInferTask
from esp_medsam_app.server.conf import AUTO_MODEL, model_name
from esp_medsam_app.server.infer_task import EspMedSamInferTask


def organ(name: str, **labels: int) -> Modality:
    return Modality(name=name, title=name, description="", dimension=3, labels=labels)


# both have a liver and a spleen, which have other numbers in all modalities together
CT = organ("ct_abdomen", aorta=1, liver=2, spleen=3)
MR = organ("mr_abdomen", kidney=1, liver=2, spleen=3)
MODALITIES = (CT, MR, SPOTS)
UNION = ["aorta", "kidney", "liver", "spleen", "spot"]


@pytest.fixture
def segmenters() -> FakeSegmenters:
    fake = FakeSegmenters()
    fake.bundle = bundle_of(*MODALITIES)
    fake.modality_of = {"case.nii": "mr_abdomen", "photo": "spots"}
    return fake


@pytest.fixture(params=["all models", "auto alone"])
def app(
    request: pytest.FixtureRequest,
    make_app: Callable[..., EspMedSamApp],
    segmenters: FakeSegmenters,
) -> EspMedSamApp:
    tasks: dict[str, Any] = {AUTO_MODEL: AutoInferTask(MODALITIES, segmenters)}
    if request.param == "all models":
        own = {model_name(m.name): EspMedSamInferTask(m, segmenters) for m in MODALITIES}
        tasks = {**own, **tasks}
    return make_app(tasks)


@pytest.fixture
def submit(client: TestClient, tmp_path: Path) -> Callable[..., None]:
    """Submit voxels of `case` as Slicer does: segments of all labels, drawn or not."""

    def submit(voxels: np.ndarray, **more: Any) -> None:
        path = tmp_path / "label.nii.gz"
        nib.save(nib.Nifti1Image(voxels.astype(np.uint8), AFFINE), path)
        names = [{"name": name, "idx": place} for place, name in enumerate(UNION, start=1)]
        info = {"label_info": names, "model": AUTO_MODEL, "client_id": "slicer", **more}
        with path.open("rb") as file:
            response = client.put(
                "/datastore/label",
                params={"image": "case"},
                data={"params": json.dumps(info)},
                files={"label": (path.name, file)},
            )
        assert response.status_code == 200, response.text

    return submit


def segment(client: TestClient, image: str, **params: Any) -> None:
    response = client.post(
        f"/infer/{AUTO_MODEL}",
        params={"image": image, "output": "json"},
        data={"params": json.dumps(params)},
    )
    assert response.status_code == 200, response.text


def learned_from(app: EspMedSamApp, tmp_path: Path) -> dict[str, dict[str, list[int]]]:
    """Values of the label maps that each modality would be trained on, by case."""
    models = [model_name(modality.name) for modality in MODALITIES]
    found = {}
    for modality in MODALITIES:
        cases = annotated_cases(app.datastore(), modality, models)
        found[modality.name] = {
            case.pair.name: sorted(set(np.asarray(nib.load(case.pair.label).dataobj).ravel()))
            for case in readable_cases(cases, modality, tmp_path / modality.name)
        }
    return found


def drawn(*names: str) -> np.ndarray:
    voxels = np.zeros((6, 5, 4), np.uint8)
    for place, name in enumerate(names):
        voxels[place, 1:3, 1:3] = UNION.index(name) + 1
    return voxels


@pytest.mark.parametrize(
    ("names", "values"), [(["liver", "spleen"], [0, 2, 3]), ([], [0]), (["kidney"], [0, 1])]
)
def test_a_label_trains_the_modality_that_was_read(
    client: TestClient,
    app: EspMedSamApp,
    submit: Callable[..., None],
    tmp_path: Path,
    names: list[str],
    values: list[int],
) -> None:
    segment(client, "case")
    submit(drawn(*names))
    info = app.datastore().get_label_info("case", "final")
    assert (info["model"], info["modality"]) == (AUTO_MODEL, "mr_abdomen")
    expected: dict[str, Any] = {"ct_abdomen": {}, "mr_abdomen": {"case": values}, "spots": {}}
    assert learned_from(app, tmp_path) == expected
    assert app.active_learning.models.chosen({}, app.datastore()) == "mr_abdomen"


def test_values_without_names_are_those_of_the_model(
    client: TestClient, app: EspMedSamApp, submit: Callable[..., None], tmp_path: Path
) -> None:
    segment(client, "case")
    submit(drawn("liver", "spleen"), label_info=[])
    assert learned_from(app, tmp_path)["mr_abdomen"] == {"case": [0, 2, 3]}


def test_names_that_only_one_modality_has_count_for_more(
    client: TestClient, app: EspMedSamApp, submit: Callable[..., None]
) -> None:
    """The person at the screen saw what it is."""
    segment(client, "case")
    submit(drawn("spot"))
    assert app.datastore().get_label_info("case", "final")["modality"] == "spots"


def test_what_was_read_holds_after_a_restart_and_for_this_file_only(
    client: TestClient, app: EspMedSamApp, studies: Path
) -> None:
    segment(client, "case")
    image = studies / "case.nii.gz"
    again = type(app)(app.app_dir, app.studies, {})
    assert again._read_of(image) == "mr_abdomen"
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.int16), AFFINE), image)
    assert again._read_of(image) is None


def test_a_prediction_that_is_kept_as_final_trains_its_modality(
    client: TestClient, app: EspMedSamApp, tmp_path: Path
) -> None:
    segment(client, "case", save_label=True, label_tag="final")
    found = learned_from(app, tmp_path)
    assert found["mr_abdomen"] == {"case": [0, 1, 2]}
    assert found["ct_abdomen"] == found["spots"] == {}


def test_without_anything_read_the_label_is_kept_as_it_came(
    app: EspMedSamApp, submit: Callable[..., None]
) -> None:
    submit(drawn("liver"))
    info = app.datastore().get_label_info("case", "final")
    assert "modality" not in info
    assert [entry["name"] for entry in info["label_info"]] == UNION
