"""`esp-medsam serve`: the MONAI Label server, and what to open then."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esp_medsam_app.commands.runtime import BundleOption, DeviceOption, QualityOption, Screen
from esp_medsam_app.errors import EspMedSamError, InputError

if TYPE_CHECKING:
    from esp_medsam_app.server.data_folder import DataFolder

SAMPLES = Path("sample_data/built")
_OPEN_WARNING = (
    "Warning: everybody in the network can see the images and change labels. Set "
    "ESP_MEDSAM_TOKEN, or leave --host away; see docs/security.md"
)


def register(app: typer.Typer) -> None:
    """Add `serve` to the command line."""

    @app.command()
    def serve(
        studies: Annotated[
            str | None,
            typer.Option(
                metavar="DIR|URL",
                help="Folder of images, or address of a DICOMweb server; sample data if not given.",
            ),
        ] = None,
        host: Annotated[
            str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")
        ] = "127.0.0.1",
        port: Annotated[
            int, typer.Option(min=0, max=65535, help="TCP port; 0 takes any that is free.")
        ] = 8000,
        models: Annotated[
            str, typer.Option(metavar="a,b", help="Models to serve, e.g. ct_liver,xray_chest.")
        ] = "all",
        bundle: BundleOption = None,
        profile: Annotated[
            str | None,
            typer.Option(
                "--profile",
                metavar="NAME",
                help="ESP-MedSAM's weights of the package: full; or compact, a fraction of the "
                "work, for laptops.",
            ),
        ] = None,
        quality: QualityOption = "balanced",
        desam: Annotated[
            Path | None,
            typer.Option("--desam", metavar="DIR", help="Weights of DeSAM, for its models beside."),
        ] = None,
        modalities: Annotated[
            Path | None,
            typer.Option("--modalities", metavar="DIR", help="Modalities of your own, NAME.yaml."),
        ] = None,
        versions: Annotated[
            Path | None,
            typer.Option(
                "--versions", metavar="DIR", help="What is trained here; by default in the app."
            ),
        ] = None,
        device: DeviceOption = "auto",
        preload: Annotated[
            bool, typer.Option("--preload", help="Load the weights now, not at the first request.")
        ] = False,
        app_dir: Annotated[
            Path | None,
            typer.Option("--app", metavar="DIR", help="The app, if not apps/esp_medsam here."),
        ] = None,
        data: Annotated[
            Path | None,
            typer.Option(
                "--data",
                metavar="DIR",
                help="Write everything below this folder: studies, labels, versions, logs, caches.",
            ),
        ] = None,
        log_level: Annotated[
            str,
            typer.Option(
                help="What the server prints: INFO is a line a request, DEBUG is everything; "
                "also WARNING and ERROR."
            ),
        ] = "INFO",
        timeout: Annotated[float, typer.Option(min=1, help="Seconds it may take to start.")] = 300,
    ) -> None:
        """Start the MONAI Label server, and tell what to open in 3D Slicer or OHIF.

        As `monailabel start_server --app apps/esp_medsam`, behind a front door that keeps requests
        apart and strangers out; docs/deployment.md. Ctrl-C stops it.
        """
        from esp_medsam_app.server.data_folder import DataFolder
        from esp_medsam_app.server.held_output import HeldOutput
        from esp_medsam_app.server.launch import FRONT_DOOR, app_folder, free_port, start_server

        screen = Screen()
        home = DataFolder(data.resolve()) if data is not None else None
        if home is not None:
            home.prepare(app_dir or app_folder())
        folder = _checked_app(home.app if home is not None else app_dir or app_folder())
        level = _checked_level(log_level)
        # MONAI Label's own INFO are hundreds of lines
        others = "WARNING" if level == "INFO" else level
        # before the slow parts, so that every mistake is told at once
        port = free_port(host, port)
        conf = _checked_conf(models, bundle, modalities, device, preload, desam, profile, quality)
        if versions is not None:
            conf["versions"] = str(versions.resolve())
        token = _token()
        if _is_open(host):
            screen.say(_OPEN_WARNING)
        place = _checked_studies(studies) if studies else _samples(screen, home)
        with _stop_signals():
            screen.say(f"Starting the server on {place} ...")
            server = start_server(
                folder,
                place,
                host=host,
                port=port,
                conf={**conf, "log_level": level},
                environment=home.environment() if home is not None else None,
                arguments=(*FRONT_DOOR, "--verbose", others, "--log_level", others.lower()),
                output=subprocess.PIPE,
            )
            assert server.process.stdout is not None
            lines = HeldOutput(server.process.stdout, sys.stderr)
            try:
                try:
                    if level == "DEBUG":
                        lines.release(all_lines=True)
                    info = server.wait_until_ready(timeout, token)
                except EspMedSamError:
                    server.stop()
                    lines.finish()
                    lines.release(all_lines=True)
                    raise
                lines.release(all_lines=False)
                screen.say(_welcome(info, server.url, place, token is not None))
                code = server.process.wait()
                raise EspMedSamError(
                    f"the server has stopped by itself (exit code {code})",
                    remedy="Its last lines above may say why",
                )
            except KeyboardInterrupt:
                screen.say("Stopping the server ...")
            finally:
                server.stop()
        screen.say("The server has stopped")


def _checked_app(folder: Path) -> Path:
    if not (folder / "main.py").is_file():
        raise InputError("not a MONAI Label app: there is no main.py", path=folder)
    if not os.access(folder, os.W_OK):
        raise InputError(
            "the server cannot write its logs into the app's folder",
            path=folder,
            remedy="Copy the folder to where you may write, and give the copy with --app",
        )
    return folder


def _checked_level(level: str) -> str:
    known = ("DEBUG", "INFO", "WARNING", "ERROR")
    if level.upper() not in known:
        raise InputError(f"--log-level {level}: not one of {', '.join(known)}")
    return level.upper()


def _checked_conf(
    models: str,
    bundle: Path | None,
    modalities: Path | None,
    device: str,
    preload: bool,
    desam: Path | None = None,
    profile: str | None = None,
    quality: str = "balanced",
) -> dict[str, str]:
    """The app's `--conf`, after a look that the server will not stumble over it.

    Raises EspMedSamError as the app would, but before a server is started.
    """
    from esp_medsam_app.inference.device import choose_device
    from esp_medsam_app.inference.input_size import check_input_size
    from esp_medsam_app.server.conf import added_modalities, model_names, select_models
    from esp_medsam_app.server.desam_bundles import desam_models
    from esp_medsam_app.weights import load_bundle
    from esp_medsam_app.weights.profiles import chosen_bundle

    known = load_bundle(chosen_bundle(bundle, profile)).modalities
    added = added_modalities(modalities, known)
    names = [*model_names(known, added), *desam_models(desam, models, {**known, **added})]
    select_models(models, names)
    choose_device(device)
    check_input_size(quality)
    conf = {
        "models": models,
        "device": device,
        "preload": str(preload).lower(),
        "quality": quality,
    }
    if bundle is not None:
        conf["bundle"] = str(bundle.resolve())
    if profile is not None:
        conf["profile"] = profile
    if desam is not None:
        conf["desam"] = str(desam.resolve())
    if modalities is not None:
        conf["modalities"] = str(modalities.resolve())
    return conf


def _checked_studies(studies: str) -> str:
    if studies.startswith(("http://", "https://")):
        return studies
    folder = Path(studies)
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "there is no such folder"
        raise InputError(what, path=folder, remedy="Give a folder of images with --studies")
    if not os.access(folder, os.W_OK):
        raise InputError(
            "the server cannot write into the studies",
            path=folder,
            remedy="It keeps labels and its list of images there; copy the images first",
        )
    return str(folder)


def _token() -> str | None:
    """What clients log in with, where that is a token."""
    from esp_medsam_app.server.door.settings import DoorSettings

    token = DoorSettings.read().token
    return token.get_secret_value() if token is not None else None


def _is_open(host: str) -> bool:
    """Whether others may reach the server, and nobody has to log in."""
    alone = host in ("localhost", "::1") or host.startswith("127.")
    keycloak = os.environ.get("MONAI_LABEL_AUTH_ENABLE", "").strip().lower()
    # as MONAI Label's settings read it
    return not alone and not (_token() or keycloak in ("1", "on", "t", "true", "y", "yes"))


def _samples(screen: Screen, home: DataFolder | None) -> str:
    from esp_medsam_app.samples import build_sample_data

    if home is not None:
        if home.studies.is_dir():
            return str(home.studies)
        screen.say(f"No --studies given: sample data goes into {home.studies}")
        built = build_sample_data(home.path / "tmp" / "samples").folder
        shutil.move(built / "studies", home.studies)
        shutil.rmtree(built)
        return str(home.studies)
    screen.say(f"No --studies given: using the sample data in {SAMPLES}")
    return str(build_sample_data(SAMPLES).folder / "studies")


def _welcome(info: dict[str, Any], url: str, studies: str, has_token: bool) -> str:
    is_archive = studies.startswith(("http://", "https://"))
    ohif = f"{url}/ohif/" if is_archive else "needs studies on a DICOMweb server, not in a folder"
    lines = [
        "",
        f"ESP-MedSAM is ready at {url}",
        f"  models     {', '.join(info.get('models', {})) or 'told after the log-in'}",
        f"  studies    {studies} ({_counted(info)})",
        f"  3D Slicer  module MONAI Label, MONAI Label server: {url}",
        f"  OHIF       {ohif}",
        f"  REST       {url}/ (try it out), {url}/info/",
    ]
    if has_token:
        lines.append("  log-in     any user name, the token (ESP_MEDSAM_TOKEN) as the password")
    elif not info:
        lines.append("  log-in     with Keycloak")
    problem = info.get("datastore", {}).get("problem")
    if problem:
        doctor = f"esp-medsam doctor --studies {studies}"
        lines.append(f"Warning: {problem}. No image is listed until it does; {doctor} tells more")
    return "\n".join([*lines, "Ctrl-C stops it."])


def _counted(info: dict[str, Any]) -> str:
    if not info:
        return "images are counted after the log-in"
    datastore = info.get("datastore", {})
    if datastore.get("problem"):
        return f"not listed, {datastore.get('total', 0)} images known from before"
    return f"{datastore.get('total', '?')} images"


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Let a stop from outside (kill, a closed terminal) end the server as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), interrupt) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
