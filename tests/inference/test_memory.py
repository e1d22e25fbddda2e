"""When memory does not suffice: smaller passes, then the CPU; what failed holds nothing."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.errors import OutOfMemoryError
from esp_medsam_app.inference import slicewise
from esp_medsam_app.inference.device import free_memory
from esp_medsam_app.inference.slicewise import (
    CPU_BATCH,
    GPU_BATCH,
    TILE_BYTES,
    Relief,
    Run,
    batch_size_for,
    segment_slicewise,
)
from esp_medsam_app.modalities import Modality

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SPOT = Modality(name="spot", title="", description="", dimension=3, labels={"spot": 1})
VOXELS = np.zeros((32, 32, 11), np.float32)
VOXELS[8:20, 4:16, 2:9] = 100


def segment(
    run: Run, device: torch.device = GPU, relief: Relief | None = None, overlap: bool | None = None
) -> np.ndarray:
    grid = Grid(VOXELS.shape, np.eye(4), has_patient_space=False)
    return segment_slicewise(
        MedicalImage(VOXELS, grid, Path("case.nii")), SPOT, run, tile=32, device=device,
        batch_size=8, relief=relief, overlap=overlap,
    )  # fmt: skip


def bright(tiles: torch.Tensor) -> torch.Tensor:
    return tiles[:, :1] * 2 - 1


WANTED = VOXELS > 0


class Scarce:
    """Memory for so many tiles at a time; notes the passes, and who still holds a failed one."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.sizes: list[int] = []
        self._failed: weakref.ref[torch.Tensor] | None = None

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        assert self._failed is None or self._failed() is None, "the failed pass is still held"
        self.sizes.append(len(tiles))
        if len(tiles) > self.limit:
            activation = torch.zeros(1000)
            self._failed = weakref.ref(activation)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return bright(tiles)


@pytest.mark.parametrize("overlap", [False, True])
def test_passes_become_smaller(overlap: bool) -> None:
    run = Scarce(3)
    assert np.array_equal(segment(run, overlap=overlap), WANTED)
    assert run.sizes == [8, 4, 2, 2, 2, 2, 2, 1]


@pytest.mark.parametrize("overlap", [False, True])
def test_then_the_cpu_goes_on_where_the_gpu_stopped(overlap: bool) -> None:
    here = Scarce(0)
    there: list[int] = []
    made: list[str] = []

    def on_cpu() -> Run:
        made.append("cpu")

        def run(tiles: torch.Tensor) -> torch.Tensor:
            there.append(len(tiles))
            return bright(tiles)

        return run

    assert np.array_equal(segment(here, relief=Relief(on_cpu=on_cpu), overlap=overlap), WANTED)
    assert here.sizes == [8, 4, 2, 1]
    assert made == ["cpu"]
    assert there == [1] * 11


def test_memory_that_runs_out_later() -> None:
    """Others take it while the image is segmented."""
    run = Scarce(8)

    def shrinking(tiles: torch.Tensor) -> torch.Tensor:
        if len(run.sizes) == 1:
            run.limit = 0
        return run(tiles)

    assert np.array_equal(segment(shrinking, relief=Relief(on_cpu=lambda: bright)), WANTED)
    assert run.sizes == [8, 3, 3, 2, 1]


def test_what_is_held_for_later_goes_first_and_once() -> None:
    freed: list[int] = []
    run = Scarce(2)
    relief = Relief(free=lambda: freed.append(len(run.sizes)))
    assert np.array_equal(segment(run, relief=relief), WANTED)
    assert freed == [1]


def test_a_single_tile_is_tried_again_after_freeing() -> None:
    run = Scarce(0)

    def free() -> None:
        run.limit = 1

    grid = Grid(VOXELS.shape, np.eye(4), has_patient_space=False)
    labels = segment_slicewise(
        MedicalImage(VOXELS, grid), SPOT, run, tile=32, device=CPU, batch_size=1,
        relief=Relief(free=free),
    )  # fmt: skip
    assert np.array_equal(labels, WANTED)
    assert run.sizes == [1] * 12


@pytest.mark.parametrize("relief", [None, Relief(free=lambda: None)])
@pytest.mark.parametrize("device", [CPU, GPU])
def test_nothing_helps(device: torch.device, relief: Relief | None) -> None:
    with pytest.raises(OutOfMemoryError, match=rf"case\.nii: {device} has too little memory"):
        segment(Scarce(0), device, relief and Relief(free=relief.free))


def test_the_cpu_has_too_little_memory_too() -> None:
    with pytest.raises(OutOfMemoryError, match=r"case\.nii: cpu has too little memory"):
        segment(Scarce(0), relief=Relief(on_cpu=lambda: Scarce(0)))


def test_the_cpu_does_not_fall_back_on_itself() -> None:
    with pytest.raises(OutOfMemoryError, match="cpu has too little memory"):
        segment(Scarce(0), CPU, Relief(on_cpu=lambda: bright))


def test_labels_are_decided_on_the_cpu_if_need_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits fit, but not at the size of the slice."""
    calls: list[str] = []

    class OnGpu:
        """A tensor that says it is on the GPU."""

        device = GPU

        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

        def cpu(self) -> torch.Tensor:
            calls.append("cpu")
            return self.tensor

    stack = torch.stack

    def no_room(tensors: list[torch.Tensor]) -> torch.Tensor:
        if isinstance(tensors[0], OnGpu):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return stack(tensors)

    monkeypatch.setattr(torch, "stack", no_room)
    assert np.array_equal(segment(lambda tiles: [OnGpu(t) for t in bright(tiles)]), WANTED)  # type: ignore[arg-type,return-value]
    assert calls == ["cpu"] * 11


def test_the_batch_follows_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, wanted in ((None, 16), (10**12, 16), (3 * TILE_BYTES + 1, 3), (5, 1)):
        monkeypatch.setattr(slicewise, "free_memory", lambda device, free=free: free)
        assert batch_size_for(GPU) == min(wanted, GPU_BATCH)
        assert batch_size_for(CPU) == min(wanted, CPU_BATCH)


def test_free_memory_of_this_machine() -> None:
    free = free_memory(CPU)
    assert free is None or 10**8 < free < 10**14
