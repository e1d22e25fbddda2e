"""Steps of a training are timed without touching the weights."""

from __future__ import annotations

import torch

from esp_medsam_app.benchmark.training import EARLIER, measure_training
from esp_medsam_app.inference.device import autocast_type
from esp_medsam_app.weights import load_bundle


def test_every_way_is_compared_with_the_earlier_one() -> None:
    device = torch.device("cpu")
    told: list[tuple[int, int]] = []
    report = measure_training(
        load_bundle(),
        "dermoscopy",
        device,
        rounds=1,
        sizes=(32,),
        on_step=lambda done, total: told.append((done, total)),
    )
    ways = [figure.way for figure in report.figures]
    types = ["float32"] + ["bfloat16"] * (autocast_type(device) is not None)
    assert ways == [EARLIER, *(f"channels last, {name}" for name in types)]
    assert report.figures[0].times_earlier == 1
    for figure in report.figures:
        assert figure.views_per_second > 0
        assert figure.teraflops > 0
        assert 0 < figure.share_of_products < 2
    assert told[-1][0] == told[-1][1]
