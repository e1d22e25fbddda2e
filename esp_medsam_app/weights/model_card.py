"""The model card of a bundle, rendered from what its `bundle.json` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from esp_medsam_app.weights.backbones import get_backbone
from esp_medsam_app.weights.bundle import Bundle

CARD = "README.md"


def record_scores(bundle: Bundle, report: Mapping[str, Any], split: str) -> Bundle:
    """The bundle with a report of `esp-medsam evaluate --json` among its scores.

    Raises:
        UnknownNameError: the report is about a modality that the bundle lacks.
        KeyError: it is no such report.
    """
    modality = bundle.modality(report["modality"])
    kept = {
        metric: {key: value for key, value in report[metric].items() if key != "unit"}
        | {"unit": report[metric].get("unit", "1")}
        for metric in ("dice", "iou", "hd95")
    }
    scores = dict(bundle.description.scores)
    scores[modality.name] = {"split": split, "cases": report["cases"]} | kept
    description = bundle.description.model_copy(update={"scores": scores})
    return Bundle(bundle.path, description)


def render_card(bundle: Bundle) -> str:
    """The model card as Markdown."""
    backbone = get_backbone(bundle.description.backbone.name)
    runs = bundle.description.training.get("runs", [])
    parts = [
        f"# Model card: {bundle.description.name}",
        "Weights of ESP-MedSAM (arXiv 2407.14153) for prompt-free segmentation, trained by "
        "`esp-medsam train`. This file is written by `esp-medsam weights card` from "
        "`bundle.json`.",
        f"Backbone: {backbone.origin} ({backbone.licence}), frozen and unchanged. "
        f"Input: {bundle.description.input_size} x {bundle.description.input_size}, RGB in "
        "[0, 1].",
        "Not a medical device. For research and for drafts that a person corrects.",
        "## Modalities",
        _table(
            ("modality", "labels", "meant for"),
            [
                (name, ", ".join(modality.labels), modality.description)
                for name, modality in bundle.modalities.items()
            ],
        ),
        "## Scores",
        "Mean over cases that were not trained on, with the 95 % bootstrap interval of the mean; "
        "no prompt. A case's score is the mean over its labels.",
        _table(
            ("modality", "split", "cases", "Dice", "sd", "95 % interval", "IoU", "HD95"),
            [
                _score_row(name, score)
                for name, score in bundle.description.scores.items()
                if name in bundle.modalities
            ],
        ),
        "Each row was printed by:",
        "```\n" + "\n".join(_commands(bundle)) + "\n```",
        "## Training data",
        _table(("modality", "cases in all", "data set", "licence", "class"), _sources(runs)),
        "## Training",
        "Runs in their order; a later one goes on from the weights of those before and touches its "
        "own modalities alone.",
        *(_run(run) for run in runs),
    ]
    per_label = _per_label(bundle)
    if per_label:
        parts.insert(9, _table(("modality", "label", "Dice", "sd", "95 % interval"), per_label))
    return "\n\n".join(parts) + "\n"


def _score_row(name: str, score: Mapping[str, Any]) -> tuple[str, ...]:
    dice, iou, hd95 = score["dice"], score["iou"], score["hd95"]
    unit = hd95.get("unit", "")
    return (
        name,
        score["split"],
        str(score["cases"]),
        _number(dice["mean"]),
        _number(dice["std"]),
        _interval(dice["ci95"]),
        _number(iou["mean"]),
        f"{_number(hd95['mean'], 1)} {unit}".strip(),
    )


def _per_label(bundle: Bundle) -> list[tuple[str, ...]]:
    return [
        (name, label, _number(dice["mean"]), _number(dice["std"]), _interval(dice["ci95"]))
        for name, score in bundle.description.scores.items()
        if name in bundle.modalities and len(bundle.modalities[name].labels) > 1
        for label, dice in score["dice"]["per_label"].items()
    ]


def _commands(bundle: Bundle) -> list[str]:
    runs = bundle.description.training.get("runs", [])
    lines = []
    for name, score in bundle.description.scores.items():
        folders = dict.fromkeys(
            source["folder"].rpartition("/")[0]
            for run in runs
            for source in run["data"].get(name, {}).get("sources", [])
        )
        data = " ".join(f"--data {name}/{folder}/{score['split']}" for folder in folders)
        lines.append(f"esp-medsam evaluate {data} --modality {name}")
    return lines


def _sources(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows = [
        (
            name,
            str(data["cases"]),
            f"{source.get('title', 'not known here')} (`{source['folder']}`)",
            source.get("licence", "not known here"),
            source.get("licence_class", "unclear"),
        )
        for run in runs
        for name, data in run["data"].items()
        for source in data["sources"]
    ]
    return list(dict.fromkeys(rows))


def _run(run: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in run["recipe"].items())
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    return f"- {', '.join(run['data'])}: {settings}. Finished {run['finished']} with {versions}."


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(pair: list[float] | None) -> str:
    return "-" if pair is None else f"{pair[0]:.3f} to {pair[1]:.3f}"
