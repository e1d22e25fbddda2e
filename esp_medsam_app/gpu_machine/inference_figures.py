"""How fast a borrowed machine segments: passes, and a CT in memory.

`esp-medsam benchmark` measures files and requests too, for which such a machine has no software.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esp_medsam_app.benchmark.passes import contenders, measure_passes
from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.weights.bundle import Bundle, load_bundle
from esp_medsam_app.weights.profiles import FULL

ROUNDS, SIDE, SLICES = 20, 512, 300
_CPU_ROUNDS, _CPU_SLICES = 1, 2


def measure_inference(bundle: Path, device: torch.device, output: Path) -> None:
    """Measure passes, then a volume; figures are written after each.

    Args:
        bundle: with one modality at least.
        device: where to compute.
        output: JSON file.
    """
    loaded = load_bundle(bundle)
    name = "ct_liver" if "ct_liver" in loaded.modalities else next(iter(loaded.modalities))
    gpu = device.type == "cuda"
    report = measure_passes(
        {FULL: loaded},
        name,
        device,
        contenders(device, quick=not gpu),
        rounds=ROUNDS if gpu else _CPU_ROUNDS,
        memory=False,
    )
    said: dict[str, Any] = {"passes": asdict(report)}
    _write(output, said)
    said["volume"] = _volume(loaded, name, device, SLICES if gpu else _CPU_SLICES)
    _write(output, said)


def _volume(bundle: Bundle, name: str, device: torch.device, slices: int) -> dict[str, Any]:
    """A CT of noise, the second time: the first one makes the device ready."""
    voxels = np.random.default_rng(0).integers(-200, 300, (SIDE, SIDE, slices), dtype=np.int16)
    # without a patient's space slices follow the last axis
    image = MedicalImage(voxels, Grid(voxels.shape, np.eye(4), has_patient_space=False))
    segmenter = Segmenter(bundle, device=str(device))
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        segmenter.segment(image, name)
        seconds.append(time.perf_counter() - start)
    return {
        "shape": list(voxels.shape),
        "modality": name,
        "first_seconds": round(seconds[0], 3),
        "seconds": round(seconds[1], 3),
        "slices_per_second": round(slices / seconds[1], 1),
    }


def _write(output: Path, said: dict[str, Any]) -> None:
    with written_whole(output) as partial:
        partial.write_text(json.dumps(said, indent=2), encoding="utf-8")
