"""What a training needs is told before it starts: labels, of two patients."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.fake_server import ORGANS, SPOTS

from esp_medsam_app.errors import InputError
from esp_medsam_app.server.local_datastore import SafeDatastore
from esp_medsam_app.server.pacs.datastore import PacsDatastore
from esp_medsam_app.server.trainable import check_labels

MODELS = frozenset(["esp_medsam_ct_organs", "esp_medsam_spots"])
OF_ORGANS: dict[str, Any] = {"label_info": [{"name": "liver", "idx": 1}]}


@pytest.fixture
def store(tmp_path: Path) -> SafeDatastore:
    """Pictures of two patients; the second one of the first patient is a copy of the first."""
    for name, grey in (("p1_a", 1), ("p1_b", 2), ("p2_a", 3), ("p3_copy_of_p1_a", 1)):
        Image.fromarray(np.full((3, 4), grey, np.uint8)).save(tmp_path / f"{name}.png")
    return SafeDatastore(str(tmp_path), extensions=["*.png"])


def label(store: SafeDatastore, *images: str) -> None:
    for image in images:
        store.save_label(image, store.get_image_uri(image), "final", OF_ORGANS)


def test_without_labels(store: SafeDatastore) -> None:
    label(store, "p1_a", "p2_a")
    with pytest.raises(InputError, match="no label of spots") as caught:
        check_labels(store, SPOTS, MODELS)
    assert "2 patients" in caught.value.remedy


@pytest.mark.parametrize(
    ("images", "pattern"),
    [(["p1_a"], None), (["p1_a", "p1_b"], "^(p[0-9]+)_"), (["p1_a", "p3_copy_of_p1_a"], None)],
)
def test_of_one_patient(store: SafeDatastore, images: list[str], pattern: str | None) -> None:
    label(store, *images)
    found = re.compile(pattern) if pattern else None
    with pytest.raises(InputError, match="of one patient"):
        check_labels(store, ORGANS, MODELS, found)
    label(store, "p2_a")
    check_labels(store, ORGANS, MODELS, found)


def test_by_what_the_pacs_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded for the answer."""
    patients = {"1.1": "A", "1.2": "A", "1.3": "UNK", "1.4": "UNK"}
    store = object.__new__(PacsDatastore)
    labelled: list[str] = []
    for name, value in {
        "get_labeled_images": lambda: labelled,
        "get_label_info": lambda image, tag: json.loads(json.dumps(OF_ORGANS)),
        "get_image_info": lambda image: {"PatientID": patients[image]},
    }.items():
        monkeypatch.setattr(store, name, value)
    labelled += ["1.1", "1.2"]
    with pytest.raises(InputError, match="all 2 labels of ct_organs are of one patient"):
        check_labels(store, ORGANS, MODELS)
    labelled[:] = ["1.3", "1.4"]
    check_labels(store, ORGANS, MODELS)
