"""The Segmenter: images and volumes in, label maps out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.errors import InputError, OutOfMemoryError
from esp_medsam_app.inference.device import autocast, choose_device
from esp_medsam_app.inference.preprocessing import IntensityScale, Tiling, decide
from esp_medsam_app.modalities import Modality
from esp_medsam_app.weights.bundle import Bundle

# Tiles in one pass. More gain nothing: on two cores from 2 on, on a GPU from 16 on.
CPU_BATCH = 4
GPU_BATCH = 16

OnSlice = Callable[[int, int], None]


class Segmenter:
    """Segments images with the modalities of a bundle, all on one backbone in memory.

    It may be shared by threads: a pass names its modality and leaves no state behind. Passes of
    several threads take turns on the device, batch by batch, so that memory does not add up and a
    short request is not held up by a long one.

    Args:
        bundle: weights and modalities.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        batch_size: tiles in one pass; chosen by the device by default. Halved, down to 1, when
            memory does not suffice.

    Raises:
        WeightsError: a weight file is missing, damaged or does not fit.
        InputError: there is no such device.
    """

    def __init__(
        self, bundle: Bundle, *, device: str = "auto", batch_size: int | None = None
    ) -> None:
        self.bundle = bundle
        self.device = choose_device(device)
        self.batch_size = batch_size or (CPU_BATCH if self.device.type == "cpu" else GPU_BATCH)
        self._network = bundle.load_network().to(self.device)
        self._turn = threading.Lock()

    def segment(
        self, image: MedicalImage, modality: str, *, on_slice: OnSlice | None = None
    ) -> NDArray[np.uint8]:
        """Segment an image, slice by slice along its acquisition axis.

        Args:
            image: picture or volume.
            modality: one of the bundle's.
            on_slice: called with the slices done and the slices in all.

        Returns:
            The label map, uint8, of the image's shape: 0 background, else the modality's labels.

        Raises:
            UnknownNameError: the bundle has no such modality.
            InputError: nothing to segment: voxels that are all equal or not finite, or slices
                of fewer than 8 pixels.
            OutOfMemoryError: not even one tile at a time fits into memory.
        """
        rule = self.bundle.modality(modality)
        try:
            return self._segment(image, rule, on_slice)
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

    def _segment(
        self, image: MedicalImage, modality: Modality, on_slice: OnSlice | None
    ) -> NDArray[np.uint8]:
        view = SliceView.of(image.grid)
        slices = view.slices(image.voxels)
        count, height, width = slices.shape[:3]
        tiling = Tiling(height, width, self.bundle.description.input_size, modality.tiles)
        scale = IntensityScale.of(image.voxels, modality.intensity)
        labels = np.zeros((count, height, width), np.uint8)
        logits: list[Tensor] = []
        tiles = (
            tiling.cut(canvas, origin)
            for canvas in _canvases(slices, scale, tiling)
            for origin in tiling.origins
        )
        done = 0
        for tile_logits in self._passes(tiles, modality, image):
            logits.append(tile_logits)
            if len(logits) == len(tiling.origins):
                labels[done] = decide(tiling.join(torch.stack(logits))).cpu().numpy()
                logits.clear()
                done += 1
                if on_slice is not None:
                    on_slice(done, count)
        return np.ascontiguousarray(view.restore(labels))

    def _passes(
        self, tiles: Iterator[Tensor], modality: Modality, image: MedicalImage
    ) -> Iterator[Tensor]:
        """Logits `[Q, tile, tile]` of each tile in turn, with as many at a time as memory takes."""
        size = self.batch_size
        while batch := list(islice(tiles, size)):
            start = 0
            while start < len(batch):
                chunk = torch.stack(batch[start : start + size])
                try:
                    logits = self._run(chunk, modality.name)
                except (RuntimeError, MemoryError) as error:
                    if not _is_out_of_memory(error):
                        raise
                    if size == 1:
                        raise OutOfMemoryError(
                            f"{self.device} has too little memory for a single tile",
                            path=image.path,
                            remedy="Close other programs on it, or use another device",
                        ) from error
                    logits = None
                if logits is None:
                    # outside the handler: the traceback held the failed pass's tensors
                    size = max(1, size // 2)
                    if self.device.type == "cuda":
                        torch.cuda.empty_cache()
                    continue
                start += len(chunk)
                yield from logits

    def _run(self, tiles: Tensor, modality: str) -> Tensor:
        with self._turn, torch.inference_mode(), autocast(self.device):
            return self._network(tiles.to(self.device), modality).mask_logits.float()


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
