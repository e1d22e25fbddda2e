"""A real PACS: Orthanc with its DICOMweb plugin, as Debian packages it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from pydicom.dataset import Dataset
from support.fake_pacs import encoded

_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
_SECONDS = 60
USER, PASSWORD = "doctor", "secret"


def why_not() -> str:
    """What is missing on this machine; empty if nothing is."""
    if program() is None:
        return "Orthanc is not installed (Debian: orthanc)"
    if not _PLUGIN.is_file():
        return "Orthanc has no DICOMweb plugin (Debian: orthanc-dicomweb)"
    return ""


def program() -> str | None:
    """Orthanc's own; Debian puts it where only administrators look."""
    return shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")


class Orthanc:
    """A process with a storage of its own.

    Args:
        folder: for its files.
        with_password: whether it wants one.
    """

    def __init__(self, folder: Path, *, with_password: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = _free_port()
        settings = {
            "Name": "test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(_PLUGIN)],
            "HttpPort": self.port,
            "HttpBindAddresses": ["127.0.0.1"],
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": with_password,
            "RegisteredUsers": {USER: PASSWORD},
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        self._configuration = folder / "orthanc.json"
        self._configuration.write_text(json.dumps(settings))
        self._password = with_password
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of the DICOMweb root."""
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def start(self) -> None:
        """Start, and wait until it answers."""
        command = program()
        assert command is not None
        with (self.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [command, str(self._configuration)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            try:
                self.ask("/system")
                return
            except (urllib.error.URLError, OSError):
                assert self._process.poll() is None, (self.folder / "log.txt").read_text()
                time.sleep(0.05)
        raise AssertionError("Orthanc does not answer")

    def stop(self) -> None:
        """End it; what it stores stays."""
        if self._process is not None:
            self.thaw()
            self._process.terminate()
            self._process.wait(_SECONDS)
            self._process = None

    def freeze(self) -> None:
        """It takes connections and never answers."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def put(self, datasets: Iterable[Dataset]) -> str:
        """Store instances; the UID of their series."""
        uid = ""
        for dataset in datasets:
            self.ask("/instances", encoded(dataset))
            uid = str(dataset.SeriesInstanceUID)
        return uid

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        """A question to Orthanc's own interface."""
        manager = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        address = f"http://127.0.0.1:{self.port}"
        if self._password:
            manager.add_password(None, address, USER, PASSWORD)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPBasicAuthHandler(manager)
        )
        with opener.open(address + path, data=body, timeout=_SECONDS) as answer:
            return bytes(answer.read())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
