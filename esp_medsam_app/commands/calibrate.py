"""`esp-medsam calibrate`: from which certainty on the structure is taken to be there."""

from __future__ import annotations

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
    from esp_medsam_app.evaluation.presence import Calibration, SeenTile


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
        limit: Annotated[int | None, typer.Option(min=1, help="Only the first N cases.")] = None,
        most_marked: Annotated[
            float,
            typer.Option(min=0, max=1, help="Share of slices without it that may be marked."),
        ] = 0.03,
        device: DeviceOption = "auto",
    ) -> None:
        """Fit how sure SPPG has to be that a structure is there, and write it into the bundle.

        Below that, a tile is held empty. It is the lowest limit at which hardly any slice without
        the structure is marked, as long as the mean Dice does not suffer; none where nothing is
        gained. Fit it on validation cases that have such slices, after training.
        """
        from esp_medsam_app.evaluation.pairs import find_pairs, read_pair
        from esp_medsam_app.evaluation.presence import calibrate as fit
        from esp_medsam_app.evaluation.presence import seen_tiles
        from esp_medsam_app.weights.bundle import save_description

        pairs = find_pairs(data)[:limit]
        segmenter = make_segmenter(bundle, device, None)
        if not is_esp_medsam(segmenter) or not segmenter.bundle.description.design.patch_prompt:
            raise InputError("these weights have no SPPG, which it is about", path=bundle)
        chosen = segmenter.bundle.modality(modality)
        screen = Screen()
        tiles: list[SeenTile] = []
        with screen.progress as progress:
            task = progress.add_task("cases", total=len(pairs))
            for number, pair in enumerate(pairs):
                image, reference = read_pair(pair, chosen)
                tiles.extend(seen_tiles(segmenter, chosen, image, reference.voxels, number))
                progress.advance(task)
        found = fit(tiles, most_marked)
        loaded = segmenter.bundle
        limits = {k: v for k, v in loaded.description.presence.items() if k != chosen.name}
        if found.least is not None:
            limits[chosen.name] = round(found.least, 4)
        loaded.description.presence = {k: limits[k] for k in loaded.modalities if k in limits}
        save_description(loaded)
        screen.say(_told(chosen.name, found))


def _told(name: str, found: Calibration) -> str:
    if found.least is None:
        return (
            f"{name}: no limit. Dice {found.dice[0]:.3f}; {found.marked[0]:.1%} of the slices "
            "without it are marked"
        )
    return (
        f"{name}: {found.least:.2f}. Dice {found.dice[0]:.3f} before, {found.dice[1]:.3f} with it; "
        f"of the slices without it {found.marked[0]:.1%} were marked, {found.marked[1]:.1%} are; "
        f"{found.lost:.1%} of those with it are held empty"
    )
