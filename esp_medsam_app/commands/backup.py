"""`esp-medsam backup` and `esp-medsam restore`: all that a server must not lose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esp_medsam_app.commands.runtime import Screen
from esp_medsam_app.errors import InputError

DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="The data folder, as `serve --data` has it."),
]
AppOption = Annotated[
    Path | None,
    typer.Option("--app", metavar="DIR", help="The app, if not apps/esp_medsam here or in --data."),
]


def register(app: typer.Typer) -> None:
    """Add `backup` and `restore` to the command line."""

    @app.command()
    def backup(
        output: Annotated[
            Path, typer.Option("--output", "-o", metavar="FILE", help="A new .tar or .tar.gz.")
        ],
        data: DataOption = None,
        app_dir: AppOption = None,
        studies: Annotated[
            str | None,
            typer.Option(
                metavar="DIR|URL", help="As `serve --studies`; by default what was served last."
            ),
        ] = None,
        versions: Annotated[
            Path | None,
            typer.Option(
                "--versions", metavar="DIR", help="As `serve --versions`; by default likewise."
            ),
        ] = None,
    ) -> None:
        """Keep labels, images in a folder, versions, held-out patients and the audit in one file.

        The server may go on working meanwhile. Images in a PACS are not in it, labels that the PACS
        has not got yet are.
        """
        from esp_medsam_app.backup.archive import write_backup
        from esp_medsam_app.backup.places import places_of

        folder = _app_of(data, app_dir)
        served, places = places_of(folder, data, studies, versions)
        contents = write_backup(output, served, places)
        size = sum(entry.size for entry in contents.files.values())
        screen = Screen()
        screen.say(f"wrote {output}: {len(contents.files)} files, {size / 1e6:.1f} MB, of")
        for place in places:
            screen.say(f"  {place.name:<18} {place.folder}")

    @app.command()
    def restore(
        file: Annotated[Path, typer.Argument(metavar="FILE", help="Written by `backup`.")],
        data: Annotated[
            Path, typer.Option("--data", metavar="DIR", help="Data folder to make, for `serve`.")
        ],
        studies: Annotated[
            Path | None,
            typer.Option("--studies", metavar="DIR", help="Put images and labels here instead."),
        ] = None,
    ) -> None:
        """Make a data folder of a backup, in a place where nothing is yet."""
        from esp_medsam_app.backup.places import DICOM, LOGS, MODEL, STUDIES
        from esp_medsam_app.backup.restoring import restore_backup

        targets = {
            STUDIES: studies or data / STUDIES,
            DICOM: data / DICOM,
            MODEL: data / MODEL,
            LOGS: data / LOGS,
        }
        contents = restore_backup(file, targets)
        is_pacs = contents.studies.startswith(("http://", "https://"))
        place = contents.studies if is_pacs else targets[STUDIES]
        made = f"{contents.created:%Y-%m-%d %H:%M} UTC"
        Screen().say(
            f"restored {len(contents.files)} files of {made} into {data}; to serve them:\n"
            f"  esp-medsam serve --data {data} --studies {place}"
        )


def _app_of(data: Path | None, app_dir: Path | None) -> Path:
    from esp_medsam_app.server.launch import app_folder

    folder = app_dir or (data / "app" if data is not None else app_folder())
    if not folder.is_dir():
        raise InputError(
            "there is no such folder of an app",
            path=folder,
            remedy="Name the server's data folder with --data, or its app with --app",
        )
    return folder
