"""The OHIF viewer that MONAI Label carries, without what it would load from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import monailabel
from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse, HTMLResponse, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC

from esp_medsam_app.server.door.ohif_edits import edited_files
from esp_medsam_app.server.door.refusal import RefusedError

_FOREIGN_LINK = re.compile(r"<link\b[^>]*\bhref=[\"']?https?://[^>]*>", re.IGNORECASE)
_FOREIGN_IMPORT = re.compile(r"@import\s+(?:url\()?[\"']?https?://[^;]*;", re.IGNORECASE)
# what the viewer's own code needs, and nothing of other servers
_POLICY = "; ".join(
    [
        "default-src 'self' blob: data:",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' 'wasm-unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "worker-src 'self' blob:",
        "frame-ancestors 'self'",
    ]
)
# Where the panel finds this server; it would guess port 8000, or take what another server on this
# host left. Only the browser knows the address behind a reverse proxy. The panel reads the cookie
# as its own `escape` writes it, and prefers one below the path that it would choose itself.
_SERVER_URL = (
    "<script>document.cookie = "
    "'MONAILABEL_SERVER_URL=' + escape(location.origin + '/') + '; path=/ohif; samesite=lax'"
    "</script>"
)

_LONGEST_NAME, _LONGEST_PATH = 200, 1000

router = APIRouter(
    prefix="/ohif",
    tags=["Others"],
    dependencies=[Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))],
)


def ohif_folder() -> Path:
    """Where MONAI Label's wheel has the viewer."""
    return Path(monailabel.__file__).parent / "endpoints" / "static" / "ohif"


@router.get("/{path:path}", include_in_schema=False)
def viewer(path: str) -> Response:
    """A file of the viewer; its page for every path that names none: those are the viewer's own."""
    folder = ohif_folder().resolve()
    if not (folder / "index.html").is_file():
        raise RefusedError(404, "This installation of MONAI Label has no OHIF.")
    # the names of its files are far shorter than those that a disk can have
    too_long = any(len(name.encode(errors="replace")) > _LONGEST_NAME for name in path.split("/"))
    if too_long or len(path) > _LONGEST_PATH or "\0" in path or ".." in path.split("/"):
        raise RefusedError(404, "OHIF has no such file.")
    file = (folder / path).resolve()
    if not file.is_relative_to(folder):
        raise RefusedError(404, "OHIF has no such file.")
    if not file.is_file():
        file = folder / "index.html"
    if file.name == "index.html":
        return _page(file)
    if file.parent == folder and file.name in (edited := edited_files(folder)):
        # the name tells a browser that the content never changes, and it may have had the other one
        headers = {"cache-control": "no-cache"}
        return Response(edited[file.name], media_type="text/javascript", headers=headers)
    if file.suffix == ".css":
        text = _FOREIGN_IMPORT.sub("", file.read_text(encoding="utf-8"))
        return Response(text, media_type="text/css")
    return FileResponse(file)


def _page(file: Path) -> HTMLResponse:
    text = _FOREIGN_LINK.sub("", file.read_text(encoding="utf-8"))
    page = HTMLResponse(text.replace("<head>", f"<head>{_SERVER_URL}", 1))
    page.headers["content-security-policy"] = _POLICY
    return page
