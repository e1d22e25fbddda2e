"""Write tests/reference/starter_figures.json: what the shipped bundle gives on the sample data.

Run it after new starter weights have landed, and look at what changed before it is committed:
`python scripts/starter_figures.py`. A test computes the same and fails when it drifts.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.reading import read_image, read_label_map
from esp_medsam_app.evaluation.metrics import score_labels
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.samples import build_sample_data
from esp_medsam_app.weights import load_bundle

REFERENCE = Path(__file__).resolve().parent.parent / "tests" / "reference" / "starter_figures.json"
# Every modality looks at each of these, so that drift shows in those without a sample of their own.
LOOKED_AT = ("nuclei_phantom", "chest_phantom", "retina")


def figures(samples: Path) -> dict[str, dict[str, float]]:
    """Dice on phantoms with a reference, and the share of pixels each modality marks in images."""
    segmenter = Segmenter(load_bundle(), device="cpu")
    manifest = json.loads((samples / "manifest.json").read_text(encoding="utf-8"))
    dice, marked = {}, {}
    for case in manifest["cases"]:
        if case["study"] is None:
            continue
        image = read_image(samples / case["study"])
        if case["reference"] is not None:
            found = segmenter.segment(image, case["modality"])
            reference = read_label_map(samples / case["reference"], image.grid)
            dice[case["name"]] = _dice(segmenter, case["modality"], image, reference.voxels, found)
        if case["name"] in LOOKED_AT:
            for name in segmenter.bundle.modalities:
                share = (segmenter.segment(image, name) > 0).mean()
                marked[f"{name} on {case['name']}"] = round(float(share), 4)
    return {"dice": dice, "marked": marked}


def _dice(
    segmenter: Segmenter, name: str, image: MedicalImage, reference: np.ndarray, found: np.ndarray
) -> float:
    labels = segmenter.bundle.modality(name).labels
    scores = score_labels(reference, found, labels, image.grid.spacing)
    return round(float(np.mean([score.dice for score in scores.values()])), 4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = figures(build_sample_data(Path(folder)).folder)
    REFERENCE.parent.mkdir(exist_ok=True)
    REFERENCE.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(REFERENCE.read_text(encoding="utf-8"))
