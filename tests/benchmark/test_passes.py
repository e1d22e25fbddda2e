"""Passes of each way, on a small input."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.small_starter import small_starter

from esp_medsam_app.benchmark import passes
from esp_medsam_app.benchmark.machine import Machine, matrix_product
from esp_medsam_app.benchmark.memory import high_water, peak_of
from esp_medsam_app.benchmark.passes import PLAIN, Contender, contenders, measure_passes
from esp_medsam_app.benchmark.report import BenchmarkReport
from esp_medsam_app.errors import EspMedSamError, InputError
from esp_medsam_app.evaluation.report import write_report
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.weights import Bundle, load_bundle
from esp_medsam_app.weights.bundle import save_bundle

CPU = torch.device("cpu")
NUCLEI = "microscopy_nuclei"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(small_starter(tmp_path_factory.mktemp("bundle")))


def test_plain_is_always_there_and_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "autocast_type", lambda device: torch.bfloat16)
    assert contenders(CPU)[0] == PLAIN
    assert len(set(contenders(CPU))) == len(contenders(CPU)) == 8
    assert contenders(CPU, quick=True) == [
        PLAIN, Contender("fast", "float32", 1), Contender("fast", "bfloat16", 1),
    ]  # fmt: skip
    assert contenders(CPU, precisions=["bfloat16"], batches=[2])[0] == PLAIN
    on_gpu = contenders(torch.device("cuda"))
    assert {contender.precision for contender in on_gpu} == {"float32", "bfloat16", "float16"}
    both = contenders(CPU, quick=True, profiles=["full", "compact"])
    assert both == [
        *contenders(CPU, quick=True),
        Contender("fast", "float32", 1, "compact"), Contender("fast", "bfloat16", 1, "compact"),
    ]  # fmt: skip


def test_a_cpu_is_not_measured_in_what_it_emulates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "autocast_type", lambda device: None)
    assert contenders(CPU, quick=True) == [PLAIN, Contender("fast", "float32", 1)]
    assert contenders(CPU, precisions=["bfloat16"], batches=[2], quick=True) == [
        PLAIN, Contender("fast", "bfloat16", 2),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["int3", "auto"])
def test_precisions_that_cannot_be_compared(name: str) -> None:
    with pytest.raises(InputError, match=name):
        contenders(CPU, precisions=[name])


def test_both_paths_do_the_same_work(bundle: Bundle) -> None:
    plain = Segmenter(bundle, device="cpu", precision="float32", fast=False)
    fast = Segmenter(bundle, device="cpu", precision="float32")
    wanted = passes.counted_gflop(plain, NUCLEI, 64)
    assert passes.counted_gflop(fast, NUCLEI, 64) == pytest.approx(wanted, rel=0.1)
    # the network is 113 GFLOP at 256 pixels; windows at the edges weigh more at 64
    assert 5 < wanted < 12


def test_a_report_of_passes(bundle: Bundle, tmp_path: Path) -> None:
    wanted = [PLAIN, Contender("fast", "float32", 2)]
    steps: list[int] = []
    report = measure_passes(
        {"full": bundle},
        NUCLEI,
        CPU,
        wanted,
        rounds=2,
        memory=False,
        on_step=lambda n, _: steps.append(n),
    )  # fmt: skip
    assert [figures.contender for figures in report.figures] == wanted
    plain, fast = report.figures
    assert plain.times_plain == 1
    assert fast.images_per_second == pytest.approx(2 / fast.latency.p50)
    for figures in report.figures:
        rate = report.teraflops["float32"] * 1000
        share = figures.images_per_second * figures.gflop / rate
        assert figures.share_of_products == pytest.approx(share)
        assert figures.peak is None
    # two ways and the matrix product, each warmed up
    assert steps == list(range(1, 10))
    whole = BenchmarkReport(Machine.this(CPU), "small", "cpu", report)
    written = json.loads(write_report(tmp_path / "report.json", whole).read_text())
    assert written["schema"] == 1
    assert written["machine"]["cores"] >= 1
    assert written["passes"]["figures"][1]["contender"] == {
        "path": "fast", "precision": "float32", "batch": 2, "profile": "full",
    }  # fmt: skip


def test_profiles_are_measured_beside_each_other(bundle: Bundle, tmp_path: Path) -> None:
    starter = bundle.load_network()
    half = save_bundle(
        tmp_path / "half", starter, bundle.modalities.values(), name="half",
        backbone=replace(bundle.backbone, input_size=32), training={},
    )  # fmt: skip
    wanted = [PLAIN, Contender("plain", "float32", 1, "half")]
    bundles = {"full": bundle, "half": half}
    report = measure_passes(bundles, NUCLEI, CPU, wanted, rounds=2, memory=False)
    full, small = report.figures
    assert small.contender.profile == "half"
    assert small.gflop < 0.5 * full.gflop
    assert small.images_per_second > full.images_per_second


def test_peak_memory_is_of_a_process_of_its_own(bundle: Bundle) -> None:
    held = high_water()
    if held is None:
        pytest.skip("the system does not tell")
    ballast = torch.ones(1_000_000_000, dtype=torch.uint8)
    peak = peak_of(bundle, NUCLEI, CPU, PLAIN)
    assert peak.gpu is None
    assert peak.main is not None
    assert peak.before is not None
    # the backbone alone is 23 MB
    assert peak.before + 20 < peak.main
    # what this process held is not counted
    assert peak.main < held + len(ballast) / 1e6


def test_a_process_that_fails_says_why(bundle: Bundle, tmp_path: Path) -> None:
    lost = replace(bundle, path=tmp_path / "nothing_here")
    with pytest.raises(EspMedSamError, match="nothing_here"):
        peak_of(lost, NUCLEI, CPU, PLAIN)


def test_products_are_counted() -> None:
    multiply, gflop = matrix_product(CPU, torch.float32)
    multiply()
    assert math.isclose(gflop, 2 * 1024**3 / 1e9)
