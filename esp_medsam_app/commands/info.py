"""`esp-medsam info`: what the installed weights segment, how well, and under which licences."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from esp_medsam_app.commands.runtime import BundleOption, ProfileOption, Screen

if TYPE_CHECKING:
    from esp_medsam_app.weights.bundle import Bundle


def register(app: typer.Typer) -> None:
    """Add `info` to the command line."""

    @app.command()
    def info(
        bundle: BundleOption = None,
        profile: ProfileOption = None,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print JSON for programs instead of a table.")
        ] = False,
    ) -> None:
        """Show modalities, labels, Dice, and whether the training data allow commercial use.

        Dice is the mean over cases that were not trained on, without prompts. The last column is
        about the licences of the modality's own training data: yes, no, or unclear where a
        publisher states none or several. It is not legal advice.
        """
        from esp_medsam_app.weights.bundle import load_any_bundle
        from esp_medsam_app.weights.profiles import chosen_bundle

        described = describe_bundle(load_any_bundle(chosen_bundle(bundle, profile)))
        if as_json:
            typer.echo(json_format.dumps(described, indent=2))
            return
        screen = Screen()
        screen.say(f"{described['bundle']}: {described['path']}")
        screen.show(_table(described["modalities"]))
        shared = described["shared_data"]
        screen.say(
            f"The decoder, which all modalities share, was trained on {', '.join(shared)} data."
        )


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """What a bundle offers, as JSON values.

    Args:
        bundle: of either family of models.
    """
    from esp_medsam_app.weights.licences import licences

    found = licences(bundle)
    shared = next(iter(found.values())).shared if found else ()
    return {
        "bundle": bundle.description.name,
        "family": bundle.family,
        "path": str(Path(bundle.path)),
        "shared_data": list(shared),
        "modalities": {
            name: {
                "title": modality.title,
                "labels": list(modality.labels),
                "dice": {
                    split: {"mean": figures["dice"]["mean"], "cases": figures["cases"]}
                    for split, figures in bundle.description.scores.get(name, {}).items()
                },
                "licence_classes": list(found[name].own),
                "commercial_use": found[name].commercial_use,
            }
            for name, modality in bundle.modalities.items()
        },
    }


def _table(modalities: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in ("modality", "labels", "test", "unseen", "training data", "commercial use"):
        table.add_column(name)
    for name, said in modalities.items():
        dice = (
            f"{said['dice'][split]['mean']:.3f}" if split in said["dice"] else "-"
            for split in ("test", "unseen")
        )
        table.add_row(
            name,
            ", ".join(said["labels"]),
            *dice,
            ", ".join(said["licence_classes"]) or "not known",
            said["commercial_use"],
        )
    return table
