"""Bundles: written, read back, and refused when something is wrong with them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from esp_medsam_app.errors import UnknownNameError, WeightsError
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.training.starting import new_network
from esp_medsam_app.weights import Bundle, load_bundle, save_bundle
from esp_medsam_app.weights.backbones import LITE_MEDSAM
from esp_medsam_app.weights.bundle import DECODER, controller_file
from esp_medsam_app.weights.merging import mix_bundles

ONE = Modality(name="one", title="One", description="", dimension=2, labels={"a": 1})
TWO = Modality(name="two", title="Two", description="", dimension=3, labels={"b": 1, "c": 2})
IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def network() -> EspMedSam:
    torch.manual_seed(5)
    network = new_network(LITE_MEDSAM, [ONE, TWO]).eval().requires_grad_(False)
    for parameter in network.controllers.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.01)
    return network


def saved(
    path: Path,
    network: EspMedSam,
    modalities: Sequence[Modality] = (ONE, TWO),
    *,
    training: dict[str, Any] | None = None,
    told: dict[str, Any] | None = None,
) -> Bundle:
    return save_bundle(
        path,
        network,
        modalities,
        name="test",
        backbone=LITE_MEDSAM,
        training=training or {},
        told=told,
    )


@pytest.fixture
def bundle(network: EspMedSam, tmp_path: Path) -> Bundle:
    return saved(tmp_path / "bundle", network, training={"seed": 5})


def test_round_trip(network: EspMedSam, bundle: Bundle) -> None:
    """What is read back segments as what was written, within float16."""
    again = load_bundle(bundle.path)
    again.verify()
    assert again.modalities == {"one": ONE, "two": TWO}
    assert again.description.training == {"seed": 5}
    loaded = again.load_network()
    for name in ("one", "two"):
        expected = network(IMAGE, name).mask_logits
        found = loaded(IMAGE, name).mask_logits
        assert (found - expected).norm() / expected.norm() < 0.01


def test_what_was_said_of_modalities_that_learn_anew_is_left_out(
    network: EspMedSam, tmp_path: Path
) -> None:
    told = {
        "presence": {"one": 0.5, "two": 0.25},
        "precision": {"one": "float32"},
        "sizes": {"one": {"balanced": 160}, "two": {"fast": 96}},
        "scores": {"one": {"val": {}}},
    }
    bundle = saved(tmp_path / "told", network, told=told)
    again = load_bundle(bundle.path)
    assert again.presence("one") == 0.5
    assert again.needs_float32("one")
    assert not again.needs_float32("two")
    assert again.description.told_but_of([]) == told
    kept = again.description.told_but_of(["one"])
    sizes = {"two": {"fast": 96}}
    assert kept == {"presence": {"two": 0.25}, "precision": {}, "sizes": sizes, "scores": {}}


def test_weights_between_two_bundles(network: EspMedSam, bundle: Bundle, tmp_path: Path) -> None:
    further = copy.deepcopy(network)
    for parameter in further.controllers["two"].parameters():
        parameter.add_(torch.randn_like(parameter) * 0.01)
    told = {"presence": {"one": 0.5, "two": 0.25}}
    training = {"runs": [{"data": {"two": {}}}]}
    after = saved(tmp_path / "after", further, training=training, told=told)
    mixed = mix_bundles(bundle, after, tmp_path / "mixed", share=0.25)
    again = load_bundle(mixed.path)
    again.verify()
    assert again.description.training["runs"] == [{"data": {"two": {}}, "share": 0.25}]
    assert again.description.presence == {"one": 0.5}
    file = controller_file("one")
    assert again.description.files[file] == bundle.description.files[file]
    states = [b.load_network().controllers["two"].state_dict() for b in (bundle, after, again)]
    for name, first in states[0].items():
        wanted = first.lerp(states[1][name], 0.25)
        # as rounded as both were
        assert (states[2][name] - wanted).norm() <= 0.01 * wanted.norm()
    more = TWO.model_copy(update={"labels": {"b": 1}})
    fewer = saved(tmp_path / "fewer", new_network(LITE_MEDSAM, [ONE, more]), [ONE, more])
    for other in (bundle, load_bundle(), fewer):
        with pytest.raises(WeightsError):
            mix_bundles(bundle, other, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    with pytest.raises(WeightsError, match="into itself"):
        mix_bundles(bundle, after, after.path)


def test_some_modalities_only(bundle: Bundle) -> None:
    assert bundle.load_network(["two"]).modalities == ["two"]


def test_unknown_modality(bundle: Bundle) -> None:
    with pytest.raises(UnknownNameError, match="Available: one, two"):
        bundle.load_network(["three"])


@pytest.mark.parametrize("name", [DECODER, controller_file("two")])
def test_damaged_file(bundle: Bundle, name: str) -> None:
    file = bundle.path / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(WeightsError, match="damaged or was exchanged"):
        bundle.verify()
    with pytest.raises(WeightsError, match=file.name):
        bundle.load_network()


def test_missing_file(bundle: Bundle) -> None:
    (bundle.path / controller_file("one")).unlink()
    with pytest.raises(WeightsError, match=r"one\.safetensors.*cannot be read"):
        bundle.verify()
    assert bundle.load_network(["two"]).modalities == ["two"]


def test_file_of_another_network(bundle: Bundle) -> None:
    """A file whose digest is right but which belongs to another modality does not fit."""
    description = json.loads((bundle.path / "bundle.json").read_text())
    files = description["files"]
    files[controller_file("one")] = files[controller_file("two")]
    (bundle.path / "bundle.json").write_text(json.dumps(description))
    (bundle.path / controller_file("one")).write_bytes(
        (bundle.path / controller_file("two")).read_bytes()
    )
    with pytest.raises(WeightsError, match="do not fit"):
        load_bundle(bundle.path).load_network()


def test_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a bundle"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 3}, "newer"),
        ({"files": None}, "files"),
        ({"backbone": {"name": "lite_medsam"}}, r"backbone\.sha256"),
    ],
)
def test_description_that_cannot_be_used(
    bundle: Bundle, change: dict[str, object], message: str
) -> None:
    file = bundle.path / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(WeightsError, match=message):
        load_bundle(bundle.path)


def test_description_that_is_no_json(bundle: Bundle) -> None:
    (bundle.path / "bundle.json").write_text("{")
    with pytest.raises(WeightsError, match="not JSON"):
        load_bundle(bundle.path)


def test_starter_bundle_is_whole() -> None:
    bundle = load_bundle()
    bundle.verify()
    assert {"microscopy_nuclei", "fundus_vessels"} <= set(bundle.modalities)
    assert bundle.load_network().modalities == list(bundle.modalities)
