"""`esp-medsam weights`: what a bundle holds, whether it is whole, its model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from esp_medsam_app.commands.runtime import BundleOption, Screen
from esp_medsam_app.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the group `weights` to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Look into bundles of weights.")
    app.add_typer(group, name="weights")

    @group.command()
    def show(bundle: BundleOption = None) -> None:
        """List the modalities of a bundle with their labels and scores."""
        from esp_medsam_app.weights import load_bundle

        loaded = load_bundle(bundle)
        table = Table(title=f"{loaded.description.name} ({loaded.path})")
        for column in ("modality", "labels", "Dice (cases)"):
            table.add_column(column)
        for name, modality in loaded.modalities.items():
            found = [
                f"{split} {score['dice']['mean']:.3f} ({score['cases']})"
                for split, score in loaded.description.scores.get(name, {}).items()
            ]
            table.add_row(name, ", ".join(modality.labels), ", ".join(found) or "-")
        Screen().show(table)

    @group.command()
    def verify(bundle: BundleOption = None) -> None:
        """Compare every weight file, the backbone's too, with its SHA-256."""
        from esp_medsam_app.weights import load_bundle

        loaded = load_bundle(bundle)
        loaded.verify()
        Screen().say(f"{loaded.path}: {len(loaded.description.files)} files and backbone are whole")

    @group.command()
    def card(
        bundle: Annotated[Path, typer.Option("--bundle", metavar="DIR", help="The bundle.")],
        report: Annotated[
            list[Path] | None,
            typer.Option(
                "--report", metavar="FILE", help="Written by `evaluate --json`: kept as scores."
            ),
        ] = None,
        split: Annotated[str, typer.Option(help="Which split the reports are about.")] = "val",
    ) -> None:
        """Keep scores in bundle.json and write the model card beside it."""
        from esp_medsam_app.weights import load_bundle
        from esp_medsam_app.weights.bundle import save_description
        from esp_medsam_app.weights.model_card import CARD, record_scores, render_card

        loaded = load_bundle(bundle)
        for file in report or []:
            try:
                loaded = record_scores(loaded, json.loads(file.read_text("utf-8")), split)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"not a report of `esp-medsam evaluate --json` ({error})", path=file
                ) from error
        save_description(loaded)
        (loaded.path / CARD).write_text(render_card(loaded), encoding="utf-8")
        Screen().say(f"wrote {loaded.path / CARD}")
