"""A U-Net trained from nothing on one modality: what the same images give without a backbone.

It is nnU-Net's network in MONAI's hand (DynUNet), 2D with residual blocks. It learns from the very
views that ESP-MedSAM learns from, as many of them, in the same loop; and it segments on the same
path of intensities and tiles.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.dataset import prepare_caches
from esp_medsam_app.errors import InputError
from esp_medsam_app.evaluation.pairs import CasePair
from esp_medsam_app.inference.device import autocast, choose_device
from esp_medsam_app.inference.slicewise import OnSlice, batch_size_for, segment_slicewise
from esp_medsam_app.modalities import Modality
from esp_medsam_app.training.inputs import make_views
from esp_medsam_app.training.optimisation import CHECKPOINT, Checkpoint, Phase, optimise
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.sources import Batch, FreshViews, Turns
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.weights.bundle import Bundle
from esp_medsam_app.weights.integrity import check_sha256, sha256_of

# 5.3 M parameters; 256 pixels become 8. Twice as wide it takes 2.5 times as long to train
FILTERS = (16, 32, 64, 128, 256, 256)
BATCH = 4
RATE = 1e-3
RECORD, WEIGHTS = "unet.json", "unet.safetensors"
PHASE = "U-Net"


class UNetRecord(BaseModel):
    """What lies beside the weights.

    Attributes:
        made_of: all that the network depends on: cases, recipe, labels, intensities, tiles and
            augmentation of its modality, side of its input, its filters.
        views: that it saw.
        seconds: that training took, views included; none before its end.
        device: it was trained on.
        sha256: of the weights.
    """

    model_config = ConfigDict(extra="forbid")
    made_of: dict[str, Any]
    views: int
    seconds: float | None = None
    device: str = ""
    sha256: str = ""


class UNetSegmenter:
    """Segments images of one modality with a trained U-Net, as `Segmenter` does.

    Args:
        network: of `new_unet`.
        modality: it was trained on.
        tile: side of the network's input, pixels.
        device: `auto`, `cpu`, `cuda`, ...
        batch_size: tiles in one pass; chosen by the device by default.

    Raises:
        InputError: there is no such device.
    """

    def __init__(
        self,
        network: nn.Module,
        modality: Modality,
        *,
        tile: int,
        device: str = "auto",
        batch_size: int | None = None,
    ) -> None:
        self.modality = modality
        self.tile = tile
        self.device = choose_device(device)
        self.batch_size = batch_size or batch_size_for(self.device)
        self._network = network.to(self.device).eval()

    @property
    def parameters(self) -> int:
        """Of the whole network."""
        return sum(parameter.numel() for parameter in self._network.parameters())

    def segment(self, image: MedicalImage, *, on_slice: OnSlice | None = None) -> NDArray[np.uint8]:
        """The label map of an image, uint8, of its shape; raises what `segment_slicewise` does."""
        return segment_slicewise(
            image,
            self.modality,
            self._run,
            tile=self.tile,
            device=self.device,
            batch_size=self.batch_size,
            on_slice=on_slice,
        )

    def _run(self, tiles: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(self.device):
            logits = self._network(tiles.to(self.device)).float()
        # above 0 where a label beats the background: the largest of them all is then the same
        return logits[:, 1:] - logits[:, :1]


def new_unet(labels: int) -> nn.Module:
    """An untrained network: `[B, 3, S, S]` to logits `[B, 1 + labels, S, S]`, background first.

    S is a multiple of 32.
    """
    halvings = len(FILTERS) - 1
    network: nn.Module = DynUNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=1 + labels,
        kernel_size=[3] * len(FILTERS),
        strides=[1] + [2] * halvings,
        upsample_kernel_size=[2] * halvings,
        filters=FILTERS,
        norm_name=("INSTANCE", {"affine": True}),
        res_block=True,
    )
    return network


def unet_recipe(views: int, seed: int = 0) -> Recipe:
    """The numbers of a U-Net's training that sees `views` fresh views, each once."""
    return Recipe(
        seed=seed,
        views=None,
        cached_stage=0,
        decoder_steps=0,
        joint_steps=-(-views // BATCH),
        joint_batch=BATCH,
    )


def views_seen(bundle: Bundle, modality: str) -> int | None:
    """How many views of a modality a bundle's training went through, by what the bundle says.

    Repeated views count each time. `None` where it says nothing.
    """
    seen = 0
    for run in bundle.description.training.get("runs", []):
        if modality not in run.get("data", {}):
            continue
        recipe: Mapping[str, int] = run.get("recipe", {})
        views = sum(
            recipe.get(f"{phase}_steps", 0) * recipe.get(f"{phase}_batch", 0)
            for phase in ("decoder", "joint")
        )
        seen += views * recipe.get("accumulate", 1) // len(run["data"])
    return seen or None


def fit_unet(
    pairs: Sequence[CasePair],
    modality: Modality,
    recipe: Recipe,
    *,
    tile: int,
    place: Surroundings,
) -> tuple[nn.Module, UNetRecord]:
    """Train a U-Net, or take the one that an earlier call left in the folder.

    A training that was stopped goes on. Adam with decoupled weight decay, warm-up and half a
    cosine, moving average of the weights; Dice and cross-entropy of a softmax over background and
    labels, Dice over the whole batch.

    Args:
        pairs: training cases.
        modality: of the cases.
        recipe: of `unet_recipe`.
        tile: side of the network's input, pixels.
        place: device, processes, and a folder for this network alone.

    Returns:
        The network in evaluation mode on the CPU, and its record.

    Raises:
        InputError: the folder holds a network of other cases or options, or a case cannot be used.
        WeightsError: the weights in the folder are damaged.
    """
    record = _claimed(place.work, _made_of(pairs, modality, recipe, tile), recipe)
    torch.manual_seed(recipe.seed)
    network = new_unet(len(modality.labels))
    weights = place.work / WEIGHTS
    if record.sha256:
        check_sha256(weights, record.sha256)
        load_model(network, weights)
        return network.eval().requires_grad_(False), record
    caches = prepare_caches({modality.name: pairs}, [modality], tile=tile, place=place)
    views = make_views(caches, [modality], recipe, tile)
    network.to(place.device)
    checkpoint = Checkpoint(place.work / CHECKPOINT, network, lambda name: True)
    steps, done = recipe.joint_steps, checkpoint.step(PHASE)
    phase = Phase(
        PHASE,
        steps,
        [{"params": list(network.parameters()), "lr": RATE}],
        FreshViews(
            views,
            Turns((modality.name,), recipe.joint_batch, recipe.views, recipe.seed),
            place.workers,
        ),
        _Loss(network, place.device),
    )
    start = time.perf_counter()
    optimise(phase, recipe, checkpoint, place)
    # of a training that was stopped, what the whole would have taken
    seconds = (time.perf_counter() - start) * steps / max(1, steps - done)
    network.cpu().eval()
    with written_whole(weights) as partial:
        # DynUNet holds each layer under two names, which save_file refuses
        save_model(network, str(partial))
    record = record.model_copy(
        update={
            "seconds": round(seconds, 1),
            "device": place.device,
            "sha256": sha256_of(weights),
        }
    )
    _write(place.work / RECORD, record)
    checkpoint.path.unlink(missing_ok=True)
    return network, record


class _Loss:
    """From a batch to its loss."""

    def __init__(self, network: nn.Module, device: str) -> None:
        self.network = network
        self.device = torch.device(device)
        self.loss = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)

    def __call__(self, batch: Batch) -> Mapping[str, Tensor]:
        images = batch.inputs.to(self.device, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True).unsqueeze(1)
        with autocast(self.device):
            logits = self.network(images)
        return {"total": self.loss(logits.float(), labels)}


def _made_of(
    pairs: Sequence[CasePair], modality: Modality, recipe: Recipe, tile: int
) -> dict[str, Any]:
    rules = {"labels", "intensity", "tiles", "augmentation"}
    return {
        "cases": [
            [str(path.resolve()), path.stat().st_size]
            for pair in pairs
            for path in (pair.image, pair.label)
        ],
        "recipe": recipe.model_dump(mode="json"),
        "modality": modality.model_dump(mode="json", include=rules),
        "tile": tile,
        "filters": list(FILTERS),
    }


def _claimed(work: Path, made_of: dict[str, Any], recipe: Recipe) -> UNetRecord:
    """The record in the folder, or a new one that keeps the folder to this network."""
    file = work / RECORD
    remedy = "Give another --work, or remove this folder"
    if not any((work / name).exists() for name in (WEIGHTS, CHECKPOINT)):
        record = UNetRecord(made_of=made_of, views=recipe.joint_steps * recipe.joint_batch)
        _write(file, record)
        return record
    try:
        record = UNetRecord.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise InputError("not the record of a U-Net", path=file, remedy=remedy) from error
    other = sorted(key for key, value in made_of.items() if record.made_of.get(key) != value)
    if other:
        raise InputError(
            f"the folder holds another U-Net (differing in {', '.join(other)})",
            path=work,
            remedy=remedy,
        )
    return record


def _write(file: Path, record: UNetRecord) -> None:
    with written_whole(file) as partial:
        partial.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
