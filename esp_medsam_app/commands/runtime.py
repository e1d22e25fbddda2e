"""What the commands that run the network share: the segmenter, its options, progress on screen."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeGuard

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from esp_medsam_app.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from esp_medsam_app.data.image import Grid
    from esp_medsam_app.inference import Segmenter
    from esp_medsam_app.inference.desam_segmenter import DeSamSegmenter
    from esp_medsam_app.weights.desam_prompts import PromptMode

ModalityOption = Annotated[
    str,
    typer.Option("--modality", "-m", metavar="NAME", help="Entry of the catalogue, e.g. ct_liver."),
]
KnownModalityOption = Annotated[
    str,
    typer.Option(
        "--modality",
        "-m",
        metavar="NAME|FILE",
        help="Entry of the catalogue, e.g. ct_liver, or a YAML file of your own.",
    ),
]
BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="DIR", help="Weights to use instead of the starter bundle."),
]
ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME",
        help="Weights of the package: full; compact, a fraction of the work, for laptops; or desam,"
        " the second model.",
    ),
]
AnyImageOption = Annotated[
    bool,
    typer.Option(
        "--any-image",
        help="Also what looks like an image of another modality, or "
        "like a CT that is not in Hounsfield units.",
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps; auto prefers a GPU.")
]
PromptOption = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        metavar="NAME",
        help="Of a bundle of DeSAM: whole_box or grid_points; as it was trained by default.",
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size", min=1, metavar="N", help="Slices a pass; chosen by the device if not given."
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        "--precision",
        help="auto, float32, bfloat16, float16; auto takes what the device is fast at.",
    ),
]
FastOption = Annotated[
    bool,
    typer.Option(
        "--fast/--plain",
        help="By the fused encoder, which gives the same masks sooner, or plainly.",
    ),
]
RuntimeOption = Annotated[
    str,
    typer.Option(
        "--runtime",
        help="What ESP-MedSAM's fused encoder runs in: torch; openvino on CPUs, if installed.",
    ),
]


def make_segmenter(
    bundle: Path | None,
    device: str,
    batch_size: int | None,
    prompt: str | None = None,
    *,
    profile: str | None = None,
    precision: str = "auto",
    fast: bool = True,
    runtime: str = "torch",
) -> Segmenter | DeSamSegmenter:
    """The segmenter of a command; the one place where the commands load weights.

    Raises WeightsError for a bundle that cannot be used, InputError for a device or a precision
    that is not there, or a prompt that is of no use.
    """
    # torch takes seconds to import: not for `--help`
    from esp_medsam_app.inference import Segmenter
    from esp_medsam_app.inference.desam_segmenter import DeSamSegmenter
    from esp_medsam_app.weights.bundle import load_any_bundle
    from esp_medsam_app.weights.desam_bundle import DeSamBundle
    from esp_medsam_app.weights.profiles import chosen_bundle

    loaded = load_any_bundle(chosen_bundle(bundle, profile))
    if isinstance(loaded, DeSamBundle):
        mode = checked_prompt(prompt)
        return DeSamSegmenter(
            loaded,
            device=device,
            batch_size=batch_size,
            mode=mode,
            precision=precision,
            fast=fast,
        )
    if prompt is not None:
        raise InputError("--prompt is an option of DeSAM's bundles", remedy="Leave it out")
    return Segmenter(
        loaded,
        device=device,
        batch_size=batch_size,
        precision=precision,
        fast=fast,
        runtime=runtime,
    )


def is_esp_medsam(segmenter: Segmenter | DeSamSegmenter) -> TypeGuard[Segmenter]:
    """Whether it is ESP-MedSAM's."""
    from esp_medsam_app.inference.desam_segmenter import DeSamSegmenter

    return not isinstance(segmenter, DeSamSegmenter)


def checked_prompt(name: str | None) -> PromptMode | None:
    """A prompt of DeSAM by name. Raises InputError where there is no such prompt."""
    from esp_medsam_app.weights.desam_prompts import PROMPT_MODES

    for known in PROMPT_MODES:
        if name == known:
            return known
    if name is not None:
        raise InputError(
            f"--prompt {name}: there is no such prompt", remedy=f"Use {' or '.join(PROMPT_MODES)}"
        )
    return None


class Screen:
    """Lines of results on standard output, progress bars where a person watches.

    On a terminal both share one console, so that lines appear above the bars. When the output goes
    to a file the bars stay on standard error, and only if that is a terminal.
    """

    def __init__(self) -> None:
        self._out = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
        self._err = Console(stderr=True, highlight=False, markup=False, emoji=False)
        bars = self._out if self._out.is_terminal else self._err
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=bars,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not bars.is_terminal,
        )

    def say(self, text: str) -> None:
        """A line on standard output."""
        self._out.print(text)

    def complain(self, text: str) -> None:
        """A red line on standard error, even if a library's reason in it has several."""
        self._err.print(" ".join(text.splitlines()), style="red", soft_wrap=True)

    def warn(self, text: str) -> None:
        """A yellow line on standard error."""
        self._err.print(" ".join(text.splitlines()), style="yellow", soft_wrap=True)

    def trace(self) -> None:
        """The current exception's traceback, on standard error."""
        self._err.print_exception()

    def show(self, table: object) -> None:
        """A table or another thing that rich draws, on standard output."""
        self._out.print(table, soft_wrap=False)


def ensure_writable_folder(folder: Path) -> None:
    """Make `folder` if it is missing, and try that a file can be made in it.

    Raises InputError, before any work is done for it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"the output folder cannot be written to ({error.strerror or error})",
            path=folder,
            remedy="Choose a folder you may write to",
        ) from error


def save_label_map(path: Path, labels: np.ndarray, grid: Grid) -> None:
    """`write_label_map`; raises InputError when the file cannot be written."""
    from esp_medsam_app.data.writing import write_label_map

    try:
        write_label_map(path, labels, grid)
    except OSError as error:
        raise InputError(
            f"the label map cannot be written ({error.strerror or error})",
            path=path,
            remedy="Check that the disk has space left and that the folder is still there",
        ) from error
