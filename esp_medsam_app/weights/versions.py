"""Versions of single modalities beside a bundle that stays as it is.

```
serving.json                             which version each modality serves, and the history
serving.copy.json                        the same again
<modality>/<number>/weights.safetensors  as a bundle's controllers/<modality>.safetensors
<modality>/<number>/version.json         what it was trained on and how it was judged
```
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from esp_medsam_app.errors import UnknownNameError, WeightsError
from esp_medsam_app.modalities import Modality
from esp_medsam_app.modalities.modality import NAME
from esp_medsam_app.networks import DeSam, EspMedSam
from esp_medsam_app.weights.backbones import LITE_MEDSAM
from esp_medsam_app.weights.bundle import (
    Bundle,
    save_modality,
    starter_bundle_path,
)
from esp_medsam_app.weights.integrity import sha256_of
from esp_medsam_app.weights.version_checks import check_network, check_version
from esp_medsam_app.weights.version_files import (
    DESCRIPTION,
    SERVING,
    WEIGHTS,
    Cases,
    Change,
    Dice,
    Serving,
    Shared,
    Version,
    read_serving,
    read_version,
    sync,
    version_folder,
    whole_folder,
    write_json,
    write_serving,
    writing,
)
from esp_medsam_app.weights.versioned_bundle import VersionedBundle, with_versions

# What tells one content of serving.json from another: its time of change, inode and size.
Stamp = tuple[int, int, int]
_NUMBER = re.compile(r"[1-9][0-9]*")

logger = logging.getLogger(__name__)


class VersionStore:
    """Keeps versions of modalities, and which one serves.

    Any number of processes may read and write at the same time.

    Args:
        path: folder; made with the first version.
        base: bundle that the versions belong to.
        added: modalities that the bundle lacks, by name; trained or not.
    """

    def __init__(
        self, path: Path, base: Bundle, added: Mapping[str, Modality] | None = None
    ) -> None:
        self.path = path
        self.base = base
        self.added = dict(added or {})
        self._read: tuple[Stamp | None, Serving] | None = None

    @property
    def shared(self) -> Shared:
        """The weights that versions of this bundle work with."""
        said = self.base.description
        return Shared(
            backbone=said.backbone.sha256, decoder=said.files.get(self.base.shared_file, "")
        )

    def modalities(self) -> list[str]:
        """Names of the bundle's modalities, of those beside it, and of all that have versions."""
        found = {description.parts[-3] for description in self.path.glob(f"*/*/{DESCRIPTION}")}
        found = {name for name in found if NAME.fullmatch(name) and self._numbers(name)}
        return sorted({*self.base.modalities, *self.added, *found})

    def versions(self, modality: str) -> list[Version]:
        """All versions of a modality, the bundle's own first; the log names those not readable.

        Raises:
            UnknownNameError: there is no such modality.
        """
        self._check_known(modality)
        own = [0] if modality in self.base.modalities else []
        versions = []
        for number in [*own, *self._numbers(modality)]:
            try:
                versions.append(self.get(modality, number))
            except WeightsError as error:
                logger.warning("Left out: %s", error)
        return versions

    def get(self, modality: str, number: int) -> Version:
        """One version; 0 is the bundle's own.

        Raises:
            UnknownNameError: there is no such modality or version.
            WeightsError: its description is damaged.
        """
        self._check_known(modality)
        if number == 0 and modality in self.base.modalities:
            return self._own(modality)
        folder = version_folder(self.path, modality, number)
        if number <= 0 or not folder.is_dir():
            own = [0] if modality in self.base.modalities else []
            known = ", ".join(map(str, [*own, *self._numbers(modality)]))
            raise UnknownNameError(
                f"{modality} has no version {number}", remedy=f"Available: {known or 'none'}"
            )
        version = read_version(folder)
        if (version.number, version.modality.name) != (number, modality):
            raise WeightsError(
                f"this is version {version.number} of {version.modality.name}",
                path=folder / DESCRIPTION,
                remedy="Folders of versions are not to be renamed",
            )
        return version

    def add(
        self,
        network: EspMedSam | DeSam,
        modality: Modality,
        *,
        state: Literal["published", "kept_back"],
        parent: int | None,
        reason: str = "",
        cases: Cases | None = None,
        dice: Dice | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> Version:
        """Keep what a network owns of a modality as a new version. It does not serve yet.

        Args:
            network: on the bundle's backbone and decoder.
            modality: one of its modalities, as it was trained.
            state, parent, reason, cases, dice, training: see `Version`.

        Raises:
            WeightsError: the network does not fit the modality, or the modality the bundle.
            EspMedSamError: it cannot be written.
        """
        check_network(network, modality, self._expected(modality.name))
        with writing(self.path):
            number = self._next(modality.name)
            with whole_folder(version_folder(self.path, modality.name, number)) as part:
                save_modality(part / WEIGHTS, network, modality.name)
                sync(part / WEIGHTS)
                version = Version(
                    number=number,
                    modality=modality,
                    parent=parent,
                    created=datetime.now(timezone.utc),
                    state=state,
                    reason=reason,
                    cases=cases or Cases(),
                    dice=dice or Dice(),
                    training=dict(training or {}),
                    sha256=sha256_of(part / WEIGHTS),
                    shared=self.shared,
                )
                write_json(part / DESCRIPTION, version)
        return version

    def publish(
        self, modality: str, number: int, *, over: int | None = None, reason: str = ""
    ) -> None:
        """Let a version that beat the one before serve; the requests that start now get it.

        Args:
            modality: its name.
            number: of the version.
            over: the version that it was compared with; any by default.
            reason: for the history.

        Raises:
            UnknownNameError: there is no such modality or version.
            WeightsError: it was kept back, is damaged or belongs to other weights, or by now
                another version serves than `over`.
            EspMedSamError: the choice cannot be written.
        """
        version = self.get(modality, number)
        if version.state == "kept_back":
            raise WeightsError(
                f"version {number} of {modality} was kept back ({version.reason})",
                remedy=f"esp-medsam weights restore --modality {modality} --number {number} "
                "lets it serve all the same",
            )
        self._check_sound(version)
        self._serve(modality, number, reason or version.reason, over)

    def restore(self, modality: str, number: int, reason: str = "restored") -> None:
        """Let any version serve, whatever the promotion decided of it.

        Args:
            modality: its name.
            number: of the version; 0: the bundle's own, or none at all where the bundle lacks
                the modality.
            reason: for the history.

        Raises:
            UnknownNameError: there is no such modality or version.
            WeightsError: it is damaged or belongs to other weights.
            EspMedSamError: the choice cannot be written.
        """
        self._check_known(modality)
        if number != 0:
            self._check_sound(self.get(modality, number))
        self._serve(modality, number, reason)

    def serving(self) -> dict[str, int]:
        """Which version each modality is to serve; 0: the bundle's own, or none."""
        chosen = self._state().serving
        return {name: chosen.get(name, 0) for name in self.modalities()}

    def history(self, modality: str | None = None) -> list[Change]:
        """What served when, the oldest first; of all modalities or of one."""
        changes = self._state().history
        return [change for change in changes if modality in (None, change.modality)]

    def stamp(self) -> Stamp | None:
        """Another one after each change of what serves; costs a look at one file."""
        try:
            found = os.stat(self.path / SERVING)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def bundle(self, like: Bundle | None = None) -> Bundle:
        """What serves now, as a bundle that stays so whatever is published later.

        Where a version is damaged or belongs to other weights, the one that it replaced serves,
        in the end the bundle's own; the log says so.

        Args:
            like: an earlier answer; versions in it are not read again.
        """
        serving: dict[str, Version] = {}
        for name, number in self._state().serving.items():
            version = self._last_that_works(name, number, like)
            if version is not None:
                serving[name] = version
        return with_versions(self.base, self.path, serving)

    def _last_that_works(self, name: str, number: int, like: Bundle | None) -> Version | None:
        known = like.versions if isinstance(like, VersionedBundle) else {}
        for candidate in self._replaced(name, number):
            try:
                version = self.get(name, candidate)
                if known.get(name) != version:
                    self._check_sound(version)
            except (WeightsError, UnknownNameError) as error:
                logger.error("Version %d of %s cannot serve: %s", candidate, name, error)
                continue
            if candidate != number:
                logger.error("Version %d of %s serves in place of %d", candidate, name, number)
            return version
        if number > 0:
            own = name in self.base.modalities
            logger.error("%s: %s", name, "the bundle's own serves" if own else "none serves")
        return None

    def _replaced(self, name: str, number: int) -> Iterator[int]:
        """A version, the one that it replaced when it served first, and so on."""
        seen: set[int] = set()
        while number > 0 and number not in seen:
            seen.add(number)
            yield number
            changes = [change for change in self.history(name) if change.number == number]
            number = changes[0].before if changes else 0

    def _serve(self, modality: str, number: int, reason: str, over: int | None = None) -> None:
        with writing(self.path):
            state = read_serving(self.path)
            before = state.serving.get(modality, 0)
            if over is not None and before != over:
                raise WeightsError(
                    f"version {before} of {modality} serves by now, not {over}, which version "
                    f"{number} was compared with",
                    remedy="Train again",
                )
            if before == number:
                return
            change = Change(
                time=datetime.now(timezone.utc),
                modality=modality,
                number=number,
                before=before,
                reason=reason,
            )
            serving = {name: n for name, n in state.serving.items() if name != modality}
            if number:
                serving[modality] = number
            write_serving(self.path, Serving(serving=serving, history=(*state.history, change)))
        logger.info("%s: version %d is to serve in place of %d", modality, number, before)

    def _state(self) -> Serving:
        # before reading: a change in between is then noticed the next time
        stamp = self.stamp()
        if self._read is None or self._read[0] != stamp:
            self._read = stamp, read_serving(self.path)
        return self._read[1]

    def _check_known(self, modality: str) -> None:
        known = self.modalities()
        if modality not in known:
            raise UnknownNameError(
                f"there is no modality {modality!r}", remedy=f"Available: {', '.join(known)}"
            )

    def _check_sound(self, version: Version) -> None:
        if version.number == 0:
            return
        name = version.modality.name
        folder = version_folder(self.path, name, version.number)
        check_version(version, folder, self.shared, self._expected(name))

    def _expected(self, name: str) -> Modality | None:
        return self.base.modalities.get(name) or self.added.get(name)

    def _own(self, modality: str) -> Version:
        return Version(
            number=0,
            modality=self.base.modalities[modality],
            reason="part of the bundle",
            sha256=self.base.description.files.get(self.base.modality_file(modality), ""),
            shared=self.shared,
        )

    def _numbers(self, modality: str) -> list[int]:
        folder = self.path / modality
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(name) for name in names if _NUMBER.fullmatch(name))

    def _next(self, modality: str) -> int:
        """A number that no version has had, also none that somebody removed after it served."""
        served = [change.number for change in self.history(modality)]
        return max([0, *self._numbers(modality), *served]) + 1


def open_versions(
    folder: Path, base: Bundle, added: Mapping[str, Modality] | None = None
) -> VersionStore:
    """The versions of a bundle in a folder that may serve several bundles.

    The starter bundle's lie in the folder itself, those of others in a folder inside it, so that
    a server with other weights for a while finds its own versions again.
    """
    if base.path != starter_bundle_path():
        said = base.description
        # the compact profile has the full one's decoder
        size = "" if said.input_size == LITE_MEDSAM.input_size else f"-{said.input_size}"
        folder = folder / f"bundle-{said.files.get(base.shared_file, '')[:12]}{size}"
    return VersionStore(folder, base, added)


def overview(store: VersionStore, modalities: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """The versions for machines, as `weights list --json` and `GET /versions/` give them.

    Args:
        store: of the versions.
        modalities: their names; all by default.

    Returns:
        For each modality `modality`, `chosen` (the number in `serving.json`, 0 if it is not
        there), `serving` (the same unless that one cannot serve; none if nothing does),
        `versions` (each as in `version.json`) and `history`.

    Raises:
        UnknownNameError: there is no such modality.
    """
    now, chosen = store.bundle(), store.serving()
    return [
        {
            "modality": name,
            "versions": [version.model_dump(mode="json") for version in store.versions(name)],
            "chosen": chosen[name],
            "serving": now.version(name) if name in now.modalities else None,
            "history": [change.model_dump(mode="json") for change in store.history(name)],
        }
        for name in modalities or store.modalities()
    ]
