"""`esp-medsam`: the command line. Each command is a file in `commands/`."""

from __future__ import annotations

import io
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from esp_medsam_app.commands import (
    backup,
    benchmark,
    calibrate,
    classifier,
    data,
    distill,
    doctor,
    evaluate,
    info,
    sample_data,
    segment,
    serve,
    simulate,
    train,
    weights,
)
from esp_medsam_app.commands.runtime import Screen
from esp_medsam_app.data.trust import own_files
from esp_medsam_app.errors import EspMedSamError

USER_ERROR = 2

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="ESP-MedSAM for MONAI Label: segmentation without a prompt.",
)
for command in (
    segment,
    serve,
    train,
    distill,
    evaluate,
    calibrate,
    classifier,
    data,
    simulate,
    weights,
    info,
    backup,
    sample_data,
    benchmark,
    doctor,
):
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
    """Run a command and exit: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        # names of files may hold what the terminal's encoding cannot
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # a server is a process of its own, and takes no file for its user's
        with own_files():
            app(args=arguments)
    except EspMedSamError as error:
        Screen().complain(f"Error: {error}")
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
