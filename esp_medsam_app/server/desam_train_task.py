"""The training task of one modality of DeSAM."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esp_medsam_app.inference.desam_masks import prompted_masks
from esp_medsam_app.learning.desam_learner import (
    DeSamLearner,
    DeSamLearnerLoss,
    DeSamMaterial,
    desam_material,
)
from esp_medsam_app.learning.material import Material
from esp_medsam_app.networks.desam import DeSam
from esp_medsam_app.server.conf import desam_model_name
from esp_medsam_app.server.train_job import TrainJob
from esp_medsam_app.server.train_options import TrainOptions
from esp_medsam_app.server.train_task import EspMedSamTrainTask
from esp_medsam_app.training.desam_recipe import DeSamRecipe
from esp_medsam_app.training.desam_starting import add_fresh_decoder
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.weights.desam_bundle import DeSamBundle


@dataclass(frozen=True, repr=False)
class DeSamTrainJob(TrainJob):
    """What a training of DeSAM is made of."""

    bundle: DeSamBundle
    recipe: DeSamRecipe  # type: ignore[assignment]

    def learner(self, device: torch.device) -> DeSamLearner:  # type: ignore[override]
        """The modality as it is before the first step, the same in every process.

        Raises:
            WeightsError: the weights are missing or damaged.
        """
        name, said = self.modality.name, self.bundle.description
        network = self.bundle.load_network([name] if self.from_serving else [])
        if not self.from_serving:
            add_fresh_decoder(network, said.backbone.name, self.modality, seed=self.options.seed)
        return DeSamLearner(network, name, said.prompts, device)

    def loss(self) -> nn.Module:
        """Dice and cross-entropy of the masks, the error of the predicted IoU."""
        return DeSamLearnerLoss(self.recipe)

    def masks(self, network: Any, tiles: Tensor) -> Tensor:
        """Mask logits of tiles, on the path that serves."""
        assert isinstance(network, DeSam)
        name, first = self.modality.name, self.bundle.description.prompts[0]
        return prompted_masks(network, network.encode(tiles), name, first, self.bundle.rules(name))

    def prepared(self) -> DeSamTrainJob:
        """The job with the encoder's work done, and kept on disk."""
        network = self.learner(torch.device(self.device)).network
        options: dict[str, Any] = {
            "tile": self.tile,
            "place": Surroundings(self.work, device=self.device),
        }
        material = desam_material(network, self.modality, self.train, self.recipe, **options)
        held_out = None
        if self.validation:
            held_out = desam_material(
                network, self.modality, self.validation, self.recipe, held_out=True, **options
            )
        return replace(self, material=material, held_out=held_out)

    def read(self, folder: Path) -> Material:
        """Material on disk."""
        return DeSamMaterial.read(folder)


class DeSamTrainTask(EspMedSamTrainTask):
    """Learns the decoder of one modality from submitted labels; the encoder stays as it is.

    Everything else is as of ESP-MedSAM: versions, held-out patients, promotion.
    """

    job_type = DeSamTrainJob

    @property
    def model(self) -> str:
        """What viewers call it."""
        return desam_model_name(self.modality.name)

    def recipe(self, options: TrainOptions, device: str, cases: int) -> Any:
        """The numbers for so many annotated cases; the learning rate is half the option's."""
        views = options.recipe(device, cases).views
        return DeSamRecipe(
            seed=options.seed,
            views=views,
            rate=options.learning_rate / 2,
            clip=1.0,
            warm_up=10,
        )
