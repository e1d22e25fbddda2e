"""A label map from anything that turns tiles into logits: slices, tiles, batches, memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.errors import InputError, OutOfMemoryError
from esp_medsam_app.inference.ahead import ahead, behind
from esp_medsam_app.inference.device import free_memory, is_out_of_memory
from esp_medsam_app.inference.preprocessing import IntensityScale, Tiling, decide
from esp_medsam_app.modalities import Modality

# Tiles in one pass. More gain nothing: on two cores from 2 on, on a GPU from 16 on.
CPU_BATCH = 4
GPU_BATCH = 16
# Of free memory, so many bytes for each tile of a pass: twice what the plain network takes in
# float32, as others take memory too.
TILE_BYTES = 600_000_000
# What waits between the steps that run beside each other: tiles before a pass (as many passes'),
# slices behind it.
PASSES_AHEAD, SLICES_BEHIND = 2, 4

OnSlice = Callable[[int, int], None]
Run = Callable[[Tensor], Tensor]

logger = logging.getLogger(__name__)


def batch_size_for(device: torch.device) -> int:
    """How many tiles a pass takes now if nobody says otherwise: fewer where memory is short."""
    most = CPU_BATCH if device.type == "cpu" else GPU_BATCH
    free = free_memory(device)
    return most if free is None else max(1, min(most, free // TILE_BYTES))


def segment_slicewise(
    image: MedicalImage,
    modality: Modality,
    run: Run,
    *,
    tile: int,
    device: torch.device,
    batch_size: int,
    on_slice: OnSlice | None = None,
    relief: Relief | None = None,
    overlap: bool | None = None,
) -> NDArray[np.uint8]:
    """Segment an image, slice by slice along its acquisition axis.

    Slices are scaled and cut by one thread, go through the network in this one, and become labels
    in a third. What waits between them is bounded, and logits of the image's own size are of one
    slice at a time; of the whole image there is only the label map.

    Args:
        image: picture or volume.
        modality: its labels, intensity rule and tiles.
        run: tiles `[B, 3, tile, tile]` on the CPU, in [0, 1], to float32 logits
            `[B, labels, tile, tile]`; a pixel is of a label where its logit is above 0.
        tile: side of the network's input, pixels.
        device: where `run` computes.
        batch_size: tiles in one pass. Halved, down to 1, when memory does not suffice.
        on_slice: called with the slices done and the slices in all.
        relief: what else helps when memory does not suffice.
        overlap: use the threads; by default where `run` does not compute on the CPU, which those
            would only take from it.

    Returns:
        The label map, uint8, of the image's shape, lying in memory as NIfTI does: 0 background,
        else the modality's labels.

    Raises:
        InputError: nothing to segment: voxels that are all equal or not finite, or slices
            of fewer than 8 pixels.
        OutOfMemoryError: not even one tile at a time fits into memory.
    """
    if overlap is None:
        overlap = device.type != "cpu"
    with naming_errors(image):
        view = SliceView.of(image.grid)
        slices = view.slices(image.voxels)
        tiling = Tiling(slices.shape[1], slices.shape[2], tile, modality.tiles)
        scale = IntensityScale.of(image.voxels, modality.intensity)
        labels = np.zeros(slices.shape[:3], np.uint8)
        passes = Passes(run, device, batch_size, image, relief)

        def decided(logits: list[Tensor]) -> NDArray[np.uint8]:
            return _decided(tiling, logits)

        with closing(by_slice(passes, slices, scale, tiling, overlap)) as found:
            maps = (
                behind(decided, found, SLICES_BEHIND)
                if overlap
                else (decided(logits) for logits in found)
            )
            with closing(maps):
                for index, label_map in enumerate(maps):
                    labels[index] = label_map
                    if on_slice is not None:
                        on_slice(index + 1, len(slices))
        # nearly the same in memory for axial slices, and what NIfTI is written from
        return np.asfortranarray(view.restore(labels))


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
    passes: Passes,
    slices: NDArray[np.generic],
    scale: IntensityScale,
    tiling: Tiling,
    overlap: bool = False,
) -> Generator[list[Tensor], None, None]:
    """What the passes give for the tiles of each of the slices `[S, H, W(, 3)]` in turn.

    Close it when it is not used to its end.
    """
    tiles = (
        tiling.cut(canvas, origin)
        for canvas in _canvases(slices, scale, tiling)
        for origin in tiling.origins
    )
    if overlap:
        tiles = ahead(tiles, PASSES_AHEAD * passes.size)
    with closing(tiles):
        results = passes.over(tiles)
        while of_slice := list(islice(results, len(tiling.origins))):
            yield of_slice


class Relief:
    """What helps an image when a device has too little memory for it, beside smaller passes.

    Args:
        free: gives back what is held for later use only; called once.
        on_cpu: makes what runs a pass on the CPU instead, when not even one tile fits.
    """

    def __init__(
        self,
        free: Callable[[], None] | None = None,
        on_cpu: Callable[[], Run] | None = None,
    ) -> None:
        self.free = free
        self.on_cpu = on_cpu


class Passes:
    """Passes over one image's tiles, as large as memory takes.

    Args:
        run: from tiles `[B, 3, tile, tile]` to `[B, ...]`.
        device: where it computes.
        batch_size: tiles in one pass, at first.
        image: for errors.
        relief: what else helps when memory does not suffice.
    """

    def __init__(
        self,
        run: Run,
        device: torch.device,
        batch_size: int,
        image: MedicalImage,
        relief: Relief | None = None,
    ) -> None:
        self.run = run
        self.device = device
        self.size = batch_size
        self.image = image
        self.relief = relief or Relief()

    def over(self, tiles: Iterator[Tensor]) -> Iterator[Tensor]:
        """What `run` gives for each tile in turn, such as logits `[labels, tile, tile]`."""
        while batch := list(islice(tiles, self.size)):
            start = 0
            while start < len(batch):
                chunk = torch.stack(batch[start : start + self.size])
                try:
                    logits = self.run(chunk)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    if not self._can_make_room():
                        raise OutOfMemoryError(
                            f"{self.device} has too little memory for a single tile",
                            path=self.image.path,
                            remedy="Close other programs on it, or use another device",
                        ) from error
                    logits = None
                if logits is None:
                    # outside the handler: the traceback held the failed pass's tensors
                    self._make_room()
                    continue
                start += len(chunk)
                yield from logits

    def _can_make_room(self) -> bool:
        return self.size > 1 or self.relief.free is not None or self._can_leave

    @property
    def _can_leave(self) -> bool:
        return self.relief.on_cpu is not None and self.device.type != "cpu"

    def _make_room(self) -> None:
        """Free what can be, and make the next pass smaller, or the CPU's."""
        free, self.relief.free = self.relief.free, None
        if free is not None:
            free()
        if self.size > 1:
            self.size //= 2
        elif free is None:
            assert self.relief.on_cpu is not None
            logger.warning("%s has too little memory: the CPU goes on, slowly", self.device)
            self.run, self.device = self.relief.on_cpu(), torch.device("cpu")
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _canvases(
    slices: NDArray[np.generic], scale: IntensityScale, tiling: Tiling
) -> Iterator[Tensor]:
    """Each slice scaled in intensity and size, `[3, h, w]`."""
    for index in range(len(slices)):
        yield tiling.scale(scale.apply(slices[index : index + 1]))[0]


def _decided(tiling: Tiling, logits: list[Tensor]) -> NDArray[np.uint8]:
    """The label map `[H, W]` of a slice from the logits of its tiles; on the CPU if need be."""
    # the CPU may have gone on in the middle of a slice
    if len({tile.device for tile in logits}) == 1:
        try:
            return decide(tiling.join(torch.stack(logits))).cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or logits[0].device.type == "cpu":
                raise
    return decide(tiling.join(torch.stack([tile.cpu() for tile in logits]))).numpy()
