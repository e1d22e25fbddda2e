"""`esp-medsam doctor`: is the installation sound, and what to do if not.

Also runs as `python -m esp_medsam_app.commands.doctor`, which needs none of the other commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from esp_medsam_app.diagnosis import Finding, Setting, State, diagnose

_DEFAULT = Setting()
_SIGNS: dict[State, tuple[str, str]] = {
    "ok": ("OK", "green"),
    "warning": ("warning", "yellow"),
    "failed": ("failed", "red"),
}


def register(app: typer.Typer) -> None:
    """Add `doctor` to the command line."""

    @app.command()
    def doctor(
        json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
        bundle: Annotated[
            Path | None,
            typer.Option("--bundle", metavar="DIR", help="Weights to check; else the starter's."),
        ] = None,
        app_folder: Annotated[
            Path, typer.Option("--app", metavar="DIR", help="The app a server loads.")
        ] = _DEFAULT.app,
        samples: Annotated[
            Path, typer.Option("--samples", metavar="DIR", help="The sample data folder.")
        ] = _DEFAULT.samples,
        studies: Annotated[
            str, typer.Option("--studies", metavar="DIR|URL", help="What a server is to offer.")
        ] = str(_DEFAULT.studies),
        host: Annotated[str, typer.Option(help="A server's address.")] = _DEFAULT.host,
        port: Annotated[
            int, typer.Option(min=1, max=65535, help="A server's port.")
        ] = _DEFAULT.port,
    ) -> None:
        """Check the installation: packages, weights, device, dcmqi, port, folders, PACS, samples.

        Says how to mend what is wrong. Exit code 2 if anything failed; warnings do not count.
        """
        setting = Setting(bundle, app_folder, samples, studies, host, port)
        findings: list[Finding] = []
        console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
        for finding in diagnose(setting):
            findings.append(finding)
            if not json:
                console.print(_line(finding))
        failed = sum(finding.state == "failed" for finding in findings)
        if json:
            typer.echo(_as_json(findings))
        else:
            warnings = sum(finding.state == "warning" for finding in findings)
            console.print(f"\n{len(findings)} checks: {failed} failed, {warnings} warnings")
        if failed:
            raise typer.Exit(2)


def _line(finding: Finding) -> Text:
    sign, colour = _SIGNS[finding.state]
    line = Text.assemble((f"{sign:<8}", colour), f"{finding.check:<17}", finding.found)
    if finding.remedy:
        line.append("\n" + " " * 25 + f"-> {finding.remedy}", style="bold")
    return line


def _as_json(findings: list[Finding]) -> str:
    import json
    from dataclasses import asdict

    content = {
        "ok": all(finding.state != "failed" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


if __name__ == "__main__":
    alone = typer.Typer(add_completion=False)
    register(alone)
    alone()
