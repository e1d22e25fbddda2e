"""`esp-medsam distill`: the stages of the knowledge distillation (MMDKD), the compact profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esp_medsam_app.commands.runtime import Screen
from esp_medsam_app.commands.training_options import (
    CacheOption,
    ChangesOption,
    DataOption,
    DeviceOption,
    LeaveOutOption,
    RecipeOption,
    SeedOption,
    WorkersOption,
    WorkOption,
    find_cases,
    read_recipe,
    recipe_changes,
    surroundings,
)
from esp_medsam_app.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from esp_medsam_app.modalities import Modality
    from esp_medsam_app.networks import EspMedSam
    from esp_medsam_app.weights.bundle import Bundle

SamOption = Annotated[
    Path | None,
    typer.Option(
        "--sam",
        metavar="FILE",
        help="Checkpoint of segment-anything, e.g. sam_vit_b_01ec64.pth or medsam_vit_b.pth.",
    ),
]
UnitOption = Annotated[
    bool,
    typer.Option("--unit-input", help="The ViT expects [0, 1], as MedSAM's does."),
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="What is written.")]
BackboneOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Encoder that `distill common` wrote; LiteMedSAM's if none."),
]

CompactRecipeOption = Annotated[
    str, typer.Option("--recipe", metavar="NAME|FILE", help="two_cores, gpu, or a YAML file.")
]
LessonsOption = Annotated[
    float,
    typer.Option(
        "--lessons-gb",
        min=0.001,
        help="Disk for what the teacher says of one modality's views; fewer views if more.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add `distill` and its stages to the command line."""
    stages = typer.Typer(
        no_args_is_help=True,
        help="Knowledge distillation (MMDKD): common, teacher, controllers; compact.",
    )
    app.add_typer(stages, name="distill")
    stages.command()(common)
    stages.command()(teacher)
    stages.command()(controllers)
    stages.command()(compact)


def common(
    images: Annotated[
        list[Path],
        typer.Option("--images", metavar="DIR", help="Unlabelled images; sub-folders count."),
    ],
    sam: Annotated[
        Path,
        typer.Option("--sam", metavar="FILE", help="Checkpoint of segment-anything: the teacher."),
    ],
    output: OutputOption,
    work: WorkOption = Path("runs/common"),
    name: Annotated[str, typer.Option(help="Of the backbone.")] = "own",
    unit_input: UnitOption = False,
    recipe: RecipeOption = "two_cores",
    changes: ChangesOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
) -> None:
    """Teach the shared backbone a SAM ViT's embedding on unlabelled images.

    Starts from LiteMedSAM's encoder. Writes a safetensors file for `--backbone`.
    """
    from safetensors.torch import save_file

    from esp_medsam_app.data.reading import find_images
    from esp_medsam_app.data.whole_files import written_whole
    from esp_medsam_app.dataset.unlabelled import UnlabelledViews
    from esp_medsam_app.training.distillation import distil_common
    from esp_medsam_app.training.record import claim
    from esp_medsam_app.weights.backbones import LITE_MEDSAM, load_encoder
    from esp_medsam_app.weights.integrity import sha256_of
    from esp_medsam_app.weights.sam_teachers import sam_teacher_encoder

    if output.suffix != ".safetensors":
        raise InputError("the output must end in .safetensors", path=output)
    found = find_images(images)
    numbers = read_recipe(recipe, changes, seed)
    encoder = sam_teacher_encoder(sam, unit_input=unit_input, adapters=False)
    claim(
        work,
        {
            "stage": "common",
            "recipe": numbers.model_dump(),
            "images": [str(path.resolve()) for path in found],
            "sam": sha256_of(sam),
            "unit_input": unit_input,
        },
    )
    views = UnlabelledViews(found, tile=LITE_MEDSAM.input_size, seed=seed)
    with surroundings(work, device, workers) as place:
        student = distil_common(load_encoder(LITE_MEDSAM), encoder, views, numbers, place=place)
    if place.processes.first:
        said = {
            "name": name,
            "stem_stride": str(LITE_MEDSAM.stem_stride),
            "input_size": str(LITE_MEDSAM.input_size),
        }
        with written_whole(output) as partial:
            tensors = {key: value.contiguous() for key, value in student.state_dict().items()}
            save_file(tensors, partial, metadata=said)
        Screen().say(f"wrote {output}")


def teacher(
    data: DataOption,
    output: OutputOption,
    leave_out: LeaveOutOption = None,
    work: WorkOption = Path("runs/teacher"),
    name: Annotated[str, typer.Option(help="Of the teacher.")] = "teacher",
    sam: SamOption = None,
    unit_input: UnitOption = False,
    recipe: RecipeOption = "two_cores",
    changes: ChangesOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    slices_gb: CacheOption = 4.0,
) -> None:
    """Train the medical teacher on all modalities, with SPPG and QDMD.

    With --sam its encoder is that frozen ViT with key tokens, value tokens and expert MLPs that
    learn. Without, it is the shared backbone, which learns as a whole: from the recipe's cached
    stage on. Such a teacher is a bundle without controllers, which `evaluate` reads.
    """
    from esp_medsam_app.dataset import prepare_caches
    from esp_medsam_app.training.record import claim_work, describe
    from esp_medsam_app.training.starting import new_network
    from esp_medsam_app.training.trainer import Learners, train
    from esp_medsam_app.weights.backbones import LITE_MEDSAM
    from esp_medsam_app.weights.bundle import save_bundle, save_encoder
    from esp_medsam_app.weights.integrity import sha256_of
    from esp_medsam_app.weights.sam_teachers import (
        TEACHER,
        sam_teacher_encoder,
        save_sam_teacher,
    )

    modalities, folders, pairs = find_cases(data, leave_out)
    numbers = read_recipe(recipe, changes, seed)
    encoder = None if sam is None else sam_teacher_encoder(sam, unit_input=unit_input)
    if encoder is not None and numbers.cached_stage:
        raise InputError(
            "a SAM ViT has no stages to cache", remedy="Add --set cached_stage=0, or --recipe gpu"
        )
    whose = "lite_medsam" if sam is None else sha256_of(sam)
    claim_work(work, numbers, pairs, None, TEACHER, teacher=whose)
    with surroundings(work, device, workers, slices_gb) as place:
        network = train(
            new_network(LITE_MEDSAM, modalities, design=TEACHER, encoder=encoder, seed=seed),
            prepare_caches(pairs, modalities, tile=LITE_MEDSAM.input_size, place=place),
            modalities,
            numbers,
            tile=LITE_MEDSAM.input_size,
            place=place,
            learners=Learners(encoder=True),
        )
    if not place.processes.first:
        return
    if sam is not None:
        save_sam_teacher(output, network, modalities, checkpoint=sam, unit_input=unit_input)
    else:
        save_bundle(
            output,
            network,
            modalities,
            name=name,
            backbone=save_encoder(output, network.encoder, LITE_MEDSAM, name=name),
            training={"runs": [describe(numbers, pairs, folders, device=place.device)]},
        )
    Screen().say(f"wrote {output}: {', '.join(folders)}")


def controllers(
    teacher: Annotated[
        Path, typer.Option(metavar="DIR", help="What `esp-medsam distill teacher` wrote.")
    ],
    data: DataOption,
    output: OutputOption,
    leave_out: LeaveOutOption = None,
    work: WorkOption = Path("runs/controllers"),
    name: Annotated[str, typer.Option(help="Of the bundle.")] = "esp-medsam",
    sam: SamOption = None,
    backbone: BackboneOption = None,
    recipe: RecipeOption = "two_cores",
    changes: ChangesOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    slices_gb: CacheOption = 4.0,
) -> None:
    """Teach each modality's controller the teacher's embedding; write the student as a bundle.

    Backbone, batch norm and decoder stay as they are; the decoder is the teacher's.
    """
    from esp_medsam_app.dataset import prepare_caches
    from esp_medsam_app.training.distillation import distil_controllers, with_decoder_of
    from esp_medsam_app.training.record import claim_work, describe
    from esp_medsam_app.training.starting import new_network
    from esp_medsam_app.weights.backbones import LITE_MEDSAM, read_own_backbone
    from esp_medsam_app.weights.bundle import save_bundle

    modalities, folders, pairs = find_cases(data, leave_out)
    taught, known, whose = _read_teacher(teacher, sam)
    _check_known(folders, known, teacher)
    numbers = read_recipe(recipe, changes, seed)
    used = LITE_MEDSAM if backbone is None else read_own_backbone(backbone)
    claim_work(work, numbers, pairs, None, teacher=whose)
    student = with_decoder_of(new_network(used, modalities, seed=seed), taught)
    with surroundings(work, device, workers, slices_gb) as place:
        caches = prepare_caches(pairs, modalities, tile=used.input_size, place=place)
        network = distil_controllers(
            student, taught, caches, modalities, numbers, tile=used.input_size, place=place
        )
    if place.processes.first:
        save_bundle(
            output,
            network,
            modalities,
            name=name,
            backbone=used,
            training={"runs": [describe(numbers, pairs, folders, device=place.device)]},
        )
        Screen().say(f"wrote {output}: {', '.join(folders)}")


def compact(
    teacher: Annotated[
        Path,
        typer.Option(metavar="DIR", help="The full model: a bundle, the starter's for example."),
    ],
    data: DataOption,
    output: OutputOption,
    leave_out: LeaveOutOption = None,
    work: WorkOption = Path("runs/compact"),
    name: Annotated[str, typer.Option(help="Of the bundle.")] = "compact",
    recipe: CompactRecipeOption = "two_cores",
    changes: ChangesOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    slices_gb: CacheOption = 4.0,
    lessons_gb: LessonsOption = 4.0,
) -> None:
    """Teach the modalities of a bundle to work on a smaller input: a fraction of the work.

    Each learns from the full model and from labels. Backbone and decoder stay as they are, so that
    modalities of several runs fit together: `esp-medsam weights merge`.
    """
    from dataclasses import replace

    from esp_medsam_app.dataset import prepare_caches
    from esp_medsam_app.training.compact import distil_compact, fitting
    from esp_medsam_app.training.compact_recipe import CompactRecipe
    from esp_medsam_app.training.record import claim_work, describe
    from esp_medsam_app.weights.bundle import load_bundle, save_bundle
    from esp_medsam_app.weights.classifier_file import carry_over

    _, folders, pairs = find_cases(data, leave_out)
    full = load_bundle(teacher)
    _check_known(folders, list(full.modalities.values()), teacher)
    numbers = CompactRecipe.read(recipe, **recipe_changes(changes, seed))
    _check_size(full, numbers.size)
    # as the teacher knows them
    modalities = [full.modality(known) for known in folders]
    tile = full.description.input_size
    numbers = fitting(
        numbers,
        modalities,
        tile=tile,
        stride=full.backbone.stem_stride,
        limit=int(lessons_gb * 2**30),
    )
    claim_work(work, numbers, pairs, full)
    with surroundings(work, device, workers, slices_gb) as place:
        caches = prepare_caches(pairs, modalities, tile=tile, place=place)
        network = distil_compact(
            full.load_network(folders), caches, modalities, numbers, tile=tile, place=place
        )
    if not place.processes.first:
        return
    run = describe(numbers, pairs, folders, device=place.device)
    bundle = save_bundle(
        output,
        network,
        modalities,
        name=name,
        backbone=replace(full.backbone, input_size=numbers.size),
        training={"runs": [run | {"teacher": full.description.name}]},
    )
    carry_over(full, bundle)
    Screen().say(f"wrote {output}: {', '.join(folders)}")


def _check_size(full: Bundle, size: int) -> None:
    """Raises InputError for a teacher of no use, or an input that the network cannot have."""
    if not full.description.design.controllers:
        raise InputError(
            "this bundle has no controllers, which are what learns",
            path=full.path,
            remedy="Give one that `esp-medsam train` or `distill controllers` wrote",
        )
    side, multiple = full.description.input_size, 8 * full.backbone.stem_stride
    if size >= side or size % multiple:
        raise InputError(
            f"size {size}: the input has to be below the teacher's {side} pixels and a multiple of "
            f"{multiple}",
            remedy="For example --set size=112",
        )


def _read_teacher(folder: Path, sam: Path | None) -> tuple[EspMedSam, list[Modality], str]:
    """Network and modalities of a teacher, and a word that names it.

    Raises:
        WeightsError: it cannot be read.
        InputError: its SAM checkpoint is needed.
    """
    from esp_medsam_app.weights.bundle import DESCRIPTION, load_bundle
    from esp_medsam_app.weights.integrity import sha256_of
    from esp_medsam_app.weights.sam_teachers import DESCRIPTION as SAM_DESCRIPTION
    from esp_medsam_app.weights.sam_teachers import is_sam_teacher, load_sam_teacher

    if not is_sam_teacher(folder):
        bundle = load_bundle(folder)
        if bundle.description.design.controllers:
            raise InputError(
                "this bundle has controllers: it is no teacher",
                path=folder,
                remedy="Give what `esp-medsam distill teacher` wrote",
            )
        return (
            bundle.load_network(),
            list(bundle.modalities.values()),
            sha256_of(folder / DESCRIPTION),
        )
    if sam is None:
        raise InputError(
            "the teacher's ViT is in SAM's checkpoint, which was not given",
            path=folder,
            remedy="Add --sam FILE",
        )
    network, modalities = load_sam_teacher(folder, sam)
    return network, list(modalities), sha256_of(folder / SAM_DESCRIPTION)


def _check_known(wanted: Iterable[str], known: list[Modality], folder: Path) -> None:
    names = [modality.name for modality in known]
    for name in wanted:
        if name not in names:
            raise UnknownNameError(
                f"the teacher knows no modality {name!r}",
                path=folder,
                remedy=f"It knows: {', '.join(names)}",
            )
