"""Write tests/reference/starter_figures.json: what the shipped bundles give on the sample data.

Run it after new starter weights have landed, and look at what changed before it is committed:
`python scripts/starter_figures.py`. A test computes the same and fails when it drifts.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from esp_medsam_app.commands.runtime import is_esp_medsam, make_segmenter
from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.reading import read_image, read_label_map
from esp_medsam_app.evaluation.metrics import score_labels
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.modalities import Modality
from esp_medsam_app.samples import build_sample_data
from esp_medsam_app.weights.profiles import FULL, PROFILES

REFERENCE = Path(__file__).resolve().parent.parent / "tests" / "reference" / "starter_figures.json"
# Every modality of the profiles looks at this, so that drift shows in those without a sample of
# their own too.
LOOKED_AT = "retina"
# Of a volume: those in the middle.
SLICES = 4


def figures(samples: Path) -> dict[str, dict[str, float]]:
    """Dice of each profile on phantoms with a reference; mean mask logits of one picture.

    A mean of logits tells of drift also where nothing is marked.
    """
    # in float32, as processors differ in how they round bfloat16, and some do not compute in it
    segmenters = {
        name: make_segmenter(None, "cpu", None, profile=name, precision="float32")
        for name in PROFILES
    }
    manifest = json.loads((samples / "manifest.json").read_text(encoding="utf-8"))
    dice, logits = {}, {}
    for case in manifest["cases"]:
        if case["study"] is None:
            continue
        image = read_image(samples / case["study"])
        if case["reference"] is not None:
            reference = read_label_map(samples / case["reference"], image.grid).voxels
            image, reference = _middle(image, reference)
            for profile, segmenter in segmenters.items():
                modality = segmenter.bundle.modalities.get(case["modality"])
                if modality is not None:
                    found = segmenter.segment(image, modality.name)
                    name = case["name"] if profile == FULL else f"{case['name']} by {profile}"
                    dice[name] = _dice(modality, reference, found, image.grid.spacing)
        if case["name"] == LOOKED_AT:
            for profile, segmenter in segmenters.items():
                if is_esp_medsam(segmenter):
                    for name, value in _mean_logits(segmenter, image):
                        logits[f"{name} by {profile}"] = value
    return {"dice": dice, "logits": logits}


def _middle(image: MedicalImage, reference: np.ndarray) -> tuple[MedicalImage, np.ndarray]:
    if reference.ndim < 3:
        return image, reference
    first = (reference.shape[2] - SLICES) // 2
    kept = np.s_[:, :, first : first + SLICES]
    grid = replace(image.grid, shape=reference[kept].shape)
    return replace(image, voxels=image.voxels[kept], grid=grid), reference[kept]


def _mean_logits(segmenter: Segmenter, image: MedicalImage) -> Iterator[tuple[str, float]]:
    """Of the whole picture as one tile, by modality."""
    side = segmenter.bundle.description.input_size
    colours = torch.from_numpy(image.voxels.squeeze() / 255.0).float().movedim(-1, 0)
    tile = interpolate(colours[None], (side, side), mode="bilinear", antialias=True)
    for name, modality in segmenter.bundle.modalities.items():
        yield name, round(float(segmenter.look_through(tile, modality).mask_logits.mean()), 3)


def _dice(
    modality: Modality, reference: np.ndarray, found: np.ndarray, spacing: tuple[float, ...]
) -> float:
    scores = score_labels(reference, found, modality.labels, spacing)
    return round(float(np.mean([score.dice for score in scores.values()])), 4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = figures(build_sample_data(Path(folder)).folder)
    REFERENCE.parent.mkdir(exist_ok=True)
    REFERENCE.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(REFERENCE.read_text(encoding="utf-8"))
