"""Who changed which label or model, and when: one line of JSON for each change.

The lines go to the logger `esp_medsam_app.audit`, and to the file that `open_audit` names, which
training processes append to as well. They hold ids, no pixels and no names of patients.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from esp_medsam_app.server.calls import current_call

AUDIT_FILE = "ESP_MEDSAM_AUDIT_FILE"

logger = logging.getLogger("esp_medsam_app.audit")
# whatever level the rest of the server has
logger.setLevel(logging.INFO)


def open_audit(folder: Path) -> None:
    """Name the file of this server and its training processes, unless the user did.

    Args:
        folder: of the server's logs; made if it is not there.
    """
    os.environ[AUDIT_FILE] = os.environ.get(AUDIT_FILE) or str(folder / "audit.jsonl")


def audit(action: str, **what: Any) -> None:
    """Write a line.

    Args:
        action: `label.save`, `model.publish`, ...
        what: ids, numbers and whatever else tells the change.
    """
    call = current_call()
    line = json.dumps(
        {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "action": action,
            "user": (call.user or "anonymous") if call else "server",
            "role": (call.role or "none") if call else "server",
            "client": call.client if call else "",
            "request": call.id if call else "",
            **what,
        },
        default=str,
    )
    logger.info("%s", line)
    file = os.environ.get(AUDIT_FILE)
    if not file:
        return
    try:
        path = Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        # one write of one line: those of several processes do not mix
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        try:
            os.write(handle, line.encode() + b"\n")
        finally:
            os.close(handle)
    except OSError:
        # the change has been made; the logger has the line
        logger.warning("%s cannot be written", file, exc_info=True)
