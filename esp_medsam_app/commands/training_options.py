"""What the commands that train share: options, the recipe, progress on screen and in curves."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.progress import TaskID

from esp_medsam_app.commands.runtime import Screen
from esp_medsam_app.data.texts import parse_yaml
from esp_medsam_app.errors import InputError

if TYPE_CHECKING:
    from esp_medsam_app.evaluation.pairs import CasePair
    from esp_medsam_app.modalities import Modality
    from esp_medsam_app.training.recipe import Recipe
    from esp_medsam_app.training.surroundings import Surroundings

DataOption = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="MODALITY=DIR",
        help="Training cases of a modality, of the catalogue or a YAML file of your own: DIR holds "
        "images/ and labels/ with equal stems. Give it once for each modality and folder.",
    ),
]
WorkOption = Annotated[
    Path,
    typer.Option(
        "--work",
        metavar="DIR",
        help="Slices, features, checkpoints and curves. A run that was stopped goes on from here.",
    ),
]
RecipeOption = Annotated[
    str,
    typer.Option(
        "--recipe", metavar="NAME|FILE", help="two_cores, gpu, or a YAML file of such numbers."
    ),
]
ChangesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a number of the recipe, e.g. joint_steps=200."
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Same seed, same run.")]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto, cpu, cuda, cuda:1; auto prefers a GPU. Under torchrun each process takes one.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", min=0, help="Processes that make views; one a core beside a GPU by default."
    ),
]
CacheOption = Annotated[
    float,
    typer.Option(
        "--slices-gb",
        min=0.001,
        help="Disk for the slices of one modality. Of volumes that need more, evenly chosen "
        "slices are kept.",
    ),
]


LeaveOutOption = Annotated[
    list[str] | None,
    typer.Option(
        "--leave-out",
        metavar="MODALITY=NAME",
        help="Not this case, for example as its patient is in a test split. May be given often.",
    ),
]


def parse_data(options: list[str], flag: str = "--data") -> dict[str, list[Path]]:
    """`MODALITY=DIR` options by modality, in the order given.

    Raises:
        InputError: one of them has no `=`.
    """
    folders: dict[str, list[Path]] = {}
    for option in options:
        modality, separator, folder = option.partition("=")
        if not separator or not modality or not folder:
            raise InputError(
                f"{flag} {option}: not of the form MODALITY=DIR",
                remedy=f"For example {flag} ct_liver=cases/train",
            )
        folders.setdefault(modality, []).append(Path(folder))
    return folders


class TrainingCases(NamedTuple):
    """What to train on.

    Attributes:
        modalities: in the order given.
        folders: where their cases are, by the modality's name.
        pairs: their cases, likewise.
    """

    modalities: list[Modality]
    folders: dict[str, list[Path]]
    pairs: dict[str, list[CasePair]]


def find_cases(data: list[str], leave_out: list[str] | None = None) -> TrainingCases:
    """Modalities and cases of `--data`; every label map is read once.

    Raises:
        UnknownNameError: the catalogue has no such modality.
        InputError: a folder, label map or modality's file that cannot be used, no such case to
            leave out, two modalities of one name.
    """
    from esp_medsam_app.evaluation.pairs import check_references, find_pairs, without
    from esp_medsam_app.modalities import find_modality

    given = parse_data(data)
    modalities = [find_modality(name) for name in given]
    folders = {m.name: paths for m, paths in zip(modalities, given.values(), strict=True)}
    if len(folders) < len(given):
        raise InputError(
            f"--data {' and '.join(given)}: two of them have one name",
            remedy="Give all folders of a modality with the same word",
        )
    pairs = {name: find_pairs(paths) for name, paths in folders.items()}
    for name, case in _left_out(leave_out or [], folders):
        pairs[name] = without(pairs[name], [case])
    for modality in modalities:
        check_references(pairs[modality.name], modality)
    return TrainingCases(modalities, folders, pairs)


def _left_out(options: list[str], folders: Mapping[str, list[Path]]) -> list[tuple[str, str]]:
    parted = [option.partition("=") for option in options]
    for modality, _, name in parted:
        if modality not in folders or not name:
            raise InputError(
                f"--leave-out {modality}={name}: not of the form MODALITY=NAME, or no --data of it",
                remedy="For example --leave-out ct_liver=case_17",
            )
    return [(modality, name) for modality, _, name in parted]


def read_recipe(source: str, changes: list[str] | None, seed: int) -> Recipe:
    """The recipe of the options.

    Raises:
        InputError: no such recipe, or an impossible number.
    """
    from esp_medsam_app.training.recipe import Recipe

    return Recipe.read(source, **recipe_changes(changes, seed))


def recipe_changes(changes: list[str] | None, seed: int) -> dict[str, Any]:
    """What `--set` and `--seed` change in a recipe.

    Raises:
        InputError: one of them has no `=`.
    """
    values: dict[str, Any] = {"seed": seed}
    for change in changes or []:
        key, separator, value = change.partition("=")
        if not separator:
            raise InputError(
                f"--set {change}: not of the form KEY=VALUE", remedy="For example --set views=200"
            )
        try:
            values[key.strip()] = parse_yaml(value)
        except ValueError as error:
            raise InputError(f"--set {key.strip()}: no value in YAML ({error})") from error
    return values


@contextmanager
def surroundings(
    work: Path, device: str, workers: int | None = None, slices_gb: float = 4.0
) -> Iterator[Surroundings]:
    """Where a run takes place: its device, its processes, bars on screen, curves in `work`.

    Raises:
        InputError: there is no such device.
    """
    from esp_medsam_app.inference.device import choose_device
    from esp_medsam_app.training.processes import joined, own_device
    from esp_medsam_app.training.surroundings import Surroundings

    with joined() as processes:
        place = str(choose_device(own_device(device)))
        if workers is None:
            workers = (os.cpu_count() or 1) if place.startswith("cuda") else 0
        bars = Bars(Screen())
        curves = _curves(work) if processes.first else None
        with bars.screen.progress:
            yield Surroundings(
                work,
                device=place,
                workers=workers,
                slice_bytes=int(slices_gb * 2**30),
                processes=processes,
                report=bars.report,
                curves=curves,
            )
        if curves is not None:
            curves.close()


def _curves(work: Path) -> Any:
    """TensorBoard's writer where it is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(work / "curves")


class Bars:
    """A bar with the time left for each task on a terminal; else a line each twentieth."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self._tasks: dict[str, TaskID] = {}
        self._told: tuple[str, int] = ("", -1)

    def report(self, task: str, done: int, total: int, losses: Mapping[str, float]) -> None:
        """So much of a task is done, with these running losses."""
        loss = f"  loss {losses['total']:.4f}" if "total" in losses else ""
        bars = self.screen.progress
        if not bars.disable:
            if task not in self._tasks:
                self._tasks[task] = bars.add_task(task, total=total)
            bars.update(
                self._tasks[task],
                completed=done,
                description=task + loss,
                visible=done < total,
            )
        mark = (task, 20 * done // total)
        if bars.disable and mark != self._told:
            self._told = mark
            self.screen.say(f"{task}: {done} of {total}{loss}")
