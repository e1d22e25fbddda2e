"""A label map from anything that turns tiles into logits: slices, tiles, batches, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.errors import InputError, OutOfMemoryError
from esp_medsam_app.inference.preprocessing import IntensityScale, Tiling, decide
from esp_medsam_app.modalities import Modality

# Tiles in one pass. More gain nothing: on two cores from 2 on, on a GPU from 16 on.
CPU_BATCH = 4
GPU_BATCH = 16

OnSlice = Callable[[int, int], None]
Run = Callable[[Tensor], Tensor]


def batch_size_for(device: torch.device) -> int:
    """How many tiles a pass takes if nobody says otherwise."""
    return CPU_BATCH if device.type == "cpu" else GPU_BATCH


def segment_slicewise(
    image: MedicalImage,
    modality: Modality,
    run: Run,
    *,
    tile: int,
    device: torch.device,
    batch_size: int,
    on_slice: OnSlice | None = None,
) -> NDArray[np.uint8]:
    """Segment an image, slice by slice along its acquisition axis.

    Args:
        image: picture or volume.
        modality: its labels, intensity rule and tiles.
        run: tiles `[B, 3, tile, tile]` on the CPU, in [0, 1], to float32 logits
            `[B, labels, tile, tile]`; a pixel is of a label where its logit is above 0.
        tile: side of the network's input, pixels.
        device: where `run` computes.
        batch_size: tiles in one pass. Halved, down to 1, when memory does not suffice.
        on_slice: called with the slices done and the slices in all.

    Returns:
        The label map, uint8, of the image's shape: 0 background, else the modality's labels.

    Raises:
        InputError: nothing to segment: voxels that are all equal or not finite, or slices
            of fewer than 8 pixels.
        OutOfMemoryError: not even one tile at a time fits into memory.
    """
    with naming_errors(image):
        view = SliceView.of(image.grid)
        slices = view.slices(image.voxels)
        tiling = Tiling(slices.shape[1], slices.shape[2], tile, modality.tiles)
        scale = IntensityScale.of(image.voxels, modality.intensity)
        labels = np.zeros(slices.shape[:3], np.uint8)
        passes = Passes(run, device, batch_size, image)
        for index, logits in enumerate(by_slice(passes, slices, scale, tiling)):
            labels[index] = decide(tiling.join(torch.stack(logits))).cpu().numpy()
            if on_slice is not None:
                on_slice(index + 1, len(slices))
        return np.ascontiguousarray(view.restore(labels))


@contextmanager
def naming_errors(image: MedicalImage) -> Iterator[None]:
    """Errors name the image's file, and say so when main memory is what lacks."""
    try:
        yield
    except InputError as error:
        if error.path is not None or image.path is None:
            raise
        raise InputError(error.problem, path=image.path, remedy=error.remedy) from error
    except MemoryError as error:
        raise OutOfMemoryError(
            "the image needs more main memory than there is",
            path=image.path,
            remedy="Crop or downsample it, or use a machine with more memory",
        ) from error


def by_slice(
    passes: Passes, slices: NDArray[np.generic], scale: IntensityScale, tiling: Tiling
) -> Iterator[list[Tensor]]:
    """What the passes give for the tiles of each of the slices `[S, H, W(, 3)]` in turn."""
    tiles = (
        tiling.cut(canvas, origin)
        for canvas in _canvases(slices, scale, tiling)
        for origin in tiling.origins
    )
    results = passes.over(tiles)
    while of_slice := list(islice(results, len(tiling.origins))):
        yield of_slice


class Passes:
    """Passes over one image's tiles, as large as memory takes.

    Args:
        run: from tiles `[B, 3, tile, tile]` to `[B, ...]`.
        device: where it computes.
        batch_size: tiles in one pass, at first.
        image: for errors.
    """

    def __init__(
        self, run: Run, device: torch.device, batch_size: int, image: MedicalImage
    ) -> None:
        self.run = run
        self.device = device
        self.size = batch_size
        self.image = image

    def over(self, tiles: Iterator[Tensor]) -> Iterator[Tensor]:
        """What `run` gives for each tile in turn, such as logits `[labels, tile, tile]`."""
        while batch := list(islice(tiles, self.size)):
            start = 0
            while start < len(batch):
                chunk = torch.stack(batch[start : start + self.size])
                try:
                    logits = self.run(chunk)
                except (RuntimeError, MemoryError) as error:
                    if not _is_out_of_memory(error):
                        raise
                    if self.size == 1:
                        raise OutOfMemoryError(
                            f"{self.device} has too little memory for a single tile",
                            path=self.image.path,
                            remedy="Close other programs on it, or use another device",
                        ) from error
                    logits = None
                if logits is None:
                    # outside the handler: the traceback held the failed pass's tensors
                    self.size = max(1, self.size // 2)
                    if self.device.type == "cuda":
                        torch.cuda.empty_cache()
                    continue
                start += len(chunk)
                yield from logits


def _canvases(
    slices: NDArray[np.generic], scale: IntensityScale, tiling: Tiling
) -> Iterator[Tensor]:
    """Each slice scaled in intensity and size, `[3, h, w]`."""
    for index in range(len(slices)):
        yield tiling.scale(scale.apply(slices[index : index + 1]))[0]


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # the CPU allocator has no exception class of its own
    return "allocate memory" in str(error) or "out of memory" in str(error)
