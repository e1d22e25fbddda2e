"""DeSAM's segmenter: images and volumes in, label maps out."""

from __future__ import annotations

import copy
import threading

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.errors import InputError
from esp_medsam_app.inference.desam_masks import prompted_masks
from esp_medsam_app.inference.device import (
    cast_to,
    choose_device,
    choose_precision,
    precision_for,
)
from esp_medsam_app.inference.segmenter import Segmenter
from esp_medsam_app.inference.slicewise import (
    OnSlice,
    Relief,
    Run,
    batch_size_for,
    segment_slicewise,
)
from esp_medsam_app.networks.features import Features
from esp_medsam_app.networks.fused_tiny_vit import FusedController, FusedTinyViT
from esp_medsam_app.networks.tiny_vit import TinyViT
from esp_medsam_app.weights.desam_bundle import DeSamBundle
from esp_medsam_app.weights.desam_prompts import PROMPT_MODES, MaskRules, PromptMode


class DeSamSegmenter:
    """Segments images with the modalities of a bundle of DeSAM, as `Segmenter` does.

    It may be shared by threads, which take turns on the device.

    Args:
        bundle: weights and modalities.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        batch_size: tiles in one pass; chosen by the device by default.
        mode: how it is prompted; as it was trained by default.
        rules: from prompts to masks; the bundle's of each modality by default.
        precision: as `Segmenter`'s.
        fast: by the fused encoder where it is a TinyViT, the same function to rounding.
        beside: ESP-MedSAM on the same device. Where it stands on the same encoder, that is shared.

    Raises:
        WeightsError: a weight file is missing, damaged or does not fit.
        InputError: there is no such device or precision, or the bundle was not trained with such
            prompts.
    """

    def __init__(
        self,
        bundle: DeSamBundle,
        *,
        device: str = "auto",
        batch_size: int | None = None,
        mode: PromptMode | None = None,
        rules: MaskRules | None = None,
        precision: str = "auto",
        fast: bool = True,
        beside: Segmenter | None = None,
    ) -> None:
        self.bundle = bundle
        self.device = choose_device(device) if beside is None else beside.device
        self.dtype = choose_precision(precision, self.device)
        self._precision = precision
        self._batch_size = batch_size
        self.mode = self._checked(mode)
        self._rules = rules
        self._turn = threading.Lock() if beside is None else beside.turn
        encoder = None
        if beside is not None:
            own, other = bundle.description.backbone, beside.bundle.description.backbone
            encoder = beside.encoder if own.sha256 == other.sha256 else None
        self._network = bundle.load_network(encoder=encoder).to(self.device)
        self._fast = fast and isinstance(self._network.encoder, TinyViT)
        self._fused: dict[torch.dtype, tuple[FusedTinyViT, FusedController]] = {}
        if self._fast:
            self._fuse(self.dtype)

    @property
    def batch_size(self) -> int:
        """Tiles that a pass would take now."""
        return self._batch_size or batch_size_for(self.device)

    def with_bundle(self, bundle: DeSamBundle) -> DeSamSegmenter:
        """A segmenter of the same bundle with other versions of some modalities.

        It shares all else with this one, which stays as it is.

        Args:
            bundle: of the same encoder and prompt encoder.

        Raises:
            WeightsError: a weight file is missing, damaged or does not fit.
        """
        other = copy.copy(self)
        other.bundle = bundle
        other._network = network = self._network.sharing()
        gone, changed = bundle.changes_from(self.bundle)
        for name in gone:
            del network.decoders[name]
        for name in changed:
            bundle.load_modality(network, name)
        return other

    def prompted(
        self, mode: PromptMode | None = None, rules: MaskRules | None = None
    ) -> DeSamSegmenter:
        """The same, prompted otherwise; it shares everything with this one.

        Raises:
            InputError: the bundle was not trained with such prompts.
        """
        other = copy.copy(self)
        other.mode = self._checked(mode) if mode is not None else self.mode
        other._rules = rules or self._rules
        return other

    def rules(self, modality: str) -> MaskRules:
        """From prompts to masks of a modality."""
        return self._rules or self.bundle.rules(modality)

    def segment(
        self, image: MedicalImage, modality: str, *, on_slice: OnSlice | None = None
    ) -> NDArray[np.uint8]:
        """Segment an image, slice by slice along its acquisition axis; every slice.

        Args:
            image: picture or volume.
            modality: one of the bundle's.
            on_slice: called with the slices done and the slices in all.

        Returns:
            The label map, uint8, of the image's shape: 0 background, else the modality's labels.

        Raises:
            UnknownNameError: the bundle has no such modality.
            InputError, OutOfMemoryError: as `Segmenter.segment`.
        """
        return segment_slicewise(
            image,
            self.bundle.modality(modality),
            lambda tiles: self._run(tiles, modality),
            tile=self.bundle.description.input_size,
            device=self.device,
            batch_size=self.batch_size,
            on_slice=on_slice,
            relief=Relief(on_cpu=lambda: self._on_cpu(modality)),
        )

    def version(self, modality: str) -> int:
        """Which version of a modality's weights it segments with; 0: the bundle's own."""
        return self.bundle.version(modality)

    def parameters(self, modality: str) -> int:
        """How many parameters segment a modality: encoder, prompt encoder, its decoder.

        Raises:
            UnknownNameError: the bundle has no such modality.
        """
        network = self._network
        name = self.bundle.modality(modality).name
        used = (network.encoder, network.prompt_encoder, network.decoder(name))
        return sum(p.numel() for part in used for p in part.parameters())

    def shares_encoder_with(self, other: Segmenter) -> bool:
        """Whether both stand on one encoder in memory."""
        return self._network.encoder is other.encoder

    def dtype_of(self, modality: str) -> torch.dtype:
        """What the passes of a modality compute in."""
        needs_float32 = self.bundle.needs_float32(modality)
        return precision_for(self._precision, self.dtype, needs_float32=needs_float32)

    def _run(self, tiles: Tensor, modality: str) -> Tensor:
        dtype = self.dtype_of(modality)
        with self._turn, torch.inference_mode(), cast_to(dtype, self.device):
            features = self._encode(tiles.to(self.device), dtype)
            return prompted_masks(
                self._network, features, modality, self.mode, self.rules(modality)
            )

    def _encode(self, tiles: Tensor, dtype: torch.dtype) -> Features:
        if not self._fast:
            return self._network.encode(tiles)
        if dtype not in self._fused:
            self._fuse(dtype)
        fused, uncontrolled = self._fused[dtype]
        return fused.features(tiles, uncontrolled)

    def _fuse(self, dtype: torch.dtype) -> None:
        encoder = self._network.encoder
        assert isinstance(encoder, TinyViT)
        fused = FusedTinyViT(encoder, dtype)
        self._fused[dtype] = fused, fused.fuse(None)

    def _on_cpu(self, modality: str) -> Run:
        """What runs a pass there; the weights are loaded for this image alone."""
        other = DeSamSegmenter(
            self.bundle,
            device="cpu",
            mode=self.mode,
            rules=self._rules,
            precision=self._precision,
            fast=self._fast,
        )
        return lambda tiles: other._run(tiles, modality)

    def _checked(self, mode: PromptMode | None) -> PromptMode:
        trained = self.bundle.description.prompts
        if mode is None:
            return trained[0]
        if mode not in trained:
            known = f"{' and '.join(trained)}"
            raise InputError(
                f"prompt {mode!r}: these weights were trained with {known}"
                if mode in PROMPT_MODES
                else f"there is no prompt {mode!r}",
                path=self.bundle.path,
                remedy=f"Use {' or '.join(trained)}",
            )
        return mode
