"""Folders and files of a training on a borrowed machine, and how much may travel."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import InputError

MIB = 2**20
# what travels there: the tracked files that stay, those that git does not know, the carried folder
LARGEST_LOAD = 60 * MIB
# of a file that comes back
LARGEST_RESULT = 15 * MIB

FOLDER = "gpu_run"
MANIFEST = "manifest.json"
FIGURES = "figures.json"


@dataclass(frozen=True)
class Places:
    """Where things lie below the root of a working tree; git ignores all of it.

    Attributes:
        root: of the working tree.
    """

    root: Path

    @property
    def folder(self) -> Path:
        """All that belongs to such trainings."""
        return self.root / FOLDER

    @property
    def carried(self) -> Path:
        """What travels there beside the working tree: bundle, slices, wheels, manifest."""
        return self.folder / "carried"

    @property
    def aside(self) -> Path:
        """Tracked files that the machine does not need, under their own paths."""
        return self.folder / "aside"

    @property
    def work(self) -> Path:
        """What a run writes there, from which a later run on the same machine goes on."""
        return self.folder / "work"


@dataclass(frozen=True)
class Packed:
    """What is told of a modality that was packed.

    Attributes:
        cases: of the training split.
        data: of it, as a bundle tells of its training.
        start: whether its weights travel; else it starts untrained.
        weights: SHA-256 of its weights here; none for a modality that is new.
        judged: Dice of weights that do not travel, by size, site and case, where they were judged:
            what is trained there has to surpass them.
    """

    cases: int
    data: dict[str, Any]
    start: bool
    weights: str | None
    judged: dict[str, Any] | None

    @property
    def surpassed(self) -> str | None:
        """SHA-256 of the weights that those trained there were compared with, if they were."""
        return self.weights if self.start or self.judged is not None else None


def write_manifest(carried: Path, packed: dict[str, Packed]) -> None:
    """Say what was packed."""
    with written_whole(carried / MANIFEST) as partial:
        text = json.dumps({name: asdict(one) for name, one in packed.items()}, indent=2)
        partial.write_text(text, encoding="utf-8")


def read_manifest(carried: Path) -> dict[str, Packed]:
    """What was packed, by modality.

    Raises:
        InputError: nothing is packed there.
    """
    file = carried / MANIFEST
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        return {name: Packed(**one) for name, one in said.items()}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"the packed folder cannot be used ({error})",
            path=file,
            remedy="Pack it again: scripts/train_on_gpu.sh pack DATA",
        ) from error
