"""Our front door: MONAI Label's server with what a hospital needs in front of it.

`esp-medsam serve` starts it, and so does

```
monailabel start_server --app apps/esp_medsam --studies DIR \
    --uvicorn_app esp_medsam_app.server.asgi:app
```

A request goes through these layers, from the network inwards:

1. `Answers`: a number for each request, errors as JSON, no paths of the server, counting;
2. CORS and `Origins`: which web pages may ask;
3. `ImageAddresses` and `Gate`: who may ask for what, by a signed address, a token or Keycloak;
   `access` has the table;
4. `Health` and `DicomProxy` answer by themselves; `SharedAnswers` answers equal requests once;
5. `Bodies`: the body is read as a whole, as far as it may and as the disks have room;
6. `Lanes`: a place to be worked on, after those who came before, or 429;
7. `OffTheLoop`: a thread with an event loop of its own;
8. `rooms`: our endpoints, and MONAI Label's for the rest.

Without `--uvicorn_app` there are only `DicomProxy` and layers 5 to 7, see `plain_server`.

**Concurrency.** One event loop, in the main thread, runs layers 1 to 6. It never blocks: it waits
for no network, no lock, and no disk but for small writes. Their state (lanes, counters of places)
belongs to the loop and has no locks. Layers 7 and 8 run in threads, one for each request, of which
at most `infer_slots + work_slots` are worked on at the same time; whatever they call may block.
Inferences have a lane of their own, so that `/info/`, the image list and the PACS proxy answer
while devices are busy. A place is free again when the answer begins, not when the client has read
it.

**Locks**, in the order in which a thread may take them; it never takes an earlier one while it
holds a later one, and none is held while an answer is sent:

1. a route's own (`datastore_routes._adding`, `task_routes._starting`);
2. `DatastoreFile`: its thread lock, then its file lock (other processes);
3. `SharedSegmenter._loading`: while weights are read;
4. `VersionStore`: its file lock (other processes);
5. `Segmenter._turn`: one pass on the device, a batch of tiles;
6. counters (`Metrics`, `DeviceLoads`, `BackgroundScores`): for a few instructions.

**Deadlines.** Files are read by processes of their own (`reading`), which are ended when they take
longer or more memory than a file of that size may. `/readyz` says 503 where all places of a lane
are taken and none is given back for longer than its work takes.

**Processes.** Trainings, batches and scorings are processes that MONAI Label starts. They end with
this one, however it ends, and have their temporary files in its folder. Labels and versions are
shared through files whose changes are atomic; see `datastore_file` and `versions`. Several uvicorn
workers would each have their own queue and task list: scale with devices, not with workers.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import psutil
from monailabel.config import settings as monai_settings

from esp_medsam_app.errors import InputError
from esp_medsam_app.server.children import end_children
from esp_medsam_app.server.disks import APP, STUDIES, Disks, written_folders
from esp_medsam_app.server.door.answers import Answers
from esp_medsam_app.server.door.asgi_types import Receive, Scope, Send
from esp_medsam_app.server.door.bodies import Bodies
from esp_medsam_app.server.door.dicom_proxy import PREFIX, DicomProxy
from esp_medsam_app.server.door.header_deadline import limit_headers
from esp_medsam_app.server.door.health import Health
from esp_medsam_app.server.door.identity import Gate
from esp_medsam_app.server.door.image_addresses import ImageAddresses
from esp_medsam_app.server.door.infer_routes import is_dicom_seg
from esp_medsam_app.server.door.lanes import Lanes, TwoLanes
from esp_medsam_app.server.door.metrics import Metrics
from esp_medsam_app.server.door.origins import Origins, normalised, with_cors
from esp_medsam_app.server.door.redaction import Redaction
from esp_medsam_app.server.door.refusal import RefusedError
from esp_medsam_app.server.door.rooms import rooms
from esp_medsam_app.server.door.settings import DoorSettings
from esp_medsam_app.server.door.shared_answers import SharedAnswers
from esp_medsam_app.server.door.temporary import TemporaryFolder
from esp_medsam_app.server.door.threads import OffTheLoop
from esp_medsam_app.server.log_lines import guard_logs

# parameters of addresses that name something of the server
_IDS = {"id", "image", "label", "tag", "session_id", "model"}


class FrontDoor:
    """The ASGI application.

    Args:
        settings: from the environment by default.
        monai_label: MONAI Label's application; its own by default.
        proxy_transport: to the PACS, for tests.

    Raises:
        InputError: options that cannot be used.
    """

    def __init__(
        self,
        settings: DoorSettings | None = None,
        monai_label: Any = None,
        proxy_transport: Any = None,
    ) -> None:
        self.settings = settings = settings or DoorSettings.read()
        if settings.token is not None and monai_settings.MONAI_LABEL_AUTH_ENABLE:
            raise InputError(
                "both ESP_MEDSAM_TOKEN and MONAI_LABEL_AUTH_ENABLE are set",
                remedy="Choose one log-in: the token, or Keycloak",
            )
        if monai_settings.MONAI_LABEL_API_STR:
            raise InputError(
                "MONAI_LABEL_API_STR is set: its endpoints would be there a second time, unguarded",
                remedy="Leave it away; a reverse proxy can serve everything below a path",
            )
        if settings.audit_file is not None:
            os.environ["ESP_MEDSAM_AUDIT_FILE"] = str(settings.audit_file)
        guard_logs()
        limit_headers(settings.header_seconds)
        # MONAI Label takes for granted that it is there
        os.environ.setdefault("PYTHONPATH", "")
        if monai_label is None:
            # it reads its settings when it is imported
            import monailabel.app

            monai_label = monailabel.app.app
        self.temporary = TemporaryFolder()
        self.metrics = Metrics()
        lanes = TwoLanes(settings)
        self.inferences, self.work = lanes.inferences, lanes.work
        self._rooms = rooms(monai_label, settings, self._opened, self._closed)
        self._monai_label = monai_label
        self._threads = OffTheLoop(self._room, lanes.places + 64, settings.upload_seconds)
        disks = Disks(settings.min_free_mb)
        self._proxy = DicomProxy(
            disks, settings.max_upload_mb, settings.upload_seconds, proxy_transport
        )
        self._health = Health(
            self._to_work,
            lanes=[self.inferences, self.work],
            metrics=self.metrics,
            min_free_mb=settings.min_free_mb,
            written=_written,
        )
        bodies = Bodies(
            Lanes(self._threads, lanes.of, self.metrics),
            disks,
            max_upload_mb=settings.max_upload_mb,
            max_json_kb=settings.max_json_kb,
            upload_seconds=settings.upload_seconds,
        )
        self._shared = SharedAnswers(bodies)
        origins = normalised(monai_settings.MONAI_LABEL_CORS_ORIGINS)
        gate = Gate(
            self._health,
            _secret(settings.token),
            _secret(settings.admin_token),
            settings.keycloak_issuer,
            settings.keycloak_audience,
        )
        guarded = Origins(ImageAddresses(gate), origins, settings.hosts)
        self._http = with_cors(Answers(guarded, self.metrics, self._redaction), origins)
        self._known_redaction: tuple[tuple[str, ...], Redaction] | None = None
        self._measure()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(_below_root(scope), receive, send)
        elif scope["type"] == "lifespan":
            self.temporary.open()
            try:
                await self._rooms(scope, receive, send)
            finally:
                await self._proxy.close()
                self.temporary.close()
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _to_work(self, scope: Scope, receive: Receive, send: Send) -> None:
        if any(letter < " " or letter == "\x7f" for letter in scope["path"]):
            raise RefusedError(404, "There is no such address.")
        if not scope.get("query_string", b"").isascii():
            raise RefusedError(400, "What comes after the ? has to be percent-encoded.")
        _check_ids(scope)
        if scope["path"].startswith(PREFIX):
            await self._proxy(scope, receive, send)
        else:
            await self._shared(scope, receive, send)

    async def _room(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._monai_label if is_dicom_seg(scope) else self._rooms
        await app(scope, receive, send)

    def _opened(self) -> None:
        # what is there now stays: looking through all of torch for garbage stops every request
        gc.collect()
        gc.freeze()
        self._health.is_ready = True

    def _closed(self) -> None:
        gc.unfreeze()
        self._health.is_ready = False
        end_children()
        self._threads.close()

    def _redaction(self) -> Redaction:
        # asked for with every answer, while the folders are the same all the time
        chosen = _chosen_folders()
        if self._known_redaction is None or self._known_redaction[0] != chosen:
            self._known_redaction = chosen, Redaction(_folders())
        return self._known_redaction[1]

    def _measure(self) -> None:
        lanes = {lane.name: lane for lane in (self.inferences, self.work)}
        gauge = self.metrics.gauge
        gauge(
            "running",
            "Requests that are worked on",
            lambda: {name: lane.running for name, lane in lanes.items()},
            "lane",
        )
        gauge(
            "waiting",
            "Requests in the queue",
            lambda: {name: lane.waiting for name, lane in lanes.items()},
            "lane",
        )
        gauge(
            "resident_bytes",
            "Main memory of the server",
            lambda: float(psutil.Process().memory_info().rss),
        )
        gauge("device_bytes", "Memory of each GPU that torch holds", _device_bytes, "device")
        gauge("tasks", "Trainings, batches and scorings that run", _running_tasks, "kind")


def _check_ids(scope: Scope) -> None:
    """Whether an id in the address is one: none is a path.

    An answer that told a path back would, without the server's folders in it, tell which there are.
    """
    if not scope["path"].startswith(PREFIX):
        query = scope.get("query_string", b"").decode("latin-1")
        for name, value in parse_qsl(query, errors="replace"):
            if name in _IDS and ("/" in value or "\\" in value):
                status = 422 if scope["method"] == "PUT" else 404
                raise RefusedError(status, f"{name}: an id is needed, and an id is no path.")


def _below_root(scope: Scope) -> Scope:
    """The request as if nothing stood before its path; `--root_path` says what does."""
    root, path = str(scope.get("root_path") or ""), str(scope["path"])
    if not root or not path.startswith(f"{root}/"):
        return scope
    return {**scope, "path": path.removeprefix(root), "root_path": ""}


def _device_bytes() -> dict[str, float]:
    import torch

    return {
        f"cuda:{number}": float(torch.cuda.memory_reserved(number))
        for number in range(torch.cuda.device_count())
    }


def _running_tasks() -> dict[str, float]:
    from monailabel.utils.async_tasks.utils import background_processes

    return {kind: float(len(running)) for kind, running in background_processes.items()}


def _written() -> dict[str, Path]:
    """The folders that hold what must not be lost, by what they are for."""
    return {name: folder for name, folder in written_folders().items() if name in (STUDIES, APP)}


def _chosen_folders() -> tuple[str, ...]:
    """What `_folders` depends on."""
    return (
        str(monai_settings.MONAI_LABEL_STUDIES),
        str(monai_settings.MONAI_LABEL_APP_DIR),
        str(monai_settings.MONAI_LABEL_SESSION_PATH),
        str(monai_settings.MONAI_LABEL_DICOMWEB_CACHE_PATH),
        str(monai_settings.MONAI_LABEL_DATASTORE_CACHE_PATH),
        tempfile.gettempdir(),
    )


def _folders() -> list[Path]:
    """All folders of the server whose place is nobody's business."""
    package = Path(__file__).resolve().parents[1]
    chosen = (
        monai_settings.MONAI_LABEL_SESSION_PATH,
        monai_settings.MONAI_LABEL_DICOMWEB_CACHE_PATH,
        monai_settings.MONAI_LABEL_DATASTORE_CACHE_PATH,
    )
    home = Path.home()
    return [
        *_written().values(),
        Path(tempfile.gettempdir()),
        *(Path(str(folder)) for folder in chosen if folder),
        home / ".cache" / "monailabel",
        package,
        package.parent,
        Path(sys.prefix),
        Path(sys.base_prefix),
        home,
    ]


def _secret(token: Any) -> str | None:
    return token.get_secret_value() if token is not None else None


def __getattr__(name: str) -> Any:
    """`app`, made when a server asks for it and not when somebody imports this module."""
    if name != "app":
        raise AttributeError(name)
    made = globals()["app"] = FrontDoor()
    return made
