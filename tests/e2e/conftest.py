"""One real server process for all end-to-end tests, on small studies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from monailabel.client import MONAILabelClient
from support.real_server import START_SECONDS, Served, copy_app, small_studies, thin_series

from esp_medsam_app.samples import build_sample_data
from esp_medsam_app.server.launch import start_server


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample data, built anew."""
    return build_sample_data(tmp_path_factory.mktemp("samples")).folder


@pytest.fixture(scope="session")
def served(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`monailabel start_server` with the starter weights, answering."""
    folder = tmp_path_factory.mktemp("server")
    small_studies(samples, folder)
    temporary, network_log, log = folder / "tmp", folder / "network.txt", folder / "log.txt"
    temporary.mkdir()
    network_log.touch()
    guard = Path(__file__).parent / "no_network"
    environment = {
        "TMPDIR": str(temporary),
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        "NETWORK_LOG": str(network_log),
        "PYTHONPATH": os.pathsep.join([str(guard), os.environ.get("PYTHONPATH", "")]),
    }
    app = copy_app(folder)
    with log.open("wb") as output:
        process = start_server(
            app,
            str(folder / "studies"),
            port=0,
            # requests are measured: nothing else shall run
            conf={"device": "cpu", "background_scores": "false"},
            environment=environment,
            output=output.fileno(),
        )
    try:
        try:
            process.wait_until_ready(START_SECONDS)
        except Exception:
            print(log.read_text(errors="replace"))
            raise
        yield Served(
            process=process,
            studies=folder / "studies",
            references=folder / "references",
            series=thin_series(samples),
            temporary=temporary,
            network_log=network_log,
            log=log,
            app=app,
            environment=environment,
        )
    finally:
        process.stop()


@pytest.fixture
def client(served: Served, tmp_path: Path) -> MONAILabelClient:
    """MONAI Label's own client; its results go to `tmp_path`."""
    return MONAILabelClient(served.process.url, str(tmp_path), client_id="tests")


@pytest.fixture(scope="session")
def command_line() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`esp-medsam ARGUMENTS` in a process of its own."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from esp_medsam_app.cli import main; main()"]
            + [str(argument) for argument in arguments],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def segmented(
    served: Served,
    command_line: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """What `esp-medsam segment` writes for the studies, by the model that is to give the same."""
    folder = tmp_path_factory.mktemp("segmented")
    for modality, study in (
        ("xray_chest", "chest_phantom.png"),
        ("ct_liver", "thin_abdomen.nii.gz"),
    ):
        done = command_line(
            "segment", served.studies / study, "-m", modality, "-o", folder, "--device", "cpu"
        )
        assert done.returncode == 0, done.stderr
    return {
        "esp_medsam_xray_chest": folder / "chest_phantom_seg.png",
        "esp_medsam_ct_liver": folder / "thin_abdomen_seg.nii.gz",
    }
