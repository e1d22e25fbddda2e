"""`esp-medsam data`: checks of data folders before a training, and splits by patient."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from esp_medsam_app.commands import runtime
from esp_medsam_app.commands.runtime import KnownModalityOption, Screen
from esp_medsam_app.errors import InputError

if TYPE_CHECKING:
    from esp_medsam_app.evaluation.data_check import DataReport
    from esp_medsam_app.evaluation.split_folders import PlannedCase

# Findings of one kind in one split on the screen; all are in the JSON report.
_SHOWN = {"error": 20, "warning": 3}
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_FOLDER_HELP = "holds images/ and labels/ with equal stems. May be given several times."

PatternOption = Annotated[
    str | None,
    typer.Option(
        "--patient-pattern",
        metavar="REGEX",
        help="Finds the patient in a file name as its one group, where DICOM names none: "
        r"'^(\d+)_' for 0042_left.png.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the group `data` to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Check and split folders of cases.")
    app.add_typer(group, name="data")
    _register_check(group)
    _register_split(group)


def _register_check(group: typer.Typer) -> None:
    @group.command()
    def check(
        modality: KnownModalityOption,
        train: Annotated[
            list[Path],
            typer.Option("--train", metavar="DIR", help=f"To train on: {_FOLDER_HELP}"),
        ],
        val: Annotated[
            list[Path] | None,
            typer.Option("--val", metavar="DIR", help="To choose by, likewise."),
        ] = None,
        test: Annotated[
            list[Path] | None,
            typer.Option("--test", metavar="DIR", help="To measure on, likewise."),
        ] = None,
        unseen: Annotated[
            list[Path] | None,
            typer.Option("--unseen", metavar="DIR", help="Of another site, likewise."),
        ] = None,
        patient_pattern: PatternOption = None,
        json: Annotated[
            Path | None, typer.Option("--json", metavar="FILE", help="Write the report here too.")
        ] = None,
    ) -> None:
        """Find broken cases, wrong labels and leaks between splits before a training.

        Errors: files without partner or that cannot be read, shapes or places that differ, values
        that are no label, labels that a split does not have, an image (also under another name,
        re-encoded, scaled, mirrored or turned by 90 degrees) or a patient in two splits.
        Warnings: what a person should look at. The exit code is 2 after an error.
        """
        from esp_medsam_app.evaluation.data_check import check_data
        from esp_medsam_app.evaluation.splits import patient_pattern as compiled
        from esp_medsam_app.modalities import find_modality

        given = {"train": train, "val": val, "test": test, "unseen": unseen}
        folders = {split: paths for split, paths in given.items() if paths}
        chosen = find_modality(modality)
        pattern = None if patient_pattern is None else compiled(patient_pattern)
        if json is not None:
            _check_report_file(json)
        screen = Screen()
        with screen.progress as progress:
            task = progress.add_task("cases", total=None)
            report = check_data(
                folders,
                chosen,
                pattern,
                lambda done, total: progress.update(task, completed=done, total=total),
            )
        screen.show(counts_table(report))
        for line in finding_lines(report):
            screen.say(line)
        if json is not None:
            report.write(json)
            screen.say(f"Report: {json}")
        if report.errors:
            raise typer.Exit(2)


def _register_split(group: typer.Typer) -> None:
    @group.command()
    def split(
        source: Annotated[
            Path, typer.Argument(metavar="SOURCE", help="Holds images/ and labels/.")
        ],
        output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Made if new.")],
        modality: KnownModalityOption,
        share: Annotated[
            list[str],
            typer.Option(
                "--share",
                metavar="SPLIT=PART",
                help="For example --share train=0.8 --share val=0.2",
            ),
        ],
        patient_pattern: PatternOption = None,
        seed: Annotated[int, typer.Option(help="Another one gives another split.")] = 0,
    ) -> None:
        """Copy cases into OUTPUT/SPLIT/images and labels, each patient into one split.

        Which split depends on patient, shares and seed alone: a case never moves because others
        are added. Without a patient, each case counts as one. Cases that OUTPUT holds already are
        never written over.
        """
        from esp_medsam_app.evaluation.pairs import check_references, find_pairs
        from esp_medsam_app.evaluation.split_folders import copy_split, plan_split
        from esp_medsam_app.evaluation.splits import patient_pattern as compiled
        from esp_medsam_app.modalities import find_modality

        shares = parse_shares(share)
        pattern = None if patient_pattern is None else compiled(patient_pattern)
        chosen = find_modality(modality)
        pairs = find_pairs([source])
        planned = plan_split(pairs, shares, pattern, seed)
        check_references(pairs, chosen)
        screen = Screen()
        with screen.progress as progress:
            task = progress.add_task("cases", total=len(pairs))
            copy_split(planned, output, lambda done, total: progress.update(task, completed=done))
        screen.show(split_table(planned, shares))
        nobody = sum(case.patient is None for case in planned)
        if nobody:
            count = f"{nobody} case" + ("" if nobody == 1 else "s")
            screen.say(f"Patient unknown in {count}: each counts as one of its own")
        for name in shares:
            if all(case.split != name for case in planned):
                screen.complain(f"no case came to '{name}': too few patients, or try another seed")


def parse_shares(options: list[str]) -> dict[str, float]:
    """`SPLIT=PART` options in the order given.

    Raises:
        InputError: one that is not of that form, a name that is no folder's, or one given twice.
    """
    shares: dict[str, float] = {}
    for option in options:
        name, _, part = option.partition("=")
        try:
            value = float(part)
        except ValueError as error:
            raise InputError(
                f"--share {option}: not of the form SPLIT=PART", remedy="For example train=0.8"
            ) from error
        if not _SPLIT_NAME.fullmatch(name):
            raise InputError(f"--share {option}: the name may hold letters, digits, - and _")
        if name in shares:
            raise InputError(f"--share {option}: '{name}' is given twice")
        shares[name] = value
    return shares


def counts_table(report: DataReport) -> Table:
    """A row for each split and label."""
    total = sum(count.cases for count in report.splits.values())
    table = Table(title=f"{report.modality}: {total} whole case{'' if total == 1 else 's'}")
    for column in ("split", "label"):
        table.add_column(column)
    for column in ("cases", "slices", "mean area"):
        table.add_column(column, justify="right", no_wrap=True)
    for split, count in report.splits.items():
        table.add_row(split, "any", str(count.cases), str(count.slices), "")
        for name, label in count.labels.items():
            area = "-" if label.mean_area is None else f"{label.mean_area:.2%}"
            table.add_row("", name, str(label.cases), str(label.slices), area)
        table.add_section()
    return table


def finding_lines(report: DataReport) -> list[str]:
    """A line for each finding, but only the first of many of one kind in one split."""
    lines = []
    seen: Counter[tuple[str, ...]] = Counter()
    groups = Counter((found.severity, found.kind, found.split) for found in report.findings)
    for finding in report.findings:
        group = (finding.severity, finding.kind, finding.split)
        seen[group] += 1
        shown = _SHOWN[finding.severity]
        if seen[group] <= shown:
            lines.append(f"{finding.severity.capitalize()}: {finding}")
        if seen[group] == shown < groups[group]:
            more = groups[group] - shown
            lines.append(
                f"{finding.severity.capitalize()}: {finding.split}: {more} more of this "
                f"kind ({finding.kind}); --json lists all"
            )
    errors, warnings = len(report.errors), len(report.warnings)
    lines.append(
        f"{errors} error{'' if errors == 1 else 's'}, "
        f"{warnings} warning{'' if warnings == 1 else 's'}"
    )
    return lines


def split_table(planned: list[PlannedCase], shares: dict[str, float]) -> Table:
    """Cases and patients of each split."""
    table = Table()
    table.add_column("split")
    for column in ("cases", "patients"):
        table.add_column(column, justify="right")
    for name in shares:
        members = [case for case in planned if case.split == name]
        table.add_row(
            name, str(len(members)), str(len({case.patient or case.pair.name for case in members}))
        )
    return table


def _check_report_file(path: Path) -> None:
    """Before all cases are read; raises InputError."""
    if path.is_dir():
        raise InputError("this is a folder", path=path, remedy="Give a file name with --json")
    runtime.ensure_writable_folder(path.parent)
