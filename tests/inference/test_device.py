"""Which precision a device gets by itself."""

from __future__ import annotations

import pytest
import torch

from esp_medsam_app.errors import InputError
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.inference.device import autocast, autocast_type, choose_precision
from esp_medsam_app.weights import load_bundle

GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("capability", "bfloat16", "wanted"),
    [
        ((9, 0), True, torch.bfloat16),
        ((7, 5), False, torch.float16),
        ((7, 0), False, torch.float16),
        ((6, 1), False, torch.float32),
    ],
)
def test_a_gpu_segments_in_what_it_is_fast_at_and_trains_without_overflow(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    bfloat16: bool,
    wanted: torch.dtype,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    assert choose_precision("auto", GPU) is wanted
    assert autocast_type(GPU) is (torch.bfloat16 if bfloat16 else None)


def test_a_cpu_never_gets_float16_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) is torch.float32
    assert choose_precision("float16", cpu) is torch.float16
    with autocast(cpu):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


def test_openvino_rounds_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) is torch.bfloat16
    assert choose_precision("auto", cpu, "openvino") is torch.float32
    assert choose_precision("bfloat16", cpu, "openvino") is torch.bfloat16


def test_openvino_does_not_compute_in_float16() -> None:
    with pytest.raises(InputError, match="not in float16"):
        Segmenter(load_bundle(), device="cpu", precision="float16", runtime="openvino")
