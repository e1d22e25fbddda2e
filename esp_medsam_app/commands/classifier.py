"""`esp-medsam classifier`: what reads the modality from an image; fitted, judged, kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from esp_medsam_app.commands.runtime import BundleOption, DeviceOption, Screen
from esp_medsam_app.commands.training_options import parse_data
from esp_medsam_app.errors import InputError

if TYPE_CHECKING:
    from esp_medsam_app.inference.modality_reader import ModalityReading
    from esp_medsam_app.modalities import Modality
    from esp_medsam_app.weights import Bundle

DataOption = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="MODALITY=DIR",
        help="Images of a modality: DIR, or images/ in it. Give it once for each folder.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the group `classifier` to the command line."""
    group = typer.Typer(
        no_args_is_help=True, help="Fit and judge what reads the modality from an image."
    )
    app.add_typer(group, name="classifier")

    @group.command()
    def train(
        data: DataOption,
        val: Annotated[
            list[str],
            typer.Option(
                "--val",
                metavar="MODALITY=DIR",
                help="Other images, of which the threshold is chosen. One folder a modality or "
                "more.",
            ),
        ],
        bundle: Annotated[
            Path, typer.Option("--bundle", metavar="DIR", help="The bundle that it is written to.")
        ],
        work: Annotated[
            Path,
            typer.Option(metavar="DIR", help="Features of the images; kept for the next time."),
        ] = Path("runs/classifier"),
        images: Annotated[
            int | None, typer.Option(min=2, help="Images of each modality at most.")
        ] = None,
        views: Annotated[
            int | None, typer.Option(min=2, help="Views of each modality, images included.")
        ] = None,
        seed: Annotated[int, typer.Option(help="Same seed, same classifier.")] = 0,
        device: DeviceOption = "auto",
    ) -> None:
        """Fit the classifier of a bundle's modalities and write it into the bundle.

        It looks at the plain backbone's features, so that it holds whatever the controllers learn;
        only another backbone or another modality needs a new one. Modalities of --data that the
        bundle does not have are told apart, too: their images are then asked about, not mistaken.
        The more kinds of images it knows, the less is mistaken.
        """
        from esp_medsam_app.dataset.classifier_features import (
            FeatureStore,
            class_images,
            plain_features,
            training_features,
        )
        from esp_medsam_app.training.classifier import ClassifierRecipe, fit_classifier
        from esp_medsam_app.weights import load_bundle
        from esp_medsam_app.weights.classifier_file import save_classifier

        chosen = {"images": images, "views": views}
        recipe = ClassifierRecipe(
            seed=seed, **{key: value for key, value in chosen.items() if value is not None}
        )
        loaded = load_bundle(bundle)
        folders, others = parse_data(data), parse_data(val, "--val")
        _check_names(folders, others)
        training = {name: class_images(found, recipe.images) for name, found in folders.items()}
        validation = {name: class_images(found, recipe.images) for name, found in others.items()}
        _check_apart(training, validation)
        store = FeatureStore(
            _encoder(loaded, device), loaded.description.backbone.sha256, work, recipe
        )
        screen = Screen()
        with screen.progress as progress:
            classifier = fit_classifier(
                training_features(
                    training,
                    _rules(loaded, training),
                    store,
                    _bar(progress, "training images"),
                ),
                plain_features(validation, store, _bar(progress, "validation images")),
                recipe,
            )
        record = {
            "recipe": recipe.model_dump(),
            "images": {name: len(paths) for name, paths in training.items()},
            "validation_images": {name: len(paths) for name, paths in validation.items()},
            "folders": {name: list(map(_short, found)) for name, found in folders.items()},
        }
        saved = save_classifier(loaded, classifier, record)
        description = saved.description.modality_classifier
        assert description is not None
        screen.say(
            f"wrote the classifier of {len(description.modalities)} modalities into {saved.path}; "
            f"it asks below {description.threshold:.1%}"
        )
        known, own = set(description.modalities), set(loaded.modalities)
        if known - own:
            screen.say(f"not in the bundle, only told apart: {', '.join(sorted(known - own))}")
        if own - known:
            screen.say(f"unknown to it, asked about: {', '.join(sorted(own - known))}")

    @group.command()
    def evaluate(
        data: DataOption,
        bundle: BundleOption = None,
        limit: Annotated[
            int | None,
            typer.Option("--limit", min=1, metavar="N", help="Images of each modality at most."),
        ] = None,
        keep: Annotated[
            str | None,
            typer.Option(
                "--keep", metavar="NAME", help="Keep the figures in bundle.json by this name."
            ),
        ] = None,
        json_file: Annotated[
            Path | None,
            typer.Option("--json", metavar="FILE", help="Write the figures here too."),
        ] = None,
        device: DeviceOption = "auto",
    ) -> None:
        """Count how often the modality is read right, wrong, or asked for.

        Of images of anything that is no modality of the bundle, e.g. none=DIR, it is right to ask.
        """
        from esp_medsam_app.data.reading import read_image
        from esp_medsam_app.dataset.classifier_features import class_images
        from esp_medsam_app.evaluation.modality_reading import judge_readings
        from esp_medsam_app.inference.modality_reader import looking, read_modality
        from esp_medsam_app.weights import load_bundle
        from esp_medsam_app.weights.classifier_file import keep_scores, load_classifier

        loaded = load_bundle(bundle)
        folders = parse_data(data)
        images = {name: class_images(found, limit) for name, found in folders.items()}
        classifier = load_classifier(loaded)
        look = looking(classifier, _encoder(loaded, device)) if classifier is not None else None
        screen = Screen()
        with screen.progress as progress:
            tick = _bar(progress, "images")
            total, done = sum(map(len, images.values())), 0

            def read(path: Path) -> ModalityReading:
                nonlocal done
                reading = read_modality(
                    read_image(path),
                    loaded.modalities,
                    loaded.description.modality_classifier,
                    look,
                )
                done += 1
                tick(done, total)
                return reading

            figures = judge_readings(images, loaded.modalities, read)
        screen.show(figures_table(figures))
        screen.say(summary(figures))
        if json_file is not None:
            json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
            screen.say(f"Report: {json_file}")
        if keep is not None:
            keep_scores(loaded, keep, figures)
            screen.say(f"kept in {loaded.path} as {keep}")


def figures_table(figures: Mapping[str, Any]) -> Table:
    """A row a modality: images, read right, asked, and what the others were taken for."""
    table = Table()
    table.add_column("modality")
    for column in ("images", "right", "asked"):
        table.add_column(column, justify="right")
    table.add_column("taken for")
    for name, counts in figures["modalities"].items():
        wrong = ", ".join(f"{other} {count}" for other, count in counts["taken_for"].items())
        numbers = (str(counts[key]) for key in ("images", "right", "asked"))
        table.add_row(name, *numbers, wrong or "-")
    return table


def summary(figures: Mapping[str, Any]) -> str:
    """The figures over all modalities, in a line or two."""
    lines = []
    if figures["images"]:
        accuracy = figures["accuracy"]
        lines.append(
            f"{figures['images']} images of known modalities: {figures['asked']:.1%} asked about, "
            + ("none decided" if accuracy is None else f"{accuracy:.1%} of the others right")
        )
    if figures["others"]:
        share = figures["others_asked"]
        lines.append(f"{figures['others']} images of others: {share:.1%} asked about, as is right")
    return "\n".join(lines)


def _rules(bundle: Bundle, names: Iterable[str]) -> dict[str, Modality]:
    """What may change in the views of each modality, its own or a plain rule."""
    from esp_medsam_app.modalities import Modality, catalogue

    known = {**catalogue(), **bundle.modalities}
    return {
        name: known.get(name)
        or Modality(name=name, title="", description="", dimension=2, labels={"label": 1})
        for name in names
    }


def _check_names(folders: Mapping[str, list[Path]], others: Mapping[str, list[Path]]) -> None:
    from esp_medsam_app.modalities.modality import NAME

    for name in folders:
        if not NAME.fullmatch(name):
            raise InputError(f"--data {name}=...: a name is made of a-z, 0-9 and _")
    if len(folders) < 2:
        raise InputError(
            "there is nothing to tell apart", remedy="Give --data for two modalities or more"
        )
    lacking = [name for name in folders if name not in others] or [
        name for name in others if name not in folders
    ]
    if lacking:
        raise InputError(
            f"{', '.join(lacking)}: only one of --data and --val is given",
            remedy="Give both for every modality",
        )


def _check_apart(training: Mapping[str, list[Path]], validation: Mapping[str, list[Path]]) -> None:
    seen = {path.resolve() for paths in training.values() for path in paths}
    for paths in validation.values():
        for path in paths:
            if path.resolve() in seen:
                raise InputError(
                    "this image is given to train on and to validate with",
                    path=path,
                    remedy="Keep --data and --val apart",
                )


def _encoder(bundle: Bundle, device: str) -> Any:
    """The bundle's plain backbone on a device."""
    from esp_medsam_app.inference.device import choose_device
    from esp_medsam_app.weights.backbones import load_encoder

    return load_encoder(bundle.backbone).to(choose_device(device))


def _bar(progress: Any, task: str) -> Callable[[int, int], None]:
    bar = progress.add_task(task, total=None)
    return lambda done, total: progress.update(bar, completed=done, total=total)


def _short(folder: Path) -> str:
    """A data folder without the place where it lies on this machine."""
    return "/".join(folder.resolve().parts[-2:])
