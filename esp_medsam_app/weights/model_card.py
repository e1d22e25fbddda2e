"""The model card of a bundle, rendered from what its `bundle.json` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from esp_medsam_app.weights.bundle import Bundle
from esp_medsam_app.weights.desam_bundle import DeSamBundle
from esp_medsam_app.weights.licences import licences

CARD = "README.md"
# the bundle of a command that names none
STARTER = "starter"
_PAPERS = {"esp_medsam": "ESP-MedSAM (arXiv 2407.14153)", "desam": "DeSAM (arXiv 2306.00499)"}


def record_scores(bundle: Bundle, report: Mapping[str, Any], split: str) -> Bundle:
    """The bundle with a report of `esp-medsam evaluate --json` among its scores.

    Raises:
        UnknownNameError: the report is about a modality that the bundle lacks.
        KeyError: it is no such report.
    """
    modality = bundle.modality(report["modality"])
    figures: dict[str, Any] = {"cases": report["cases"]}
    for metric in ("dice", "iou", "hd95"):
        unit = report[metric].get("unit", "1")
        figures[metric] = {k: v for k, v in report[metric].items() if k != "unit"} | {"unit": unit}
    for part in ("silence", "beside", "data", "left_out", "limit"):
        if report.get(part):
            figures[part] = report[part]
    if "comparison" in report:
        figures["models"] = [
            {key: value for key, value in model.items() if key != "report"}
            for model in report["comparison"]["models"]
        ]
    scores = dict(bundle.description.scores)
    scores[modality.name] = {**scores.get(modality.name, {}), split: figures}
    description = bundle.description.model_copy(update={"scores": scores})
    return replace(bundle, description=description)


def scored(bundle: Bundle) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Modality, split and figures of everything that was scored, in the bundle's order."""
    return [
        (name, split, bundle.description.scores[name][split])
        for name in bundle.modalities
        for split in bundle.description.scores.get(name, {})
    ]


def render_card(bundle: Bundle) -> str:
    """The model card as Markdown."""
    runs = bundle.description.training.get("runs", [])
    parts = [
        f"# Model card: {bundle.description.name}",
        f"Weights of {_PAPERS[bundle.family]} for prompt-free segmentation, trained by "
        f"`{_trained_by(runs)}`. This file is written by `esp-medsam weights card` from "
        "`bundle.json`.",
        f"Backbone: {bundle.origin}, frozen and unchanged. "
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
        "no prompt. A case's score is the mean over its labels. `test` is from the sites of the "
        "training data, `unseen` from others.",
        _table(
            ("modality", "split", "cases", "Dice", "sd", "95 % interval", "IoU", "HD95"),
            [_score_row(*entry) for entry in scored(bundle)],
        ),
        *_optional(
            "Labels one by one:",
            ("modality", "split", "label", "Dice", "sd", "95 % interval"),
            _per_label(bundle),
        ),
        *_optional(
            "Where the structure is absent: slices on which more than 0.1 % of the pixels were "
            "marked nevertheless, in slices of the scored volumes that hold none of it and in "
            "images of other things.",
            ("modality", "split", "where", "marked", "of", "share", "95 % interval"),
            _silence(bundle),
        ),
        *_optional(
            "A tile whose strongest patch, in SPPG's map, stays below this logit is held empty. "
            "Fitted on `val` by `esp-medsam calibrate`; the other modalities have no such limit.",
            ("modality", "logit"),
            [(name, f"{least:.2f}") for name, least in bundle.description.presence.items()],
        ),
        *_optional(
            "Modalities whose input has another side than the one above: at it the mean Dice over "
            "the sites of `val` is largest.",
            ("modality", "pixels"),
            [
                (name, str(bundle.usual_size(name)))
                for name in bundle.description.sizes
                if name in bundle.modalities
            ],
        ),
        *_optional(
            "On any device computed in float32, unless another precision is asked for: on `val` "
            "bfloat16 loses more than 0.2 points of Dice of these.",
            ("modality",),
            [(name,) for name in bundle.description.precision],
        ),
        *_optional(
            "Islands and holes with fewer pixels of the network's mask (256 x 256) are removed, "
            "but for the largest island. The authors have 1000; here it is less where that would "
            "spoil the labels that were learned from.",
            ("modality", "pixels"),
            _smallest_regions(bundle),
        ),
        *_optional(
            "Other models on the same cases. The difference is theirs minus ESP-MedSAM's, case by "
            "case. The reference's box is drawn around each part of the reference: a radiologist "
            "would have to draw it. The U-Net learned from nothing, from as many views of the same "
            "cases.",
            (
                "modality",
                "split",
                "model",
                "Dice",
                "95 % interval",
                "difference",
                "95 % interval",
                "parameters",
            ),
            _models(bundle),
        ),
        *_classifier(bundle),
        "## Commands",
        "The scores were printed by:",
        "```\n" + "\n".join(_commands(bundle)) + "\n```",
        "## Training data",
        _table(("modality", "cases in all", "data set", "licence", "class"), _sources(runs)),
        *_optional(
            "Whether these licences allow commercial use; unclear where a publisher states none or "
            "several. The decoder, which all modalities share, was trained on other modalities' "
            "data too. This is not legal advice.",
            ("modality", "classes of its own data", "commercial use"),
            [
                (name, ", ".join(found.own) or "not known", found.commercial_use)
                for name, found in licences(bundle).items()
            ],
        ),
        "## Training",
        "Runs in their order; a later one goes on from the weights of those before and touches its "
        "own modalities alone.",
        *(_run(run) for run in runs),
    ]
    return "\n\n".join(parts) + "\n"


def _smallest_regions(bundle: Bundle) -> list[tuple[str, ...]]:
    if not isinstance(bundle, DeSamBundle):
        return []
    return [(name, str(bundle.rules(name).smallest_region)) for name in bundle.modalities]


def _optional(text: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [text, _table(head, rows)] if rows else []


def _score_row(name: str, split: str, score: Mapping[str, Any]) -> tuple[str, ...]:
    dice, iou, hd95 = score["dice"], score["iou"], score["hd95"]
    unit = hd95.get("unit", "")
    return (
        name,
        split,
        str(score["cases"]),
        _number(dice["mean"]),
        _number(dice["std"]),
        _interval(dice["ci95"]),
        _number(iou["mean"]),
        f"{_number(hd95['mean'], 1)} {unit}".strip(),
    )


def _per_label(bundle: Bundle) -> list[tuple[str, ...]]:
    return [
        (name, split, label, _number(dice["mean"]), _number(dice["std"]), _interval(dice["ci95"]))
        for name, split, score in scored(bundle)
        if len(bundle.modalities[name].labels) > 1
        for label, dice in score["dice"]["per_label"].items()
    ]


def _silence(bundle: Bundle) -> list[tuple[str, ...]]:
    places = {"silence": "slices of the volumes", "beside": "images of other things"}
    return [
        (
            name,
            split,
            where,
            str(found["marked"]),
            str(found["slices"]),
            _number(found["share"]),
            _interval(found["ci95"]),
        )
        for name, split, score in scored(bundle)
        for key, where in places.items()
        if (found := score.get(key)) and found["slices"]
    ]


def _models(bundle: Bundle) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, split, score in scored(bundle):
        for model in score.get("models", []):
            apart = model.get("difference")
            prompt = "" if model["prompt"] == "none" else f", {model['prompt']}"
            rows.append(
                (
                    name,
                    split,
                    model["model"] + prompt,
                    _number(model["dice"]["mean"]),
                    _interval(model["dice"]["ci95"]),
                    "-" if apart is None else f"{apart['mean']:+.3f}",
                    "-" if apart is None else _interval(apart["ci95"]),
                    f"{model['parameters'] / 1e6:.1f} M",
                )
            )
    return rows


def _classifier(bundle: Bundle) -> list[str]:
    """What reads the modality from an image, where the bundle has one."""
    described = bundle.description.modality_classifier
    if described is None:
        return []
    rows = [
        (
            split,
            name,
            str(found["images"]),
            str(found["right"]),
            str(found["asked"]),
            ", ".join(f"{count} for {other}" for other, count in found["taken_for"].items()) or "-",
        )
        for split, figures in described.scores.items()
        for name, found in figures["modalities"].items()
    ]
    return [
        "## Reading the modality from the image",
        f"A classifier of the plain backbone's features decides from a confidence of "
        f"{described.threshold:.0%} on and asks below it. Counted without DICOM's tags, which come "
        "first where there are any; `none` are images of none of the modalities, about which it is "
        "right to ask. Who names the modality is refused where it is wrong.",
        _table(("split", "modality", "images", "right", "asked", "wrong"), rows),
    ]


def _commands(bundle: Bundle) -> list[str]:
    lines = []
    for name, _, score in scored(bundle):
        words = [f"--data {folder}" for folder in score.get("data", [])]
        words += [f"--leave-out {case}" for case in score.get("left_out", [])]
        words += [f"--limit {score['limit']}"] if score.get("limit") else []
        words += ["--baselines"] if score.get("models") else []
        words += ["--bundle DIR"] if bundle.description.name != STARTER else []
        lines.append(f"esp-medsam evaluate {' '.join(words)} --modality {name}")
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


def _trained_by(runs: Sequence[Mapping[str, Any]]) -> str:
    distilled = runs and all("teacher" in run for run in runs)
    return "esp-medsam distill" if distilled else "esp-medsam train"


def _run(run: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in run["recipe"].items())
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    teacher = f" by {run['teacher']}" if "teacher" in run else ""
    mixed = ""
    if "share" in run:
        mixed = f" Of the way from the weights before to its own {run['share']:.0%} were gone."
    return (
        f"- {', '.join(run['data'])}{teacher}: {settings}. Finished {run['finished']} with "
        f"{versions}.{mixed}"
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(pair: list[float] | None) -> str:
    return "-" if pair is None else f"{pair[0]:.3f} to {pair[1]:.3f}"
