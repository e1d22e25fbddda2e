"""`esp-medsam sample-data`: images to try everything with, without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esp_medsam_app.commands.runtime import Screen


def register(app: typer.Typer) -> None:
    """Add `sample-data` to the command line."""

    @app.command(name="sample-data")
    def sample_data(
        output: Annotated[
            Path, typer.Option("--output", "-o", metavar="DIR", help="Made if new.")
        ] = Path("sample_data/built"),
    ) -> None:
        """Write sample images: real ones of installed packages, and phantoms with reference masks.

        studies/ can be served or segmented, references/ holds the phantoms' exact label maps,
        dicom/ has series for an archive; manifest.json names origin and licence. Fetches nothing.
        """
        from esp_medsam_app.samples import build_sample_data

        screen = Screen()
        data = build_sample_data(output)
        for reason in data.left_out:
            screen.complain(f"left out {reason}")
        state = f"{data.written} files written" if data.written else "complete already"
        screen.say(f"Sample data: {len(data.cases)} cases in {data.folder} ({state})")
