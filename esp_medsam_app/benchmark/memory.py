"""Peak memory of a pass, in a process that does nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from esp_medsam_app.errors import EspMedSamError
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.weights.bundle import Bundle, load_bundle

if TYPE_CHECKING:
    from esp_medsam_app.benchmark.passes import Contender

# One to take what is needed, one to find it taken.
_PASSES = 2


@dataclass(frozen=True)
class Peak:
    """The most memory that a process held, MB (10^6 bytes).

    Attributes:
        main: program, weights and passes; none where the system does not tell.
        before: main memory with the program loaded, before the weights.
        gpu: tensors on the GPU; none on a CPU.
    """

    main: float | None
    before: float | None
    gpu: float | None


def peak_of(bundle: Bundle, modality: str, device: torch.device, contender: Contender) -> Peak:
    """Start a process that runs two passes, and hear what it held.

    Raises:
        EspMedSamError: it failed; says how.
    """
    task = {
        "bundle": str(bundle.path),
        "modality": modality,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "precision": contender.precision,
        "fast": contender.path != "plain",
        "runtime": "openvino" if contender.path == "openvino" else "torch",
        "batch": contender.batch,
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(task)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise EspMedSamError(f"the memory of a pass cannot be measured ({last})")
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def high_water() -> float | None:
    """The most main memory that this process held so far, MB; none where Linux does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    # not getrusage's: that starts from the process which started this one
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else None


def _main(argument: str) -> None:
    task = json.loads(argument)
    torch.set_num_threads(task["threads"])
    before = high_water()
    segmenter = Segmenter(
        load_bundle(task["bundle"]),
        device=task["device"],
        precision=task["precision"],
        fast=task["fast"],
        runtime=task["runtime"],
    )
    side = segmenter.bundle.description.input_size
    for _ in range(_PASSES):
        segmenter.logits(torch.rand(task["batch"], 3, side, side), task["modality"])
    on_gpu = segmenter.device.type == "cuda"
    gpu = torch.cuda.max_memory_allocated(segmenter.device) / 1e6 if on_gpu else None
    print(json.dumps(asdict(Peak(high_water(), before, gpu))))


if __name__ == "__main__":
    _main(sys.argv[1])
