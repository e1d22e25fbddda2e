"""The viewers' way to the studies' DICOMweb server, and to nothing else behind it.

MONAI Label forwards any path with the server's own credentials: `..` leads to all of the PACS.
Here only what DICOM PS3.18 names goes through, on the event loop, so that a slow PACS holds no
thread.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from urllib.parse import unquote

import httpx
from monailabel.config import settings
from starlette.concurrency import run_in_threadpool

from esp_medsam_app.server.audit import audit
from esp_medsam_app.server.disks import Disks
from esp_medsam_app.server.door.access import access_of
from esp_medsam_app.server.door.asgi_types import Receive, Scope, Send, header
from esp_medsam_app.server.door.bodies import Body, Upload, announced, chunks
from esp_medsam_app.server.door.refusal import RefusedError
from esp_medsam_app.server.door.stored_segmentations import take_segmentations

PREFIX = "/proxy/dicom/"
_UID = r"(?=[0-9.]{1,64}(?:/|$))[0-9]+(?:\.[0-9]+)*"
_PICTURE = r"(?:/(?:rendered|thumbnail))?"
_FRAMES = rf"/frames/[0-9]{{1,6}}(?:,[0-9]{{1,6}}){{0,999}}{_PICTURE}"
_BULK = r"/bulkdata(?:/(?!\.)[A-Za-z0-9_.-]{1,64}){1,16}"
_IN_INSTANCE = rf"(?:/metadata|{_FRAMES}|{_BULK}|/(?:rendered|thumbnail|bulkdata))?"
_IN_SERIES = rf"(?:/metadata|/(?:rendered|thumbnail)|/instances(?:/{_UID}{_IN_INSTANCE})?)?"
_IN_STUDY = rf"(?:/metadata|/(?:rendered|thumbnail)|/instances|/series(?:/{_UID}{_IN_SERIES})?)?"
_READ = re.compile(rf"(?:series|instances|studies(?:/{_UID}{_IN_STUDY})?)/?|bulkdata/{_UID}")
_STORE = re.compile(rf"studies(?:/{_UID})?/?")
# wado, qido and stow only tell which prefix the PACS has for these
_SERVICES = ("wado", "qido", "stow")

_SENT_ON = ("accept", "content-type", "content-length", "if-none-match", "range")
_SENT_BACK = ("content-type", "content-range", "etag", "last-modified", "warning")
_CONNECT_SECONDS = 5.0
# all instances, or some of them
_STORED = (200, 202)

logger = logging.getLogger(__name__)
# it would note every search of the viewers, the patients' names and numbers with it
logging.getLogger("httpx").setLevel(logging.WARNING)


class DicomProxy:
    """Forwards DICOMweb requests below `/proxy/dicom/`.

    Args:
        disks: have to have room for what is stored, until it is in the PACS.
        max_upload_mb: largest series of instances that may be stored at once.
        upload_seconds: how long a client may be silent in the middle of it.
        transport: for tests.
    """

    def __init__(
        self,
        disks: Disks,
        max_upload_mb: float,
        upload_seconds: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._disks = disks
        self._most = int(max_upload_mb * (1 << 20))
        self._seconds = upload_seconds
        self._transport = transport
        self._client: httpx.AsyncClient | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        url = target(scope["path"], method, scope.get("query_string", b""))
        headers = {name: header(scope, name) for name in _SENT_ON if header(scope, name)}
        if not all(value.isascii() for value in headers.values()):
            raise RefusedError(400, "A header has letters that headers cannot have.")
        storing = method == "POST"
        if storing and not headers.get("content-type", "").lower().startswith("multipart/related"):
            raise RefusedError(415, "Instances are stored as multipart/related.")
        headers.update(await _authorization())
        if not storing:
            await self._forward(self._ready().build_request(method, url, headers=headers), send)
            return
        told = announced(scope, self._most)
        kept = Body()
        with self._disks.room() as room:
            upload = Upload(kept, room, access_of(method, scope["path"]), copies=1)
            try:
                await run_in_threadpool(upload.expect, told)
                content = self._passed_on(upload, receive)
                request = self._ready().build_request(method, url, headers=headers, content=content)
                status = await self._forward(request, send)
                audit("dicom.store", status=status)
                if status in _STORED:
                    await run_in_threadpool(take_segmentations, headers["content-type"], kept)
            finally:
                kept.close()

    async def _forward(self, request: httpx.Request, send: Send) -> int:
        """Pass a request on, and its answer back; its status."""
        try:
            response = await self._ready().send(
                request, stream=True, auth=_credentials(), follow_redirects=False
            )
        except httpx.TimeoutException as error:
            raise RefusedError(504, "The PACS does not answer in time.") from error
        except httpx.HTTPError as error:
            logger.warning("The PACS cannot be reached: %s", error)
            raise RefusedError(
                503, "The PACS cannot be reached. Try again later.", {"retry-after": "10"}
            ) from error
        try:
            await _pass_back(response, send)
        finally:
            await response.aclose()
        return response.status_code

    async def close(self) -> None:
        """End the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _ready(self) -> httpx.AsyncClient:
        if self._client is None:
            timeout = httpx.Timeout(
                settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT, connect=_CONNECT_SECONDS
            )
            # the PACS is where it was configured to be, whatever proxies the environment names
            self._client = httpx.AsyncClient(
                timeout=timeout, trust_env=False, transport=self._transport
            )
        return self._client

    async def _passed_on(self, upload: Upload, receive: Receive) -> AsyncIterator[bytes]:
        async for chunk in chunks(receive, self._most, self._seconds):
            await run_in_threadpool(upload.add, chunk)
            yield chunk


def target(path: str, method: str, query: bytes) -> str:
    """The address at the PACS that a path here stands for.

    Args:
        path: as it was sent, escapes resolved.
        method: HTTP's.
        query: as it was sent; it is kept.

    Raises:
        RefusedError: 404 nothing that DICOMweb has, or there is no PACS; 405 another method.
    """
    base = str(settings.MONAI_LABEL_STUDIES)
    if not base.startswith(("http://", "https://")):
        raise RefusedError(404, "The studies are in a folder: there is no PACS to ask.")
    rest = path.removeprefix(PREFIX)
    service, _, resource = rest.partition("/")
    if service not in _SERVICES:
        service, resource = "", rest
    # twice escaped is still not what DICOMweb has
    resource = unquote(resource)
    if method not in ("GET", "POST"):
        raise RefusedError(405, "The PACS is only read, and stored to.", {"allow": "GET, POST"})
    if not (_READ if method == "GET" else _STORE).fullmatch(resource):
        raise RefusedError(404, "This is no resource of DICOMweb.")
    prefixes = {
        "wado": settings.MONAI_LABEL_WADO_PREFIX,
        "qido": settings.MONAI_LABEL_QIDO_PREFIX,
        "stow": settings.MONAI_LABEL_STOW_PREFIX,
    }
    if service == "qido" and resource.endswith("metadata"):
        service = "wado"
    if method == "POST":
        # OHIF stores where it reads
        service = service and "stow"
    prefix = prefixes.get(service)
    parts = [base.rstrip("/"), *([prefix.strip("/")] if prefix else []), resource]
    url = "/".join(parts)
    return f"{url}?{query.decode('latin-1')}" if query else url


async def _pass_back(response: httpx.Response, send: Send) -> None:
    names = {**dict.fromkeys(_SENT_BACK)}
    headers = [
        (name.encode(), response.headers[name].encode("latin-1"))
        for name in names
        if name in response.headers
    ]
    # whatever the PACS stores: a browser is not to take it for a page of this server
    headers.append((b"content-security-policy", b"sandbox"))
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    async for chunk in response.aiter_bytes():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _credentials() -> httpx.Auth | None:
    """The PACS' user, by the old names of MONAI Label's settings or by the new ones."""
    for user, password in (
        (settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD),
        (settings.MONAI_LABEL_DATASTORE_USERNAME, settings.MONAI_LABEL_DATASTORE_PASSWORD),
    ):
        if user and password:
            return httpx.BasicAuth(user, password)
    return None


async def _authorization() -> dict[str, str]:
    """Google's healthcare service wants a token of its own, as in MONAI Label."""
    if "googleapis.com" not in str(settings.MONAI_LABEL_STUDIES):
        return {}
    return {"authorization": f"Bearer {await run_in_threadpool(_google_token)}"}


def _google_token() -> str:
    import google.auth
    import google.auth.transport.requests

    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    credentials.refresh(google.auth.transport.requests.Request())
    return str(credentials.token)
