"""A training of a few steps in a process of its own, tracked by MLflow: `FOLDER [TRACKING_URI]`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

# as MONAI Label does it in its processes, before anything of ours
import monai.handlers  # noqa: F401
from support.discs import DISC, labelled_discs

from esp_medsam_app.server.conf import model_name
from esp_medsam_app.server.train_task import EspMedSamTrainTask
from esp_medsam_app.training.starting import new_network
from esp_medsam_app.weights.backbones import LITE_MEDSAM
from esp_medsam_app.weights.bundle import load_bundle, save_bundle
from esp_medsam_app.weights.versions import VersionStore


def main(folder: Path, tracking_uri: str) -> None:
    """Train on discs."""
    backbone = replace(LITE_MEDSAM, input_size=64)
    network = new_network(backbone, [DISC])
    save_bundle(folder / "base", network, [DISC], name="small", backbone=backbone, training={})
    store = VersionStore(folder / "versions", load_bundle(folder / "base"))
    models = [model_name(DISC.name)]
    task = EspMedSamTrainTask(DISC, store, folder / "training", models, device="cpu")
    options = {"max_epochs": 1, "views": 4, "train_batch_size": 4, "tracking": "mlflow"}
    stats = task(
        {**options, "tracking_uri": tracking_uri}, labelled_discs(folder / "drawn", 3, labelled=3)
    )
    print("version", stats["version"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
