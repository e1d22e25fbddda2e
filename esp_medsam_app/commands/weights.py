"""`esp-medsam weights`: what a bundle holds, whether it is whole, its model card, its versions."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from esp_medsam_app.commands.runtime import BundleOption, Screen, checked_prompt
from esp_medsam_app.data.texts import read_json
from esp_medsam_app.errors import InputError

if TYPE_CHECKING:
    from esp_medsam_app.weights import Bundle
    from esp_medsam_app.weights.versions import VersionStore

_VERSIONS_HELP = "Versions that a server keeps: model/versions in its app's folder."
VersionsOption = Annotated[
    Path, typer.Option("--versions", metavar="DIR", help=_VERSIONS_HELP, show_default=False)
]
OptionalVersionsOption = Annotated[
    Path | None, typer.Option("--versions", metavar="DIR", help=_VERSIONS_HELP)
]
OneModalityOption = Annotated[
    str, typer.Option("--modality", "-m", metavar="NAME", help="Of a version.")
]
AnyModalityOption = Annotated[
    str | None, typer.Option("--modality", "-m", metavar="NAME", help="This one alone.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines.")]


def register(app: typer.Typer) -> None:
    """Add the group `weights` to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Look into bundles of weights.")
    app.add_typer(group, name="weights")

    @group.command("list")
    def list_versions(
        versions: VersionsOption,
        modality: AnyModalityOption = None,
        bundle: BundleOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """List the versions of every modality: when, on how many cases, Dice, which one serves."""
        from esp_medsam_app.weights.versions import overview

        store = _opened(versions, bundle)
        found = overview(store, [modality] if modality else None)
        if as_json:
            Screen().say(json.dumps(found, indent=2))
            return
        Screen().show(_versions_table(found, str(versions)))
        if not any(version["number"] for entry in found for version in entry["versions"]):
            Screen().say(_no_versions(versions, store))

    @group.command()
    def restore(
        versions: VersionsOption,
        modality: OneModalityOption,
        number: Annotated[
            int, typer.Option(min=0, metavar="N", help="The version; 0: the bundle's own.")
        ],
        bundle: BundleOption = None,
        yes: Annotated[
            bool, typer.Option("--yes", "-y", help="Do not ask about one that was kept back.")
        ] = False,
    ) -> None:
        """Let a version serve, from a running server's next request on. The audit has a line."""
        store = _opened(versions, bundle)
        before = store.serving().get(modality, 0)
        version = store.get(modality, number) if number else None
        if version is not None and version.state == "kept_back" and not yes:
            _ask(f"version {number} of {modality} was kept back: {version.reason}")
        store.restore(modality, number, "restored on the command line")
        log = _audited(versions, modality=modality, version=number, over=before)
        Screen().say(f"{modality}: version {number} serves, {before} did; noted in {log}")

    @group.command()
    def show(
        bundle: BundleOption = None,
        versions: OptionalVersionsOption = None,
        modality: AnyModalityOption = None,
        number: Annotated[
            int | None,
            typer.Option(min=0, metavar="N", help="Of a version; by default the one that serves."),
        ] = None,
        as_json: JsonOption = False,
    ) -> None:
        """List the modalities of a bundle with labels and scores; or tell all of one version."""
        if versions is not None:
            if modality is None:
                raise InputError("--versions shows one version: --modality is needed too")
            store = _opened(versions, bundle)
            if number is None:
                number = store.serving().get(modality, 0)
            version = store.get(modality, number).model_dump(mode="json")
            if as_json:
                Screen().say(json.dumps(version, indent=2))
            else:
                Screen().show(_version_table(version))
            return
        if modality is not None or number is not None or as_json:
            raise InputError("--modality, --number and --json go with --versions")
        from esp_medsam_app.weights.bundle import load_any_bundle

        _show_bundle(load_any_bundle(bundle))

    @group.command()
    def verify(bundle: BundleOption = None) -> None:
        """Compare every weight file, the backbone's too, with its SHA-256."""
        from esp_medsam_app.weights.bundle import load_any_bundle

        loaded = load_any_bundle(bundle)
        loaded.verify()
        Screen().say(f"{loaded.path}: {len(loaded.description.files)} files and backbone are whole")

    @group.command()
    def pull(
        name: Annotated[
            str, typer.Argument(metavar="NAME", help="sam_vit_b, sam_vit_l or sam_vit_h.")
        ],
        source: Annotated[
            str | None,
            typer.Option(metavar="URL", help="Folder of a mirror; the authors' by default."),
        ] = None,
    ) -> None:
        """Fetch one of SAM's encoders (0.4, 1.2, 2.6 GB) and verify it; kept in the cache folder.

        Nothing else in this program fetches anything. ESP_MEDSAM_CACHE names another folder.
        """
        from esp_medsam_app.weights.sam_downloads import OFFICIAL, get_release
        from esp_medsam_app.weights.sam_downloads import pull as fetch

        release = get_release(name)
        screen = Screen()
        with screen.progress as bars:
            bar = bars.add_task(release.file, total=None)
            path = fetch(
                release,
                source=source or OFFICIAL,
                on_bytes=lambda done, total: bars.update(bar, completed=done, total=total or None),
            )
        screen.say(f"{name}: {path}")

    @group.command("import-desam")
    def import_desam(
        checkpoint: Annotated[
            Path, typer.Argument(metavar="FILE", help="That DeSAM's own training wrote.")
        ],
        output: Annotated[
            Path, typer.Option("--output", "-o", metavar="DIR", help="The bundle; made if new.")
        ],
        modality: Annotated[
            str,
            typer.Option(
                "--modality",
                "-m",
                metavar="NAME|FILE",
                help="What it was trained on: of the catalogue, or a YAML file. One label.",
            ),
        ],
        prompt: Annotated[
            str | None,
            typer.Option(metavar="NAME", help="It was trained with: whole_box or grid_points."),
        ] = None,
    ) -> None:
        """Make a bundle of a checkpoint of DeSAM's authors; it stands on one of SAM's encoders."""
        from esp_medsam_app.modalities import find_modality
        from esp_medsam_app.weights.official_desam import official_bundle

        known = find_modality(modality)
        bundle = official_bundle(checkpoint, output, known, checked_prompt(prompt))
        Screen().say(f"wrote {bundle.path}: {known.name} on {bundle.description.backbone.name}")

    @group.command()
    def merge(
        bundles: Annotated[
            list[Path], typer.Argument(metavar="DIR...", help="Bundles with modalities each.")
        ],
        output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The new one.")],
        name: Annotated[str, typer.Option(help="Of the bundle.")] = "esp-medsam",
    ) -> None:
        """Make one bundle of several that share all but their modalities."""
        from esp_medsam_app.weights.bundle import load_any_bundle
        from esp_medsam_app.weights.merging import merge_bundles

        bundle = merge_bundles([load_any_bundle(part) for part in bundles], output, name=name)
        Screen().say(f"wrote {bundle.path}: {', '.join(bundle.modalities)}")

    @group.command()
    def mix(
        before: Annotated[Path, typer.Argument(metavar="BEFORE", help="A bundle.")],
        after: Annotated[
            Path, typer.Argument(metavar="AFTER", help="What was trained with --start BEFORE.")
        ],
        output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The new one.")],
        share: Annotated[
            float, typer.Option(min=0, max=1, help="Of the way from BEFORE to AFTER.")
        ] = 0.5,
    ) -> None:
        """Make a bundle with weights between those of two: gains of a training, fewer losses."""
        from esp_medsam_app.weights.bundle import load_any_bundle
        from esp_medsam_app.weights.merging import mix_bundles

        bundle = mix_bundles(load_any_bundle(before), load_any_bundle(after), output, share=share)
        Screen().say(f"wrote {bundle.path}: {', '.join(bundle.modalities)}")

    @group.command()
    def card(
        bundle: Annotated[Path, typer.Option("--bundle", metavar="DIR", help="The bundle.")],
        report: Annotated[
            list[Path] | None,
            typer.Option(
                "--report", metavar="FILE", help="Written by `evaluate --json`: kept as scores."
            ),
        ] = None,
        split: Annotated[str, typer.Option(help="Which split the reports are about.")] = "val",
    ) -> None:
        """Keep scores in bundle.json and write the model card beside it."""
        from esp_medsam_app.weights.bundle import load_any_bundle, save_description
        from esp_medsam_app.weights.model_card import CARD, record_scores, render_card

        loaded = load_any_bundle(bundle)
        for file in report or []:
            try:
                loaded = record_scores(loaded, read_json(file), split)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"not a report of `esp-medsam evaluate --json` ({error})", path=file
                ) from error
        save_description(loaded)
        (loaded.path / CARD).write_text(render_card(loaded), encoding="utf-8")
        Screen().say(f"wrote {loaded.path / CARD}")


def _show_bundle(loaded: Bundle) -> None:
    table = Table(title=f"{loaded.description.name} ({loaded.path})")
    for column in ("modality", "labels", "Dice (cases)"):
        table.add_column(column)
    for name, modality in loaded.modalities.items():
        found = [
            f"{split} {score['dice']['mean']:.3f} ({score['cases']})"
            for split, score in loaded.description.scores.get(name, {}).items()
        ]
        table.add_row(name, ", ".join(modality.labels), ", ".join(found) or "-")
    Screen().show(table)


def _opened(versions: Path, bundle: Path | None) -> VersionStore:
    """The versions of a bundle. Raises InputError where there is no such folder."""
    from esp_medsam_app.weights.bundle import load_any_bundle
    from esp_medsam_app.weights.versions import open_versions

    if not versions.is_dir():
        raise InputError(
            "there is no such folder",
            path=versions,
            remedy="A server makes it at the first training: model/versions in its app's folder",
        )
    return open_versions(versions, load_any_bundle(bundle))


def _no_versions(versions: Path, store: VersionStore) -> str:
    """That nothing was trained, and where else to look."""
    told = (
        f"{versions}: there are no versions here, nothing was trained: the bundle's own (0) serve"
    )
    if (versions / "model" / "versions").is_dir():
        return f"{told}. An app's folder has them in {versions / 'model' / 'versions'}"
    others = sorted(folder.name for folder in versions.glob("bundle-*") if folder != store.path)
    return (
        f"{told}. Those in {', '.join(others)} are of other bundles: --bundle" if others else told
    )


def _ask(problem: str) -> None:
    """Go on only if somebody says so.

    Raises:
        InputError: nobody is there to say so.
        typer.Abort: they do not want it.
    """
    if not sys.stdin.isatty():
        raise InputError(problem, remedy="--yes lets it serve all the same")
    typer.confirm(f"{problem}.\nLet it serve all the same?", abort=True)


def _audited(versions: Path, **what: Any) -> Path:
    """Write the audit's line where the server of these versions has its audit; that file."""
    from esp_medsam_app.server.audit import AUDIT_FILE, audit, open_audit

    path, before = versions.resolve(), os.environ.get(AUDIT_FILE)
    open_audit(path.parents[1] / "logs" if path.parent.name == "model" else path)
    try:
        audit("model.restore", user=getpass.getuser(), **what)
        return Path(os.environ[AUDIT_FILE])
    finally:
        if before is None:
            del os.environ[AUDIT_FILE]


def _versions_table(found: list[dict[str, Any]], title: str) -> Table:
    table = Table(title=title)
    for column in ("modality", "version", "date (UTC)", "state", "cases", "Dice", "serves"):
        table.add_column(
            column,
            justify="right" if column == "version" else "left",
            no_wrap=column == "modality",
        )
    for entry in found:
        for version in entry["versions"]:
            table.add_row(
                entry["modality"],
                str(version["number"]),
                _date(version),
                version["state"].replace("_", " ") if version["number"] else "bundle",
                _cases(version),
                _dice(version),
                "yes" if version["number"] == entry["serving"] else "",
            )
        if entry["serving"] is None:
            table.add_row(entry["modality"], "-", "", "not trained", "", "", "")
    return table


def _version_table(version: Mapping[str, Any]) -> Table:
    modality = version["modality"]
    table = Table(title=f"{modality['name']}, version {version['number']}", show_header=False)
    table.add_column()
    # a SHA-256 is to be read whole
    table.add_column(overflow="fold")
    dice = version["dice"]
    rows = {
        "date (UTC)": _date(version),
        "state": version["state"].replace("_", " "),
        "reason": version["reason"],
        "labels": ", ".join(modality["labels"]),
        "trained from": "the backbone" if version["parent"] is None else str(version["parent"]),
        "trained on": ", ".join(version["cases"]["train"]),
        "Dice": _dice(version),
        **{
            f"  {case}": f"{_figure(dice['before'].get(case))} to {_figure(after)}"
            for case, after in dice["after"].items()
        },
        "training": json.dumps(version["training"]) if version["training"] else "",
        "SHA-256": version["sha256"],
        "of backbone": version["shared"]["backbone"],
        "of decoder": version["shared"]["decoder"],
    }
    for name, text in rows.items():
        # file names are not markup
        table.add_row(Text(name), Text(text or "-"))
    return table


def _date(version: Mapping[str, Any]) -> str:
    return (version["created"] or "-")[:16].replace("T", " ")


def _cases(version: Mapping[str, Any]) -> str:
    if not version["number"]:
        return "-"
    cases = version["cases"]
    return f"{len(cases['train'])} + {len(cases['validation'])}"


def _dice(version: Mapping[str, Any]) -> str:
    means = version["dice"]["means"]
    if means["after"] is None:
        return "-"
    return f"{_figure(means['before'])} to {_figure(means['after'])}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
