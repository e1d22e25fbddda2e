"""`esp-medsam benchmark`: how fast this machine segments."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from esp_medsam_app.commands.runtime import BundleOption, DeviceOption, Screen
from esp_medsam_app.errors import InputError

if TYPE_CHECKING:
    from esp_medsam_app.benchmark.over_http import HttpReport
    from esp_medsam_app.benchmark.passes import PassReport
    from esp_medsam_app.benchmark.report import BenchmarkReport
    from esp_medsam_app.benchmark.timing import Latency, Step
    from esp_medsam_app.benchmark.training import TrainingReport
    from esp_medsam_app.benchmark.volume import VolumeReport
    from esp_medsam_app.weights import Bundle

_CPU_ROUNDS, _GPU_ROUNDS, _QUICK_ROUNDS = 7, 50, 3
_REQUESTS, _QUICK_REQUESTS = 10, 3


def register(app: typer.Typer) -> None:
    """Add `benchmark` to the command line."""

    @app.command()
    def benchmark(
        modality: Annotated[
            str,
            typer.Option("--modality", "-m", metavar="NAME", help="Whose controller and queries."),
        ] = "ct_liver",
        quick: Annotated[
            bool,
            typer.Option("--quick", help="Under a minute: one image a pass, few rounds."),
        ] = False,
        volume: Annotated[
            bool, typer.Option("--volume", help="A CT of 512 x 512 pixels too, file to file.")
        ] = False,
        http: Annotated[
            bool, typer.Option("--http", help="Requests to a server too, first and later ones.")
        ] = False,
        training: Annotated[
            bool, typer.Option("--training", help="Steps of a training too, views a second.")
        ] = False,
        json: Annotated[
            Path | None, typer.Option("--json", metavar="FILE", help="Write the report here too.")
        ] = None,
        rounds: Annotated[
            int | None,
            typer.Option("--rounds", min=1, help="How often each pass is timed; else by device."),
        ] = None,
        batch_sizes: Annotated[
            list[int] | None,
            typer.Option("--batch-size", min=1, metavar="N", help="Images a pass; several times."),
        ] = None,
        precisions: Annotated[
            list[str] | None,
            typer.Option(
                "--precision", metavar="NAME", help="float32, bfloat16, float16; several times."
            ),
        ] = None,
        openvino: Annotated[
            bool, typer.Option("--openvino", help="The encoder by OpenVINO too; CPUs.")
        ] = False,
        slices: Annotated[int, typer.Option("--slices", min=2, help="Slices of the CT.")] = 300,
        memory: Annotated[
            bool, typer.Option(help="Measure peak memory, in a process for each way.")
        ] = True,
        bundle: BundleOption = None,
        profile: Annotated[
            str | None,
            typer.Option(
                "--profile",
                metavar="NAME|DIR",
                help="Measure a profile beside the full one, e.g. compact; or a bundle like it.",
            ),
        ] = None,
        device: DeviceOption = "auto",
    ) -> None:
        """Measure how fast this machine segments.

        Passes over images by the plain and the fast path, in each precision and batch size: images
        a second, latency, peak memory, GFLOP, and their share of the rate at which this machine
        multiplies matrices. All take turns, round by round, so that ratios hold on a busy machine;
        "x plain" is against the plain path in float32 with one image a pass. On GPUs the memory is
        the GPU's. With --quick the volume is segmented by the fast path alone.
        """
        from esp_medsam_app.benchmark.machine import Machine
        from esp_medsam_app.benchmark.over_http import HttpReport, measure_http
        from esp_medsam_app.benchmark.passes import contenders, measure_passes
        from esp_medsam_app.benchmark.report import BenchmarkReport
        from esp_medsam_app.benchmark.training import measure_training
        from esp_medsam_app.benchmark.volume import measure_volume
        from esp_medsam_app.evaluation.report import write_report
        from esp_medsam_app.inference import Segmenter
        from esp_medsam_app.inference.device import choose_device
        from esp_medsam_app.weights import load_bundle
        from esp_medsam_app.weights.profiles import FULL

        place = choose_device(device)
        loaded = load_bundle(bundle)
        bundles = {FULL: loaded, **_beside(profile)}
        for weights in bundles.values():
            weights.modality(modality)
        wanted = contenders(
            place,
            quick=quick,
            precisions=precisions,
            batches=batch_sizes,
            openvino=openvino,
            profiles=list(bundles),
        )
        if json is not None:
            _check_writable(json)
        screen = Screen()
        machine = Machine.this(place)
        usual = _CPU_ROUNDS if place.type == "cpu" else _GPU_ROUNDS
        with screen.progress as progress:

            @contextmanager
            def step(what: str) -> Iterator[Step]:
                task = progress.add_task(what, total=None)
                yield lambda done, total: progress.update(task, completed=done, total=total)
                progress.remove_task(task)

            with step("passes") as on_step:
                passes = measure_passes(
                    bundles,
                    modality,
                    place,
                    wanted,
                    rounds=rounds or (_QUICK_ROUNDS if quick else usual),
                    memory=memory,
                    on_step=on_step,
                )
            of_volume, of_http, of_training = None, None, None
            if training:
                with step("training") as on_step:
                    of_training = measure_training(
                        loaded,
                        modality,
                        place,
                        rounds=rounds or _QUICK_ROUNDS,
                        on_step=on_step,
                    )
            with tempfile.TemporaryDirectory(prefix="esp_medsam_") as folder:
                if volume:
                    ways = [
                        ("fast" if name == FULL else f"{name} fast", Segmenter(one, device=device))
                        for name, one in bundles.items()
                    ]
                    if not quick:
                        plain = Segmenter(loaded, device=device, precision="float32", fast=False)
                        ways.insert(0, ("plain", plain))
                    with step("volume") as on_step:
                        of_volume = measure_volume(
                            ways, modality, Path(folder), slices=slices, on_step=on_step
                        )
                    del ways
                if http:
                    figures = []
                    for name, one in bundles.items():
                        with step("requests") as on_step:
                            found = measure_http(
                                one.path,
                                modality,
                                device,
                                Path(folder),
                                images=_QUICK_REQUESTS if quick else _REQUESTS,
                                slices=slices if volume else 0,
                                profile=name,
                                on_step=on_step,
                            )
                        figures += found.figures
                    of_http = HttpReport(modality, figures)
        report = BenchmarkReport(
            machine, loaded.description.name, str(place), passes, of_volume, of_http, of_training
        )
        _show(report, screen)
        if json is not None:
            write_report(json, report)


def _beside(profile: str | None) -> dict[str, Bundle]:
    """The weights of a profile other than the full one, or of a folder, by name.

    Raises:
        UnknownNameError, WeightsError: no such profile, or weights that cannot be used.
    """
    from esp_medsam_app.weights import load_bundle
    from esp_medsam_app.weights.profiles import FULL, profile_path

    if profile is None or profile == FULL:
        return {}
    folder = Path(profile)
    if not folder.is_dir():
        return {profile: load_bundle(profile_path(profile))}
    loaded = load_bundle(folder)
    name = loaded.description.name
    return {folder.name if name == FULL else name: loaded}


def _check_writable(path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise InputError("the report's folder is not there", path=path, remedy="Make it first")


def _show(report: BenchmarkReport, screen: Screen) -> None:
    machine = report.machine
    screen.say(
        f"{machine.processor}, {machine.cores} cores, {machine.threads} threads; "
        f"{machine.gpu or 'no GPU in use'}; torch {machine.pytorch}"
    )
    products = ", ".join(
        f"{name} {rate:.3g} TFLOP/s" for name, rate in report.passes.teraflops.items()
    )
    screen.say(f"matrix products: {products}; load {machine.load} when it began")
    screen.show(_passes_table(report.passes))
    if report.volume is not None:
        screen.show(_volume_table(report.volume))
    if report.http is not None:
        screen.show(_http_table(report.http))
    if report.training is not None:
        screen.show(_training_table(report.training))


def _passes_table(report: PassReport) -> Table:
    work = {row.contender.profile: row.gflop for row in report.figures}
    gflop = ", ".join(f"{name} {value:.0f}" for name, value in work.items())
    table = _table(
        f"passes of {report.modality}, GFLOP an image: {gflop}; {report.rounds} rounds",
        "path", "batch", "images/s", "p50 ms", "p99 ms", "x plain", "products", "peak MB",
    )  # fmt: skip
    for row in report.figures:
        peak = row.peak
        held = None if peak is None else peak.gpu if peak.gpu is not None else peak.main
        table.add_row(
            _of(row.contender.profile, f"{row.contender.path} {row.contender.precision}"),
            str(row.contender.batch),
            f"{row.images_per_second:.4g}",
            *_milliseconds(row.latency),
            f"{row.times_plain:.2f}",
            f"{row.share_of_products:.0%}",
            "-" if held is None else f"{held:.0f}",
        )
    return table


def _volume_table(report: VolumeReport) -> Table:
    shape = " x ".join(map(str, report.shape))
    table = _table(
        f"CT of {shape}, .nii.gz of {report.megabytes:.0f} MB, file to file",
        "path", "seconds", "reading", "segmenting", "writing", "slices/s", "x plain",
    )  # fmt: skip
    measured_plain = report.figures[0].name == "plain"
    for row in report.figures:
        table.add_row(
            row.name,
            f"{min(row.seconds):.2f}",
            f"{row.reading:.2f}",
            f"{row.segmenting:.2f}",
            f"{row.writing:.2f}",
            f"{row.slices_per_second:.1f}",
            f"{row.times_plain:.2f}" if measured_plain else "-",
        )
    return table


def _http_table(report: HttpReport) -> Table:
    table = _table(
        f"requests for {report.modality} through the server",
        "image", "first: p50 ms", "p99 ms", "again: p50 ms", "p99 ms", "images",
    )  # fmt: skip
    for row in report.figures:
        first, again = _milliseconds(row.first), _milliseconds(row.again)
        table.add_row(_of(row.profile, row.image), *first, *again, str(row.first.calls))
    return table


def _training_table(report: TrainingReport) -> Table:
    table = _table(
        f"steps of training {report.modality}, forward and backward; {report.rounds} rounds",
        "way", "size", "batch", "views/s", "TFLOP/s", "products", "x 0.1.0",
    )  # fmt: skip
    for row in report.figures:
        table.add_row(
            row.way,
            str(row.size),
            str(row.batch),
            f"{row.views_per_second:.3g}",
            f"{row.teraflops:.3g}",
            f"{row.share_of_products:.0%}",
            f"{row.times_earlier:.2f}",
        )
    return table


def _of(profile: str, what: str) -> str:
    from esp_medsam_app.weights.profiles import FULL

    return what if profile == FULL else f"{profile} {what}"


def _table(title: str, first: str, *others: str) -> Table:
    """A table as wide as a small terminal."""
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _milliseconds(latency: Latency) -> tuple[str, str]:
    return f"{latency.p50 * 1000:.0f}", f"{latency.p99 * 1000:.0f}"
