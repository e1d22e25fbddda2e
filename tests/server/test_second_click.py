"""A second click on a case: the same answer, without the encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.small_starter import small_starter

from esp_medsam_app.networks.fused_tiny_vit import FusedTinyViT
from esp_medsam_app.server.infer_task import EspMedSamInferTask
from esp_medsam_app.server.shared_segmenter import SharedSegmenter
from esp_medsam_app.weights import Bundle, load_bundle

NUCLEI = "microscopy_nuclei"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(small_starter(tmp_path_factory.mktemp("bundle")))


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tiles the encoder saw, pass by pass."""
    tiles: list[int] = []
    embed = FusedTinyViT.__call__

    def counted(self: FusedTinyViT, image: Any, controller: Any) -> Any:
        tiles.append(len(image))
        return embed(self, image, controller)

    monkeypatch.setattr(FusedTinyViT, "__call__", counted)
    return tiles


def picture(folder: Path, seed: int) -> str:
    noise = np.random.default_rng(seed).integers(0, 255, (48, 48), np.uint8)
    path = folder / f"{seed}.png"
    Image.fromarray(noise).save(path)
    return str(path)


def test_only_the_first_click_waits_for_the_encoder(
    bundle: Bundle, embedded: list[int], tmp_path: Path
) -> None:
    task = EspMedSamInferTask(
        bundle.modality(NUCLEI), SharedSegmenter(bundle, device="cpu", embeddings_mb=10)
    )
    first, second = picture(tmp_path, 1), picture(tmp_path, 2)
    answers = []
    for image in (first, first, second, first, second):
        file, _ = task({"image": image})
        answers.append(Path(file).read_bytes())
        Path(file).unlink()
    assert len(embedded) == 2
    assert answers[0] == answers[1] == answers[3]
    assert answers[2] == answers[4]
    # what is asked for in another way is decoded anew from the same embedding
    file, _ = task({"image": first, "label_prompt": [], "result_extension": ".nrrd"})
    Path(file).unlink()
    assert len(embedded) == 2


def test_an_image_that_changed_on_disk_is_another(
    bundle: Bundle, embedded: list[int], tmp_path: Path
) -> None:
    task = EspMedSamInferTask(
        bundle.modality(NUCLEI), SharedSegmenter(bundle, device="cpu", embeddings_mb=10)
    )
    image = picture(tmp_path, 1)
    for seed in (1, 2):
        Path(picture(tmp_path, seed)).replace(image)
        file, _ = task({"image": image})
        Path(file).unlink()
    assert len(embedded) == 2


def test_an_admin_may_keep_none(bundle: Bundle, embedded: list[int], tmp_path: Path) -> None:
    task = EspMedSamInferTask(bundle.modality(NUCLEI), SharedSegmenter(bundle, device="cpu"))
    for _ in range(2):
        file, _ = task({"image": picture(tmp_path, 1)})
        Path(file).unlink()
    assert len(embedded) == 2
