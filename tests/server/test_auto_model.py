"""The model `esp_medsam`: the modality is read from the image, and viewers agree on the labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from support.dicom_series import write_series
from support.fake_server import AFFINE, ORGANS, SPOTS, FakeSegmenters, detail

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.errors import InputError, UnknownNameError
from esp_medsam_app.inference.modality_reader import ModalityReading
from esp_medsam_app.modalities import Intensity, Modality
from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.auto_task import AutoInferTask
from esp_medsam_app.server.conf import AUTO_MODEL, model_names, select_models

# between `liver` and `spleen`, so that both kinds of ids are other ones in the union
ABC = Modality(
    name="abc", title="Letters", description="", dimension=2, labels={"aorta": 1, "lung": 2}
)
UNION = {"aorta": 1, "liver": 2, "lung": 3, "spleen": 4, "spot": 5}
UNSURE = ModalityReading(
    None, 0.5, {"spots": 0.5, "ct_organs": 0.3}, "classifier", "it cannot be told"
)


@dataclass
class Reading(FakeSegmenters):
    """Reads a fixed modality."""

    reading: ModalityReading = field(
        default_factory=lambda: ModalityReading("ct_organs", 0.97, {"ct_organs": 0.97}, "dicom")
    )
    seen: list[MedicalImage] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def get(self, device: str = "auto") -> Reading:
        self.devices.append(device)
        return self

    def read_modality(self, image: MedicalImage) -> ModalityReading:
        self.seen.append(image)
        return self.reading


@pytest.fixture
def segmenters() -> Reading:
    return Reading()


@pytest.fixture
def app(make_app: Callable[..., EspMedSamApp], segmenters: Reading) -> EspMedSamApp:
    return make_app({AUTO_MODEL: AutoInferTask((ORGANS, SPOTS, ABC), segmenters)})


def infer(client: TestClient, output: str, **params: Any) -> Any:
    return client.post(
        f"/infer/{AUTO_MODEL}",
        params={"image": "case", "output": output},
        data={"params": json.dumps(params)},
    )


def voxels_of(response: Any, tmp_path: Path) -> np.ndarray:
    assert response.status_code == 200, response.text
    path = tmp_path / "answer.nii.gz"
    path.write_bytes(response.content)
    return np.asarray(nib.load(path).dataobj)


def answer_of(client: TestClient, **params: Any) -> dict[str, Any]:
    response = infer(client, "json", **params)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def in_union(organs: np.ndarray) -> np.ndarray:
    return np.select([organs == 100, organs == 200], [UNION["liver"], UNION["spleen"]], 0)


def test_info_offers_all_labels_dense_and_by_name(client: TestClient) -> None:
    model = client.get("/info/").json()["models"][AUTO_MODEL]
    assert (model["type"], model["labels"], model["dimension"]) == ("segmentation", UNION, 3)
    assert list(model["labels"]) == sorted(model["labels"])
    for modality in (ORGANS, SPOTS, ABC):
        assert modality.title in model["description"]


def test_ohif_maps_voxels_by_the_ids_of_info(
    client: TestClient, organs: np.ndarray, tmp_path: Path
) -> None:
    """It gets the file alone, so the voxels must have the ids it knows."""
    ids = client.get("/info/").json()["models"][AUTO_MODEL]["labels"]
    voxels = voxels_of(infer(client, "image"), tmp_path)
    assert np.array_equal(voxels == ids["liver"], organs == 100)
    assert np.array_equal(voxels == ids["spleen"], organs == 200)
    assert set(np.unique(voxels)) == {0, ids["liver"], ids["spleen"]}


def test_slicer_takes_names_by_their_place(client: TestClient, organs: np.ndarray) -> None:
    """The i-th name of the answer, sorted by id, gets the voxels of value i (from 1 on)."""
    response = infer(client, "all", result_extension=".nii.gz")
    header, _, rest = response.content.partition(b'name="params"')
    assert header
    answer = json.loads(rest.partition(b"\r\n\r\n")[2].partition(b"\r\n--")[0])
    names = [name for name, _ in sorted(answer["label_names"].items(), key=lambda item: item[1])]
    places = {name: place for place, name in enumerate(names, start=1)}
    assert places == answer["label_names"] == UNION


def test_the_answer_tells_what_was_read(client: TestClient) -> None:
    answer = answer_of(client)
    assert answer["modality"] == "ct_organs"
    assert answer["modality_confidence"] == 0.97
    assert answer["modality_source"] == "dicom"
    assert answer["modality_labels"] == {"liver": 2, "spleen": 4}


def test_label_prompt_counts_in_the_ids_of_info(
    client: TestClient, organs: np.ndarray, tmp_path: Path
) -> None:
    kept = voxels_of(infer(client, "image", label_prompt=["spleen"]), tmp_path)
    assert np.array_equal(kept, np.where(organs == 200, UNION["spleen"], 0))
    assert infer(client, "image", label_prompt=[6]).status_code == 422


def test_it_asks_rather_than_guesses(client: TestClient, segmenters: Reading) -> None:
    segmenters.reading = UNSURE
    response = infer(client, "image")
    assert response.status_code == 422
    assert "image 'case': it cannot be told; likeliest: spots (50%), ct_organs (30%)" in detail(
        response
    )
    assert "esp_medsam_spots" in detail(response)
    assert segmenters.calls == 0


def test_the_saved_label_says_the_same(client: TestClient, studies: Path) -> None:
    infer(client, "image", save_label=True)
    objects = client.get("/datastore/", params={"output": "all"}).json()["objects"]
    assert objects["case"]["labels"]["original"]["info"]["params"]["label_names"] == UNION


def test_tags_of_a_series_that_monai_label_converted(
    segmenters: Reading, tmp_path: Path, temporary: Path
) -> None:
    """From a DICOMweb server come a folder of DICOM files and, beside it, the NIfTI file."""
    voxels = np.full((6, 5, 4), 100, np.int16)
    write_series(tmp_path / "1.2.3", voxels, np.diag([-1.0, -1.0, 3.0, 1.0]), [0, 1, 2, 3])
    for name in ("1.2.3", "alone"):
        nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / f"{name}.nii.gz")
        AutoInferTask((ORGANS, SPOTS), segmenters)({"image": str(tmp_path / f"{name}.nii.gz")})
    assert [image.dicom_modality for image in segmenters.seen] == ["CT", None]


def test_a_ct_that_is_not_in_hounsfield_units(segmenters: Reading, tmp_path: Path) -> None:
    units = ORGANS.model_copy(update={"intensity": Intensity(kind="window", low=-160, high=240)})
    voxels = np.random.default_rng(0).normal(1064, 20, (6, 5, 4)).astype(np.int16)
    path = tmp_path / "case.nii.gz"
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    with pytest.raises(InputError, match="Or run esp_medsam_ct_organs with the option any_image"):
        AutoInferTask((units, SPOTS), segmenters)({"image": str(path)})
    task = AutoInferTask((units, SPOTS), segmenters, check_units=False)
    Path(task({"image": str(path)})[0]).unlink()


def test_the_model_comes_first_and_has_short_names() -> None:
    """Viewers offer the first model unless another one is chosen."""
    names = model_names(["xray_chest", "ct_liver"])
    assert names == ["esp_medsam", "esp_medsam_ct_liver", "esp_medsam_xray_chest"]
    assert select_models("all", names) == names
    assert select_models("auto", names) == select_models("esp_medsam", names) == ["esp_medsam"]
    assert select_models("ct_liver", names) == ["esp_medsam_ct_liver"]
    with pytest.raises(UnknownNameError):
        select_models("esp_medsam_auto_", names)


def test_a_single_modality_needs_no_reading() -> None:
    assert model_names(["ct_liver"]) == ["esp_medsam_ct_liver"]
