"""The server of the neighbouring tests, for files and requests as an attacker would send them."""

from __future__ import annotations

from server.conftest import (  # noqa: F401
    app,
    client,
    make_app,
    organs,
    process_as_before,
    segmenters,
    studies,
    temporary,
)
from server.door.conftest import audit_file, audited, door, enter, make_door  # noqa: F401
