"""`weights`: what a bundle says about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from esp_medsam_app import cli
from esp_medsam_app.weights import load_bundle
from esp_medsam_app.weights.bundle import Bundle, BundleDescription, save_description
from esp_medsam_app.weights.model_card import render_card


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """The starter bundle's description, without scores and weights."""
    starter = load_bundle().description
    made = Bundle(tmp_path, starter.model_copy(update={"scores": {}}))
    save_description(made)
    return made


def report(modality: str, labels: list[str]) -> dict[str, Any]:
    summary = {"mean": 0.875, "std": 0.05, "ci95": [0.85, 0.9], "cases": 7}
    metric = summary | {"per_label": dict.fromkeys(labels, summary)}
    return {
        "modality": modality,
        "cases": 7,
        "dice": metric,
        "iou": metric,
        "hd95": metric | {"unit": "px"},
        "silence": {"slices": 20, "marked": 1, "share": 0.05, "ci95": [0.01, 0.24]},
        "beside": None,
        "data": ["chest/test"],
        "left_out": ["twin"],
        "comparison": {
            "device": "cpu",
            "models": [
                {
                    "model": "U-Net",
                    "prompt": "none",
                    "parameters": 7_150_000,
                    "slices_per_second": 3.0,
                    "report": {},
                    "dice": {"mean": 0.8, "std": 0.1, "ci95": [0.7, 0.9], "cases": 7},
                    "difference": {"mean": -0.075, "std": 0.1, "ci95": [-0.1, -0.05], "cases": 7},
                },
            ],
        },
        "per_case": [],
    }


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def test_card_keeps_scores(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    labels = list(bundle.modalities["xray_chest"].labels)
    file.write_text(json.dumps(report("xray_chest", labels)))
    assert run("weights", "card", "--bundle", tmp_path, "--report", file, "--split", "test") == 0
    scores = load_bundle(tmp_path).description.scores
    assert scores["xray_chest"]["test"]["dice"]["mean"] == 0.875
    card = (tmp_path / "README.md").read_text()
    row = "| xray_chest | test | 7 | 0.875 | 0.050 | 0.850 to 0.900 | 0.875 | 0.9 px |"
    assert row in card
    assert "| xray_chest | test | left_lung | 0.875 |" in card
    assert "esp-medsam evaluate --data chest/test --leave-out twin --baselines" in card
    assert "| xray_chest | test | slices of the volumes | 1 | 20 | 0.050 | 0.010 to 0.240 |" in card
    row = (
        "| xray_chest | test | U-Net | 0.800 | 0.700 to 0.900 | -0.075 | -0.100 to -0.050 | 7.2 M |"
    )
    assert row in card


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not a report"), ("{}", "not a report"), ('{"modality": "ct_spleen"}', "no modality")],
)
def test_files_that_are_no_reports(
    bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
    message: str,
) -> None:
    file = tmp_path / "report.json"
    file.write_text(content)
    assert run("weights", "card", "--bundle", tmp_path, "--report", file) == 2
    assert message in capsys.readouterr().err
    assert load_bundle(tmp_path).description.scores == {}


def test_show_and_verify(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("weights", "show") == 0
    assert "microscopy_nuclei" in capsys.readouterr().out
    assert run("weights", "verify") == 0
    assert "are whole" in capsys.readouterr().out


def test_starter_card_is_what_its_bundle_says() -> None:
    """The card is not edited by hand, and figures in it are those of bundle.json."""
    starter = load_bundle()
    assert (starter.path / "README.md").read_text(encoding="utf-8") == render_card(starter)


def test_starter_names_the_licence_of_its_data() -> None:
    description: BundleDescription = load_bundle().description
    for modality in description.modalities:
        runs = [run["data"].get(modality.name) for run in description.training["runs"]]
        assert any(runs)
        for source in (source for data in runs if data for source in data["sources"]):
            assert source["folder"].endswith("/train")
            assert source["licence"]
