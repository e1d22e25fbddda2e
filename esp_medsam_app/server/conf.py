"""The app's options: what `monailabel start_server --conf KEY VALUE` may set."""

from __future__ import annotations

import logging
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from esp_medsam_app.errors import InputError, UnknownNameError
from esp_medsam_app.evaluation.splits import patient_pattern
from esp_medsam_app.inference.input_size import DEFAULT_QUALITY, Quality
from esp_medsam_app.modalities import Modality, read_modality

MODEL_PREFIX = "esp_medsam_"
DESAM_PREFIX = "desam_"
# the model that reads the modality from the image
AUTO_MODEL = "esp_medsam"

# what people call it
_AUTO = "auto"

logger = logging.getLogger(__name__)


class AppConf(BaseModel):
    """The options with their defaults.

    Attributes:
        models: `all`, or names separated by commas; with or without `esp_medsam_` in front.
            `auto` or `esp_medsam`: the one that reads the modality from the image. `desam_*` are
            DeSAM's: `all` has those of its bundle, and one that is named here may be trained from
            nothing.
        preload: load the weights at start-up rather than at the first request.
        bundle: folder of the weights; the profile's if empty.
        profile: `full`, the starter bundle, or `compact`, for a fraction of the work.
        desam: folder of DeSAM's weights; those of the package if empty, where there are some.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        batch_size: tiles in one pass; chosen by the device if not given.
        precision: `auto`, `float32`, `bfloat16`, `float16`; `auto` takes what
            the device is fast at. Of DeSAM too.
        quality: `fast`, `balanced` or `best`: a smaller or larger input of ESP-MedSAM's network.
        fast: by the fused encoder, the same function to rounding; else by the plain one.
        runtime: what the fused encoder runs in: `torch`, or `openvino` on a CPU where that is
            installed.
        check_images: refuse an image that looks like one of another modality than the model's,
            or a CT that is not in Hounsfield units, unless the request says `any_image`.
        embeddings_mb: megabytes of ESP-MedSAM's image embeddings kept on each device, for who asks
            for an image again; 0: none.
        modalities: folder of modalities that the bundle lacks, a YAML file each, as those of the
            catalogue; none if empty.
        versions: folder of the versions that were trained here; `model/versions` in the app's if
            empty.
        patient_pattern: regular expression whose one group finds the patient in an image's file
            name, for images that are no DICOM: a patient is never learned from and judged by.
        background_scores: whether images are assessed while no request runs, for active learning.
        pacs_cache_gb: gigabytes that images fetched from a PACS may take on this disk.
        log_level: of this package's own lines in the server's log, whatever MONAI Label's is.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    models: str = "all"
    preload: bool = False
    bundle: Path | None = None
    profile: Literal["full", "compact"] | None = None
    desam: Path | None = None
    device: str = "auto"
    batch_size: int | None = Field(default=None, ge=1)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quality: Quality = DEFAULT_QUALITY
    fast: bool = True
    runtime: Literal["torch", "openvino"] = "torch"
    check_images: bool = True
    embeddings_mb: int = Field(default=512, ge=0)
    modalities: Path | None = None
    versions: Path | None = None
    patient_pattern: re.Pattern[str] | None = None
    background_scores: bool = True
    pacs_cache_gb: float = Field(default=20.0, gt=0)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] | None = None

    @field_validator("patient_pattern", mode="before")
    @classmethod
    def _pattern(cls, value: Any) -> re.Pattern[str] | None:
        try:
            return patient_pattern(value) if isinstance(value, str) and value else None
        except InputError as error:
            raise ValueError(str(error)) from None

    @field_validator(
        "bundle",
        "profile",
        "desam",
        "batch_size",
        "modalities",
        "versions",
        "log_level",
        mode="before",
    )
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


def desam_model_name(modality: str) -> str:
    """What DeSAM's model of a modality is called in the viewers."""
    return DESAM_PREFIX + modality


def named_desam(models: str) -> list[str]:
    """Modalities whose DeSAM model a `models` option names."""
    names = [name.strip() for name in models.split(",")]
    return [name.removeprefix(DESAM_PREFIX) for name in names if name.startswith(DESAM_PREFIX)]


def model_names(modalities: Iterable[str], added: Iterable[str] = ()) -> list[str]:
    """All models of a bundle with these modalities; viewers offer the first one first.

    Args:
        modalities: of the bundle: an image's is read among these.
        added: further ones.
    """
    own = list(modalities)
    names = [model_name(name) for name in sorted([*own, *added])]
    return [AUTO_MODEL, *names] if len(own) > 1 else names


def added_modalities(folder: Path | None, known: Container[str]) -> dict[str, Modality]:
    """The modalities that an admin put beside those of the bundle, by name.

    Args:
        folder: of their YAML files; none: there are none.
        known: names of the bundle's modalities.

    Raises:
        InputError: no such folder, or a file in it that cannot be used; says why.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise InputError("--conf modalities: there is no such folder", path=folder)
    added = {}
    for path in sorted(folder.glob("*.yaml")):
        modality = read_modality(path)
        if modality.name != path.stem:
            raise InputError(
                f"its name is {modality.name}, not that of the file",
                path=path,
                remedy="Leave the name out: the file's counts",
            )
        if modality.name in known or modality.name == _AUTO:
            raise InputError(
                f"the weights have a modality {modality.name} already"
                if modality.name in known
                else f"{_AUTO} is no name for a modality: it stands for reading it from the image",
                path=path,
                remedy="Give the file another name",
            )
        added[modality.name] = modality
    logger.info("Modalities of %s: %s", folder, ", ".join(added) or "none (*.yaml)")
    return added


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
        known.setdefault(_AUTO, AUTO_MODEL)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        problem = f"there is no model {', '.join(map(repr, unknown))}" if unknown else "no model"
        raise UnknownNameError(problem, remedy=f"Available: all, {', '.join(available)}")
    chosen = {known[name] for name in names}
    return [name for name in available if name in chosen]
