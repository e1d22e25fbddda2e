"""`esp-medsam train`: a bundle from images with label maps."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esp_medsam_app.commands.runtime import Screen
from esp_medsam_app.commands.train_desam import DeSamTraining, train_desam_bundle
from esp_medsam_app.commands.training_options import (
    CacheOption,
    ChangesOption,
    DataOption,
    DeviceOption,
    LeaveOutOption,
    SeedOption,
    WorkersOption,
    WorkOption,
    find_cases,
    read_recipe,
    surroundings,
)
from esp_medsam_app.errors import InputError

if TYPE_CHECKING:
    from esp_medsam_app.modalities import Modality
    from esp_medsam_app.networks import EspMedSam
    from esp_medsam_app.networks.esp_medsam import Design
    from esp_medsam_app.weights.backbones import Backbone
    from esp_medsam_app.weights.bundle import Bundle


class Model(str, Enum):
    """A family of models."""

    esp_medsam = "esp_medsam"
    desam = "desam"


class Part(str, Enum):
    """A part of the paper's design that an ablation leaves out."""

    controllers = "controllers"
    patch_prompt = "patch_prompt"
    own_queries = "own_queries"


def register(app: typer.Typer) -> None:
    """Add `train` to the command line."""

    @app.command()
    def train(
        data: DataOption,
        output: Annotated[
            Path, typer.Option("--output", "-o", metavar="DIR", help="The bundle; made if new.")
        ],
        model: Annotated[
            Model, typer.Option(help="The family of models; docs/desam.md is about DeSAM.")
        ] = Model.esp_medsam,
        leave_out: LeaveOutOption = None,
        work: WorkOption = Path("runs/train"),
        name: Annotated[str | None, typer.Option(help="Of the bundle.")] = None,
        recipe: Annotated[
            str | None,
            typer.Option(
                "--recipe",
                metavar="NAME|FILE",
                help="two_cores (default), gpu, or a YAML file of such numbers. Of DeSAM: paper "
                "(default), authors_code, starter.",
            ),
        ] = None,
        changes: ChangesOption = None,
        start: Annotated[
            Path | None,
            typer.Option(
                metavar="DIR",
                help="A bundle to go on from. Only the modalities of --data learn; what others "
                "give stays as it is, bit by bit.",
            ),
        ] = None,
        shared: Annotated[
            bool | None,
            typer.Option(
                "--shared/--own-only",
                help="With --start: whether decoder and SPPG learn too, which changes every "
                "modality. Needs --data for all modalities of the bundle.",
            ),
        ] = None,
        without: Annotated[
            list[Part] | None,
            typer.Option(help="Leave a part of the design out, to measure what it gives."),
        ] = None,
        backbone: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="Encoder that `esp-medsam distill common` wrote."),
        ] = None,
        encoder: Annotated[
            str | None,
            typer.Option(
                metavar="NAME",
                help="Of DeSAM: lite_medsam (default), sam_vit_b, sam_vit_l, sam_vit_h; "
                "`weights pull` fetches the latter.",
            ),
        ] = None,
        seed: SeedOption = 0,
        device: DeviceOption = "auto",
        workers: WorkersOption = None,
        slices_gb: CacheOption = 4.0,
        features_gb: Annotated[
            float,
            typer.Option(
                "--features-gb",
                min=0,
                help="Of DeSAM: disk for what the encoder gives of one modality. Views beyond it "
                "are encoded each time anew.",
            ),
        ] = 8.0,
    ) -> None:
        """Train modalities together on the frozen backbone and write them as a bundle.

        Shows the running loss; curves lie in WORK/curves for TensorBoard. Scores come from
        `esp-medsam evaluate` on other cases. Several GPUs:
        `torchrun --nproc-per-node 4 -m esp_medsam_app.cli train ... --set accumulate=4`.
        """
        if model is Model.desam:
            _check_unused("esp_medsam", shared=shared, without=without, backbone=backbone)
            return train_desam_bundle(
                DeSamTraining(
                    data=data,
                    output=output,
                    leave_out=leave_out,
                    work=work,
                    name=name or "desam",
                    recipe=recipe,
                    changes=changes,
                    start=start,
                    encoder=encoder,
                    seed=seed,
                    device=device,
                    workers=workers,
                    slices_gb=slices_gb,
                    features_gb=features_gb,
                )
            )
        _check_unused("desam", encoder=encoder)
        from esp_medsam_app.dataset import prepare_caches
        from esp_medsam_app.training.record import claim_work, describe
        from esp_medsam_app.training.trainer import Learners
        from esp_medsam_app.training.trainer import train as train_network
        from esp_medsam_app.weights.bundle import load_bundle, save_bundle
        from esp_medsam_app.weights.classifier_file import carry_over

        modalities, folders, pairs = find_cases(data, leave_out)
        numbers = read_recipe(recipe or "two_cores", changes, seed)
        old = load_bundle(start) if start is not None else None
        used = _backbone(backbone, old)
        design = _design(without or [], old)
        shared = old is None if shared is None else shared
        if old is not None and shared:
            _check_all_learn(old, folders)
        claim_work(work, numbers, pairs, old, design)
        with surroundings(work, device, workers, slices_gb) as place:
            largest = numbers.largest_input(used.input_size)
            network = train_network(
                _network(old, used, design, modalities, seed),
                prepare_caches(pairs, modalities, tile=largest, place=place),
                modalities,
                numbers,
                tile=used.input_size,
                place=place,
                learners=Learners(shared=shared),
            )
        if not place.processes.first:
            return
        learned = {modality.name: modality for modality in modalities}
        kept = old.modalities if old is not None else {}
        runs: list[Any] = old.description.training.get("runs", []) if old is not None else []
        run = describe(numbers, pairs, folders, device=place.device) | {"shared": shared}
        bundle = save_bundle(
            output,
            network,
            (kept | learned).values(),
            name=name or "esp-medsam",
            backbone=used,
            training={"runs": [*runs, run]},
            told=old.description.told_but_of(learned) if old is not None else None,
        )
        if old is not None:
            bundle = carry_over(old, bundle)
        Screen().say(f"wrote {bundle.path}: {', '.join(bundle.modalities)}")


def _check_unused(family: str, **options: object) -> None:
    """Raises InputError for options that mean something for another family alone."""
    for name, value in options.items():
        if value is not None:
            raise InputError(
                f"--{name} is an option of --model {family}", remedy="Leave it out, or the model"
            )


def _backbone(file: Path | None, old: Bundle | None) -> Backbone:
    from esp_medsam_app.weights.backbones import LITE_MEDSAM, read_own_backbone

    if file is None:
        return LITE_MEDSAM if old is None else old.backbone
    if old is not None:
        raise InputError("--backbone and --start exclude each other: a bundle has its backbone")
    return read_own_backbone(file)


def _design(without: list[Part], old: Bundle | None) -> Design:
    from esp_medsam_app.networks.esp_medsam import Design

    if old is None:
        return Design(**{part.value: part not in without for part in Part})
    if without:
        raise InputError("--without and --start exclude each other: a bundle has its design")
    return old.description.design


def _check_all_learn(old: Bundle, folders: dict[str, list[Path]]) -> None:
    """Raises InputError if shared parts would change under modalities that do not learn."""
    others = sorted(set(old.modalities) - set(folders))
    if others:
        raise InputError(
            f"--shared would change what these give, which have no --data: {', '.join(others)}",
            path=old.path,
            remedy="Give data of all modalities, or leave --shared out",
        )


def _network(
    old: Bundle | None,
    backbone: Backbone,
    design: Design,
    modalities: list[Modality],
    seed: int,
) -> EspMedSam:
    from esp_medsam_app.training.starting import add_fresh_modality, new_network

    if old is None:
        return new_network(backbone, modalities, design=design, seed=seed)
    network = old.load_network()
    for modality in modalities:
        if modality.name not in old.modalities:
            add_fresh_modality(network, backbone, modality, seed=seed)
    return network
