"""The fused encoder under torch.compile beside itself: what compiling costs and gives.

One tile of ct_liver, on this machine's device and in its precision. Needs a C++ compiler on a CPU.
Why the fast path is not compiled: docs/performance.md.
"""

from __future__ import annotations

import time

import torch

from esp_medsam_app.benchmark.timing import interleaved, times_faster
from esp_medsam_app.inference.device import cast_to, choose_device, choose_precision
from esp_medsam_app.networks.fused_tiny_vit import FusedTinyViT
from esp_medsam_app.weights import load_bundle

MODALITY = "ct_liver"
ROUNDS = 5


def main() -> None:
    """Print what compiling took, and the rate it gives."""
    device = choose_device("auto")
    dtype = choose_precision("auto", device)
    bundle = load_bundle()
    network = bundle.load_network().to(device)
    encoder = FusedTinyViT(network.encoder, dtype)
    controller = encoder.fuse(network.controller(MODALITY))
    side = bundle.description.input_size
    tile = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    compiled = torch.compile(encoder.__call__, dynamic=False)
    with torch.inference_mode(), cast_to(dtype, device):
        start = time.perf_counter()
        found = compiled(tile, controller).cpu()
        spent = time.perf_counter() - start
        wanted = encoder(tile, controller).cpu()
        calls = {
            "eager": lambda: encoder(tile, controller).cpu(),
            "compiled": lambda: compiled(tile, controller).cpu(),
        }
        seconds = interleaved(calls, ROUNDS)
    apart = float((found - wanted).norm() / wanted.norm())
    rate = times_faster(seconds["compiled"], seconds["eager"])
    print(f"{device}, {dtype}: {spent:.0f} s to compile, {rate:.2f} x eager, {apart:.1e} apart")


if __name__ == "__main__":
    main()
