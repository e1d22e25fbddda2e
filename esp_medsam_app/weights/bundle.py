"""Bundles: a folder with all that a server needs beside the backbone.

```
bundle.json                          what this is: backbone, modalities, training, scores, SHA-256s
decoder.safetensors                  SPPG, QDMD and the positional encoding, shared
controllers/<modality>.safetensors   one modality's controller and queries
backbone.safetensors                 the encoder, where it is not a released one
modality_classifier.safetensors      what reads the modality from an image, where there is one
README.md                            the model card
```
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator
from safetensors.torch import save
from torch import Tensor, nn

from esp_medsam_app.data.texts import read_json
from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import UnknownNameError, WeightsError
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import DeSam, EspMedSam
from esp_medsam_app.networks.esp_medsam import WHOLE, Design
from esp_medsam_app.networks.modality_decoder import ModalityQueries
from esp_medsam_app.weights.backbones import (
    LARGEST_INPUT,
    SMALLEST_INPUT,
    Backbone,
    get_backbone,
    load_encoder,
    own_backbone,
)
from esp_medsam_app.weights.compact import SCALE, compact, restore
from esp_medsam_app.weights.integrity import (
    check_sha256,
    load_strictly,
    read_safetensors,
    sha256_of,
)
from esp_medsam_app.weights.modality_classifier import ClassifierDescription

DESCRIPTION = "bundle.json"
DECODER = "decoder.safetensors"
OWN_BACKBONE = "backbone.safetensors"
# what `bundle.json` of the other family of models says it is
DESAM = "desam"
# 2: experts are compacted; designs and backbones of one's own
SCHEMA_VERSION = 2


# Frequencies of the positional encoding turn many times across an image: not rounded.
_FULL_PRECISION = ("positional_encoding_gaussian_matrix",)
_COMPACTED = ("expert.fc1.weight", "expert.fc2.weight")


class BackboneReference(BaseModel):
    """Which backbone the bundle was trained on.

    Attributes:
        name: of a released backbone, whose file is not part of the bundle, or of one's own.
        sha256: of its file.
        stem_stride: of one's own, which the bundle holds; none for a released one.
    """

    model_config = ConfigDict(extra="forbid")
    name: str
    sha256: str
    stem_stride: int | None = Field(default=None, ge=1, le=4)


class BundleDescription(BaseModel):
    """The content of `bundle.json`.

    Attributes:
        schema_version: of this file.
        name: of the bundle, for people.
        backbone: the encoder it belongs to.
        design: parts that the network has; all but in ablations.
        input_size: side of the network's square input, pixels.
        normalisation: `unit`: intensities scaled to [0, 1] by each modality's rule.
        modalities: with labels and pre-processing, as they were when the bundle was trained.
        training: `runs`: how and on what the modalities were trained, the oldest first.
        presence: by modality, the logit that a patch of SPPG's map has to reach, or else the tile
            is empty (`esp-medsam calibrate`); modalities that are not named have no such limit.
        precision: by modality, what `auto` computes in on any device: float32 where another
            precision changes the masks too much (`scripts/precisions.sh`).
        sizes: by modality and quality (`fast`, `balanced`, `best`), the side of the network's
            input that suits it, pixels, where it is another than usual.
        scores: what `esp-medsam evaluate` printed, by modality and split.
        modality_classifier: what reads the modality from an image, where there is one.
        files: SHA-256 of every weight file, by path inside the bundle.
    """

    # what is told of each modality, by its name
    by_modality: ClassVar[tuple[str, ...]] = ("presence", "precision", "sizes", "scores")
    model_config = ConfigDict(extra="forbid")
    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION)
    name: str
    backbone: BackboneReference
    design: Design = WHOLE
    input_size: int = Field(ge=SMALLEST_INPUT, le=LARGEST_INPUT)
    normalisation: Literal["unit"] = "unit"
    modalities: list[Modality]
    training: dict[str, Any] = Field(default_factory=dict)
    presence: dict[str, FiniteFloat] = Field(default_factory=dict)
    precision: dict[str, Literal["float32"]] = Field(default_factory=dict)
    sizes: dict[str, dict[str, int]] = Field(default_factory=dict)
    scores: dict[str, Any] = Field(default_factory=dict)
    modality_classifier: ClassifierDescription | None = None
    files: dict[str, str]

    def told_but_of(self, names: Collection[str]) -> dict[str, Any]:
        """What is told of all modalities but these, as fields of a description."""
        return {
            field: {name: said for name, said in getattr(self, field).items() if name not in names}
            for field in self.by_modality
        }

    @field_validator("scores", mode="before")
    @classmethod
    def _by_split(cls, scores: object) -> object:
        """Bundles of schema version 1 have one split a modality, named among its figures."""
        if not isinstance(scores, dict):
            return scores
        return {
            name: {score.pop("split"): score} if "split" in (score := dict(figures)) else score
            for name, figures in scores.items()
        }


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk. Reading the description is cheap; weights load with `load_network`."""

    path: Path
    description: BundleDescription

    @cached_property
    def modalities(self) -> dict[str, Modality]:
        """The bundle's modalities by name."""
        return {modality.name: modality for modality in self.description.modalities}

    def modality(self, name: str) -> Modality:
        """One of the bundle's modalities.

        Raises:
            UnknownNameError: the bundle has none of that name.
        """
        if name not in self.modalities:
            raise UnknownNameError(
                f"the weights have no modality {name!r}",
                path=self.path,
                remedy=f"Available: {', '.join(sorted(self.modalities))}",
            )
        return self.modalities[name]

    @property
    def told_apart(self) -> Mapping[str, Modality]:
        """Modalities among which that of an image is read, by name."""
        return self.modalities

    def presence(self, name: str) -> float | None:
        """The logit that SPPG has to reach somewhere in a tile that holds the structure, if any."""
        return self.description.presence.get(name)

    def usual_size(self, name: str) -> int:
        """Side of the input at which a modality is served unless asked otherwise, pixels."""
        suits: dict[str, int] = self.description.sizes.get(name, {})
        return suits.get("balanced", self.description.input_size)

    def needs_float32(self, name: str) -> bool:
        """Whether another precision would change a modality's masks too much."""
        return name in self.description.precision

    def version(self, name: str) -> int:
        """Which version of a modality's weights this is; 0: the bundle's own."""
        return 0

    def file(self, name: str) -> Path:
        """Where a file of the description lies."""
        return self.path / name

    @property
    def family(self) -> str:
        """Of models: `esp_medsam` or `desam`."""
        return "esp_medsam"

    @property
    def origin(self) -> str:
        """Where the backbone comes from, with its licence."""
        return f"{self.backbone.origin} ({self.backbone.licence})"

    def modality_file(self, name: str) -> str:
        """Path of what a modality owns, inside the bundle."""
        return controller_file(name)

    @property
    def shared_file(self) -> str:
        """Path of what its modalities share beside the encoder, inside the bundle."""
        return DECODER

    def changes_from(self, other: Bundle) -> tuple[list[str], list[str]]:
        """What tells it from another bundle of the same shared weights, by modalities' names.

        Returns:
            those that only the other has; those that are new here or have other weights.
        """
        before, now = other.description.files, self.description.files
        gone = [name for name in other.modalities if name not in self.modalities]
        changed = [
            name
            for name in self.modalities
            if name not in other.modalities
            or before[self.modality_file(name)] != now[self.modality_file(name)]
        ]
        return gone, changed

    @property
    def backbone(self) -> Backbone:
        """The released backbone, or the one in the bundle; with the bundle's input.

        Raises:
            UnknownNameError: a released backbone that this release does not know.
        """
        reference = self.description.backbone
        if reference.stem_stride is None:
            return replace(get_backbone(reference.name), input_size=self.description.input_size)
        return own_backbone(
            self.path / OWN_BACKBONE,
            name=reference.name,
            stem_stride=reference.stem_stride,
            input_size=self.description.input_size,
            sha256=reference.sha256,
        )

    def verify(self) -> None:
        """Compare every weight file, the backbone's too, with its SHA-256.

        Raises:
            WeightsError: a file is missing or damaged, or the backbone is another one.
        """
        backbone = self.backbone
        if self.description.backbone.sha256 != backbone.sha256:
            raise WeightsError(
                f"the bundle was trained on another release of backbone {backbone.name}",
                path=self.path / DESCRIPTION,
                remedy="Use the bundle with the version of esp-medsam-app it was made with",
            )
        check_sha256(backbone.path(), backbone.sha256)
        for name, digest in self.description.files.items():
            check_sha256(self.file(name), digest)

    def load_network(self, modalities: Iterable[str] | None = None) -> EspMedSam:
        """The network with these modalities (default: all) on the CPU, in evaluation mode.

        Raises:
            WeightsError: a file is missing, damaged or does not fit.
            UnknownNameError: the bundle lacks one of the modalities.
        """
        wanted = list(self.modalities) if modalities is None else list(modalities)
        network = EspMedSam(load_encoder(self.backbone), self.description.design)
        path = self._checked(DECODER)
        tensors = read_safetensors(path)
        load_strictly(_Shared(network), tensors, path)
        for name in wanted:
            self.load_modality(network, name)
        return network.eval().requires_grad_(False)

    def load_modality(self, network: EspMedSam, name: str) -> None:
        """Put one of the bundle's modalities beside the others of a network.

        Raises:
            WeightsError: its file is missing, damaged or does not fit.
            UnknownNameError: the bundle has none of that name.
        """
        modality = self.modality(name)
        load_owned(network, modality, self._checked(controller_file(name)))

    def _checked(self, name: str) -> Path:
        path = self.file(name)
        if name not in self.description.files:
            raise WeightsError(f"no SHA-256 is written down for {name}", path=self.path)
        check_sha256(path, self.description.files[name])
        return path


class _Shared(nn.Module):
    """View of a network's shared decoder parts under their names in the file."""

    def __init__(self, network: EspMedSam) -> None:
        super().__init__()
        self.prompt_encoder = network.prompt_encoder
        self.patch_prompt_generator = network.patch_prompt_generator
        self.decoder = network.decoder


class _Owned(nn.Module):
    """View of what one modality owns under its names in the file."""

    def __init__(self, network: EspMedSam, name: str) -> None:
        super().__init__()
        controller = network.controller(name)
        if controller is not None:
            self.controller = controller
        self.queries = network.queries[name]


def _owned(network: EspMedSam | DeSam, name: str) -> nn.Module:
    return network.decoder(name) if isinstance(network, DeSam) else _Owned(network, name)


def controller_file(modality: str) -> str:
    """Path of a modality's file inside a bundle."""
    return f"controllers/{modality}.safetensors"


def starter_bundle_path() -> Path:
    """Where the bundle that ships with the package lies."""
    return Path(str(resources.files("esp_medsam_app.weights"))) / "starter"


def load_bundle(path: str | Path | None = None) -> Bundle:
    """Read the description of a bundle of ESP-MedSAM; the starter bundle by default.

    Raises:
        WeightsError: as `load_any_bundle`, or the bundle is DeSAM's.
    """
    bundle = load_any_bundle(path)
    if bundle.family == DESAM:
        raise WeightsError(
            "this is a bundle of DeSAM, not of ESP-MedSAM",
            path=bundle.path,
            remedy="Give a folder that `esp-medsam train` wrote without --model desam",
        )
    return bundle


def load_any_bundle(path: str | Path | None = None) -> Bundle:
    """Read a bundle's description, a `DeSamBundle` if it is one; the starter bundle by default.

    Raises:
        WeightsError: no such folder, no or unreadable `bundle.json`, or a newer schema.
    """
    folder = starter_bundle_path() if path is None else Path(path)
    file = folder / DESCRIPTION
    remedy = (
        "Install the package again"
        if path is None
        else "Give the folder that `esp-medsam train --output` wrote"
    )
    try:
        content = read_json(file)
    except OSError as error:
        raise WeightsError(
            f"not a bundle: {DESCRIPTION} cannot be read ({error.strerror})",
            path=folder,
            remedy=remedy,
        ) from error
    except ValueError as error:
        raise WeightsError(f"not JSON ({error})", path=file, remedy=remedy) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise WeightsError(
            f"schema version {version} is newer than {SCHEMA_VERSION}, which this release reads",
            path=file,
            remedy="Update esp-medsam-app",
        )
    try:
        if isinstance(content, dict) and content.get("model") == DESAM:
            # it builds on this module
            from esp_medsam_app.weights.desam_bundle import DeSamBundle, DeSamDescription

            return DeSamBundle(folder, DeSamDescription.model_validate(content))
        return Bundle(folder, BundleDescription.model_validate(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WeightsError(f"{where}: {first['msg']}", path=file, remedy=remedy) from error


def save_bundle(
    path: str | Path,
    network: EspMedSam,
    modalities: Iterable[Modality],
    *,
    name: str,
    backbone: Backbone,
    training: dict[str, Any],
    told: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a network as a bundle; weights in float16, experts in 8 bits.

    `told` are the description's fields that tell of modalities (`BundleDescription.by_modality`).
    `bundle.json` is written last, so that an interrupted save is no bundle.
    """
    folder = Path(path)
    (folder / "controllers").mkdir(parents=True, exist_ok=True)
    modalities = list(modalities)
    (folder / DECODER).write_bytes(save(stored(_Shared(network).state_dict())))
    files = [DECODER]
    for modality in modalities:
        files.append(controller_file(modality.name))
        save_modality(folder / files[-1], network, modality.name)
    reference = BackboneReference(name=backbone.name, sha256=backbone.sha256)
    if backbone.package is None:
        reference.stem_stride = backbone.stem_stride
        files.append(OWN_BACKBONE)
        if backbone.path() != folder / OWN_BACKBONE:
            shutil.copyfile(backbone.path(), folder / OWN_BACKBONE)
    description = BundleDescription(
        name=name,
        backbone=reference,
        design=network.design,
        input_size=backbone.input_size,
        modalities=modalities,
        training=training,
        **(told or {}),
        files={file: sha256_of(folder / file) for file in files},
    )
    bundle = Bundle(folder, description)
    save_description(bundle)
    return bundle


def load_owned(network: EspMedSam, modality: Modality, path: Path) -> None:
    """Put a modality from a file, as `save_modality` writes it, beside the others of a network.

    Raises:
        WeightsError: the file is missing, damaged or does not fit.
    """
    network.add_modality(modality.name, ModalityQueries(len(modality.labels)))
    load_strictly(_Owned(network, modality.name), read_safetensors(path), path)


def save_modality(path: Path, network: EspMedSam | DeSam, name: str) -> None:
    """Write what one modality of a network owns; `Bundle.load_modality` reads such files."""
    path.write_bytes(save(stored(_owned(network, name).state_dict())))


def round_modality(network: EspMedSam | DeSam, name: str) -> None:
    """Give what a modality owns the values that it would have when read from its file.

    What is judged afterwards is what will be served.
    """
    owned = _owned(network, name)
    owned.load_state_dict(restore(stored(owned.state_dict())))


def mix_modality(
    network: EspMedSam | DeSam, other: EspMedSam | DeSam, name: str, share: float
) -> None:
    """Move what one modality of a network owns towards another network's, by a share of the way."""
    owned, wanted = _owned(network, name), _owned(other, name).state_dict()
    owned.load_state_dict(
        {key: value.lerp(wanted[key], share) for key, value in owned.state_dict().items()}
    )


def save_encoder(folder: Path, encoder: nn.Module, like: Backbone, *, name: str) -> Backbone:
    """Write an encoder that was trained into a bundle's folder, as its own backbone (float32).

    Args:
        folder: of the bundle.
        encoder: a TinyViT.
        like: backbone with its stem and input.
        name: for people.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        key: value.detach().cpu().contiguous() for key, value in encoder.state_dict().items()
    }
    (folder / OWN_BACKBONE).write_bytes(save(tensors))
    return own_backbone(
        folder / OWN_BACKBONE,
        name=name,
        stem_stride=like.stem_stride,
        input_size=like.input_size,
    )


def save_description(bundle: Bundle) -> None:
    """Write `bundle.json` in one step."""
    file = bundle.path / DESCRIPTION
    text = json.dumps(bundle.description.model_dump(mode="json"), indent=2) + "\n"
    with written_whole(file) as partial:
        partial.write_text(text, encoding="utf-8")


def stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as they are written: in float16, experts in 8 bits."""
    written = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu()
        if name.endswith(_COMPACTED):
            written[name], written[name + SCALE] = compact(plain)
        else:
            keep = name.endswith(_FULL_PRECISION)
            written[name] = plain.to(torch.float32 if keep else torch.float16).contiguous()
    return written
