"""The app's `--conf` options."""

from __future__ import annotations

import logging

import pytest

from esp_medsam_app.errors import InputError, UnknownNameError
from esp_medsam_app.server.conf import AppConf, select_models

MODELS = ["esp_medsam_ct_liver", "esp_medsam_spots", "esp_medsam_xray_chest"]


def test_all_models_are_served_by_default() -> None:
    assert select_models(AppConf.parse(None).models, MODELS) == MODELS


@pytest.mark.parametrize(
    "wanted",
    [
        "xray_chest,ct_liver",
        "esp_medsam_xray_chest, esp_medsam_ct_liver,",
        "ct_liver,ct_liver,xray_chest",
    ],
)
def test_models_are_named_with_or_without_prefix(wanted: str) -> None:
    assert select_models(wanted, MODELS) == ["esp_medsam_ct_liver", "esp_medsam_xray_chest"]


def test_unknown_models_are_named_with_those_there_are() -> None:
    with pytest.raises(UnknownNameError) as caught:
        select_models("ct_liver,knee,esp_medsam_hip", MODELS)
    text = str(caught.value)
    assert "'knee', 'esp_medsam_hip'" in text
    assert ", ".join(MODELS) in text
    assert "'ct_liver'" not in text


@pytest.mark.parametrize("wanted", ["", " , "])
def test_no_model_at_all_is_refused(wanted: str) -> None:
    with pytest.raises(UnknownNameError, match="esp_medsam_spots"):
        select_models(wanted, MODELS)


def test_profiles_are_known_by_name() -> None:
    assert AppConf.parse({"profile": "compact"}).profile == "compact"
    assert AppConf.parse({"profile": ""}).profile is None
    with pytest.raises(InputError, match="profile tiny"):
        AppConf.parse({"profile": "tiny"})


def test_values_come_as_text() -> None:
    conf = AppConf.parse({"preload": "true", "batch_size": "3", "bundle": "", "log_level": "INFO"})
    assert (conf.preload, conf.batch_size, conf.bundle, conf.log_level) == (True, 3, None, "INFO")


def test_precision_and_path() -> None:
    conf = AppConf.parse(None)
    assert (conf.precision, conf.fast) == ("auto", True)
    conf = AppConf.parse({"precision": "float32", "fast": "false"})
    assert (conf.precision, conf.fast) == ("float32", False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("preload", "perhaps"),
        ("batch_size", "0"),
        ("batch_size", "many"),
        ("log_level", "LOUD"),
        ("precision", "int3"),
        ("fast", "very"),
        ("embeddings_mb", "-1"),
        ("runtime", "tpu"),
        ("quality", "splendid"),
    ],
)
def test_a_bad_value_is_named(key: str, value: str) -> None:
    with pytest.raises(InputError, match=f"--conf {key} {value}"):
        AppConf.parse({key: value})


def test_unknown_options_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        AppConf.parse({"model": "ct_liver"})
    assert "--conf model " in caplog.text
    assert "models" in caplog.text
