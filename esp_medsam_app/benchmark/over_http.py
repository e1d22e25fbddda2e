"""Requests to a server of its own: what a viewer waits for."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from esp_medsam_app.benchmark.timing import Latency, Step
from esp_medsam_app.benchmark.volume import write_ct
from esp_medsam_app.errors import EspMedSamError
from esp_medsam_app.samples.phantoms import chest
from esp_medsam_app.server.conf import model_name
from esp_medsam_app.server.data_folder import DataFolder
from esp_medsam_app.server.launch import FRONT_DOOR, ServerProcess, app_folder, start_server
from esp_medsam_app.weights.profiles import FULL

_START_SECONDS = 300
_ANSWER_SECONDS = 3600
NOISE = 4.0


@dataclass(frozen=True)
class RequestFigures:
    """Of the requests for one kind of image.

    Attributes:
        image: what was asked for.
        first: the first request for each image.
        again: further requests for an image, as from a second click.
        profile: of the server's weights.
    """

    image: str
    first: Latency
    again: Latency
    profile: str = FULL


@dataclass(frozen=True)
class HttpReport:
    """Of a server on this machine, one request at a time.

    Attributes:
        modality: whose model.
        figures: of each kind of image.
    """

    modality: str
    figures: list[RequestFigures]


def measure_http(
    bundle: Path,
    modality: str,
    device: str,
    folder: Path,
    *,
    images: int,
    slices: int = 0,
    profile: str = FULL,
    on_step: Step | None = None,
) -> HttpReport:
    """Start a server on images drawn here, ask for each twice, and stop it.

    Args:
        bundle: folder of the weights.
        modality: one of its own.
        device: of the server.
        folder: for all that the server writes.
        images: pictures to ask for.
        slices: of a CT to ask for too; 0: none.
        profile: whose weights these are, for the figures.
        on_step: called with the requests done and the requests in all.

    Raises:
        EspMedSamError: the server does not start, or answers with an error.
    """
    home = DataFolder(folder / f"home_{profile}")
    home.prepare(app_folder())
    home.studies.mkdir()
    pictures = write_pictures(home.studies, images + 1)
    volumes = [write_ct(home.studies, slices).name.removesuffix(".nii.gz")] if slices else []
    with (folder / f"server_{profile}.log").open("wb") as log:
        server = start_server(
            home.app,
            str(home.studies),
            port=0,
            conf={
                "models": modality,
                "bundle": str(bundle),
                "device": device,
                "preload": "true",
                "background_scores": "false",
                # what is drawn here is of one modality, and any may be measured
                "check_images": "false",
            },
            arguments=FRONT_DOOR,
            environment=home.environment(),
            output=log.fileno(),
        )
    done, total = 0, 1 + 2 * (images + len(volumes))

    def timed(image: str) -> float:
        nonlocal done
        seconds = _seconds(server, model_name(modality), image)
        done += 1
        if on_step is not None:
            on_step(done, total)
        return seconds

    try:
        server.wait_until_ready(_START_SECONDS)
        timed(pictures.pop())
        figures = []
        for kind, names in (("picture", pictures), ("volume", volumes)):
            if names:
                first, again = zip(*((timed(name), timed(name)) for name in names), strict=True)
                figures.append(RequestFigures(kind, Latency.of(first), Latency.of(again), profile))
    finally:
        server.stop()
    return HttpReport(modality, figures)


def write_pictures(folder: Path, count: int) -> list[str]:
    """Write radiographs that differ in their noise; their names in the datastore."""
    pixels = chest().pixels.astype(np.float32)
    random = np.random.default_rng(0)
    names = [f"picture_{number}" for number in range(count)]
    for name in names:
        noisy = np.clip(pixels + random.normal(0, NOISE, pixels.shape), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{name}.png")
    return names


def _seconds(server: ServerProcess, model: str, image: str) -> float:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=_ANSWER_SECONDS)
    start = time.perf_counter()
    try:
        connection.request("POST", f"/infer/{model}?image={quote(image)}&output=image")
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise EspMedSamError(f"the server does not answer ({error})") from error
    finally:
        connection.close()
    if response.status != 200:
        raise EspMedSamError(f"the server answers {response.status}: {_detail(body)}")
    return time.perf_counter() - start


def _detail(body: bytes) -> str:
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
