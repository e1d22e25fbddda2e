"""`esp-medsam calibrate`: from which certainty on the structure is taken to be there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esp_medsam_app.commands.runtime import (
    DeviceOption,
    ModalityOption,
    Screen,
    is_esp_medsam,
    make_segmenter,
)
from esp_medsam_app.errors import InputError

if TYPE_CHECKING:
    from esp_medsam_app.evaluation.pairs import CasePair
    from esp_medsam_app.evaluation.presence import Calibration, SeenTile
    from esp_medsam_app.inference import Segmenter
    from esp_medsam_app.modalities import Modality

# of an image of something else, so many slices
_FOREIGN_SLICES = 2


def register(app: typer.Typer) -> None:
    """Add `calibrate` to the command line."""

    @app.command()
    def calibrate(
        data: Annotated[
            list[Path],
            typer.Option(
                "--data",
                metavar="DIR",
                help="Cases that were not trained on: holds images/ and labels/ with equal stems.",
            ),
        ],
        modality: ModalityOption,
        bundle: Annotated[
            Path, typer.Option("--bundle", metavar="DIR", help="The bundle that it is written to.")
        ],
        absent: Annotated[
            list[Path] | None,
            typer.Option("--absent", metavar="DIR", help="Images that do not hold the structure."),
        ] = None,
        limit: Annotated[
            int | None,
            typer.Option(
                min=1, help="The first N cases, and N of the absent images, evenly chosen."
            ),
        ] = None,
        most_marked: Annotated[
            float,
            typer.Option(min=0, max=1, help="Share of what holds nothing that may be marked."),
        ] = 0.03,
        device: DeviceOption = "auto",
    ) -> None:
        """Fit how sure SPPG has to be that a structure is there, and write it into the bundle.

        Below that, a tile is held empty. It is the lowest limit at which hardly any slice without
        the structure is marked, as long as the mean Dice does not suffer; none where nothing is
        gained. Fit it on validation cases, after training.
        """
        from esp_medsam_app.data.reading import find_images
        from esp_medsam_app.evaluation.pairs import find_pairs
        from esp_medsam_app.evaluation.presence import calibrate as fit
        from esp_medsam_app.inference.assessment import spread
        from esp_medsam_app.weights.bundle import save_description

        pairs = find_pairs(data)[:limit]
        beside = find_images(absent) if absent else []
        beside = [beside[index] for index in spread(len(beside), limit or len(beside))]
        segmenter = make_segmenter(bundle, device, None)
        if not is_esp_medsam(segmenter) or not segmenter.bundle.description.design.patch_prompt:
            raise InputError("these weights have no SPPG, which it is about", path=bundle)
        chosen = segmenter.bundle.modality(modality)
        screen = Screen()
        with screen.progress as progress:
            task = progress.add_task("images", total=len(pairs) + len(beside))
            tiles = []
            for seen in _seen(segmenter, chosen, pairs, beside):
                tiles.extend(seen)
                progress.advance(task)
        found = fit(tiles, most_marked)
        loaded = segmenter.bundle
        limits = {k: v for k, v in loaded.description.presence.items() if k != chosen.name}
        if found.least is not None:
            limits[chosen.name] = round(found.least, 4)
        loaded.description.presence = {k: limits[k] for k in loaded.modalities if k in limits}
        save_description(loaded)
        screen.say(_told(chosen.name, found))


def _seen(
    segmenter: Segmenter, modality: Modality, pairs: list[CasePair], beside: list[Path]
) -> Iterator[list[SeenTile]]:
    """The tiles of each case and of each image of something else."""
    from esp_medsam_app.data.reading import read_image
    from esp_medsam_app.evaluation.pairs import read_pair
    from esp_medsam_app.evaluation.presence import seen_tiles

    for number, pair in enumerate(pairs):
        image, reference = read_pair(pair, modality)
        yield list(seen_tiles(segmenter, modality, image, reference.voxels, number))
    for path in beside:
        image = read_image(path)
        yield list(seen_tiles(segmenter, modality, image, None, most_slices=_FOREIGN_SLICES))


def _told(name: str, found: Calibration) -> str:
    if found.least is None:
        return (
            f"{name}: no limit. Dice {found.dice[0]:.3f}, {found.marked[0]:.1%} of what holds "
            "nothing is marked"
        )
    return (
        f"{name}: {found.least:.2f}. Dice {found.dice[0]:.3f} before, {found.dice[1]:.3f} with it; "
        f"of what holds nothing {found.marked[0]:.1%} was marked, {found.marked[1]:.1%} is; "
        f"{found.lost:.1%} of what holds it is held empty"
    )
