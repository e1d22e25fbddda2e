"""The encoder in int8 beside bfloat16, both by OpenVINO: time and Dice. Needs `pip install nncf`.

Arguments: a modality, a folder to calibrate on and one to score on (images/ and labels/ each), of
which it takes 12 images each. Post-training quantisation of all matrix products with smooth
quantisation and without correction of biases. Why int8 is not offered: docs/performance.md.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import nncf
import torch
from torch import Tensor

from esp_medsam_app.benchmark.timing import interleaved, times_faster
from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.reading import read_image
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.evaluation.pairs import find_pairs
from esp_medsam_app.evaluation.report import evaluate_cases
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.inference.fast_network import FastNetwork
from esp_medsam_app.inference.openvino_encoder import OpenVinoEncoder
from esp_medsam_app.inference.preprocessing import IntensityScale, Tiling
from esp_medsam_app.inference.slicewise import Passes, by_slice
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks.modality_controller import ModalityController
from esp_medsam_app.weights import load_bundle

IMAGES = 12
ROUNDS = 5


class Int8Encoder(OpenVinoEncoder):
    """OpenVINO's encoder with graphs in int8; what stays out of it is computed in bfloat16."""

    calibrate_on: list[Tensor]

    def _make(self, controller: ModalityController | None, path: Path) -> None:
        super()._make(controller, path)
        start = time.process_time()
        model = nncf.quantize(
            self._core.read_model(path),
            nncf.Dataset([tile.unsqueeze(0).numpy() for tile in self.calibrate_on]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(self.calibrate_on),
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


def main(name: str, calibrate_on: Path, score_on: Path) -> None:
    """Print a line for float32, bfloat16 and int8."""
    bundle = load_bundle()
    modality, side = bundle.modality(name), bundle.description.input_size
    low = {"device": "cpu", "precision": "bfloat16", "runtime": "openvino"}
    segmenters = {
        "float32": Segmenter(bundle, device="cpu", precision="float32"),
        "bfloat16": Segmenter(bundle, **low),
        "int8": Segmenter(bundle, **low),
    }
    images = (read_image(pair.image) for pair in find_pairs([calibrate_on])[:IMAGES])
    tiles = [next(tiles_of(image, modality, side)) for image in images]
    with tempfile.TemporaryDirectory() as folder:
        network = segmenters["int8"]._network
        encoder = Int8Encoder(network.encoder, torch.bfloat16, side, wait=True, folder=Path(folder))
        encoder.calibrate_on = tiles
        segmenters["int8"]._fast = FastNetwork(network, torch.bfloat16, encoder)
        calls = {
            way: lambda one=one: one.logits(tiles[0].unsqueeze(0), name)
            for way, one in segmenters.items()
        }
        seconds = interleaved(calls, ROUNDS, clock=time.process_time)
        pairs = find_pairs([score_on])[:IMAGES]
        for way, segmenter in segmenters.items():
            report = evaluate_cases(pairs, partial(segmenter.segment, modality=name), modality)
            dice = report.summary("dice").mean
            share = 1 / times_faster(seconds[way], seconds["bfloat16"])
            print(f"{way}: Dice {dice:.4f} ({len(pairs)} cases), {share:.2f} of bfloat16's time")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
