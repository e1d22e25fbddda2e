"""One training of one modality, from labels to material on disk; what its processes share."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esp_medsam_app.errors import InputError
from esp_medsam_app.evaluation.pairs import CasePair
from esp_medsam_app.inference.presence import present_masks
from esp_medsam_app.learning.learner import LearnerLoss, ModalityLearner
from esp_medsam_app.learning.ledger import SplitLedger
from esp_medsam_app.learning.material import Material, held_out_material, training_material
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.annotated_cases import AnnotatedCase
from esp_medsam_app.server.train_options import TrainOptions
from esp_medsam_app.server.train_tracking import Tracking
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.starting import add_fresh_modality
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.weights.bundle import Bundle

LEDGER = "ledger.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class TrainJob:
    """What a training is made of; it travels to the processes of several GPUs.

    Attributes:
        modality: what is trained.
        bundle: the weights that served when it began, which it starts from and is compared with.
        options: of the request.
        recipe: all numbers.
        device: where it computes.
        work: folder of the run.
        train: cases that it learns from.
        validation: cases that are held out.
        material: folder of what it learns from, once that is made.
        held_out: folder of the held-out tiles, likewise; none where nothing is held out.
        tracking: where its curves are drawn, if anywhere.
    """

    modality: Modality
    bundle: Bundle
    options: TrainOptions
    recipe: Recipe
    device: str
    work: Path
    train: list[CasePair] = field(default_factory=list)
    validation: list[CasePair] = field(default_factory=list)
    material: Path | None = None
    held_out: Path | None = None
    tracking: Tracking | None = None

    @property
    def tile(self) -> int:
        """Side of the network's input, pixels."""
        return self.bundle.usual_size(self.modality.name)

    @property
    def serves(self) -> bool:
        """Whether a version serves already."""
        return self.modality.name in self.bundle.modalities

    @property
    def from_serving(self) -> bool:
        """Whether it starts from the serving version; else from the backbone."""
        return self.options.pretrained and self.serves

    def learner(self, device: torch.device) -> ModalityLearner:
        """The modality as it is before the first step, the same in every process.

        Raises:
            WeightsError: the weights are missing or damaged.
        """
        name = self.modality.name
        network = self.bundle.load_network([name] if self.from_serving else [])
        if not self.from_serving:
            add_fresh_modality(network, self.bundle.backbone, self.modality, seed=self.options.seed)
        return ModalityLearner(network, name, self.recipe.cached_stage, device)

    def loss(self) -> nn.Module:
        """Dice and focal loss of the masks, cross-entropy of SPPG's patches."""
        return LearnerLoss(self.recipe)

    def masks(self, network: Any, tiles: Tensor) -> Tensor:
        """Mask logits of tiles, on the path that serves."""
        name = self.modality.name
        return present_masks(network(tiles, name), self.bundle.presence(name))

    def prepared(self) -> TrainJob:
        """The job with all that the frozen part has to do done, and kept on disk.

        Raises:
            InputError: a case that cannot be used.
            WeightsError: the weights are missing or damaged.
        """
        network = self.learner(torch.device(self.device)).network
        options: dict[str, Any] = {
            "tile": self.tile,
            "place": Surroundings(self.work, device=self.device),
        }
        material = training_material(network, self.modality, self.train, self.recipe, **options)
        held_out = None
        if self.validation:
            held_out = held_out_material(
                network, self.modality, self.validation, self.recipe, **options
            )
        return replace(self, material=material, held_out=held_out)

    def read(self, folder: Path) -> Material:
        """Material on disk."""
        return Material.read(folder)


def split_cases(
    cases: list[AnnotatedCase], ledger: Path, share: float
) -> tuple[list[CasePair], list[CasePair]]:
    """Cases to learn from and cases that are held out.

    Raises:
        InputError: nothing to learn from, or a damaged ledger.
    """
    by_name: Mapping[str, CasePair] = {case.pair.name: case.pair for case in cases}
    split = SplitLedger(ledger, share).assign({case.pair.name: case.keys for case in cases})
    if split.left_out:
        logger.warning(
            "Left out, as their patient stands on both sides: %s", ", ".join(split.left_out)
        )
    if not split.train:
        raise InputError(
            f"{len(split.validation)} labels are held out and none is left to learn from",
            remedy="Submit labels of another patient",
        )
    logger.info(
        "Learning from %d cases; held out: %s",
        len(split.train),
        ", ".join(split.validation) or "none",
    )
    return [by_name[n] for n in split.train], [by_name[n] for n in split.validation]
