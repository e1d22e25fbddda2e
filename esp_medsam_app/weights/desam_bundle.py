"""DeSAM's bundles: a folder with all that a server needs beside the encoder.

```
bundle.json                         what this is: encoder, modalities, training, scores, SHA-256s
prompt_encoder.safetensors          SAM's, as it was released with the encoder
decoders/<modality>.safetensors     one modality's PRIM and PDMM, float16
```
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, field_validator
from safetensors.torch import save
from torch import nn

from esp_medsam_app.errors import WeightsError
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks.desam import DeSam
from esp_medsam_app.weights.bundle import (
    DESAM,
    BackboneReference,
    Bundle,
    BundleDescription,
    load_any_bundle,
    save_description,
    save_modality,
    stored,
)
from esp_medsam_app.weights.desam_encoders import (
    encoder_facts,
    encoder_origin,
    load_feature_encoder,
    start_prompt_encoder,
)
from esp_medsam_app.weights.desam_prompts import PROMPT_MODES, MaskRules, PromptMode
from esp_medsam_app.weights.integrity import (
    check_sha256,
    load_strictly,
    read_safetensors,
    sha256_of,
)
from esp_medsam_app.weights.profiles import packaged

PROMPT_ENCODER = "prompt_encoder.safetensors"


class DeSamDescription(BundleDescription):
    """The content of `bundle.json` of DeSAM; `backbone` is its encoder.

    Attributes:
        model: tells it from ESP-MedSAM's.
        prompts: that it was trained with; the first is used unless another is asked for.
        rules: from prompts to masks.
        smallest_regions: by modality, in place of the rules' `smallest_region`, where that would
            spoil the labels that were learned from.
    """

    by_modality: ClassVar[tuple[str, ...]] = (*BundleDescription.by_modality, "smallest_regions")
    model: Literal["desam"] = "desam"
    prompts: tuple[PromptMode, ...] = PROMPT_MODES
    rules: MaskRules = Field(default_factory=MaskRules)
    smallest_regions: dict[str, NonNegativeInt] = Field(default_factory=dict)

    @field_validator("prompts")
    @classmethod
    def _some(cls, prompts: tuple[PromptMode, ...]) -> tuple[PromptMode, ...]:
        if not prompts:
            raise ValueError("at least one prompt is needed")
        return prompts


@dataclass(frozen=True)
class DeSamBundle(Bundle):
    """A bundle of DeSAM on disk."""

    description: DeSamDescription

    @property
    def family(self) -> str:
        """Of models."""
        return DESAM

    @property
    def origin(self) -> str:
        """Where the encoder comes from, with its licence."""
        return encoder_origin(self.description.backbone.name)

    def rules(self, name: str) -> MaskRules:
        """From prompts to masks of a modality, which the bundle need not have."""
        said = self.description
        smallest = said.smallest_regions.get(name, said.rules.smallest_region)
        return said.rules.model_copy(update={"smallest_region": smallest})

    def modality_file(self, name: str) -> str:
        """Path of a modality's decoder, inside the bundle."""
        return decoder_file(name)

    @property
    def shared_file(self) -> str:
        """Path of the prompt encoder, inside the bundle."""
        return PROMPT_ENCODER

    def verify(self) -> None:
        """Compare every weight file, the encoder's too, with its SHA-256.

        Raises:
            WeightsError: a file is missing or damaged, or the encoder is another one.
        """
        self._check_encoder()
        load_feature_encoder(self.description.backbone.name)
        for name, digest in self.description.files.items():
            check_sha256(self.file(name), digest)

    def load_network(  # type: ignore[override]
        self, modalities: Iterable[str] | None = None, encoder: nn.Module | None = None
    ) -> DeSam:
        """The network with these modalities (default: all), in evaluation mode.

        Args:
            modalities: their names.
            encoder: the bundle's own, where it is in memory already; else it is loaded, on the
                CPU.

        Raises:
            WeightsError: a file is missing, damaged or does not fit.
            UnknownNameError: the bundle lacks one of the modalities, or its encoder is unknown.
        """
        self._check_encoder()
        wanted = list(self.modalities) if modalities is None else list(modalities)
        network = DeSam(encoder or load_feature_encoder(self.description.backbone.name))
        network.prompt_encoder.to(next(network.encoder.parameters()).device)
        path = self._checked(PROMPT_ENCODER)
        load_strictly(network.prompt_encoder, read_safetensors(path), path)
        for name in wanted:
            self.load_modality(network, name)
        return network.eval().requires_grad_(False)

    def load_modality(self, network: DeSam, name: str) -> None:  # type: ignore[override]
        """Put one of the bundle's modalities beside the others of a network.

        Raises:
            WeightsError: its file is missing, damaged or does not fit.
            UnknownNameError: the bundle has none of that name.
        """
        modality = self.modality(name)
        path = self._checked(decoder_file(name))
        network.add_modality(name, len(modality.labels))
        load_strictly(network.decoder(name), read_safetensors(path), path)
        network.decoder(name).eval().requires_grad_(False)

    def _check_encoder(self) -> None:
        said = self.description.backbone
        if said.sha256 != encoder_facts(said.name).sha256:
            raise WeightsError(
                f"the bundle was trained on another release of {said.name}",
                path=self.path,
                remedy="Use the bundle with the version of esp-medsam-app it was made with",
            )


def decoder_file(modality: str) -> str:
    """Path of a modality's decoder inside a bundle."""
    return f"decoders/{modality}.safetensors"


def starter_desam_path() -> Path:
    """Where the bundle of DeSAM that ships with the package lies, where there is one."""
    return packaged(DESAM)


def load_desam(path: str | Path | None = None) -> DeSamBundle:
    """Read a bundle of DeSAM; the one of the package by default.

    Raises:
        WeightsError: as `load_any_bundle`, or the bundle is ESP-MedSAM's.
    """
    folder = starter_desam_path() if path is None else Path(path)
    bundle = load_any_bundle(folder)
    if not isinstance(bundle, DeSamBundle):
        raise WeightsError(
            "this is a bundle of ESP-MedSAM, not of DeSAM",
            path=folder,
            remedy="Give a folder that `esp-medsam train --model desam` wrote",
        )
    return bundle


def save_desam(
    path: str | Path,
    network: DeSam,
    modalities: Iterable[Modality],
    *,
    name: str,
    encoder: str,
    prompts: tuple[PromptMode, ...] = PROMPT_MODES,
    rules: MaskRules | None = None,
    training: dict[str, Any] | None = None,
    told: Mapping[str, Any] | None = None,
) -> DeSamBundle:
    """Write a network as a bundle, weights in float16.

    `told` are the description's fields that tell of modalities (`DeSamDescription.by_modality`).
    `bundle.json` is written last, so that an interrupted save is no bundle.

    Raises:
        UnknownNameError: there is no such encoder.
    """
    facts = encoder_facts(encoder)
    folder = Path(path)
    (folder / "decoders").mkdir(parents=True, exist_ok=True)
    modalities = list(modalities)
    (folder / PROMPT_ENCODER).write_bytes(save(stored(network.prompt_encoder.state_dict())))
    files = [PROMPT_ENCODER]
    for modality in modalities:
        files.append(decoder_file(modality.name))
        save_modality(folder / files[-1], network, modality.name)
    description = DeSamDescription(
        name=name,
        backbone=BackboneReference(name=facts.name, sha256=facts.sha256),
        input_size=facts.tile,
        modalities=modalities,
        prompts=prompts,
        rules=rules or MaskRules(),
        training=training or {},
        **(told or {}),
        files={file: sha256_of(folder / file) for file in files},
    )
    bundle = DeSamBundle(folder, description)
    save_description(bundle)
    return bundle


def empty_desam(path: str | Path, encoder: str = "lite_medsam") -> DeSamBundle:
    """Write a bundle without modalities, for trainings to add to.

    Raises:
        WeightsError: the encoder's file is missing or damaged.
        UnknownNameError: there is no such encoder.
    """
    network = DeSam(nn.Linear(1, 1))
    start_prompt_encoder(network, encoder)
    return save_desam(path, network, [], name=DESAM, encoder=encoder)
