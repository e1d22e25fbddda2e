"""DeSAM's tasks: what a request may ask, one encoder for both families, learning from labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monailabel.config import settings
from monailabel.datastore.local import LocalDatastore
from monailabel.utils.others.class_utils import get_class_of_subclass_from_file
from support.discs import DISC, draw_discs

from esp_medsam_app.data.reading import read_image
from esp_medsam_app.errors import InputError
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.conf import desam_model_name, model_name
from esp_medsam_app.server.desam_task import AddedDeSamTask, DeSamInferTask, SharedDeSam
from esp_medsam_app.server.desam_train_task import DeSamTrainTask
from esp_medsam_app.server.launch import app_folder
from esp_medsam_app.server.local_datastore import SafeDatastore
from esp_medsam_app.server.scored_models import ScoredModels
from esp_medsam_app.training.desam_starting import new_desam
from esp_medsam_app.weights import desam_bundle
from esp_medsam_app.weights.desam_bundle import DeSamBundle, load_desam, save_desam
from esp_medsam_app.weights.desam_encoders import EncoderFacts, encoder_facts
from esp_medsam_app.weights.desam_prompts import MaskRules
from esp_medsam_app.weights.versions import VersionStore

TILE = 64
RULES = MaskRules(points_per_side=2, iou_threshold=-1.0, smallest_region=0)
QUICK = {"max_epochs": 2, "views": 8, "train_batch_size": 4, "tracking": "None"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> DeSamBundle:
    """An untrained bundle of one modality, of small images."""

    def small(name: str) -> EncoderFacts:
        return encoder_facts(name)._replace(tile=TILE)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(desam_bundle, "encoder_facts", small)
        folder = tmp_path_factory.mktemp("desam")
        network = new_desam("lite_medsam", [DISC])
        save_desam(folder, network, [DISC], name="s", encoder="lite_medsam", rules=RULES)
    return load_desam(folder)


@pytest.fixture(scope="module")
def segmenters(bundle: DeSamBundle) -> SharedDeSam:
    return SharedDeSam(bundle, device="cpu")


def test_precision_is_that_of_the_server(bundle: DeSamBundle) -> None:
    for name, wanted in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        assert SharedDeSam(bundle, device="cpu", precision=name).get().dtype is wanted


@pytest.fixture
def picture(tmp_path: Path) -> str:
    return str(draw_discs(tmp_path / "drawn", 1) / "images" / "case0.png")


def test_a_request_says_how_it_is_prompted(segmenters: SharedDeSam, picture: str) -> None:
    task = DeSamInferTask(DISC, segmenters)
    assert task.info()["config"]["prompt"] == ["whole_box", "grid_points"]
    image = read_image(picture)
    for prompt in ("whole_box", "grid_points"):
        file, answer = task({"image": picture, "prompt": prompt})
        expected = segmenters.get().prompted(prompt).segment(image, "disc")
        assert np.array_equal(read_image(file).voxels, expected)
        assert answer["label_names"] == {"disc": 1}
        assert answer["version"] == {"modality": "disc", "number": 0}
    # all points are left out: nothing is found
    file, _ = task({"image": picture, "prompt": "grid_points", "iou_threshold": 1.0})
    assert not read_image(file).voxels.any()


@pytest.mark.parametrize(
    "wrong", [{"prompt": "click"}, {"points_per_side": 0}, {"iou_threshold": "high"}]
)
def test_options_of_no_use_are_told(
    segmenters: SharedDeSam, picture: str, wrong: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        DeSamInferTask(DISC, segmenters)({"image": picture, **wrong})


def test_active_learning_asks_no_desam(segmenters: SharedDeSam) -> None:
    assert ScoredModels({"desam_disc": DeSamInferTask(DISC, segmenters)}).modalities == {}


@pytest.fixture
def datastore(tmp_path: Path) -> LocalDatastore:
    """Five labelled pictures of a bright disc, drafted by either family, and one without."""
    drawn = draw_discs(tmp_path / "labelled", 6)
    datastore = SafeDatastore(str(drawn / "images"), extensions=["*.png"])
    for number in range(5):
        name = (model_name if number % 2 else desam_model_name)("disc")
        info = {"label_info": [{"name": "disc", "idx": 1}], "model": name}
        label = drawn / "labels" / f"case{number}.png"
        datastore.save_label(f"case{number}", str(label), "final", info)
    return datastore


@pytest.fixture
def store(bundle: DeSamBundle, tmp_path: Path) -> VersionStore:
    return VersionStore(tmp_path / "versions", bundle)


def test_training_makes_a_version_that_serves_when_it_is_better(
    store: VersionStore, bundle: DeSamBundle, datastore: LocalDatastore, tmp_path: Path
) -> None:
    task = DeSamTrainTask(
        DISC,
        store,
        tmp_path / "training",
        [model_name("disc")],
        device="cpu",
        tracking=False,
    )
    options = {**QUICK, "max_epochs": 6, "views": 16, "learning_rate": 4e-3}
    stats = task(options, datastore)
    (version,) = store.versions("disc")[1:]
    assert stats["version"] == version.number == 1
    assert len(version.cases.train) + len(version.cases.validation) == 5
    assert version.training["recipe"]["prompts"] == ["whole_box", "grid_points"]
    assert stats["promotion"]["published"], stats["promotion"]
    shared = SharedDeSam(bundle, versions=store, device="cpu")
    image = read_image(datastore.get_image_uri("case5"))
    found = shared.get().segment(image, "disc")
    assert (found > 0).mean() > 0.02
    assert shared.get().version("disc") == 1


def test_a_modality_without_weights_waits_for_its_training(
    bundle: DeSamBundle, tmp_path: Path, picture: str
) -> None:
    added = Modality(name="new", title="New", description="", dimension=2, labels={"thing": 1})
    store = VersionStore(tmp_path / "versions", bundle, {"new": added})
    task = AddedDeSamTask(added, SharedDeSam(bundle, versions=store, device="cpu"))
    assert "Not trained yet" in task.info()["description"]
    with pytest.raises(InputError, match="desam_new is not trained yet"):
        task({"image": picture})


@pytest.fixture
def make_my_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EspMedSamApp]:
    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    my_app = get_class_of_subclass_from_file("main", str(app_folder() / "main.py"), "MONAILabelApp")
    return lambda **conf: my_app(str(tmp_path / "app"), str(tmp_path / "studies"), conf)


def test_the_app_serves_both_families_on_one_encoder(
    make_my_app: Callable[..., EspMedSamApp], bundle: DeSamBundle
) -> None:
    app = make_my_app(models="dermoscopy,desam_disc", desam=str(bundle.path), device="cpu")
    assert set(app._infers) == {"esp_medsam_dermoscopy", "desam_disc"}
    assert set(app._trainers) == {"esp_medsam_dermoscopy", "desam_disc"}
    ours, other = (app._infers[name].segmenters for name in app._infers)
    desam, esp = (other, ours) if isinstance(other, SharedDeSam) else (ours, other)
    assert desam.get().shares_encoder_with(esp.get())
    assert desam.get() is desam.get()


def test_a_model_that_is_named_may_be_trained_from_nothing(
    make_my_app: Callable[..., EspMedSamApp],
) -> None:
    app = make_my_app(models="ct_liver,desam_xray_chest", device="cpu")
    assert isinstance(app._infers["desam_xray_chest"], AddedDeSamTask)
    assert "desam_xray_chest" in app._trainers
