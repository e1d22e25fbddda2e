"""`esp-medsam segment`: images and volumes in, label maps out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esp_medsam_app.commands import runtime
from esp_medsam_app.commands.runtime import (
    AnyImageOption,
    BatchSizeOption,
    BundleOption,
    DeviceOption,
    FastOption,
    PrecisionOption,
    ProfileOption,
    PromptOption,
    RuntimeOption,
    Screen,
)
from esp_medsam_app.errors import EspMedSamError, InputError

if TYPE_CHECKING:
    import numpy as np

    from esp_medsam_app.data.image import Grid, MedicalImage
    from esp_medsam_app.inference import Segmenter
    from esp_medsam_app.inference.desam_segmenter import DeSamSegmenter
    from esp_medsam_app.modalities import Modality


@dataclass(frozen=True)
class Job:
    """An input and the name its outputs start with."""

    source: Path
    name: str


@dataclass(frozen=True)
class Options:
    """What is written, and where; `any_image`: also of images that look like something else."""

    output: Path
    overlay: bool
    overwrite: bool
    any_image: bool = False


def register(app: typer.Typer) -> None:
    """Add `segment` to the command line."""

    @app.command()
    def segment(
        paths: Annotated[
            list[Path],
            typer.Argument(
                metavar="PATH...",
                help="NIfTI, NRRD, DICOM file, PNG, JPEG or TIFF; the folder of a DICOM series; or "
                "a folder of any of these.",
            ),
        ],
        modality: Annotated[
            str,
            typer.Option(
                "--modality",
                "-m",
                metavar="NAME",
                help="Entry of the catalogue, e.g. ct_liver; auto: read it from each image.",
            ),
        ],
        output: Annotated[
            Path,
            typer.Option("--output", "-o", metavar="DIR", help="Where label maps go; made if new."),
        ],
        overlay: Annotated[
            bool, typer.Option("--overlay", help="Also write NAME_overlay.png to look at.")
        ] = False,
        overwrite: Annotated[
            bool,
            typer.Option(
                help="Replace label maps that exist; with --no-overwrite their inputs are skipped."
            ),
        ] = True,
        any_image: AnyImageOption = False,
        bundle: BundleOption = None,
        profile: ProfileOption = None,
        prompt: PromptOption = None,
        device: DeviceOption = "auto",
        batch_size: BatchSizeOption = None,
        precision: PrecisionOption = "auto",
        fast: FastOption = True,
        runtime_name: RuntimeOption = "torch",
    ) -> None:
        """Segment images and volumes.

        With --modality auto, DICOM's tags or else what the image looks like tell its modality; an
        image of which it is not certain enough fails, and the likeliest modalities are named.
        Writes NAME_seg.nii.gz with the input's exact grid, NAME_seg.png for pictures. An input that
        fails is reported and the others go on; the exit code is then 2.
        """
        from esp_medsam_app.inference.modality_reader import AUTO

        runtime.ensure_writable_folder(output)
        segmenter = runtime.make_segmenter(
            bundle,
            device,
            batch_size,
            prompt,
            profile=profile,
            precision=precision,
            fast=fast,
            runtime=runtime_name,
        )
        if modality == AUTO and not runtime.is_esp_medsam(segmenter):
            raise InputError(
                "DeSAM does not read the modality from the image", remedy="Name it with --modality"
            )
        failed = segment_all(
            paths,
            segmenter,
            None if modality == AUTO else segmenter.bundle.modality(modality),
            Options(output, overlay, overwrite, any_image),
            Screen(),
        )
        if failed:
            raise typer.Exit(2)


def segment_all(
    paths: Iterable[Path],
    segmenter: Segmenter | DeSamSegmenter,
    modality: Modality | None,
    options: Options,
    screen: Screen,
) -> int:
    """Segment everything in `paths`; the number of inputs that failed, each told on the screen.

    Without a modality it is read from each image.
    """
    from esp_medsam_app.inference.ahead import ahead

    sources, problems = expand(paths, options.output)
    for problem in problems:
        screen.complain(str(problem))
    jobs = name_jobs(sources)
    failed = len(problems)
    inputs = {source.resolve() for source in sources}
    images = (_read(job.source) for job in jobs)
    if segmenter.device.type != "cpu":
        # else it would take from the passes what it gives
        images = ahead(images, 1)
    with closing(images), screen.progress as progress:
        files = progress.add_task("files", total=len(jobs))
        slices = progress.add_task("slices", total=None)

        def on_slice(done: int, total: int) -> None:
            progress.update(slices, completed=done, total=total)

        for job in jobs:
            image = next(images)
            progress.update(files, description=job.source.name)
            progress.reset(slices)
            try:
                screen.say(_run(job, image, segmenter, modality, options, inputs, on_slice))
                for warning in image.image.warnings if image.image else ():
                    screen.warn(f"{job.source}: {warning}")
            except EspMedSamError as error:
                failed += 1
                screen.complain(_with_source(error, job.source))
            except Exception as error:
                # a defect of ours; a night's batch still does not end here
                failed += 1
                screen.complain(
                    f"{job.source}: failed unexpectedly ({type(error).__name__}: {error}). "
                    "Please report this with the lines below"
                )
                screen.trace()
            progress.advance(files)
            # not beside the next one
            del image
    if failed or len(jobs) != 1:
        done = len(jobs) + len(problems) - failed
        screen.say(f"{done} of {len(jobs) + len(problems)} done, {failed} failed")
    return failed


def expand(paths: Iterable[Path], output: Path) -> tuple[list[Path], list[InputError]]:
    """The inputs that the paths given stand for, each once, and what is wrong with the others.

    A folder stands for its DICOM series if it is one, else for every file and series folder in it
    that can be read, by name; this command's own earlier outputs are left out.
    """
    found: dict[Path, Path] = {}
    problems: list[InputError] = []
    for path in paths:
        try:
            for source in _sources_of(path, output):
                found.setdefault(source.resolve(), source)
        except InputError as error:
            problems.append(error)
        except OSError as error:
            problems.append(
                InputError(
                    f"cannot be read ({error.strerror or error})",
                    path=path,
                    remedy="Check the path and its permissions",
                )
            )
    return list(found.values()), problems


def _sources_of(path: Path, output: Path) -> list[Path]:
    from esp_medsam_app.data.reading import is_readable_name

    if not path.exists():
        raise InputError("there is no such file or folder", path=path, remedy="Check the path")
    if path.is_file() or is_readable_name(path):
        return [path]
    inside = [p for p in sorted(path.iterdir()) if p.name[0] != "." and is_readable_name(p)]
    if path.resolve() == output.resolve():
        inside = _without_outputs(inside)
    if not inside:
        raise InputError(
            "the folder holds no image that can be read",
            path=path,
            remedy="NIfTI, NRRD, DICOM, PNG, JPEG and TIFF are read; folders in it are not "
            "searched unless they are DICOM series",
        )
    return inside


def name_jobs(sources: list[Path]) -> list[Job]:
    """Each source with the name of its outputs; names that would clash are told apart."""
    from esp_medsam_app.data.names import case_name, unique_names

    names = unique_names([case_name(source) for source in sources], sources)
    return [Job(source, name) for source, name in zip(sources, names, strict=True)]


def describe_labels(labels: np.ndarray, modality: Modality, grid: Grid) -> str:
    """The labels found with their size: voxels and ml in a volume, pixels in a picture."""
    # not at the top: `doctor` shall start where numpy is broken
    import numpy as np

    counts = np.bincount(labels.ravel(), minlength=max(modality.labels.values()) + 1)
    parts = []
    for name, value in modality.labels.items():
        count = int(counts[value])
        if not count:
            continue
        if len(grid.shape) == 3 and grid.has_patient_space:
            ml = count * float(np.prod(grid.spacing)) / 1000
            parts.append(f"{name} {count} voxels ({ml:.3g} ml)")
        else:
            parts.append(f"{name} {count} {'voxels' if len(grid.shape) == 3 else 'pixels'}")
    return ", ".join(parts) or "no label found"


@dataclass(frozen=True, eq=False)
class _Reading:
    """An image, or why there is none, and the seconds that it took."""

    image: MedicalImage | None
    error: Exception | None
    seconds: float


def _read(source: Path) -> _Reading:
    from esp_medsam_app.data.reading import read_image

    start = time.perf_counter()
    try:
        image, error = read_image(source), None
    except Exception as caught:  # told when it is this input's turn
        image, error = None, caught
    return _Reading(image, error, time.perf_counter() - start)


def _run(
    job: Job,
    read: _Reading,
    segmenter: Segmenter | DeSamSegmenter,
    modality: Modality | None,
    options: Options,
    inputs: set[Path],
    on_slice: Callable[[int, int], None],
) -> str:
    """Segment one input and write its files; the line that tells about it."""
    from esp_medsam_app.data.names import label_map_suffix
    from esp_medsam_app.inference.hounsfield import check_units
    from esp_medsam_app.inference.overlay import save_overlay

    if read.error is not None:
        raise read.error
    assert read.image is not None
    start, image = time.perf_counter() - read.seconds, read.image
    target = options.output / f"{job.name}_seg{label_map_suffix(image.grid)}"
    picture = options.output / f"{job.name}_overlay.png"
    if target.exists() and not options.overwrite:
        return f"{job.source}: skipped, {target} exists"
    for path in (target, picture) if options.overlay else (target,):
        if path.resolve() in inputs:
            raise InputError(
                f"its output would replace the input {path}",
                path=job.source,
                remedy="Choose another output folder",
            )
    chosen = ""
    if modality is not None and not options.any_image and runtime.is_esp_medsam(segmenter):
        segmenter.check_modality(image, modality.name, "Give --modality auto, or --any-image")
    if modality is None:
        assert runtime.is_esp_medsam(segmenter)
        reading = segmenter.read_modality(image)
        modality = segmenter.bundle.modality(reading.decided(image, "Give --modality"))
        chosen = f"{modality.name} ({reading.confidence:.0%} by {reading.source}): "
    if not options.any_image:
        check_units(image, modality, "Or give --any-image: it is then segmented as it is")
    labels = segmenter.segment(image, modality.name, on_slice=on_slice)
    runtime.save_label_map(target, labels, image.grid)
    if options.overlay:
        save_overlay(picture, image, labels, modality)
    seconds = time.perf_counter() - start
    found = describe_labels(labels, modality, image.grid)
    return f"{job.source} -> {target}: {chosen}{found}, {seconds:.1f} s"


def _without_outputs(paths: list[Path]) -> list[Path]:
    """Leave out `x_seg.*` and `x_overlay.png` beside `x`: they are what this command wrote."""
    from esp_medsam_app.data.names import case_name

    names = {case_name(path) for path in paths}
    return [
        path
        for path in paths
        if not any(
            case_name(path).endswith(end) and case_name(path).removesuffix(end) in names
            for end in ("_seg", "_overlay")
        )
    ]


def _with_source(error: EspMedSamError, source: Path) -> str:
    """The error's message, with the input in front where the message does not name a file."""
    return str(error) if error.path is not None else f"{source}: {error}"
