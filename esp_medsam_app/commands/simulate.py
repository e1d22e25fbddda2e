"""`esp-medsam simulate-annotation`: which case to annotate next, tried on cases with labels."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from esp_medsam_app.commands.runtime import BundleOption, KnownModalityOption, Screen
from esp_medsam_app.commands.training_options import (
    ChangesOption,
    DeviceOption,
    RecipeOption,
    read_recipe,
    surroundings,
)
from esp_medsam_app.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from esp_medsam_app.learning.simulation import Replay

_EVERYTHING = "everything"
# views of a case unless the recipe says otherwise
_VIEWS_A_CASE = 4

Curves = dict[str, dict[int, list[float]]]


def register(app: typer.Typer) -> None:
    """Add `simulate-annotation` to the command line."""

    @app.command("simulate-annotation")
    def simulate_annotation(
        data: Annotated[
            list[Path],
            typer.Option(
                "--data",
                metavar="DIR",
                help="To annotate: holds images/ and labels/ with equal stems. May be given often.",
            ),
        ],
        test: Annotated[
            list[Path], typer.Option("--test", metavar="DIR", help="To judge by, likewise.")
        ],
        modality: KnownModalityOption,
        strategies: Annotated[
            str, typer.Option("--strategies", help="Names, separated by commas.")
        ] = "random,uncertainty,diversity,hybrid",
        budgets: Annotated[
            str, typer.Option("--budgets", help="Numbers of annotated cases, ascending.")
        ] = "8,16,32,64",
        seeds: Annotated[
            int, typer.Option("--seeds", min=1, help="So many replays of each strategy.")
        ] = 3,
        limit: Annotated[
            int | None, typer.Option("--limit", min=1, help="Only the first N test cases.")
        ] = None,
        work: Annotated[
            Path,
            typer.Option(
                "--work",
                metavar="DIR",
                help="What was computed. A replay that was stopped goes on from here.",
            ),
        ] = Path("runs/simulation"),
        json: Annotated[
            Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here too.")
        ] = None,
        plot: Annotated[
            Path | None, typer.Option("--plot", metavar="FILE", help="Draw them: .png, .svg, .pdf.")
        ] = None,
        recipe: RecipeOption = "two_cores",
        changes: ChangesOption = None,
        bundle: BundleOption = None,
        device: DeviceOption = "auto",
    ) -> None:
        """Replay annotation: Dice on test cases against the number of annotated cases.

        The modality starts fresh on the bundle's backbone and decoder, as a new one does. Its first
        cases are drawn by chance; then a strategy chooses, with a model trained on what is
        annotated so far. Every model is trained with `joint_steps` of the recipe. Intervals are
        over seeds (percentile bootstrap); cases needed are those at which the mean Dice reaches
        that of the whole pool minus one point.
        """
        from esp_medsam_app.active_learning.strategies import STRATEGIES
        from esp_medsam_app.evaluation.pairs import check_references, find_pairs
        from esp_medsam_app.learning.simulation import Replay
        from esp_medsam_app.modalities import find_modality
        from esp_medsam_app.training.record import claim
        from esp_medsam_app.weights import load_bundle

        chosen = find_modality(modality)
        pool, judged = find_pairs(data), find_pairs(test)[:limit]
        for pairs in (pool, judged):
            check_references(pairs, chosen)
        names = [name.strip() for name in strategies.split(",") if name.strip()]
        unknown = [name for name in names if name not in STRATEGIES]
        if unknown or not names:
            raise UnknownNameError(
                f"there is no strategy {', '.join(map(repr, unknown))}"
                if unknown
                else "none given",
                remedy=f"Available: {', '.join(STRATEGIES)}",
            )
        steps = _budgets(budgets, len(pool))
        numbers = read_recipe(recipe, [f"views={_VIEWS_A_CASE * len(pool)}", *(changes or [])], 0)
        weights = load_bundle(bundle)
        claim(
            work,
            {
                "recipe": numbers.model_dump(),
                "pool": [str(case.image.resolve()) for case in pool],
                "test": [str(case.image.resolve()) for case in judged],
                "weights": weights.description.files.get("decoder.safetensors"),
            },
        )
        with surroundings(work, device) as place:
            replay = Replay(weights, chosen, pool, judged, numbers, place)
            curves = _replayed(replay, names, steps, seeds)
        screen = Screen()
        figures = _figures(curves)
        screen.show(_table(figures, steps, len(pool), len(judged)))
        if json is not None:
            json.write_text(json_module.dumps(figures, indent=2) + "\n", encoding="utf-8")
        if plot is not None:
            _draw(figures, plot, f"{chosen.title}: {len(judged)} test cases, {seeds} seeds")


def _budgets(text: str, pool: int) -> list[int]:
    try:
        budgets = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--budgets {text}: not numbers separated by commas") from None
    if budgets != sorted(set(budgets)) or budgets[0] < 1 or budgets[-1] > pool:
        raise InputError(
            f"--budgets {text}: not ascending numbers from 1 to {pool}, the cases there are"
        )
    return budgets


def _replayed(replay: Replay, names: list[str], budgets: list[int], seeds: int) -> Curves:
    """Dice by strategy and budget, a value a seed."""
    curves: Curves = {name: {budget: [] for budget in budgets} for name in names}
    curves[_EVERYTHING] = {len(replay.pool): []}
    for seed in range(seeds):
        curves[_EVERYTHING][len(replay.pool)].append(replay.everything(seed))
        for name in names:
            for budget, (dice, _) in replay.run(name, seed, budgets).items():
                curves[name][budget].append(dice)
    return curves


def _figures(curves: Curves) -> dict[str, Any]:
    from esp_medsam_app.evaluation.metrics import bootstrap_interval
    from esp_medsam_app.learning.simulation import needed_for

    (everything,) = curves[_EVERYTHING].values()
    wanted = fmean(everything) - 0.01
    return {
        "everything": {
            "dice": fmean(everything),
            "ci95": bootstrap_interval(everything),
            "seeds": everything,
        },
        "wanted": wanted,
        "strategies": {
            name: {
                "dice": {budget: fmean(values) for budget, values in curve.items()},
                "ci95": {budget: bootstrap_interval(values) for budget, values in curve.items()},
                "seeds": curve,
                "needed": needed_for(wanted, {b: fmean(values) for b, values in curve.items()}),
            }
            for name, curve in curves.items()
            if name != _EVERYTHING
        },
    }


def _table(figures: dict[str, Any], budgets: list[int], pool: int, test: int) -> Table:
    table = Table(title=f"Mean Dice on {test} test cases by annotated cases of {pool}")
    table.add_column("strategy")
    for budget in budgets:
        table.add_column(str(budget), justify="right")
    table.add_column("cases needed", justify="right")
    for name, found in figures["strategies"].items():
        cells = [
            f"{found['dice'][b]:.3f} ({found['ci95'][b][0]:.3f} to {found['ci95'][b][1]:.3f})"
            for b in budgets
        ]
        needed = found["needed"]
        table.add_row(name, *cells, "more" if needed is None else f"{needed:.0f}")
    whole = figures["everything"]
    low, high = whole["ci95"]
    table.caption = (
        f"All {pool}: {whole['dice']:.3f} ({low:.3f} to {high:.3f}); "
        f"needed for {figures['wanted']:.3f}"
    )
    return table


def _draw(figures: dict[str, Any], file: Path, title: str) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "--plot needs matplotlib, which is not installed", remedy="pip install matplotlib"
        ) from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, found in figures["strategies"].items():
        budgets = list(found["dice"])
        dice = [found["dice"][b] for b in budgets]
        (line,) = axes.plot(budgets, dice, marker="o", label=name)
        low, high = zip(*(found["ci95"][b] for b in budgets), strict=True)
        axes.fill_between(budgets, low, high, color=line.get_color(), alpha=0.15)
    axes.axhline(figures["wanted"], color="grey", linestyle="--", label="all cases less one point")
    axes.set(xlabel="annotated cases", ylabel="mean Dice", title=title, xscale="log")
    steps = sorted({b for found in figures["strategies"].values() for b in found["dice"]})
    axes.set_xticks(steps, labels=[str(step) for step in steps])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(file)
