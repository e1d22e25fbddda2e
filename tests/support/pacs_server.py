"""The real server, with its front door, before a real PACS."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.orthanc import Orthanc
from support.real_server import START_SECONDS, copy_app

from esp_medsam_app.server.launch import FRONT_DOOR, start_server


@dataclass(frozen=True)
class PacsServer:
    """A server that runs: its address, its audit and its log."""

    url: str
    audit: Path
    log: Path


@contextmanager
def server_before(
    archive: Orthanc, folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[PacsServer]:
    """A server of two modalities, CT and MR; at the end it is stopped, and the PACS too."""
    log, audit = folder / "log.txt", folder / "audit.jsonl"
    with log.open("wb") as output:
        server = start_server(
            copy_app(folder),
            archive.url,
            port=0,
            conf={
                "device": "cpu",
                "background_scores": "false",
                "models": "ct_liver,mr_hippocampus",
            },
            arguments=FRONT_DOOR,
            environment={
                "HOME": str(folder),
                "MONAI_LABEL_DATASTORE_CACHE_PATH": str(folder / "cache"),
                "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
                "MONAI_LABEL_DICOMWEB_READ_TIMEOUT": "60",
                "ESP_MEDSAM_AUDIT_FILE": str(audit),
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
                **(environment or {}),
            },
            output=output.fileno(),
        )
    try:
        server.wait_until_ready(START_SECONDS)
        yield PacsServer(server.url, audit, log)
    finally:
        server.stop()
        archive.stop()
        print(log.read_text(errors="replace")[-20_000:])
