"""A bundle with versions of some modalities in place of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from esp_medsam_app.modalities import Modality
from esp_medsam_app.weights.bundle import Bundle
from esp_medsam_app.weights.desam_bundle import DeSamBundle
from esp_medsam_app.weights.version_files import WEIGHTS, Version, version_folder


@dataclass(frozen=True)
class VersionedBundle(Bundle):
    """What serves at one moment.

    Attributes:
        base: the bundle.
        store: folder of the versions.
        versions: by modality, also of modalities that the bundle lacks.
    """

    base: Bundle
    store: Path
    versions: Mapping[str, Version]

    @property
    def told_apart(self) -> Mapping[str, Modality]:
        """Those of the bundle: its classifier knows no others."""
        return self.base.told_apart

    def version(self, name: str) -> int:
        """Which version of a modality's weights this is; 0: the bundle's own."""
        return self.versions[name].number if name in self.versions else self.base.version(name)

    def file(self, name: str) -> Path:
        """Where a file of the description lies."""
        for modality, version in self.versions.items():
            if name == self.modality_file(modality):
                return version_folder(self.store, modality, version.number) / WEIGHTS
        return self.base.file(name)


@dataclass(frozen=True)
class VersionedDeSamBundle(VersionedBundle, DeSamBundle):
    """The same of DeSAM."""


def with_versions(base: Bundle, store: Path, versions: Mapping[str, Version]) -> Bundle:
    """A bundle with these versions from a store; the bundle itself if there are none.

    Modalities are those of the versions, as they were trained. Scores of the weights that are
    replaced are left out.
    """
    if not versions:
        return base
    said = base.description
    trained = {name: version.modality for name, version in versions.items()}
    sums = {base.modality_file(name): version.sha256 for name, version in versions.items()}
    described = said.model_copy(
        update={
            "modalities": list({**base.modalities, **trained}.values()),
            "files": {**said.files, **sums},
            "scores": said.told_but_of(versions)["scores"],
        }
    )
    kind = VersionedDeSamBundle if isinstance(base, DeSamBundle) else VersionedBundle
    return kind(base.path, described, base=base, store=store, versions=versions)
