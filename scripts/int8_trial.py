"""The encoder in int8 beside the CPU's own precision, both by OpenVINO: time and Dice.

Needs `pip install nncf`. Arguments: a modality, a folder to calibrate on, one to score on (images/
and labels/ each), and a profile of the package's weights (full). Post-training quantisation of the
matrix products behind the first stage, which suffers most from few bits, with smooth quantisation
and without correction of biases; on two tiles of each of 12 images, scored on 30 images, or on 2
volumes. What is known of it: docs/performance.md.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import nncf
import torch
from precision_table import told
from torch import Tensor

from esp_medsam_app.benchmark.timing import interleaved, times_faster
from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.reading import read_image
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.evaluation.pairs import find_pairs
from esp_medsam_app.evaluation.report import evaluate_cases
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.inference.device import choose_precision
from esp_medsam_app.inference.fast_network import FastNetwork
from esp_medsam_app.inference.openvino_encoder import OpenVinoEncoder
from esp_medsam_app.inference.preprocessing import IntensityScale, Tiling
from esp_medsam_app.inference.slicewise import Passes, by_slice
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks.modality_controller import ModalityController
from esp_medsam_app.weights import load_bundle
from esp_medsam_app.weights.profiles import chosen_bundle

CALIBRATION, TILES = 12, 2
IMAGES, VOLUMES = 30, 2
ROUNDS = 5
# what is not quantised, by names of OpenVINO's operations
LEFT_OUT = ("encoder.patch_embed", "encoder.layers.0")


class Int8Encoder(OpenVinoEncoder):
    """OpenVINO's encoder with graphs in int8; what stays out of it has the precision given."""

    calibrate_on: list[Tensor]

    def _make(self, controller: ModalityController | None, path: Path) -> None:
        super()._make(controller, path)
        start = time.process_time()
        model = self._core.read_model(path)
        names = [operation.get_friendly_name() for operation in model.get_ordered_ops()]
        left_out = [name for name in names if any(part in name for part in LEFT_OUT)]
        model = nncf.quantize(
            model,
            nncf.Dataset([tile.unsqueeze(0).numpy() for tile in self.calibrate_on]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(self.calibrate_on),
            ignored_scope=nncf.IgnoredScope(names=left_out),
            advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
        )
        # OpenVINO may have the files open: others take their place
        for file in (path, path.with_suffix(".bin")):
            file.unlink()
        self._openvino.save_model(model, path, compress_to_fp16=False)
        spent = time.process_time() - start
        print(f"calibrated on {len(self.calibrate_on)} tiles in {spent:.0f} s of CPU time")


def tiles_of(image: MedicalImage, modality: Modality, side: int) -> Iterator[Tensor]:
    """The tiles of an image, `[3, side, side]`, as a segmenter cuts them."""
    slices = SliceView.of(image.grid).slices(image.voxels)
    tiling = Tiling(slices.shape[1], slices.shape[2], side, modality.tiles)
    scale = IntensityScale.of(image.voxels, modality.intensity)
    untouched = Passes(lambda tiles: tiles, torch.device("cpu"), 1, image)
    for of_slice in by_slice(untouched, slices, scale, tiling):
        yield from of_slice


def calibration(folder: Path, modality: Modality, side: int) -> list[Tensor]:
    """Tiles of images that are drawn from a folder."""
    draw = random.Random(0)
    pairs = find_pairs([folder])
    tiles = []
    for pair in draw.sample(pairs, min(len(pairs), CALIBRATION)):
        of_image = list(tiles_of(read_image(pair.image), modality, side))
        tiles += draw.sample(of_image, min(len(of_image), TILES))
    return tiles


def main(name: str, calibrate_on: Path, score_on: Path, profile: str = "full") -> None:
    """Print a line for float32, the CPU's own precision and int8."""
    bundle = load_bundle(chosen_bundle(None, profile))
    modality, side = bundle.modality(name), bundle.description.input_size
    own = choose_precision("auto", torch.device("cpu"))
    base = f"OpenVINO, {own}".replace("torch.", "")
    segmenters = {
        "torch, float32": Segmenter(bundle, device="cpu", precision="float32"),
        base: Segmenter(bundle, device="cpu", runtime="openvino"),
        "OpenVINO, int8": Segmenter(bundle, device="cpu", runtime="openvino"),
    }
    tiles = calibration(calibrate_on, modality, side)
    pairs = find_pairs([score_on])
    pairs = pairs[: VOLUMES if ".nii" in pairs[0].image.name else IMAGES]
    with tempfile.TemporaryDirectory() as folder:
        low = segmenters["OpenVINO, int8"]
        encoder = Int8Encoder(low.encoder, own, side, wait=True, folder=Path(folder))
        encoder.calibrate_on = tiles
        low._fast = FastNetwork(low._network, own, encoder)
        calls = {
            way: lambda one=one: one.logits(tiles[0].unsqueeze(0), name)
            for way, one in segmenters.items()
        }
        seconds = interleaved(calls, ROUNDS, clock=time.process_time)
        first: list[float] | None = None
        for way, segmenter in segmenters.items():
            report = evaluate_cases(pairs, partial(segmenter.segment, modality=name), modality)
            dice = [case.dice for case in report.cases]
            first = first or dice
            lost = [100 * (a - b) for a, b in zip(dice, first, strict=True)]
            print(
                f"{name}, {way}: {1 / times_faster(seconds[way], seconds[base]):.2f} of the time of"
                f" {base}; Dice {sum(dice) / len(dice):.4f} ({len(dice)} cases), points against "
                f"float32 {told(lost)}"
            )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
