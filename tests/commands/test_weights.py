"""`weights`: what a bundle says about itself."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from support.version_stores import NEW, ONE, add_versions, changed, small_bundle

from esp_medsam_app import cli
from esp_medsam_app.weights import load_bundle
from esp_medsam_app.weights.bundle import (
    Bundle,
    BundleDescription,
    load_any_bundle,
    save_description,
)
from esp_medsam_app.weights.model_card import render_card
from esp_medsam_app.weights.profiles import PROFILES, profile_path
from esp_medsam_app.weights.version_files import Cases, Dice
from esp_medsam_app.weights.versions import VersionStore, open_versions


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
        "limit": 7,
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
    assert "esp-medsam evaluate --data chest/test --leave-out twin --limit 7 --baselines" in card
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


@pytest.mark.parametrize("profile", PROFILES)
def test_bundles_of_the_package_are_whole(profile: str) -> None:
    """Cards are not edited by hand: their figures are those of bundle.json."""
    starter = load_any_bundle(profile_path(profile))
    starter.verify()
    assert all(starter.description.scores[name]["test"] for name in starter.modalities)
    assert (starter.path / "README.md").read_text(encoding="utf-8") == render_card(starter)


@pytest.mark.parametrize("profile", PROFILES)
def test_bundles_of_the_package_name_the_licences_of_their_data(profile: str) -> None:
    description: BundleDescription = load_any_bundle(profile_path(profile)).description
    for modality in description.modalities:
        runs = [run["data"].get(modality.name) for run in description.training["runs"]]
        assert any(runs)
        for source in (source for data in runs if data for source in data["sources"]):
            assert source["folder"].endswith("/train")
            assert source["licence"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_bundle(tmp_path_factory.mktemp("small"))


@pytest.fixture
def store(small: Bundle, tmp_path: Path) -> VersionStore:
    """Of `one`: 1 serves, 2 was kept back. Of `new`: 1 does not serve."""
    store = open_versions(tmp_path / "versions", small)
    network = changed(small.load_network(["one"]), ONE, 1)
    dice = Dice(before={"c": 0.5, "[d]": 0.7}, after={"c": 0.75, "[d]": 0.8})
    cases = Cases(train=("a", "b", "b2"), validation=("c", "[d]"))
    store.path.parent.mkdir()
    store.add(network, ONE, state="published", parent=0, reason="better", cases=cases, dice=dice)
    store.add(network, ONE, state="kept_back", parent=None, reason="no rise")
    add_versions(store, NEW, 1)
    store.publish("one", 1)
    return store


@pytest.fixture
def options(store: VersionStore) -> tuple[str | Path, ...]:
    return ("--versions", store.path.parent, "--bundle", store.base.path)


def rows(text: str) -> list[list[str]]:
    """The cells of a table that rich has drawn."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in text.splitlines()
        if line.startswith("│")
    ]


def test_versions_are_listed(
    options: tuple[str | Path, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert run("weights", "list", *options) == 0
    found = [[*row[:2], *row[3:]] for row in rows(capsys.readouterr().out)]
    assert found == [
        ["new", "1", "published", "0 + 0", "-", ""],
        ["new", "-", "not trained", "", "", ""],
        ["one", "0", "bundle", "-", "-", ""],
        ["one", "1", "published", "3 + 2", "0.600 to 0.775", "yes"],
        ["one", "2", "kept back", "0 + 0", "-", ""],
        ["two", "0", "bundle", "-", "-", "yes"],
    ]


def test_versions_are_listed_for_machines(
    options: tuple[str | Path, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("weights", "list", *options, "--modality", "one", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["modality"], found["serving"]) == ("one", 1)
    assert [version["number"] for version in found["versions"]] == [0, 1, 2]
    assert found["versions"][1]["dice"]["before"] == {"c": 0.5, "[d]": 0.7}


def test_a_version_is_shown(
    options: tuple[str | Path, ...],
    store: VersionStore,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert run("weights", "show", *options, "--modality", "one") == 0
    shown = dict(rows(capsys.readouterr().out))
    assert shown["reason"] == "better"
    assert shown["trained from"] == "0"
    assert shown["trained on"] == "a, b, b2"
    assert shown["c"] == "0.500 to 0.750"
    assert shown["[d]"] == "0.700 to 0.800"
    assert shown["SHA-256"] == store.get("one", 1).sha256
    assert run("weights", "show", *options, "--modality", "one", "--number", 2, "--json") == 0
    version = json.loads(capsys.readouterr().out)
    assert (version["state"], version["reason"]) == ("kept_back", "no rise")


def test_a_version_is_restored(
    options: tuple[str | Path, ...], store: VersionStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("weights", "restore", *options, "--modality", "one", "--number", 0) == 0
    assert "one: version 0 serves, 1 did" in capsys.readouterr().out
    assert store.serving()["one"] == 0
    assert store.history("one")[-1].reason == "restored on the command line"


def test_a_version_that_was_kept_back_is_asked_about(
    options: tuple[str | Path, ...],
    store: VersionStore,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    restore = ("weights", "restore", *options, "--modality", "one", "--number", 2)
    # a script, which nobody can ask
    assert run(*restore) == 2
    assert "was kept back: no rise. --yes" in capsys.readouterr().err
    for answer, code, serving in (("n\n", 1, 1), ("y\n", 0, 2)):
        typed = io.StringIO(answer)
        typed.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr("sys.stdin", typed)
        assert run(*restore) == code
        assert "was kept back: no rise" in capsys.readouterr().out
        assert store.serving()["one"] == serving
    store.restore("one", 1)
    assert run(*restore, "--yes") == 0
    assert store.serving()["one"] == 2


def test_restoring_is_audited(
    store: VersionStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the server of these versions has its audit."""
    versions = tmp_path / "app" / "model" / "versions"
    versions.parent.mkdir(parents=True)
    store.path.parent.rename(versions)
    one = ("--versions", versions, "--bundle", store.base.path, "--modality", "one")
    assert run("weights", "restore", *one, "--number", 0) == 0
    (line,) = (tmp_path / "app" / "logs" / "audit.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert (told["action"], told["modality"]) == ("model.restore", "one")
    assert (told["version"], told["over"]) == (0, 1)
    assert told["user"]
    assert "audit.jsonl" in capsys.readouterr().out


def test_a_folder_without_versions_says_so(
    small: Bundle, store: VersionStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "app" / "model" / "versions").mkdir(parents=True)
    for folder, told in (
        (tmp_path / "app" / "model" / "versions", "there are no versions here"),
        (tmp_path / "app", "model/versions"),
    ):
        assert run("weights", "list", "--versions", folder, "--bundle", small.path) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert told in said
    # of another bundle's
    assert run("weights", "list", "--versions", store.path.parent) == 0
    assert "are of other bundles" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--modality", "knee"], "no modality 'knee'. Available: new, one, two"),
        (["show", "--modality", "knee"], "no modality 'knee'"),
        (["show"], "--modality is needed"),
        (["show", "--modality", "one", "--number", "9"], "Available: 0, 1, 2"),
        (["restore", "--modality", "one", "--number", "9"], "Available: 0, 1, 2"),
        (["restore", "--modality", "one", "--number", "1"], "damaged"),
    ],
)
def test_versions_that_there_are_not(
    options: tuple[str | Path, ...],
    store: VersionStore,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (store.path / "one" / "1" / "weights.safetensors").write_bytes(b"x")
    assert run("weights", *arguments, *options) == 2
    assert message in capsys.readouterr().err


def test_weights_of_two_trainings_are_not_mixed(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("weights", "mix", bundle.path, bundle.path, "-o", tmp_path / "mixed") == 2
    assert "was not trained further" in capsys.readouterr().err
    assert not (tmp_path / "mixed").exists()


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("weights", "list", "--versions", tmp_path / "nowhere") == 2
    assert "no such folder" in capsys.readouterr().err
    assert run("weights", "show", "--number", 3) == 2
    assert "--versions" in capsys.readouterr().err
