"""`esp-medsam train`: a bundle from images with label maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esp_medsam_app.commands.runtime import Screen
from esp_medsam_app.errors import InputError


def register(app: typer.Typer) -> None:
    """Add `train` to the command line."""

    @app.command()
    def train(
        data: Annotated[
            list[str],
            typer.Option(
                "--data",
                metavar="MODALITY=DIR",
                help="Training cases of a modality: DIR holds images/ and labels/ with equal "
                "stems. Give it once for each modality and folder.",
            ),
        ],
        output: Annotated[
            Path, typer.Option("--output", "-o", metavar="DIR", help="The bundle; made if new.")
        ],
        work: Annotated[
            Path,
            typer.Option(
                metavar="DIR",
                help="Views, features and checkpoints (about 2 GB for 1000 views). A run that "
                "was stopped goes on from here.",
            ),
        ] = Path("runs/train"),
        name: Annotated[str, typer.Option(help="Of the bundle.")] = "esp-medsam",
        views: Annotated[
            int | None, typer.Option(min=1, help="Augmented views of each modality.")
        ] = None,
        decoder_steps: Annotated[
            int | None, typer.Option(min=0, help="Steps of decoder and SPPG alone.")
        ] = None,
        joint_steps: Annotated[
            int | None, typer.Option(min=0, help="Steps together with the controllers.")
        ] = None,
        joint_batch: Annotated[
            int | None, typer.Option(min=1, help="Views a step, together with the controllers.")
        ] = None,
        cached_stage: Annotated[
            int | None,
            typer.Option(min=1, max=3, help="Controllers learn from this encoder stage on."),
        ] = None,
        start: Annotated[
            Path | None,
            typer.Option(
                metavar="DIR",
                help="A bundle to go on from. Only the modalities of --data learn; what others "
                "give stays as it is, bit by bit.",
            ),
        ] = None,
        seed: Annotated[int, typer.Option(help="Same seed, same run.")] = 0,
        device: Annotated[
            str, typer.Option(help="auto, cpu, cuda, cuda:1; auto prefers a GPU.")
        ] = "auto",
    ) -> None:
        """Train modalities together on the frozen backbone and write them as a bundle.

        Prints the running loss. Scores come from `esp-medsam evaluate` on other cases.
        """
        from esp_medsam_app.evaluation.pairs import check_references, find_pairs
        from esp_medsam_app.inference.device import choose_device
        from esp_medsam_app.modalities import get_modality
        from esp_medsam_app.training import Recipe
        from esp_medsam_app.training import train as run
        from esp_medsam_app.training.record import claim_work, describe
        from esp_medsam_app.training.trainer import add_fresh_modality
        from esp_medsam_app.weights.backbones import LITE_MEDSAM
        from esp_medsam_app.weights.bundle import load_bundle, save_bundle

        folders = parse_data(data)
        modalities = [get_modality(modality) for modality in folders]
        pairs = {modality: find_pairs(paths) for modality, paths in folders.items()}
        for modality in modalities:
            check_references(pairs[modality.name], modality)
        chosen = {
            "views": views,
            "decoder_steps": decoder_steps,
            "joint_steps": joint_steps,
            "joint_batch": joint_batch,
            "cached_stage": cached_stage,
        }
        recipe = Recipe(
            seed=seed, **{key: value for key, value in chosen.items() if value is not None}
        )
        old = load_bundle(start) if start is not None else None
        claim_work(work, recipe, pairs, old)
        started = old.load_network() if old is not None else None
        if old is not None and started is not None:
            for modality in modalities:
                if modality.name not in old.modalities:
                    add_fresh_modality(started, LITE_MEDSAM, modality)
        place = str(choose_device(device))
        screen = Screen()
        lines = _Lines(screen)
        network = run(
            pairs,
            modalities,
            LITE_MEDSAM,
            recipe,
            work=work,
            start=started,
            device=place,
            report=lines.report,
        )
        learned = {modality.name: modality for modality in modalities}
        kept = old.modalities if old is not None else {}
        scores = old.description.scores if old is not None else {}
        runs = old.description.training.get("runs", []) if old is not None else []
        bundle = save_bundle(
            output,
            network,
            (kept | learned).values(),
            name=name,
            backbone=LITE_MEDSAM.name,
            training={"runs": [*runs, describe(recipe, pairs, folders, device=place)]},
            scores={key: score for key, score in scores.items() if key not in learned},
        )
        screen.say(f"wrote {bundle.path}: {', '.join(bundle.modalities)}")


def parse_data(options: list[str]) -> dict[str, list[Path]]:
    """`MODALITY=DIR` options by modality, in the order given.

    Raises:
        InputError: one of them has no `=`.
    """
    folders: dict[str, list[Path]] = {}
    for option in options:
        modality, separator, folder = option.partition("=")
        if not separator or not modality or not folder:
            raise InputError(
                f"--data {option}: not of the form MODALITY=DIR",
                remedy="For example --data ct_liver=cases/train",
            )
        folders.setdefault(modality, []).append(Path(folder))
    return folders


class _Lines:
    """A line each time a twentieth of a phase is done."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.told: tuple[str, int] = ("", -1)

    def report(self, phase: str, done: int, total: int, value: float) -> None:
        mark = (phase, 20 * done // total)
        if mark != self.told:
            self.told = mark
            loss = f"  loss {value:.4f}" if value else ""
            self.screen.say(f"{phase}: {done} of {total}{loss}")
