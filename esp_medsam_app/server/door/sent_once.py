"""Files that are made to be sent, and are gone afterwards."""

from __future__ import annotations

from fastapi.responses import FileResponse
from monailabel.utils.others.generic import remove_file

from esp_medsam_app.server.door.asgi_types import Receive, Scope, Send


class SentOnce(FileResponse):
    """A file that is removed whether it arrived or not.

    A background task would not run where the client has left, or asks for an odd range.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            remove_file(str(self.path))
