"""Bundles of DeSAM, the authors' checkpoints, and versions of a modality."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from esp_medsam_app.errors import InputError, UnknownNameError, WeightsError
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.inference.desam_segmenter import DeSamSegmenter
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks.desam import DeSam, DeSamDecoder
from esp_medsam_app.networks.features import InnerMap
from esp_medsam_app.training.desam_starting import add_fresh_decoder, new_desam
from esp_medsam_app.weights import load_bundle
from esp_medsam_app.weights.bundle import load_any_bundle
from esp_medsam_app.weights.desam_bundle import (
    PROMPT_ENCODER,
    DeSamBundle,
    decoder_file,
    empty_desam,
    load_desam,
    save_desam,
)
from esp_medsam_app.weights.desam_prompts import PROMPT_MODES, MaskRules, PromptMode
from esp_medsam_app.weights.merging import merge_bundles, mix_bundles
from esp_medsam_app.weights.official_desam import load_official_desam, official_bundle
from esp_medsam_app.weights.versions import VersionStore

ONE = Modality(name="one", title="One", description="", dimension=2, labels={"a": 1})
TWO = Modality(name="two", title="Two", description="", dimension=3, labels={"b": 1, "c": 2})
NEW = Modality(name="new", title="New", description="", dimension=2, labels={"d": 1})
IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
ENCODER = "lite_medsam"


@pytest.fixture(scope="module")
def network() -> DeSam:
    return new_desam(ENCODER, [ONE, TWO], seed=5).requires_grad_(False)


@pytest.fixture
def bundle(network: DeSam, tmp_path: Path) -> DeSamBundle:
    rules = MaskRules(points_per_side=5)
    return save_desam(
        tmp_path / "bundle",
        network,
        [ONE, TWO],
        name="test",
        encoder=ENCODER,
        rules=rules,
        told={"smallest_regions": {"two": 30}},
    )


def masks(network: DeSam, modality: str) -> torch.Tensor:
    return network(network.encode(IMAGE), modality, network.whole_box()).mask_logits


def test_round_trip(network: DeSam, bundle: DeSamBundle) -> None:
    """What is read back draws what was written, within float16, and is known for what it is."""
    again = load_any_bundle(bundle.path)
    assert isinstance(again, DeSamBundle)
    again.verify()
    assert again.modalities == {"one": ONE, "two": TWO}
    assert again.description.rules.points_per_side == 5
    # a modality may have a limit of its own; another one has the rules', known here or not
    each = [again.rules(name) for name in ("one", "two", "new")]
    assert [one.smallest_region for one in each] == [1000, 30, 1000]
    assert {one.points_per_side for one in each} == {5}
    loaded = again.load_network()
    for name in ("one", "two"):
        expected, found = masks(network, name), masks(loaded, name)
        assert (found - expected).norm() / expected.norm() < 0.02
    sizes = [(bundle.path / decoder_file(name)).stat().st_size for name in ("one", "two")]
    assert max(sizes) < 2.1 * sum(p.numel() for p in network.decoder("two").parameters())


def bundle_of_new(network: DeSam, path: Path, rules: MaskRules) -> DeSamBundle:
    """A bundle of `NEW` alone, on what the network shares."""
    other = network.sharing()
    add_fresh_decoder(other, ENCODER, NEW, seed=1)
    return save_desam(path, other, [NEW], name="b", encoder=ENCODER, rules=rules)


def test_bundles_of_single_modalities_are_merged(
    network: DeSam, bundle: DeSamBundle, tmp_path: Path
) -> None:
    rules = MaskRules(points_per_side=5)
    other = bundle_of_new(network, tmp_path / "b", rules)
    merged = merge_bundles([other, bundle], tmp_path / "merged", name="all")
    again = load_desam(merged.path)
    again.verify()
    assert list(again.modalities) == ["new", "one", "two"]
    assert (again.description.name, again.description.rules) == ("all", rules)
    assert again.description.smallest_regions == {"two": 30}
    loaded = again.load_network()
    assert torch.equal(masks(loaded, "new"), masks(other.load_network(), "new"))
    assert torch.equal(masks(loaded, "two"), masks(bundle.load_network(), "two"))


def test_a_decoder_between_two(network: DeSam, bundle: DeSamBundle, tmp_path: Path) -> None:
    other = network.sharing()
    add_fresh_decoder(other, ENCODER, TWO, seed=1)
    rules = MaskRules(points_per_side=5)
    told = {"smallest_regions": {"two": 40}, "scores": {"two": {}}}
    after = save_desam(
        tmp_path / "b", other, [ONE, TWO], name="b", encoder=ENCODER, rules=rules, told=told
    )
    mixed = load_desam(mix_bundles(bundle, after, tmp_path / "mixed").path)
    mixed.verify()
    assert mixed.description.smallest_regions == {"two": 40}
    assert mixed.description.scores == {}
    loaded = [b.load_network().decoder("two").state_dict() for b in (bundle, after, mixed)]
    for name, first in loaded[0].items():
        wanted = (first + loaded[1][name]) / 2
        assert (loaded[2][name] - wanted).norm() <= 0.01 * wanted.norm()


def test_other_rules_or_another_family_are_not_merged(
    network: DeSam, bundle: DeSamBundle, tmp_path: Path
) -> None:
    strict = MaskRules(points_per_side=5, iou_threshold=0.9)
    other = bundle_of_new(network, tmp_path / "b", strict)
    with pytest.raises(WeightsError, match="its shared part is another"):
        merge_bundles([bundle, other], tmp_path / "merged", name="all")
    with pytest.raises(WeightsError, match="its family is another"):
        merge_bundles([load_bundle(), bundle], tmp_path / "merged", name="all")


def test_fresh_decoders_start_from_the_released_transformer(network: DeSam) -> None:
    first, second = network.decoder("one").prim, network.decoder("two").prim
    assert torch.equal(first.iou_token.weight, second.iou_token.weight)
    last = second.iou_prediction_head.layers[-1].weight
    assert torch.equal(last[0], last[1])
    assert torch.equal(last[0], first.iou_prediction_head.layers[-1].weight[0])


@pytest.mark.parametrize("file", [PROMPT_ENCODER, decoder_file("two")])
def test_damage_is_told(bundle: DeSamBundle, file: str) -> None:
    path = bundle.path / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="damaged"):
        load_desam(bundle.path).load_network()


def test_the_other_familys_bundle_is_refused() -> None:
    with pytest.raises(WeightsError, match="not of DeSAM"):
        load_desam(load_bundle().path)


def test_the_other_family_refuses_this_one(bundle: DeSamBundle) -> None:
    with pytest.raises(WeightsError, match="of DeSAM"):
        load_bundle(bundle.path)


def test_versions_of_a_modality_serve(bundle: DeSamBundle, network: DeSam, tmp_path: Path) -> None:
    store = VersionStore(tmp_path / "versions", bundle, {"new": NEW})
    trained = network.sharing()
    for modality in (ONE, NEW):
        add_fresh_decoder(trained, ENCODER, modality, seed=9)
        version = store.add(trained, modality, state="published", parent=None)
        store.publish(modality.name, version.number)
    before = DeSamSegmenter(bundle, device="cpu")
    serving = store.bundle()
    assert isinstance(serving, DeSamBundle)
    after = before.with_bundle(serving)
    assert after._network.encoder is before._network.encoder
    assert after._network.decoder("two") is before._network.decoder("two")
    assert (after.version("one"), after.version("two"), after.version("new")) == (1, 0, 1)
    for name in ("one", "new"):
        expected, found = masks(trained, name), masks(after._network, name)
        assert (found - expected).norm() / expected.norm() < 0.02
    assert before._network.modalities == ["one", "two"]


def test_a_network_of_other_labels_is_no_version(bundle: DeSamBundle, network: DeSam) -> None:
    store = VersionStore(bundle.path / "versions", bundle)
    wrong = network.sharing()
    wrong.add_modality("two", 1)
    with pytest.raises(WeightsError, match="1 masks for 2 labels"):
        store.add(wrong, TWO, state="published", parent=None)


def test_an_empty_bundle_is_something_to_train_on(tmp_path: Path) -> None:
    bundle = empty_desam(tmp_path)
    assert load_desam(tmp_path).load_network().modalities == []
    with pytest.raises(UnknownNameError):
        bundle.modality("one")


def test_one_encoder_serves_both_families(bundle: DeSamBundle) -> None:
    ours = Segmenter(load_bundle(), device="cpu")
    desam = DeSamSegmenter(bundle, beside=ours)
    assert desam.shares_encoder_with(ours)
    assert desam.prompted("grid_points").shares_encoder_with(ours)
    assert ours.turn is desam._turn


@pytest.mark.parametrize("mode", PROMPT_MODES)
def test_the_fused_encoder_gives_the_plain_ones_masks(
    bundle: DeSamBundle, mode: PromptMode
) -> None:
    plain, fast = (
        DeSamSegmenter(bundle, device="cpu", precision="float32", mode=mode, fast=fast)
        for fast in (False, True)
    )
    for name in ("one", "two"):
        wanted, found = (segmenter._run(IMAGE, name) for segmenter in (plain, fast))
        assert (found - wanted).norm() < 1e-4 * wanted.norm()


def test_a_modality_that_needs_float32_gets_it_unless_asked_otherwise(
    bundle: DeSamBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    told = bundle.description.model_copy(update={"precision": {"one": "float32"}})
    by_itself, exact, asked = (
        DeSamSegmenter(replace(bundle, description=told), device="cpu", precision=precision)
        for precision in ("auto", "float32", "bfloat16")
    )
    for name, like, unlike in (("one", exact, asked), ("two", asked, exact)):
        found = by_itself._run(IMAGE, name)
        assert torch.equal(found, like._run(IMAGE, name))
        assert not torch.equal(found, unlike._run(IMAGE, name))


def test_a_prompt_that_was_not_trained_is_refused(network: DeSam, tmp_path: Path) -> None:
    bundle = save_desam(
        tmp_path, network, [ONE], name="", encoder=ENCODER, prompts=("grid_points",)
    )
    segmenter = DeSamSegmenter(bundle, device="cpu")
    assert segmenter.mode == "grid_points"
    with pytest.raises(InputError, match="grid_points"):
        segmenter.prompted("whole_box")


def authors_checkpoint(path: Path, width: int) -> Path:
    """A file with the names of the authors', from a decoder of ours."""
    inner = InnerMap(width)
    decoder = DeSamDecoder((inner, inner, inner))
    state = {}
    for name, tensor in decoder.state_dict().items():
        name = name.removeprefix("prim.").replace("pdmm.seg_output.", "pdmm.seg_outputs.1.")
        if name.startswith("iou_prediction_head.layers.2."):
            tensor = tensor.repeat(4, *[1] * (tensor.ndim - 1))
        state[f"mask_decoder.{name.replace('pdmm.', 'pimm.')}"] = tensor
    state["mask_decoder.pimm.seg_outputs.0.weight"] = torch.zeros(1, 128, 1, 1)
    state["mask_decoder.output_upscaling.0.bias"] = torch.zeros(64)
    state["image_encoder.pos_embed"] = torch.zeros(1)
    prompt_encoder = DeSam(torch.nn.Linear(1, 1)).prompt_encoder.state_dict()
    state |= {f"prompt_encoder.{name}": tensor for name, tensor in prompt_encoder.items()}
    torch.save(state, path)
    return path


def test_the_authors_checkpoints_become_bundles(tmp_path: Path) -> None:
    path = authors_checkpoint(tmp_path / "desam.pth", 1024)
    assert load_official_desam(path).width == 1024
    bundle = official_bundle(path, tmp_path / "bundle", ONE, "grid_points")
    assert bundle.description.backbone.name == "sam_vit_l"
    assert bundle.description.prompts == ("grid_points",)
    with pytest.raises(InputError, match="2 labels"):
        official_bundle(path, tmp_path / "bundle", TWO, None)


def test_another_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="no DeSAM checkpoint"):
        load_official_desam(tmp_path / "a.pth")
