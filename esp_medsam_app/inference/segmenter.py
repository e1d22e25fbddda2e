"""The Segmenter: images and volumes in, label maps out."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.errors import OtherModalityError, OutOfMemoryError
from esp_medsam_app.inference.assessment import (
    MOST_SLICES,
    Assessment,
    BeforePass,
    assess_slicewise,
    nothing_found,
)
from esp_medsam_app.inference.device import (
    cast_to,
    choose_device,
    choose_precision,
    is_out_of_memory,
    precision_for,
)
from esp_medsam_app.inference.embedding_cache import (
    EmbeddingCache,
    RememberedPasses,
    fingerprint,
)
from esp_medsam_app.inference.fast_network import FastNetwork
from esp_medsam_app.inference.input_size import (
    DEFAULT_QUALITY,
    check_input_size,
    input_size,
)
from esp_medsam_app.inference.modality_reader import (
    ModalityReading,
    looking,
    mistaken_for,
    read_modality,
)
from esp_medsam_app.inference.openvino_encoder import OpenVinoEncoder, check_runtime
from esp_medsam_app.inference.presence import present_masks
from esp_medsam_app.inference.slicewise import (
    OnSlice,
    Relief,
    Run,
    batch_size_for,
    naming_errors,
    segment_slicewise,
)
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam, Segmentation
from esp_medsam_app.networks.esp_medsam import resized
from esp_medsam_app.networks.tiny_vit import TinyViT
from esp_medsam_app.weights.bundle import Bundle, controller_file
from esp_medsam_app.weights.classifier_file import CLASSIFIER, load_classifier
from esp_medsam_app.weights.compact import compact_in_memory
from esp_medsam_app.weights.modality_classifier import ModalityClassifier

# What the classifier saw in the images used last is kept, beside their embeddings.
_READINGS = 64


class Segmenter:
    """Segments images with the modalities of a bundle, all on one backbone in memory.

    It may be shared by threads: a pass names its modality and leaves no state behind. Passes of
    several threads take turns on the device, batch by batch, so that memory does not add up and a
    short request is not held up by a long one.

    Args:
        bundle: weights and modalities.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        batch_size: tiles in one pass; chosen by the device and its free memory by default. When
            memory does not suffice it is halved, down to 1; then the CPU goes on.
        precision: `auto`, `float32`, `bfloat16`, `float16`; see `choose_precision`. With `auto`,
            modalities that need float32 (`Bundle.needs_float32`) get it on any device.
        fast: by the fused encoder, the same function to rounding; else by the plain one.
        runtime: what the fused encoder runs in: `torch`, or `openvino` on a CPU where that is
            installed.
        quality: `fast`, `balanced` or `best`, by the size of the network's input; see `input_size`.
        size: side of the network's square input in place of a quality, pixels.
        wait_for_runtime: make what a runtime needs before the first pass, some 15 s for each
            modality, once; else passes run in torch until it is there.
        embeddings: where image embeddings are kept for those who ask for an image again; none: they
            are not. Of one device and one bundle with its versions.

    Raises:
        WeightsError: a weight file is missing, damaged or does not fit.
        InputError: there is no such device, precision, quality or size, or no such runtime for it.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "auto",
        batch_size: int | None = None,
        precision: str = "auto",
        fast: bool = True,
        runtime: str = "torch",
        wait_for_runtime: bool = True,
        embeddings: EmbeddingCache | None = None,
        quality: str = DEFAULT_QUALITY,
        size: int | None = None,
    ) -> None:
        check_input_size(quality, size)
        self.quality = quality
        self.size = size
        self.bundle = bundle
        self.device = choose_device(device)
        self.embeddings = embeddings
        self._batch_size = batch_size
        self.precision = precision
        self._runtime = runtime
        self.dtype = choose_precision(precision, self.device, runtime)
        check_runtime(runtime, self.device, self.dtype)
        self._network = bundle.load_network().to(self.device)
        self._fast: dict[torch.dtype, FastNetwork] = {}
        if fast and isinstance(self._network.encoder, TinyViT):
            compact_in_memory(self._network)
            encoder = None
            if runtime == "openvino":
                side = size or bundle.description.input_size
                encoder = OpenVinoEncoder(
                    self._network.encoder, self.dtype, side, wait=wait_for_runtime
                )
            self._fast[self.dtype] = FastNetwork(self._network, self.dtype, encoder)
        self._classifier: ModalityClassifier | None = None
        self._readings: OrderedDict[tuple[str, str], Mapping[str, float]] = OrderedDict()
        self._turn = threading.Lock()

    @property
    def batch_size(self) -> int:
        """Tiles that a pass would take now."""
        return self._batch_size or batch_size_for(self.device)

    @property
    def encoder(self) -> nn.Module:
        """The shared backbone, for another model on the same one; `turn` is to be taken then."""
        return self._network.encoder

    @property
    def turn(self) -> threading.Lock:
        """Held by whoever computes on the device."""
        return self._turn

    def with_bundle(self, bundle: Bundle) -> Segmenter:
        """A segmenter of the same bundle with other versions of some modalities.

        It loads what differs and shares all else with this one, turns on the device too. This one
        stays as it is: what it is segmenting is not disturbed.

        Args:
            bundle: of the same backbone and decoder.

        Raises:
            WeightsError: a weight file is missing, damaged or does not fit.
        """
        other = copy.copy(self)
        other.bundle = bundle
        other._network = network = self._network.sharing()
        gone, changed = bundle.changes_from(self.bundle)
        for name in gone:
            network.remove_modality(name)
        for name in changed:
            bundle.load_modality(network, name)
        network.requires_grad_(False)
        if self._fast:
            compact_in_memory(network)
        # another thread may add one meanwhile
        other._fast = {dtype: fast.on(network) for dtype, fast in tuple(self._fast.items())}
        return other

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
            OutOfMemoryError: not even one tile at a time fits into memory, the CPU's neither.
        """
        chosen = self.bundle.modality(modality)
        return segment_slicewise(
            image,
            chosen,
            self._run(image, chosen),
            tile=self.input_size(modality),
            device=self.device,
            batch_size=self.batch_size,
            on_slice=on_slice,
            relief=Relief(
                free=None if self.embeddings is None else self.embeddings.give_back,
                on_cpu=lambda: self._on_cpu(modality),
            ),
        )

    def assess(
        self,
        image: MedicalImage,
        modality: str | Modality,
        *,
        most_slices: int = MOST_SLICES,
        batch_size: int | None = None,
        before_pass: BeforePass | None = None,
    ) -> Assessment:
        """How sure the network is of its masks of an image, and the image as a vector.

        Args:
            image: picture or volume.
            modality: one of the bundle's, by name. Another one is not trained yet: it is sure of
                everything, and the vector is the plain backbone's.
            most_slices: of a volume with more, so many are looked at, evenly spread.
            batch_size: tiles in one pass; the segmenter's by default.
            before_pass: called before each pass, while the device is free for others. What it
                raises ends the work.

        Raises:
            UnknownNameError, InputError, OutOfMemoryError: as `segment`.
        """
        if isinstance(modality, str):
            modality = self.bundle.modality(modality)
        return assess_slicewise(
            image,
            modality,
            lambda tiles: self.look_through(tiles, modality),
            tile=self.input_size(modality.name),
            device=self.device,
            batch_size=batch_size or self.batch_size,
            most_slices=most_slices,
            before_pass=before_pass,
        )

    def read_modality(self, image: MedicalImage) -> ModalityReading:
        """Which of the bundle's modalities an image is of, or the likeliest to choose from.

        Raises:
            InputError: nothing to look at, as in `segment`.
            WeightsError: the bundle's classifier is missing, damaged or does not fit.
            OutOfMemoryError: too little memory for a pass.
        """
        known = self.bundle.description.modality_classifier
        with naming_errors(image):
            return read_modality(image, self.bundle.told_apart, known, self._look)

    def check_modality(self, image: MedicalImage, modality: str, remedy: str) -> None:
        """Refuse an image that looks like one of another modality.

        Args:
            image: picture or volume.
            modality: that was chosen for it; nothing is refused for one that the bundle's
                classifier does not know, where there is no classifier, or no memory to look.
            remedy: for the message.

        Raises:
            OtherModalityError: the classifier is certain that it is another one; names it.
            InputError: nothing to look at, as in `segment`.
            WeightsError: the bundle's classifier is missing, damaged or does not fit.
        """
        known = self.bundle.description.modality_classifier
        with naming_errors(image):
            try:
                found = mistaken_for(image, modality, self.bundle.told_apart, known, self._look)
            except OutOfMemoryError:
                # segmenting has ways to do with less
                return
        if found is not None:
            raise OtherModalityError(
                f"this looks like {found[0]} ({found[1]:.0%}), not like {modality}",
                path=image.path,
                remedy=remedy,
            )

    def _look(self, image: MedicalImage) -> Mapping[str, float]:
        if self.embeddings is None:
            return self._looked(image)
        name = self.bundle.description.files.get(CLASSIFIER, ""), fingerprint(image)
        found = self._readings.get(name)
        if found is None:
            found = self._readings[name] = self._looked(image)
            while len(self._readings) > _READINGS:
                self._readings.popitem(last=False)
        return found

    def _looked(self, image: MedicalImage) -> Mapping[str, float]:
        with self._turn:
            if self._classifier is None:
                self._classifier = load_classifier(self.bundle)
            encoder = self._network.encoder
            assert self._classifier is not None
            assert isinstance(encoder, TinyViT)
            try:
                return looking(self._classifier, encoder)(image)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise OutOfMemoryError(
                    f"{self.device} has too little memory to look at the image",
                    path=image.path,
                    remedy="Close other programs on it, or choose the modality by hand",
                ) from error

    def input_size(self, modality: str) -> int:
        """Side of the network's square input for a modality, pixels."""
        return input_size(self.bundle, modality, self.quality, self.size)

    def dtype_of(self, modality: str) -> torch.dtype:
        """What the passes of a modality compute in."""
        needs_float32 = self.bundle.needs_float32(modality)
        return precision_for(self.precision, self.dtype, needs_float32=needs_float32)

    def version(self, modality: str) -> int:
        """Which version of a modality's weights it segments with; 0: the bundle's own."""
        return self.bundle.version(modality)

    def parameters(self, modality: str) -> int:
        """How many parameters segment a modality: the shared ones and its own.

        Raises:
            UnknownNameError: the bundle has no such modality.
        """
        name = self.bundle.modality(modality).name
        unused = [
            f"{part}.{other}."
            for part in ("controllers", "queries")
            for other in self.bundle.modalities
            if other != name
        ]
        if not self._network.design.patch_prompt:
            unused.append("patch_prompt_generator.")
        # queries that modalities share have the names of all of them
        used = {
            id(parameter): parameter.numel()
            for key, parameter in self._network.named_parameters(remove_duplicate=False)
            if not key.startswith(tuple(unused))
        }
        return sum(used.values())

    def logits(self, tiles: Tensor, modality: str) -> Tensor:
        """Mask logits `[B, labels, S, S]`, float32 on the device, in one pass.

        Args:
            tiles: `[B, 3, S, S]`, in [0, 1], on any device.
            modality: one of the bundle's.

        Raises:
            KeyError: no such modality.
        """
        with self._computing(modality):
            seen = self._pass(tiles.to(self.device), modality)
            return present_masks(seen, self.bundle.presence(modality))

    def _run(self, image: MedicalImage, modality: Modality) -> Run:
        """What turns the tiles of an image into logits, from its embeddings where they are kept."""
        name = modality.name
        cache = self.embeddings
        if cache is None:
            return lambda tiles: self.logits(tiles, name)

        def embed(tiles: Tensor) -> Tensor:
            with self._computing(name):
                return self._runner(name).embed(tiles.to(self.device), name)

        def decode(embedding: Tensor, tiles: Tensor) -> Tensor:
            with self._computing(name):
                masks, patches = self._runner(name).decode(embedding, name)
                seen = Segmentation(resized(masks, tiles), patches, embedding)
                return present_masks(seen, self.bundle.presence(name))

        return RememberedPasses(cache, self._name(image, modality), embed, decode)

    def _name(self, image: MedicalImage, modality: Modality) -> tuple[str, ...]:
        """Of an image's embeddings: what they depend on."""
        said, name = self.bundle.description, modality.name
        return (
            fingerprint(image),
            said.backbone.sha256,
            said.files.get(controller_file(name), ""),
            f"{self.input_size(name)} {modality.intensity!r} {modality.tiles!r}",
            f"{self.dtype_of(name)} {bool(self._fast)} {self._runtime}",
        )

    def _on_cpu(self, modality: str) -> Run:
        """What runs a pass there; the weights are loaded for this image alone."""
        other = Segmenter(
            self.bundle,
            device="cpu",
            precision=self.precision,
            fast=bool(self._fast),
            quality=self.quality,
            size=self.size,
        )
        return lambda tiles: other.logits(tiles, modality)

    def look_through(self, tiles: Tensor, modality: Modality) -> Segmentation:
        """All that the network gives for tiles `[B, 3, tile, tile]`, on the device.

        Of a modality that the bundle lacks: masks of nothing, and the plain backbone's embedding.
        """
        with self._computing(modality.name):
            tiles = tiles.to(self.device)
            if modality.name not in self.bundle.modalities:
                return nothing_found(self._network.encoder(tiles), len(modality.labels))
            return self._pass(tiles, modality.name)

    def _pass(self, tiles: Tensor, modality: str) -> Segmentation:
        segmentation: Segmentation = self._runner(modality)(tiles, modality)
        return segmentation

    @contextmanager
    def _computing(self, modality: str) -> Iterator[None]:
        """Take the device's turn, in a modality's precision."""
        dtype = self.dtype_of(modality)
        with self._turn, torch.inference_mode(), cast_to(dtype, self.device):
            yield

    def _runner(self, modality: str) -> FastNetwork | EspMedSam:
        """What runs the passes of a modality; for whoever has the turn."""
        dtype = self.dtype_of(modality)
        if not self._fast:
            return self._network
        if dtype not in self._fast:
            self._fast[dtype] = FastNetwork(self._network, dtype)
        return self._fast[dtype]
