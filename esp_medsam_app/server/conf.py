"""The app's options: what `monailabel start_server --conf KEY VALUE` may set."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from esp_medsam_app.errors import InputError, UnknownNameError

MODEL_PREFIX = "esp_medsam_"
# the model that reads the modality from the image
AUTO_MODEL = "esp_medsam"

logger = logging.getLogger(__name__)


class AppConf(BaseModel):
    """The options with their defaults.

    Attributes:
        models: `all`, or names separated by commas; with or without `esp_medsam_` in front.
            `auto` or `esp_medsam`: the one that reads the modality from the image.
        preload: load the weights at start-up rather than at the first request.
        bundle: folder of the weights; the starter bundle if empty.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        batch_size: tiles in one pass; chosen by the device if not given.
        log_level: of this package's own lines in the server's log, whatever MONAI Label's is.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    models: str = "all"
    preload: bool = False
    bundle: Path | None = None
    device: str = "auto"
    batch_size: int | None = Field(default=None, ge=1)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] | None = None

    @field_validator("bundle", "batch_size", "log_level", mode="before")
    @classmethod
    def _empty_is_default(cls, value: Any) -> Any:
        return value or None

    @classmethod
    def parse(cls, conf: Mapping[str, Any] | None) -> AppConf:
        """Read the options; those of no meaning here are named in the log.

        Raises:
            InputError: a value that cannot be used.
        """
        conf = conf or {}
        unknown = sorted(set(conf) - set(cls.model_fields))
        if unknown:
            logger.warning(
                "--conf %s has no meaning here; known: %s",
                ", ".join(unknown),
                ", ".join(cls.model_fields),
            )
        try:
            return cls(**conf)
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"--conf {first['loc'][0]} {first['input']}: {first['msg']}") from None


def model_name(modality: str) -> str:
    """What the model of a modality is called in the viewers."""
    return MODEL_PREFIX + modality


def model_names(modalities: Iterable[str]) -> list[str]:
    """All models of a bundle with these modalities; viewers offer the first one first."""
    names = [model_name(name) for name in sorted(modalities)]
    return [AUTO_MODEL, *names] if len(names) > 1 else names


def select_models(wanted: str, available: Iterable[str]) -> list[str]:
    """The models that a `models` option names, in the order of `available`.

    Raises:
        UnknownNameError: one of them does not exist, or none is named; lists those there are.
    """
    available = list(available)
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if names == ["all"]:
        return available
    known = {short: name for name in available for short in (name, name.removeprefix(MODEL_PREFIX))}
    if AUTO_MODEL in known:
        known.setdefault("auto", AUTO_MODEL)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        problem = f"there is no model {', '.join(map(repr, unknown))}" if unknown else "no model"
        raise UnknownNameError(problem, remedy=f"Available: all, {', '.join(available)}")
    chosen = {known[name] for name in names}
    return [name for name in available if name in chosen]
