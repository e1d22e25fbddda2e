"""`esp-medsam info`: modalities and the licences of their training data."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from esp_medsam_app.cli import main
from esp_medsam_app.weights import load_bundle
from esp_medsam_app.weights.licences import licences


def test_as_a_table_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["info", "--json"])
    assert not stop.value.code
    said = json.loads(capsys.readouterr().out)
    assert set(said["modalities"]) == set(load_bundle().modalities)
    assert said["modalities"]["breast_ultrasound"]["labels"] == ["tumour"]
    for modality in said["modalities"].values():
        assert modality["commercial_use"] in {"yes", "no", "unclear"}
        assert modality["licence_classes"]
    with pytest.raises(SystemExit) as stop:
        main(["info"])
    assert not stop.value.code
    assert "commercial use" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("classes", "allowed"),
    [
        (["permissive"], "yes"),
        (["permissive", "mixed"], "unclear"),
        (["permissive", "unclear"], "unclear"),
        (["permissive", "research only"], "no"),
        (["mixed", "non-commercial"], "no"),
        (["something new"], "unclear"),
        ([None], "unclear"),
        ([], "unclear"),
    ],
)
def test_the_strictest_licence_decides(classes: list[str | None], allowed: str) -> None:
    bundle = load_bundle()
    sources = [{"folder": "x/train"} | ({"licence_class": c} if c else {}) for c in classes]
    data = {"dermoscopy": {"cases": 1, "sources": sources}}
    # the first run trains the decoder too
    training = {"runs": [{"data": {}}, {"data": data}, {"data": data, "shared": True}]}
    changed = replace(
        bundle, description=bundle.description.model_copy(update={"training": training})
    )
    found = licences(changed)["dermoscopy"]
    assert found.commercial_use == allowed
    assert found.shared_commercial_use == allowed
    assert licences(changed)["ct_liver"].commercial_use == "unclear"
