"""`esp-medsam evaluate`: how good a modality is on cases with reference label maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from esp_medsam_app.commands import baselines as others
from esp_medsam_app.commands import runtime
from esp_medsam_app.commands.runtime import (
    AnyImageOption,
    BatchSizeOption,
    BundleOption,
    DeviceOption,
    FastOption,
    ModalityOption,
    PrecisionOption,
    ProfileOption,
    PromptOption,
    QualityOption,
    RuntimeOption,
    Screen,
    SizeOption,
)
from esp_medsam_app.errors import EspMedSamError, InputError, OtherModalityError

if TYPE_CHECKING:
    import numpy as np

    from esp_medsam_app.data.image import MedicalImage
    from esp_medsam_app.evaluation.pairs import CasePair
    from esp_medsam_app.evaluation.report import EvaluatedCase, EvaluationReport, Metric

_TITLES = {"dice": "Dice", "iou": "IoU", "hd95": "HD95"}


def register(app: typer.Typer) -> None:
    """Add `evaluate` to the command line."""

    @app.command()
    def evaluate(
        data: Annotated[
            list[Path],
            typer.Option(
                "--data",
                metavar="DIR",
                help="Holds images/ and labels/ with equal stems. May be given several times.",
            ),
        ],
        modality: ModalityOption,
        json: Annotated[
            Path | None, typer.Option("--json", metavar="FILE", help="Write the report here too.")
        ] = None,
        predictions: Annotated[
            Path | None,
            typer.Option("--predictions", metavar="DIR", help="Keep the predicted label maps."),
        ] = None,
        limit: Annotated[
            int | None,
            typer.Option("--limit", min=1, metavar="N", help="Only the first N cases, by name."),
        ] = None,
        leave_out: Annotated[
            list[str] | None,
            typer.Option(
                "--leave-out",
                metavar="NAME",
                help="Not this case, for example as it was trained on. May be given several times.",
            ),
        ] = None,
        absent: Annotated[
            list[Path] | None,
            typer.Option(
                "--absent",
                metavar="DIR",
                help="Images that do not hold the structure: count how many are marked. None is "
                "of those that look like another modality, which `segment` refuses, unless "
                "--any-image is given.",
            ),
        ] = None,
        any_image: AnyImageOption = False,
        baselines: others.BaselinesOption = False,
        desam: others.DeSamOption = None,
        train_data: others.TrainDataOption = None,
        work: others.WorkOption = others.DEFAULT_WORK,
        unet_views: others.UNetViewsOption = None,
        bundle: BundleOption = None,
        profile: ProfileOption = None,
        prompt: PromptOption = None,
        device: DeviceOption = "auto",
        batch_size: BatchSizeOption = None,
        precision: PrecisionOption = "auto",
        fast: FastOption = True,
        runtime_name: RuntimeOption = "torch",
        quality: QualityOption = "balanced",
        size: SizeOption = None,
    ) -> None:
        """Compare predictions with reference label maps.

        Prints Dice, IoU and HD95 (the 95th percentile of the surface distance) with mean, standard
        deviation and a 95 % bootstrap interval over the cases. A label absent from reference and
        prediction counts Dice and IoU 1; one in only one of them counts 0, has no HD95 and is
        counted as missed. A binary mask may mark its label with 255. Of slices without any label it
        says on how many more than 0.1 % of the pixels were marked.

        A case that fails is reported and the others go on; the exit code is then 2.
        """
        import numpy as np

        from esp_medsam_app.data.reading import find_images
        from esp_medsam_app.evaluation.pairs import check_references, find_pairs, without
        from esp_medsam_app.evaluation.report import evaluate_cases, write_report
        from esp_medsam_app.evaluation.silence import measure_silence

        compared = baselines or desam is not None
        if not compared:
            others.check_unused(train_data, unet_views)
        pairs = without(find_pairs(data), leave_out or [])[:limit]
        beside = find_images(absent) if absent else []
        if json is not None:
            _check_report_file(json)
        if predictions is not None:
            _check_predictions_folder(predictions, pairs)
        segmenter = runtime.make_segmenter(
            bundle,
            device,
            batch_size,
            prompt,
            profile=profile,
            precision=precision,
            fast=fast,
            runtime=runtime_name,
            quality=quality,
            size=size,
        )
        chosen = segmenter.bundle.modality(modality)
        check_references(pairs, chosen)
        rivals = []
        if compared:
            if not runtime.is_esp_medsam(segmenter):
                raise InputError(
                    "others are compared with ESP-MedSAM, and this is a bundle of DeSAM",
                    path=bundle,
                    remedy="Give this folder with --desam, and ESP-MedSAM's with --bundle",
                )
            rivals = others.make_baselines(
                train_data,
                unet_views,
                work,
                pairs,
                segmenter,
                chosen,
                batch_size,
                boxes=baselines,
                desam=desam,
            )
        screen = Screen()
        with screen.progress as progress:
            cases = progress.add_task("cases", total=len(pairs))
            slices = progress.add_task("slices", total=None)

            def predict(image: MedicalImage) -> np.ndarray:
                progress.reset(slices)
                return segmenter.segment(
                    image,
                    chosen.name,
                    on_slice=lambda done, total: progress.update(
                        slices, completed=done, total=total
                    ),
                )

            def predict_if_fit(image: MedicalImage) -> np.ndarray:
                # as `segment` does
                try:
                    if runtime.is_esp_medsam(segmenter) and not any_image:
                        segmenter.check_modality(image, chosen.name, "")
                except OtherModalityError:
                    return np.zeros(image.grid.shape, np.uint8)
                return predict(image)

            def on_case(case: EvaluatedCase) -> None:
                progress.advance(cases)
                if predictions is not None:
                    _keep(case, predictions)

            def on_failure(pair: CasePair, error: EspMedSamError) -> None:
                progress.advance(cases)
                screen.complain(str(error) if error.path is not None else f"{pair.image}: {error}")

            report = evaluate_cases(pairs, predict, chosen, on_case, on_failure)
            if beside:
                others_images = progress.add_task("images without it", total=len(beside))
                silence = measure_silence(
                    beside,
                    predict_if_fit,
                    lambda: progress.advance(others_images),
                    lambda path, error: screen.complain(f"{path}: {error.problem}"),
                )
                report = replace(report, beside=silence)
        report = replace(
            report,
            # data set and split, not the machine
            data=tuple("/".join(folder.resolve().parts[-3:]) for folder in data),
            left_out=tuple(leave_out or ()),
            limit=limit,
        )
        screen.show(report_table(report))
        for note in report_notes(report):
            screen.say(note)
        comparison = None
        if rivals and runtime.is_esp_medsam(segmenter):
            comparison = others.compare(rivals, report, pairs, segmenter, chosen)
            screen.show(others.comparison_table(comparison))
            for note in others.comparison_notes(comparison):
                screen.say(note)
        if json is not None:
            screen.say(f"Report: {write_report(json, comparison or report)}")
        if report.failed or (comparison is not None and comparison.failed):
            raise typer.Exit(2)


def report_table(report: EvaluationReport) -> Table:
    """The report as a table: a row a metric, then a row a metric and label if there are several."""
    table = Table(title=f"{report.modality}: {_cases(len(report.cases))}")
    for column in ("metric", "label"):
        table.add_column(column)
    for column in ("mean", "std", "95 % interval", "cases"):
        table.add_column(column, justify="right", no_wrap=True)
    metrics: tuple[Metric, ...] = ("dice", "iou", "hd95")
    several = len(report.labels) > 1
    for label in (None, *report.labels) if several else (None,):
        for metric in metrics:
            summary = report.summary(metric, label)
            digits = 2 if metric == "hd95" else 4
            unit = f" ({report.distance_unit})" if metric == "hd95" else ""
            low, high = summary.ci95 or (None, None)
            table.add_row(
                _TITLES[metric] + unit,
                label or ("mean of labels" if several else report.labels[0]),
                _number(summary.mean, digits),
                _number(summary.std, digits),
                "-" if low is None else f"{_number(low, digits)} to {_number(high, digits)}",
                str(summary.cases),
            )
        table.add_section()
    return table


def report_notes(report: EvaluationReport) -> list[str]:
    """What the table leaves out: cases that failed, and where HD95 is undefined."""
    notes = []
    if report.silence.slices:
        notes.append(f"In these cases {report.silence}")
    if report.beside is not None:
        notes.append(f"In images without it {report.beside}")
    if report.failed:
        count = len(report.failed)
        notes.append(f"{_cases(count)} failed and {'is' if count == 1 else 'are'} in no figure")
    for label in report.labels:
        missed, absent = report.missed(label), report.absent(label)
        if missed:
            notes.append(
                f"{label}: in only one of reference and prediction in {_cases(missed)} "
                "(Dice 0, no HD95)"
            )
        if absent:
            notes.append(
                f"{label}: in neither reference nor prediction in {_cases(absent)} "
                "(Dice 1, no HD95)"
            )
    return notes


def _check_report_file(path: Path) -> None:
    """Before hours of inference; raises InputError."""
    if path.is_dir():
        raise InputError("this is a folder", path=path, remedy="Give a file name with --json")
    runtime.ensure_writable_folder(path.parent)


def _check_predictions_folder(folder: Path, pairs: list[CasePair]) -> None:
    """Raises InputError if it cannot be written to, or if that would replace the cases."""
    runtime.ensure_writable_folder(folder)
    if folder.resolve() in {
        path.parent.resolve() for pair in pairs for path in (pair.image, pair.label)
    }:
        raise InputError(
            "predictions would replace files of the cases",
            path=folder,
            remedy="Choose another folder with --predictions",
        )


def _keep(case: EvaluatedCase, folder: Path) -> None:
    """Write a predicted label map; raises InputError when it cannot be written."""
    from esp_medsam_app.data.names import label_map_suffix

    grid = case.image.grid
    path = folder / f"{case.score.name}{label_map_suffix(grid)}"
    runtime.save_label_map(path, case.prediction, grid)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _cases(count: int) -> str:
    return f"{count} case" + ("" if count == 1 else "s")
