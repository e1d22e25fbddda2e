"""What a viewer may ask of an inference, beside the image."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from esp_medsam_app.errors import InputError

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


class InferOptions(BaseModel):
    """The known keys of a request's `params`; others are ignored.

    An empty string counts as not given: Slicer sends it for options without a value.

    Attributes:
        result_extension: of the label map's file; by default `.png` for pictures, else `.nii.gz`.
        result_dtype: of its voxels.
        result_compress: deflate the voxels of an NRRD file; `.nii.gz` and `.png` always are.
            Off by default: OHIF reads raw voxels, and writing is faster.
        restore_label_idx: accepted for OHIF and MITK. Labels are dense here, so that the voxels
            are the same either way.
        any_image: segment an image that looks like one of another modality as well.
        label_prompt: keep these labels only, by id or name; all if empty.
        device: `auto`, `cpu`, `cuda`, `cuda:1`; the server's own by default.
        client_id: for the log.
        log_level: `logging` in the request; above `INFO` the request leaves no line in the log.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)
    result_extension: Literal[".nrrd", ".nii.gz", ".nii", ".png"] | None = None
    result_dtype: Literal["uint8", "uint16"] = "uint8"
    result_compress: bool = False
    restore_label_idx: bool = True
    any_image: bool = False
    label_prompt: list[int | str] = []
    device: str = "auto"
    client_id: Any = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        default="INFO", alias="logging"
    )

    @classmethod
    def parse(cls, request: Mapping[str, Any]) -> InferOptions:
        """Read the options of a request.

        Raises:
            InputError: a known key with a value of no use; names it and what is accepted.
        """
        given = {key: value for key, value in request.items() if value is not None and value != ""}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            problem = first["msg"].removeprefix("Value error, ")
            raise InputError(f"params.{first['loc'][0]}: {problem}") from None

    @field_validator("result_extension", mode="before")
    @classmethod
    def _with_dot(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return "." + value.strip().lower().lstrip(".")

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not _DEVICE.fullmatch(value):
            raise ValueError(f"{value!r} is none of auto, cpu, cuda, cuda:N, mps")
        return value

    @field_validator("result_dtype", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.strip().upper() if isinstance(value, str) else value

    @field_validator("label_prompt", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, int | str) else value

    def dropped_labels(self, labels: Mapping[str, int]) -> list[int]:
        """The ids that `label_prompt` leaves out.

        Raises:
            InputError: it names a label that the model does not have.
        """
        wanted = {labels.get(item) if isinstance(item, str) else item for item in self.label_prompt}
        if not wanted <= set(labels.values()):
            known = ", ".join(f"{value} {name}" for name, value in labels.items())
            raise InputError(
                f"params.label_prompt {self.label_prompt}: not all are labels of this model",
                remedy=f"Labels: {known}",
            )
        return [value for value in labels.values() if wanted and value not in wanted]
