"""The numbers of a training run."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from esp_medsam_app.data.texts import read_yaml
from esp_medsam_app.errors import InputError
from esp_medsam_app.training.losses import PixelLoss
from esp_medsam_app.training.sizes import SizeStage

DEFAULT_RECIPE = "two_cores"


class Optimisation(BaseModel):
    """What every training has in common: seed, steps' size, rates' course.

    Attributes:
        seed: of everything random.
        accumulate: batches of a step. Several processes share them: a multiple of their number.
        weight_decay: of AdamW.
        schedule: of the learning rates after a linear warm-up: half a cosine down to nothing,
            exponential down to `exponential_end` of them, or a polynomial of power 0.9 down to
            nothing.
        warm_up: steps.
        clip: largest norm of the gradient.
        average: decay of the moving average of the weights (EMA), which is what a run gives; 0 for
            the last weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    folder: ClassVar[str] = "recipes"
    seed: int = 0
    accumulate: int = Field(default=1, ge=1)
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Literal["cosine", "exponential", "polynomial"] = "cosine"
    exponential_end: float = Field(default=0.02, gt=0, le=1)
    warm_up: int = Field(default=50, ge=0)
    clip: float = Field(default=1.0, gt=0)
    average: float = Field(default=0.99, ge=0, lt=1)

    @classmethod
    def read(cls, source: str | Path, **changes: Any) -> Self:
        """A recipe of the package by name, or a YAML file, with some numbers changed.

        Raises:
            InputError: no such recipe, or an unknown or impossible number in it.
        """
        path = _folder(cls) / f"{source}.yaml"
        if not path.is_file():
            path = Path(source)
        try:
            content = read_yaml(path) or {}
            return cls(**(content | changes))
        except OSError as error:
            raise InputError(
                f"no such recipe ({error.strerror or error})",
                path=path,
                remedy=f"Give one of {', '.join(recipes(cls))} or a YAML file",
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(f"recipe: {where}: {first['msg']}", path=path) from error
        except (TypeError, ValueError) as error:
            raise InputError(f"not a recipe in YAML ({error})", path=path) from error


class Recipe(Optimisation):
    """Everything that decides a training run beside its data; written into the bundle.

    The run has two phases. First the shared decoder, SPPG and the queries learn, on embeddings that
    stay as they are. Then they and the controllers learn together. The backbone stays frozen
    throughout, its batch norm in evaluation mode.

    Modalities take turns batch by batch.

    Attributes:
        views: augmented views of each modality, which come again and again; none for fresh ones
            without end.
        cached_stage: encoder stage whose input is computed once for each view, 0 to 3 (0: the
            image itself). Controllers of earlier stages stay as they are: 1 trains all of them, 2
            leaves out the two blocks of stage 1 and halves the work. Needs `views` above 0.
        absent: share of views that show nothing of the structure.
        labelled: share of the other views that are taken from slices with a label; the rest is
            taken from any slice.
        size_stages: sides of the views over the second phase; none: the bundle's input. Needs
            fresh views and no cached stage.
        decoder_steps: optimiser steps of the first phase.
        decoder_batch: views of a batch in the first phase, all of one modality.
        joint_steps: optimiser steps of the second phase.
        joint_batch: views of a batch in the second phase, all of one modality.
        decoder_rate: learning rate of the decoder, which starts from released weights.
        joint_decoder_rate: the same in the second phase.
        fresh_rate: learning rate of SPPG and of the queries, which start fresh.
        controller_rate: learning rate of the controllers.
        encoder_rate: learning rate of the backbone, of a teacher alone: a student's is frozen.
        pixel_loss: beside Dice.
        patch_weight: weight of SPPG's loss beside the mask loss.
    """

    views: int | None = Field(default=320, ge=1)
    cached_stage: int = Field(default=2, ge=0, le=3)
    absent: float = Field(default=0.12, ge=0, le=1)
    labelled: float = Field(default=0.5, ge=0, le=1)
    size_stages: tuple[SizeStage, ...] = ()
    decoder_steps: int = Field(default=600, ge=0)
    decoder_batch: int = Field(default=4, ge=1)
    joint_steps: int = Field(default=1600, ge=0)
    joint_batch: int = Field(default=2, ge=1)
    decoder_rate: float = Field(default=3e-4, gt=0)
    joint_decoder_rate: float = Field(default=1e-4, gt=0)
    fresh_rate: float = Field(default=1e-3, gt=0)
    controller_rate: float = Field(default=5e-4, gt=0)
    encoder_rate: float = Field(default=1e-4, gt=0)
    pixel_loss: PixelLoss = "focal"
    patch_weight: float = Field(default=0.5, ge=0)

    @model_validator(mode="after")
    def _stages_of_sizes(self) -> Recipe:
        ends = [stage.until for stage in self.size_stages]
        if ends and (ends != sorted(set(ends)) or ends[-1] != 1):
            raise ValueError("the stages' `until` must rise and end at 1")
        if ends and (self.views is not None or self.cached_stage):
            raise ValueError("sizes change with fresh views alone: views: null, cached_stage: 0")
        return self

    def largest_input(self, usual: int) -> int:
        """Largest side that is trained, pixels, where the bundle's input has a side of `usual`."""
        return max([usual, *(size for stage in self.size_stages for size in stage.sizes)])


def recipes(kind: type[Optimisation] = Recipe) -> list[str]:
    """Names of the recipes in the package."""
    return sorted(path.stem for path in _folder(kind).glob("*.yaml"))


def _folder(kind: type[Optimisation]) -> Path:
    return Path(str(resources.files("esp_medsam_app.training"))) / kind.folder
