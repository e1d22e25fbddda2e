"""The classifier: fitted on a small problem, calibrated, kept in a bundle; and its views."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.bundles import bundle_of
from torch import Tensor

from esp_medsam_app.data.reading import read_image
from esp_medsam_app.dataset.classifier_features import (
    FeatureStore,
    Views,
    class_images,
    plain_features,
    training_features,
)
from esp_medsam_app.errors import InputError, WeightsError
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks.tiny_vit import TinyViT
from esp_medsam_app.training.classifier import ClassifierRecipe, fit_classifier
from esp_medsam_app.weights.bundle import load_bundle
from esp_medsam_app.weights.classifier_file import (
    CLASSIFIER,
    carry_over,
    keep_scores,
    load_classifier,
    save_classifier,
)
from esp_medsam_app.weights.modality_classifier import ModalityClassifier

RECIPE = ClassifierRecipe(side=64, images=4, views=6, components=40)
CLOUDY = RECIPE.model_copy(update={"components": 60})
STRIPES, SPOTS = (
    Modality(name=name, title="", description="", dimension=2, labels={name: 1})
    for name in ("stripes", "spots")
)


def clouds(count: int, seed: int) -> dict[str, Tensor]:
    """Three classes in 60 dimensions, spread much wider in some directions than they are apart."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.cat([torch.full((30,), 8.0), torch.full((30,), 0.5)])
    middles = torch.zeros(3, 60)
    for index in range(3):
        middles[index, 30 + 10 * index : 40 + 10 * index] = 3
    return {
        name: middles[index] + spread * torch.randn(count, 60, generator=generator)
        for index, name in enumerate("abc")
    }


@pytest.fixture(scope="module")
def fitted() -> ModalityClassifier:
    return fit_classifier(clouds(150, 1), clouds(40, 2), CLOUDY)


def test_it_tells_classes_apart_that_distance_alone_does_not(fitted: ModalityClassifier) -> None:
    new = clouds(50, 3)
    for index, name in enumerate("abc"):
        assert (fitted.probabilities(new[name]).argmax(dim=1) == index).all()
    everything = torch.cat(list(clouds(150, 1).values()))
    plain = torch.cdist(new["a"], torch.stack([m.mean(0) for m in everything.split(150)]))
    assert (plain.argmin(dim=1) == 0).float().mean() < 0.99


def test_probabilities_are_ranked_and_leave_some_to_none(
    fitted: ModalityClassifier,
) -> None:
    ranked = fitted.rank(clouds(1, 4)["b"][0])
    assert next(iter(ranked)) == "b"
    assert list(ranked.values()) == sorted(ranked.values(), reverse=True)
    assert 0.5 < sum(ranked.values()) <= 1


def test_the_threshold_asks_about_few_known_and_most_strange(fitted: ModalityClassifier) -> None:
    threshold = fitted.description.threshold
    known = torch.cat([fitted.probabilities(rows) for rows in clouds(100, 5).values()])
    assert (known.max(dim=1).values < threshold).float().mean() < 0.15
    strange = torch.zeros(50, 60)
    strange[:, 30:] = -6
    strange += torch.randn(50, 60, generator=torch.Generator().manual_seed(6)) * 0.5
    assert (fitted.probabilities(strange).max(dim=1).values < threshold).all()


def test_confidence_is_no_higher_than_the_share_of_right_answers() -> None:
    """Labels of which a fifth are wrong give a mean confidence of about four fifths."""
    validation = clouds(50, 7)
    swapped = {
        name: torch.cat([validation[name][:40], validation[other][40:]])
        for name, other in zip("abc", "bca", strict=True)
    }
    fitted = fit_classifier(clouds(150, 1), swapped, CLOUDY)
    confidence = torch.cat([fitted.probabilities(rows) for rows in swapped.values()]).max(dim=1)
    assert 0.6 < float(confidence.values.mean()) < 0.83


def test_fewer_images_than_features_are_no_problem() -> None:
    few = clouds(4, 8)
    fitted = fit_classifier(few, few, RECIPE)
    assert torch.isfinite(fitted.probabilities(few["a"])).all()


@pytest.fixture
def written(fitted: ModalityClassifier, tmp_path: Path) -> Path:
    bundle = replace(bundle_of(STRIPES, SPOTS), path=tmp_path)
    save_classifier(bundle, fitted, {"images": 3})
    return tmp_path


def test_a_bundle_keeps_it(fitted: ModalityClassifier, written: Path) -> None:
    bundle = load_bundle(written)
    assert bundle.description.modality_classifier is not None
    assert bundle.description.modality_classifier.training == {"images": 3}
    assert CLASSIFIER in bundle.description.files
    again = load_classifier(bundle)
    assert again is not None
    rows = clouds(20, 9)["c"]
    expected = fitted.probabilities(rows)
    assert torch.allclose(again.probabilities(rows), expected, atol=0.02)
    assert load_classifier(bundle_of(STRIPES)) is None


def test_figures_are_kept_beside_it(written: Path) -> None:
    keep_scores(load_bundle(written), "test", {"asked": 0.1})
    described = load_bundle(written).description.modality_classifier
    assert described is not None
    assert described.scores == {"test": {"asked": 0.1}}
    with pytest.raises(WeightsError, match="no classifier"):
        keep_scores(bundle_of(STRIPES), "test", {})


def test_a_bundle_trained_further_keeps_it(written: Path, tmp_path: Path) -> None:
    old = keep_scores(load_bundle(written), "test", {"asked": 0.1})
    (tmp_path / "new").mkdir()
    new = replace(bundle_of(STRIPES), path=tmp_path / "new")
    kept = load_bundle(carry_over(old, new).path)
    assert kept.description.modality_classifier == old.description.modality_classifier
    assert (kept.path / CLASSIFIER).read_bytes() == (old.path / CLASSIFIER).read_bytes()
    assert load_classifier(kept) is not None
    other = old.description.backbone.model_copy(update={"sha256": "another"})
    elsewhere = replace(old, description=old.description.model_copy(update={"backbone": other}))
    assert carry_over(elsewhere, new) is new


def test_damage_and_misfit_are_told(written: Path) -> None:
    content = json.loads((written / "bundle.json").read_text())
    content["modality_classifier"]["modalities"].append("d")
    (written / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="no classifier of the modalities"):
        load_classifier(load_bundle(written))
    file = written / CLASSIFIER
    file.write_bytes(file.read_bytes()[:-4] + b"0000")
    with pytest.raises(WeightsError, match="damaged"):
        load_classifier(load_bundle(written))


def picture(path: Path, name: str, seed: int) -> Path:
    """Stripes or spots with noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:64, :64]
    shift = rng.uniform(0, 6)
    spots = np.sin((rows + shift) / 4) * np.sin((columns + shift) / 4)
    pattern = np.sin((columns + shift) / 2) if name == "stripes" else spots
    grey = (127 + 90 * pattern + rng.normal(0, 8, pattern.shape)).clip(0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    torch.manual_seed(0)
    return FeatureStore(TinyViT(1).eval(), "random", tmp_path / "features", RECIPE)


def test_features_are_computed_once(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {
        m.name: [picture(tmp_path / m.name / f"{i}.png", m.name, i) for i in range(4)]
        for m in (STRIPES, SPOTS)
    }
    modalities = {m.name: m for m in (STRIPES, SPOTS)}
    told: list[tuple[int, int]] = []
    first = training_features(images, modalities, store, lambda *done: told.append(done))
    assert {name: len(rows) for name, rows in first.items()} == {"stripes": 6, "spots": 6}
    assert told[-1] == (8, 8)
    assert torch.equal(plain_features(images, store)["spots"][1], first["spots"][2])

    def fail(*_: object) -> Tensor:
        raise AssertionError("computed again")

    monkeypatch.setattr("esp_medsam_app.dataset.classifier_features.pooled", fail)
    monkeypatch.setattr("esp_medsam_app.dataset.classifier_features.features_of", fail)
    again = training_features(images, modalities, store)
    assert all(torch.equal(again[name], first[name]) for name in first)
    picture(images["spots"][0], "spots", 99)
    with pytest.raises(AssertionError, match="computed again"):
        plain_features(images, store)


def test_views_follow_the_seed_and_differ(tmp_path: Path) -> None:
    image = read_image(picture(tmp_path / "a.png", "spots", 1))
    first, same, other = (Views(SPOTS, 64, seed).view(image) for seed in (1, 1, 2))
    assert first.shape == (3, 64, 64)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1


def test_images_are_found_and_chosen_evenly(tmp_path: Path) -> None:
    for index in range(9):
        picture(tmp_path / "images" / f"{index}.png", "spots", index)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    assert len(class_images([tmp_path])) == 9
    assert [path.stem for path in class_images([tmp_path], 3)] == ["0", "4", "8"]
    assert class_images([tmp_path / "images"], 2)[1].stem == "8"
    with pytest.raises(InputError, match="no image"):
        class_images([tmp_path / "nowhere"])


def test_far_beyond_a_class_is_none_of_them(fitted: ModalityClassifier) -> None:
    """Also where the nearest class is much nearer than the others."""
    middle = clouds(100, 1)["a"].mean(dim=0)
    others = torch.stack([clouds(100, 1)[name].mean(dim=0) for name in "bc"]).mean(dim=0)
    beyond = (middle + 4 * (middle - others)).unsqueeze(0)
    assert int(fitted.distances(beyond).argmin()) == 0
    assert float(fitted.probabilities(beyond).max()) < fitted.description.threshold
    assert float(fitted.probabilities(beyond).sum()) < 0.5
