"""What a viewer may ask of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from esp_medsam_app.errors import InputError
from esp_medsam_app.server.devices import gpu_count
from esp_medsam_app.training.recipe import Recipe

# Views of a training: what a GPU and what two cores go through in minutes.
_VIEWS = {"cuda": 480, "cpu": 96}
_VIEWS_A_CASE = 24
_LEAST_VIEWS = 24


class TrainOptions(BaseModel):
    """The known keys of a request's `params`; others are ignored.

    Viewers show those of `shown` with their defaults, send back the first entry of a list, and
    send nothing at all for what nobody touched.

    Attributes:
        pretrained: start from the version that serves; else from the backbone, with a fresh
            controller and fresh queries.
        max_epochs: passes over the views.
        early_stop_patience: epochs without a better held-out Dice after which to stop; 0: never.
        val_split: share of the patients that is held out; those held out once stay so.
        train_batch_size: views of a step.
        views: augmented views to learn from; 0: as many as cases and device suggest.
        learning_rate: of the controller, at its highest; queries learn at a fifth.
        margin: by how much the mean held-out Dice has to rise for the new version to serve.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        multi_gpu: share the batches among several GPUs.
        gpus: which, by number, separated by commas; `all`.
        tracking: `mlflow` draws curves there too.
        tracking_uri: of the MLflow server; a folder of the run's by default.
        tracking_experiment_name: the model's by default.
        tracking_run_name: by default the run's.
        seed: same labels and seed, same weights.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    pretrained: bool = True
    max_epochs: int = Field(default=12, ge=1, le=10_000)
    early_stop_patience: int = Field(default=4, ge=0)
    val_split: float = Field(default=0.2, ge=0, le=0.9)
    train_batch_size: int = Field(default=4, ge=1)
    views: int = Field(default=0, ge=0)
    learning_rate: float = Field(default=5e-4, gt=0, le=1)
    margin: float = Field(default=0.0, ge=0, lt=1)
    device: str = "auto"
    multi_gpu: bool = False
    gpus: str = "all"
    tracking: Literal["mlflow", "None"] = "mlflow"
    tracking_uri: str = ""
    tracking_experiment_name: str = ""
    tracking_run_name: str = ""
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="before")
    @classmethod
    def _first_of_lists(cls, values: Any) -> Any:
        """A list is what the viewer was offered: its first entry is the default."""
        given = {}
        for key, value in dict(values).items():
            if isinstance(value, list | tuple):
                value = value[0] if value else None
            if value is not None and value != "":
                given[key] = value
        return given

    @classmethod
    def parse(cls, request: Mapping[str, Any]) -> TrainOptions:
        """Read the options of a request.

        Raises:
            InputError: a known key with a value of no use; names it and what is accepted.
        """
        try:
            return cls.model_validate(request)
        except ValidationError as error:
            first = error.errors()[0]
            problem = first["msg"].removeprefix("Value error, ")
            raise InputError(f"params.{first['loc'][0]}: {problem}") from None

    @staticmethod
    def shown(devices: list[str], tracking: bool) -> dict[str, Any]:
        """What viewers offer: values, or lists whose first entry is the default."""
        defaults = TrainOptions()
        return {
            "pretrained": defaults.pretrained,
            "max_epochs": defaults.max_epochs,
            "early_stop_patience": defaults.early_stop_patience,
            "val_split": defaults.val_split,
            "train_batch_size": defaults.train_batch_size,
            "views": defaults.views,
            "learning_rate": defaults.learning_rate,
            "margin": defaults.margin,
            "device": devices,
            "multi_gpu": gpu_count() > 1,
            "gpus": defaults.gpus,
            "tracking": ["mlflow", "None"] if tracking else ["None", "mlflow"],
            "tracking_uri": "",
            "tracking_experiment_name": "",
        }

    def recipe(self, device: str, cases: int) -> Recipe:
        """The numbers of the training room for so many annotated cases."""
        most = _VIEWS["cuda" if device.startswith("cuda") else "cpu"]
        views = self.views or min(most, max(_LEAST_VIEWS, _VIEWS_A_CASE * cases))
        return Recipe(
            seed=self.seed,
            views=views,
            cached_stage=1 if device.startswith("cuda") else 2,
            decoder_steps=0,
            # of no meaning here but to cover all views: epochs count
            joint_steps=views,
            joint_batch=1,
            controller_rate=self.learning_rate,
            joint_decoder_rate=self.learning_rate / 5,
        )
