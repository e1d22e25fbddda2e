"""`apps/esp_medsam` as MONAI Label loads it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from monailabel.config import settings
from monailabel.utils.others.class_utils import get_class_of_subclass_from_file
from support.bundles import bundle_of
from support.fake_server import ORGANS, SPOTS

from esp_medsam_app.errors import WeightsError
from esp_medsam_app.server import desam_bundles
from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.launch import app_folder

BUNDLE = bundle_of(SPOTS, ORGANS)


@pytest.fixture
def my_app() -> type[EspMedSamApp]:
    return get_class_of_subclass_from_file("main", str(app_folder() / "main.py"), "MONAILabelApp")


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    # whether or not the package has weights of DeSAM
    monkeypatch.setattr(desam_bundles, "starter_desam_path", lambda: tmp_path / "none")


def family(my_app: type[EspMedSamApp]) -> Any:
    return sys.modules[my_app.families["esp_medsam"].__module__]


def test_monai_label_finds_my_app(my_app: type[EspMedSamApp]) -> None:
    assert my_app.__name__ == "MyApp"
    assert issubclass(my_app, EspMedSamApp)
    assert list(my_app.families) == ["esp_medsam", "desam"]


@pytest.mark.usefixtures("quiet")
def test_options_of_the_passes_reach_the_segmenter(
    my_app: type[EspMedSamApp], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(family(my_app), "load_bundle", lambda path: BUNDLE)
    monkeypatch.setattr(
        "esp_medsam_app.server.shared_segmenter.Segmenter",
        lambda *a, **b: made.append(b) or object(),
    )
    conf = {
        "preload": "true", "device": "cpu", "batch_size": "2", "precision": "float32",
        "fast": "false", "embeddings_mb": "3", "runtime": "openvino", "quality": "best",
    }  # fmt: skip
    my_app(str(tmp_path / "app"), str(tmp_path / "studies"), conf)
    embeddings = made[0].pop("embeddings")
    assert embeddings.limit == 3_000_000
    assert made[0] == {
        "device": "cpu", "batch_size": 2, "precision": "float32", "fast": False,
        "runtime": "openvino", "wait_for_runtime": False, "quality": "best",
    }  # fmt: skip


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("preload", "loads"), [("true", 1), ("false", 0)])
def test_all_models_share_one_segmenter(
    my_app: type[EspMedSamApp], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    preload: str, loads: int,
) -> None:  # fmt: skip
    made: list[Any] = []
    monkeypatch.setattr(family(my_app), "load_bundle", lambda path: BUNDLE)
    monkeypatch.setattr(
        "esp_medsam_app.server.shared_segmenter.Segmenter",
        lambda *a, **b: made.append(b) or object(),
    )
    app = my_app(str(tmp_path / "app"), str(tmp_path / "studies"), {"preload": preload})
    assert list(app._infers) == ["esp_medsam", "esp_medsam_ct_organs", "esp_medsam_spots"]
    assert len({id(task.segmenters) for task in app._infers.values()}) == 1
    assert len(made) == loads


@pytest.mark.usefixtures("quiet")
def test_no_weights_is_told(my_app: type[EspMedSamApp], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere"):
        my_app(str(tmp_path), str(tmp_path / "studies"), {"bundle": str(tmp_path / "nowhere")})
