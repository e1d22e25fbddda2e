"""A problem that is learned in seconds: a bright disc on noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.conf import model_name
from esp_medsam_app.server.local_datastore import SafeDatastore

SIDE = 48
DISC = Modality(name="disc", title="Disc", description="", dimension=2, labels={"disc": 1})


def draw_discs(folder: Path, count: int, seed: int = 0) -> Path:
    """A data folder, `images/` and `labels/`, of pictures `case0.png`, ..."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for number in range(count):
        row, column = rng.integers(16, 32, 2)
        disc = (rows - row) ** 2 + (columns - column) ** 2 < 10**2
        grey = rng.normal(60 + 120 * disc, 12).clip(0, 255).astype(np.uint8)
        Image.fromarray(grey).save(folder / "images" / f"case{number}.png")
        Image.fromarray(disc.astype(np.uint8)).save(folder / "labels" / f"case{number}.png")
    return folder


def labelled_discs(folder: Path, count: int, labelled: int) -> SafeDatastore:
    """A datastore of such pictures, the first of which have their submitted labels."""
    drawn = draw_discs(folder, count)
    datastore = SafeDatastore(str(drawn / "images"), extensions=["*.png"])
    for number in range(labelled):
        info = {"label_info": [{"name": "disc", "idx": 1}], "model": model_name("disc")}
        label = drawn / "labels" / f"case{number}.png"
        datastore.save_label(f"case{number}", str(label), "final", info)
    return datastore
