"""Descriptions that are nested without end, become gigabytes, or name impossible numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from esp_medsam_app.commands.training_options import recipe_changes
from esp_medsam_app.data.texts import parse_yaml, read_json
from esp_medsam_app.errors import InputError, WeightsError
from esp_medsam_app.modalities.catalogue import find_modality
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.weights.backbones import read_own_backbone
from esp_medsam_app.weights.bundle import load_any_bundle, starter_bundle_path
from esp_medsam_app.weights.profiles import packaged
from esp_medsam_app.weights.version_files import read_version

DEPTH = 100_000
NESTED = "[" * DEPTH + "]" * DEPTH
# each line is ten of the one before
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("text", [NESTED, f'{{"a": {NESTED}}}', LAUGHS, "\xff\xfe"])
def test_yaml_that_cannot_be_read(text: str, tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        find_modality(str(file))
    assert caught.value.path == file
    with pytest.raises(InputError):
        Recipe.read(file)


def test_plain_yaml_is_read() -> None:
    assert parse_yaml("a: [1, {b: c}]") == {"a": [1, {"b": "c"}]}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    shutil.copy(starter_bundle_path() / "bundle.json", folder)
    return folder


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    file = folder / "bundle.json"
    content = json.loads(file.read_text("utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_json_that_is_nested_too_deeply(bundle: Path) -> None:
    for name, read in (("bundle.json", load_any_bundle), ("version.json", read_version)):
        (bundle / name).write_text(f'{{"a": {NESTED}}}', encoding="utf-8")
        with pytest.raises(WeightsError):
            read(bundle)


def test_json_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esp_medsam_app.data.texts._LARGEST", 1 << 10)
    (tmp_path / "a.json").write_text(f'"{"x" * 2000}"', encoding="utf-8")
    with pytest.raises(ValueError, match="larger than"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_size", 1_000_000_000),
        ("input_size", 4096),
        ("input_size", 0),
        ("input_size", -256),
        ("presence", {"ct_liver": float("nan")}),
        ("backbone", {"name": "mine", "sha256": "0" * 64, "stem_stride": 1_000_000}),
    ],
)
def test_impossible_numbers_of_a_bundle(bundle: Path, field: str, value: object) -> None:
    load_any_bundle(bundle)
    with pytest.raises(WeightsError, match=field):
        load_any_bundle(changed(bundle, lambda content: content.update({field: value})))


def test_impossible_numbers_of_desam(tmp_path: Path) -> None:
    shutil.copy(packaged("desam") / "bundle.json", tmp_path)
    load_any_bundle(tmp_path)
    with pytest.raises(WeightsError, match="smallest_regions"):
        load_any_bundle(changed(tmp_path, lambda c: c.update(smallest_regions={"a": -1})))


@pytest.mark.parametrize(("stride", "size"), [("1", "1000000000"), ("7", "256"), ("4", "0")])
def test_impossible_numbers_of_a_backbone(stride: str, size: str, tmp_path: Path) -> None:
    import torch

    file = tmp_path / "b.safetensors"
    said = {"name": "mine", "stem_stride": stride, "input_size": size}
    save_file({"a": torch.zeros(1)}, file, metadata=said)
    with pytest.raises(WeightsError, match="does not say"):
        read_own_backbone(file)


def test_a_value_on_the_command_line() -> None:
    with pytest.raises(InputError, match="--set views"):
        recipe_changes([f"views={NESTED}"], 0)
