"""`esp-medsam evaluate --baselines`: other models on the same cases, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.table import Table

from esp_medsam_app.commands import runtime
from esp_medsam_app.commands.runtime import Screen
from esp_medsam_app.commands.training_options import surroundings
from esp_medsam_app.errors import EspMedSamError, InputError

if TYPE_CHECKING:
    from esp_medsam_app.baselines.comparison import Comparison, Contender, Entry
    from esp_medsam_app.evaluation.pairs import CasePair
    from esp_medsam_app.evaluation.report import EvaluatedCase, EvaluationReport, Oracle, Predict
    from esp_medsam_app.inference import Segmenter
    from esp_medsam_app.modalities import Modality
    from esp_medsam_app.weights.bundle import Bundle

    Baseline: TypeAlias = tuple[Contender, Predict | Oracle]

BaselinesOption = Annotated[
    bool,
    typer.Option(
        "--baselines",
        help="Score LiteMedSAM (with the reference's box, and with a box around the whole image) "
        "and a U-Net beside it.",
    ),
]
TrainDataOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--train-data",
        metavar="DIR",
        help="With --baselines or --desam: cases that the U-Net learns from; without it there is "
        "no U-Net. May be given several times.",
    ),
]
DeSamOption = Annotated[
    Path | None,
    typer.Option(
        "--desam",
        metavar="DIR",
        help="Score the same modality of a bundle of DeSAM beside it, with each prompt that it "
        "was trained with.",
    ),
]
WorkOption = Annotated[
    Path,
    typer.Option(
        "--work",
        metavar="DIR",
        help="With --train-data: keeps the U-Net of each modality, which is trained once.",
    ),
]
UNetViewsOption = Annotated[
    int | None,
    typer.Option(
        "--unet-views",
        min=1,
        metavar="N",
        help="With --train-data: views the U-Net learns from; as many as ESP-MedSAM by default.",
    ),
]
DEFAULT_WORK = Path("runs/baselines")
LITE_MEDSAM = "LiteMedSAM"
REFERENCE_BOX, WHOLE_BOX = "reference's box", "whole image"
DESAM_PROMPTS = {"whole_box": WHOLE_BOX, "grid_points": "grid of points"}


def check_unused(train_data: list[Path] | None, unet_views: int | None) -> None:
    """Raises InputError for options that mean nothing without `--baselines` or `--desam`."""
    for name, value in (("--train-data", train_data), ("--unet-views", unet_views)):
        if value is not None:
            raise InputError(
                f"{name} is an option of --baselines and --desam", remedy="Add one of them"
            )


def make_baselines(
    train_data: list[Path] | None,
    unet_views: int | None,
    work: Path,
    pairs: Sequence[CasePair],
    segmenter: Segmenter,
    modality: Modality,
    batch_size: int | None,
    *,
    boxes: bool = True,
    desam: Path | None = None,
) -> list[Baseline]:
    """Other models on the segmenter's device; with `train_data` a trained U-Net is the last.

    Args:
        train_data: folders of the U-Net's cases.
        unet_views: that it learns from; as many as the bundle's modality by default.
        work: folder of the U-Nets.
        pairs: cases to evaluate; none of them may be learned from.
        segmenter: ESP-MedSAM.
        modality: of the bundle.
        batch_size: in one pass; chosen by the device by default.
        boxes: whether LiteMedSAM with two boxes is among them.
        desam: folder of a bundle of DeSAM that is among them, with each of its prompts.

    Raises:
        InputError: training cases that cannot be used or are evaluated too, no number of views, or
            a folder that holds another U-Net.
        WeightsError: LiteMedSAM's or the U-Net's weights are missing or damaged.
    """
    from esp_medsam_app.baselines.comparison import Contender

    device = str(segmenter.device)
    made = _boxed(modality, device, batch_size) if boxes else []
    if desam is not None:
        made += _desam(desam, segmenter, modality, batch_size)
    if train_data is None:
        return made
    from esp_medsam_app.baselines.unet import UNetSegmenter, fit_unet, unet_recipe

    train_pairs = _training_cases(train_data, pairs, modality)
    recipe = unet_recipe(unet_views or _same_budget(segmenter.bundle, modality))
    runtime.ensure_writable_folder(work)
    tile = segmenter.input_size(modality.name)
    with surroundings(work / f"unet_{modality.name}", device) as place:
        network, record = fit_unet(train_pairs, modality, recipe, tile=tile, place=place)
    unet = UNetSegmenter(network, modality, tile=tile, device=device, batch_size=batch_size)
    training = {
        "cases": len(train_pairs),
        "views": record.views,
        "seconds": record.seconds,
        "device": record.device,
    }
    return [*made, (Contender("U-Net", "none", unet.parameters, training), unet.segment)]


def _boxed(modality: Modality, device: str, batch_size: int | None) -> list[Baseline]:
    from esp_medsam_app.baselines.box_prompt import BoxPromptedSegmenter
    from esp_medsam_app.baselines.comparison import Contender
    from esp_medsam_app.evaluation.report import Oracle

    boxed = BoxPromptedSegmenter(modality, device=device, batch_size=batch_size)
    return [
        (Contender(LITE_MEDSAM, REFERENCE_BOX, boxed.parameters), Oracle(boxed.segment_boxed)),
        (Contender(LITE_MEDSAM, WHOLE_BOX, boxed.parameters), boxed.segment_whole),
    ]


def _desam(
    folder: Path, segmenter: Segmenter, modality: Modality, batch_size: int | None
) -> list[Baseline]:
    """DeSAM with each of its prompts, on ESP-MedSAM's encoder where it is the same.

    Raises:
        InputError: the modality has other labels there.
        UnknownNameError: the bundle lacks it.
    """
    from esp_medsam_app.baselines.comparison import Contender
    from esp_medsam_app.inference.desam_segmenter import DeSamSegmenter
    from esp_medsam_app.weights.desam_bundle import load_desam

    bundle = load_desam(folder)
    if bundle.modality(modality.name).labels != modality.labels:
        raise InputError(f"its {modality.name} has other labels", path=folder)
    first = DeSamSegmenter(
        bundle, beside=segmenter, batch_size=batch_size, precision=segmenter.precision
    )
    made: list[Baseline] = []
    for mode in bundle.description.prompts:
        prompted = first.prompted(mode)
        contender = Contender("DeSAM", DESAM_PROMPTS[mode], first.parameters(modality.name))
        made.append((contender, partial(prompted.segment, modality=modality.name)))
    return made


def compare(
    baselines: Sequence[Baseline],
    report: EvaluationReport,
    pairs: Sequence[CasePair],
    segmenter: Segmenter,
    modality: Modality,
) -> Comparison:
    """The baselines on cases that ESP-MedSAM was scored on.

    A case that fails is told on the screen; the others go on. Raises InputError when every case of
    a baseline failed.
    """
    from esp_medsam_app.baselines.comparison import OURS, Comparison, Contender, Entry

    ours = Contender(OURS, "none", segmenter.parameters(modality.name))
    others = tuple(
        Entry(contender, _score(contender, predict, pairs, modality))
        for contender, predict in baselines
    )
    return Comparison(Entry(ours, report), others, str(segmenter.device))


def comparison_table(comparison: Comparison) -> Table:
    """A row a model: Dice, difference to ESP-MedSAM, size and rate. It fits 80 columns."""
    report = comparison.ours.report
    count = len(report.cases)
    cases = f"{count} case" + ("" if count == 1 else "s")
    table = Table(title=f"{report.modality}: {cases}, all models on {comparison.device}")
    table.add_column("model\nprompt", no_wrap=True)
    for column in (
        "Dice ± std\n95 % interval",
        "difference\n95 % interval",
        "parameters",
        "slices/s",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for entry in comparison.entries:
        dice = entry.report.summary("dice")
        apart = comparison.difference(entry) if entry is not comparison.ours else None
        prompt = entry.contender.prompt
        table.add_row(
            f"{entry.contender.model}\n{'no prompt' if prompt == 'none' else prompt}",
            f"{_number(dice.mean)} ± {_number(dice.std)}\n{_interval(dice.ci95)}",
            f"{_number(apart.mean, '+.3f')}\n{_interval(apart.ci95, '+.3f')}" if apart else "-",
            f"{entry.contender.parameters / 1e6:.2f} M",
            _number(entry.report.slices_per_second, ".3g"),
            end_section=True,
        )
    return table


def comparison_notes(comparison: Comparison) -> list[str]:
    """What the table leaves out: what the boxes know, what the U-Net learned, failures."""
    notes = ["difference: Dice of the model minus ESP-MedSAM's, case by case"]
    if any(entry.contender.prompt == REFERENCE_BOX for entry in comparison.others):
        notes.append(
            f"{REFERENCE_BOX}: a box around each connected part of the reference, slice by slice; "
            "it tells where the structure is and where it is not"
        )
    asked = any(entry.contender.model == LITE_MEDSAM for entry in comparison.others)
    if asked and len(comparison.ours.report.labels) > 1:
        first = comparison.ours.report.labels[0]
        notes.append(f"{WHOLE_BOX}: it names no label; what is found counts as {first}")
    notes += [_trained(entry) for entry in comparison.others if entry.contender.training]
    notes += [
        f"{entry.contender.name}: {len(entry.report.failed)} of the cases failed"
        for entry in comparison.others
        if entry.report.failed
    ]
    return notes


def _training_cases(
    folders: list[Path], evaluated: Sequence[CasePair], modality: Modality
) -> list[CasePair]:
    from esp_medsam_app.evaluation.pairs import check_references, find_pairs

    found = find_pairs(folders)
    images = {pair.image.resolve() for pair in evaluated}
    for pair in found:
        if pair.image.resolve() in images:
            raise InputError(
                "this case is both learned from and evaluated",
                path=pair.image,
                remedy="Give other folders with --train-data",
            )
    check_references(found, modality)
    return found


def _same_budget(bundle: Bundle, modality: Modality) -> int:
    from esp_medsam_app.baselines.unet import views_seen

    views = views_seen(bundle, modality.name)
    if views is None:
        raise InputError(
            f"the bundle does not say how many views of '{modality.name}' it was trained on",
            path=bundle.path,
            remedy="Give a number with --unet-views",
        )
    return views


def _score(
    contender: Contender,
    predict: Predict | Oracle,
    pairs: Sequence[CasePair],
    modality: Modality,
) -> EvaluationReport:
    from esp_medsam_app.evaluation.report import evaluate_cases

    screen = Screen()
    with screen.progress as progress:
        task = progress.add_task(contender.name, total=len(pairs))

        def on_case(case: EvaluatedCase) -> None:
            progress.advance(task)

        def on_failure(pair: CasePair, error: EspMedSamError) -> None:
            progress.advance(task)
            place = "" if error.path is not None else f"{pair.image}: "
            screen.complain(f"{contender.name}: {place}{error}")

        return evaluate_cases(pairs, predict, modality, on_case, on_failure)


def _trained(entry: Entry) -> str:
    training = entry.contender.training
    return (
        f"{entry.contender.name}: trained from nothing on {training['cases']} cases, "
        f"{training['views']} views, in {training['seconds']:.0f} s on {training['device']}"
    )


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else f"{value:{form}}"


def _interval(pair: tuple[float, float] | None, form: str = ".3f") -> str:
    return "-" if pair is None else f"{pair[0]:{form}} to {pair[1]:{form}}"
