"""Which request the code of the moment works for, for log lines and the audit."""

from __future__ import annotations

import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Call:
    """One HTTP request.

    Attributes:
        id: told to the client, and written with every line about it.
        client: address it came from.
        user: who sent it; empty where nobody has to say.
        role: of the sender; empty where nobody has to say who it is.
        is_admin: whether it may do what only admins may.
        authenticated: whether the server knows who sent it.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    client: str = ""
    user: str = ""
    role: str = ""
    is_admin: bool = True
    authenticated: bool = False


_CURRENT: ContextVar[Call | None] = ContextVar("esp_medsam_call", default=None)


def current_call() -> Call | None:
    """The request that is answered here; none in a process of its own."""
    return _CURRENT.get()


def enter_call(call: Call) -> None:
    """From here on, in this task or thread, the work is for this request."""
    _CURRENT.set(call)
