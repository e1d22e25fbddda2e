"""How good a modality gets that is only a YAML file, from labels submitted to a real server.

    python scripts/new_modality.py DATA YAML WORK [COUNT ...]

DATA holds train/{images,labels} and test/{images,labels}, pictures or volumes with equal names; the
patient is the number that a name begins with, or else the whole name. The server is started on
copies of the images; the first COUNT of the training images (by default 6, 12 and 24) are labelled
by MONAI Label's own client and the model is trained, each time from what serves then. Every test
image is segmented by the server. Prints a table; WORK keeps the server's folders.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.client import MONAILabelClient

from esp_medsam_app.data.reading import read_label_map
from esp_medsam_app.errors import EspMedSamError
from esp_medsam_app.evaluation.metrics import bootstrap_interval, mean_dice
from esp_medsam_app.modalities import Modality, read_modality
from esp_medsam_app.server.launch import app_folder, start_server

POLL_SECONDS = 2


def main(data: Path, yaml: Path, work: Path, counts: list[int]) -> None:
    """Start, submit, train, segment, print."""
    modality = read_modality(yaml)
    studies = work / "studies"
    for split in ("train", "test"):
        shutil.copytree(data / split / "images", studies, dirs_exist_ok=True)
    modalities = work / "modalities"
    modalities.mkdir()
    shutil.copy(yaml, modalities)
    ignored = shutil.ignore_patterns("logs", "model", "bin", "__pycache__")
    app = Path(shutil.copytree(app_folder(), work / "app", ignore=ignored))
    conf = {
        "modalities": str(modalities),
        "models": modality.name,
        "background_scores": "false",
        "patient_pattern": r"^(\d+(?=_)|.+)",
    }
    with (work / "server.log").open("wb") as log:
        server = start_server(app, str(studies), port=0, conf=conf, output=log.fileno())
        try:
            server.wait_until_ready(300)
            client = MONAILabelClient(server.url, str(work), client_id="new_modality")
            print("| labels | learned from | Dice on the test images | version | minutes |")
            print("| --- | --- | --- | --- | --- |")
            names = sorted(path.name for path in (data / "train" / "images").iterdir())
            done = 0
            for count in counts:
                submit(client, modality, [data / "train" / "labels" / n for n in names[done:count]])
                done = count
                print(row(client, modality, data / "test", count), flush=True)
        finally:
            server.stop()


def submit(client: MONAILabelClient, modality: Modality, labels: list[Path]) -> None:
    """As a viewer does."""
    params = {"model": f"esp_medsam_{modality.name}"}
    for label in labels:
        client.save_label(image_id(label), str(label), params=params)


def row(client: MONAILabelClient, modality: Modality, test: Path, count: int) -> str:
    """Train, and judge on the test images."""
    model = f"esp_medsam_{modality.name}"
    start = time.monotonic()
    client.train_start(model, {"tracking": "None"})
    while (status := client.train_status())["status"] in ("SUBMITTED", "RUNNING"):
        time.sleep(POLL_SECONDS)
    if status["status"] != "DONE":
        raise EspMedSamError("the training failed: " + "\n".join(status["details"]))
    minutes = (time.monotonic() - start) / 60
    stats: dict[str, Any] = next(iter(client.info()["train_stats"].values()))
    labels = sorted((test / "labels").iterdir())
    dice = [dice_of(client, model, label, modality) for label in labels]
    interval = bootstrap_interval(dice)
    assert interval is not None
    told = f"{np.mean(dice):.3f} ({interval[0]:.3f} to {interval[1]:.3f}, {len(dice)})"
    state = "serves" if stats["promotion"]["published"] else "kept back"
    held_out = stats["promotion"]["cases"]
    return (
        f"| {count} | {count - held_out} | {told} | {stats['version']}, {state} | {minutes:.1f} |"
    )


def image_id(label: Path) -> str:
    """What the server calls the image of a label map."""
    return label.name.split(".")[0]


def dice_of(client: MONAILabelClient, model: str, label: Path, modality: Modality) -> float:
    """Of one test image, as the server segments it now; the mean over labels."""
    extension = "".join(label.suffixes)
    file, _ = client.infer(model, image_id(label), {"result_extension": extension})
    try:
        found = read_label_map(file).voxels
    finally:
        Path(file).unlink()
    truth = read_label_map(label).voxels
    return mean_dice(truth, found, modality.labels.values())


if __name__ == "__main__":
    folders, numbers = sys.argv[1:4], [int(count) for count in sys.argv[4:]]
    main(*map(Path, folders), numbers or [6, 12, 24])
