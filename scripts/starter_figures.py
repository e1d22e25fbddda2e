"""Write tests/reference/starter_figures.json: what the shipped bundles give on the sample data.

Run it after new starter weights have landed, and look at what changed before it is committed:
`python scripts/starter_figures.py`. A test computes the same and fails when it drifts.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from esp_medsam_app.commands.runtime import make_segmenter
from esp_medsam_app.data.reading import read_image, read_label_map
from esp_medsam_app.evaluation.metrics import score_labels
from esp_medsam_app.modalities import Modality
from esp_medsam_app.samples import build_sample_data
from esp_medsam_app.weights.profiles import FULL, PROFILES

REFERENCE = Path(__file__).resolve().parent.parent / "tests" / "reference" / "starter_figures.json"
# Every modality of the full profile looks at each of these, so that drift shows in those without a
# sample of their own.
LOOKED_AT = ("nuclei_phantom", "chest_phantom", "retina")


def figures(samples: Path) -> dict[str, dict[str, float]]:
    """Dice of each profile on phantoms with a reference; the share of pixels marked in images."""
    # in float32, as processors differ in how they round bfloat16, and some do not compute in it
    segmenters = {
        name: make_segmenter(None, "cpu", None, profile=name, precision="float32")
        for name in PROFILES
    }
    full = segmenters[FULL]
    manifest = json.loads((samples / "manifest.json").read_text(encoding="utf-8"))
    dice, marked = {}, {}
    for case in manifest["cases"]:
        if case["study"] is None:
            continue
        image = read_image(samples / case["study"])
        if case["reference"] is not None:
            reference = read_label_map(samples / case["reference"], image.grid).voxels
            for profile, segmenter in segmenters.items():
                modality = segmenter.bundle.modalities.get(case["modality"])
                if modality is not None:
                    found = segmenter.segment(image, modality.name)
                    name = case["name"] if profile == FULL else f"{case['name']} by {profile}"
                    dice[name] = _dice(modality, reference, found, image.grid.spacing)
        if case["name"] in LOOKED_AT:
            for name in full.bundle.modalities:
                share = (full.segment(image, name) > 0).mean()
                marked[f"{name} on {case['name']}"] = round(float(share), 4)
    return {"dice": dice, "marked": marked}


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
