"""`esp-medsam`: the command line. Each command is a file in `commands/`."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

from esp_medsam_app.commands import (
    doctor,
    evaluate,
    sample_data,
    segment,
    serve,
    train,
    weights,
)
from esp_medsam_app.errors import EspMedSamError

USER_ERROR = 2

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="ESP-MedSAM for MONAI Label: segmentation without a prompt.",
)
for command in (segment, serve, train, evaluate, weights, sample_data, doctor):
    command.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("esp-medsam-app"))
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """ESP-MedSAM for MONAI Label: segmentation without a prompt."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0, or 2 for what the user can mend."""
    try:
        app(args=arguments)
    except EspMedSamError as error:
        console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        console.print(f"Error: {error}", style="red", soft_wrap=True)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
