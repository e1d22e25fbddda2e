"""One bundle at every input size: what is chosen, what is refused, where the mask lies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.errors import InputError
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.inference.input_size import QUALITIES, input_size
from esp_medsam_app.modalities import Modality
from esp_medsam_app.training.starting import new_network
from esp_medsam_app.weights import Bundle, save_bundle
from esp_medsam_app.weights.backbones import LITE_MEDSAM

PLAIN = Modality(name="plain", title="", description="", dimension=2, labels={"a": 1})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    network = new_network(LITE_MEDSAM, [PLAIN])
    folder: Path = tmp_path_factory.mktemp("bundle")
    return save_bundle(folder, network, [PLAIN], name="test", backbone=LITE_MEDSAM, training={})


def with_input(bundle: Bundle, **update: object) -> Bundle:
    return replace(bundle, description=bundle.description.model_copy(update=update))


def test_a_quality_is_a_size(bundle: Bundle) -> None:
    assert [input_size(bundle, "plain", quality) for quality in QUALITIES] == [128, 256, 320]
    assert input_size(bundle, "plain", "best", 96) == 96
    small = with_input(bundle, input_size=112)
    assert [input_size(small, "plain", quality) for quality in QUALITIES] == [112, 112, 320]
    told = with_input(bundle, sizes={"plain": {"best": 192}})
    assert input_size(told, "plain", "best") == 192
    assert input_size(told, "plain", "fast") == 128
    # the size that suits best is the best one too
    suits = with_input(bundle, sizes={"plain": {"balanced": 96}})
    assert [input_size(suits, "plain", quality) for quality in QUALITIES] == [96, 96, 96]
    assert suits.usual_size("plain") == 96
    assert suits.usual_size("other") == 256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": "better"}, "no quality 'better'"),
        ({"size": 100}, "cannot have an input of 100 x 100"),
        ({"size": 0}, "cannot have an input of 0 x 0"),
        ({"size": 2**20}, "cannot have an input"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_loaded(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Segmenter(None, device="cpu", **options)  # type: ignore[arg-type]


def test_the_network_sees_the_size_and_the_mask_has_the_images_grid(bundle: Bundle) -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (40, 30), dtype=np.uint8)
    grid = Grid(shape=(40, 30), affine=np.eye(4), has_patient_space=False, nifti_header=None)
    image = MedicalImage(voxels=voxels, grid=grid, path=None, dicom_modality=None)
    for size in (64, 80):
        segmenter = Segmenter(bundle, device="cpu", size=size)
        seen: list[tuple[int, ...]] = []
        segmenter._network.encoder.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(tuple(inputs[0].shape[-2:]))
        )
        plain = Segmenter(bundle, device="cpu", size=size, fast=False)
        plain._network.encoder.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(tuple(inputs[0].shape[-2:]))
        )
        assert segmenter.segment(image, "plain").shape == voxels.shape
        assert plain.segment(image, "plain").shape == voxels.shape
        assert set(seen) == {(size, size)}
