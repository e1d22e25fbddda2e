"""What comes back: few files, written anew after every modality, so that a stopped run keeps them.

```
weights_<n>.zip     <modality>.safetensors as a bundle stores it, and <modality>.json: SHA-256, run
ledger.csv          a row for each cycle, size and site
figures.json        the machine, its speed, what each modality took and gave
```
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import InputError
from esp_medsam_app.gpu_machine.places import FIGURES, LARGEST_RESULT, Packed
from esp_medsam_app.training.cycles import BEST, LEDGER
from esp_medsam_app.weights.bundle import Bundle, load_bundle

_ARCHIVES = "weights_*.zip"


def note(work: Path, part: str, said: Mapping[str, Any]) -> None:
    """Keep figures under a name, beside those of other parts and processes.

    Args:
        work: of the run.
        part: such as `machine`, or a modality's name.
        said: JSON values.
    """
    with FileLock(work / "figures.lock"):
        known = _read_figures(work / FIGURES)
        known[part] = dict(said)
        with written_whole(work / FIGURES) as partial:
            partial.write_text(json.dumps(known, indent=2), encoding="utf-8")


def write_results(work: Path, carried: Bundle, packed: Mapping[str, Packed], output: Path) -> None:
    """Write all that is done so far.

    Args:
        work: of the run.
        carried: the bundle that the run started from; what differs from it comes back.
        packed: what was told of each modality.
        output: folder of the results.
    """
    output.mkdir(parents=True, exist_ok=True)
    with FileLock(work / "results.lock"):
        for name in (LEDGER, FIGURES):
            if (work / name).is_file():
                with written_whole(output / name) as partial:
                    shutil.copyfile(work / name, partial)
        with FileLock(work / "best.lock"):
            best = load_bundle(work / BEST)
            _, changed = best.changes_from(carried)
            groups: list[list[str]] = [[]]
            room = LARGEST_RESULT
            for name in changed:
                size = best.file(best.modality_file(name)).stat().st_size
                if room < size and groups[-1]:
                    groups.append([])
                    room = LARGEST_RESULT
                groups[-1].append(name)
                room -= size
            for number, names in enumerate(groups, start=1):
                if names:
                    _write_archive(output / f"weights_{number}.zip", best, names, packed)


@dataclass(frozen=True)
class Returned:
    """A modality that came back.

    Attributes:
        name: its name.
        archive: where its weights lie.
        sha256: of them.
        run: how they were trained, as a bundle tells.
        surpassed: SHA-256 of the weights that they were compared with, if they were.
        modality: as it was trained, JSON values.
    """

    name: str
    archive: Path
    sha256: str
    run: dict[str, Any]
    surpassed: str | None
    modality: dict[str, Any]

    def extract(self, file: Path) -> None:
        """Write its weights into a file."""
        with zipfile.ZipFile(self.archive) as opened:
            file.write_bytes(opened.read(f"{self.name}.safetensors"))


def read_results(output: Path) -> list[Returned]:
    """The modalities that a run gave.

    Raises:
        InputError: no such folder, or an archive is damaged.
    """
    if not output.is_dir():
        raise InputError("there is no such folder", path=output)
    found = []
    for archive in sorted(output.glob(_ARCHIVES)):
        try:
            with zipfile.ZipFile(archive) as opened:
                for name in sorted(opened.namelist()):
                    if name.endswith(".json"):
                        said = json.loads(opened.read(name))
                        found.append(Returned(Path(name).stem, archive, **said))
        except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise InputError(
                f"the archive is damaged ({error})",
                path=archive,
                remedy="Remove it to use the others",
            ) from error
    return found


def _write_archive(
    file: Path, best: Bundle, names: list[str], packed: Mapping[str, Packed]
) -> None:
    runs = best.description.training.get("runs", [])
    with written_whole(file) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name in names:
            own = [run for run in runs if name in run.get("data", {})]
            said = {
                "sha256": best.description.files[best.modality_file(name)],
                "run": own[-1] if own else {},
                "surpassed": packed[name].surpassed if name in packed else None,
                "modality": best.modality(name).model_dump(mode="json"),
            }
            archive.writestr(f"{name}.json", json.dumps(said, indent=2), zipfile.ZIP_DEFLATED)
            archive.write(best.file(best.modality_file(name)), f"{name}.safetensors")


def _read_figures(file: Path) -> dict[str, Any]:
    try:
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return known
    except (OSError, ValueError):
        return {}
