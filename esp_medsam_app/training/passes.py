"""A pass of training, from a batch to its losses, in one of several ways to start its kernels.

A network of this size keeps a large GPU waiting for Python: replaying recorded kernels, or fewer
that a compiler made, does not. What is faster is measured (`esp_medsam_app.gpu_machine`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.training.arithmetic import Arithmetic
from esp_medsam_app.training.inputs import embed_from
from esp_medsam_app.training.losses import Losses, SegmentationLoss
from esp_medsam_app.training.surroundings import Speed

SPEEDS: tuple[Speed, ...] = ("plain", "graphs", "compiled")

_Prepared = Callable[..., tuple[Tensor, Tensor, Tensor]]

_logger = logging.getLogger(__name__)


class _Key(NamedTuple):
    modality: str
    inputs: torch.Size


class Pass(nn.Module):
    """Inputs and label maps of one modality to its losses.

    Args:
        network: what learns.
        modality: whose parts of it are used.
        stage: of the encoder whose inputs are given; 0 for images.
        loss: what is minimised.
        arithmetic: how to compute.
    """

    def __init__(
        self,
        network: EspMedSam,
        modality: str,
        stage: int,
        loss: SegmentationLoss,
        arithmetic: Arithmetic,
    ) -> None:
        super().__init__()
        self.network = network
        self.modality = modality
        self.stage = stage
        self.loss = loss
        self.arithmetic = arithmetic

    def forward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Total, mask and patch loss."""
        with self.arithmetic.context():
            embedding = embed_from(self.network, inputs, self.stage, self.modality)
            masks, patches = self.network.decode(embedding, self.modality)
            losses = self.loss(masks, patches, labels)
        return losses.total, losses.mask, losses.patch


class Passes:
    """Passes of any modality and size; each is prepared when it is first needed.

    A way that fails on this machine gives way to `plain` for the rest of the run.

    Args:
        make: a pass of a modality.
        speed: `plain`; `graphs`: kernels of forward and backward are recorded once for each shape
            and replayed (CUDA; gradients of several batches must not be added up, as they share
            their memory); `compiled`: torch.compile, which takes about a minute for each shape.
        device: where it runs.
    """

    def __init__(
        self,
        make: Callable[[str], Pass],
        speed: Speed = "plain",
        device: str | torch.device = "cpu",
    ) -> None:
        self.make = make
        self.speed = speed
        if speed == "graphs" and torch.device(device).type != "cuda":
            self.speed = "plain"
        self._ready: dict[_Key, _Prepared] = {}

    def __call__(self, modality: str, inputs: Tensor, labels: Tensor) -> Losses:
        """The losses of a batch; `total` can be differentiated."""
        key = _Key(modality, inputs.shape)
        if key not in self._ready:
            self._ready[key] = self._prepared(modality, inputs, labels)
        try:
            return Losses(*self._ready[key](inputs, labels))
        except Exception as error:
            # torch.compile compiles at the first call
            if self.speed != "compiled":
                raise
            self._give_up(error)
            self._ready = {key: self.make(modality)}
            return Losses(*self._ready[key](inputs, labels))

    def _prepared(self, modality: str, inputs: Tensor, labels: Tensor) -> _Prepared:
        plain = self.make(modality)
        if self.speed == "plain":
            return plain
        if self.speed == "compiled":
            return _compiled(plain)
        try:
            return _recorded(self.make(modality), inputs, labels)
        except Exception as error:
            self._give_up(error)
            return plain

    def _give_up(self, error: Exception) -> None:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        _logger.warning("speed %s fails here (%s): plain passes follow", self.speed, reason)
        self.speed = "plain"


def _compiled(plain: Pass) -> _Prepared:
    made: Any = torch.compile(plain, dynamic=False)
    return cast("_Prepared", made)


def _recorded(plain: Pass, inputs: Tensor, labels: Tensor) -> _Prepared:
    """The pass as two CUDA graphs, forward and backward, for inputs of this shape.

    The samples are copies: a graph keeps its own as the memory that inputs are copied to.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        recorded: Any = torch.cuda.make_graphed_callables(
            plain, (inputs.detach().clone(), labels.clone()), allow_unused_input=True
        )
        return cast("_Prepared", recorded)
    finally:
        torch.set_autocast_cache_enabled(before)
