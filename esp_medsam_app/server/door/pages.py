"""The pages for people: every endpoint, and the log. They load nothing from elsewhere."""

from __future__ import annotations

import html
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC

from esp_medsam_app.server.door.refusal import RefusedError

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1em }
code, pre { font: 14px/1.5 ui-monospace, monospace } pre { white-space: pre-wrap }
b { display: inline-block; min-width: 4.5rem }
details { border-top: 1px solid #ddd; padding: .4rem }
summary { cursor: pointer } td { padding: .1rem 1rem .1rem 0; vertical-align: top }
"""
_GPU_SECONDS = 10

_admins = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))


def pages(schema: Callable[[], Mapping[str, Any]]) -> APIRouter:
    """The routes.

    Args:
        schema: OpenAPI's description of all endpoints.
    """
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    @router.get("/docs", include_in_schema=False)
    def endpoints() -> HTMLResponse:
        return _page("ESP-MedSAM: endpoints", _endpoints(schema()))

    router.include_router(_logs)
    return router


_logs = APIRouter(prefix="/logs", tags=["Others"], dependencies=[_admins])


@_logs.get("/", summary="The server's log")
def log(
    lines: Annotated[int, Query(ge=1, le=20_000)] = 300,
    html: bool = True,
    text: bool = False,
    refresh: Annotated[int, Query(ge=0, le=3600)] = 0,
) -> Response:
    """The last lines: a page, which renews itself after `refresh` seconds; or text."""
    file = Path(settings.MONAI_LABEL_APP_DIR) / "logs" / "app.log"
    if not file.is_file():
        raise RefusedError(404, "There is no log yet.")
    with file.open(encoding="utf-8", errors="replace") as opened:
        last = "".join(deque(opened, lines))
    if text or not html:
        return PlainTextResponse(last)
    return _page("ESP-MedSAM: log", f"<pre>{_safe(last)}</pre>", max(3, refresh) if refresh else 0)


@_logs.get("/gpu", summary="What nvidia-smi says")
def gpu() -> Response:
    """GPUs, their memory and load."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise RefusedError(404, "This server has no NVIDIA GPU, or no nvidia-smi.")
    done = subprocess.run(
        [program], capture_output=True, text=True, timeout=_GPU_SECONDS, check=False
    )
    return PlainTextResponse(done.stdout)


def _page(title: str, body: str, refresh: int = 0) -> HTMLResponse:
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{again}'
        f"<title>{title}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{title}</h1>{body}</body></html>"
    )
    return HTMLResponse(text, headers={"content-security-policy": _POLICY})


def _endpoints(schema: Mapping[str, Any]) -> str:
    told = [
        _endpoint(method, path, operation)
        for path, methods in sorted(schema["paths"].items())
        for method, operation in methods.items()
    ]
    return (
        '<p>For programs: <a href="openapi.json">openapi.json</a>. Viewer, for studies on a '
        'DICOMweb server: <a href="ohif/">OHIF</a>.</p>' + "".join(told)
    )


def _endpoint(method: str, path: str, operation: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{_safe(one['name'])}</code></td><td>{_safe(one['in'])}"
        f"{', needed' if one.get('required') else ''}</td><td>{_safe(_kind(one.get('schema')))}"
        "</td></tr>"
        for one in operation.get("parameters", [])
    ]
    for kind in operation.get("requestBody", {}).get("content", {}):
        rows.append(f"<tr><td>body</td><td>{_safe(kind)}</td><td></td></tr>")
    return (
        f"<details><summary><b>{_safe(method.upper())}</b> <code>{_safe(path)}</code> "
        f"{_safe(operation.get('summary', ''))}</summary>"
        f"<p>{_safe(operation.get('description', ''))}</p><table>{''.join(rows)}</table></details>"
    )


def _kind(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return ""
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    return str(schema.get("type") or schema.get("$ref", "").rsplit("/", 1)[-1])


def _safe(text: Any) -> str:
    return html.escape(str(text))
