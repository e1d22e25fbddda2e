"""Who sent a request: nobody has to say, a token, or MONAI Label's Keycloak.

With a token, viewers log in as with Keycloak: 3D Slicer asks for a user and a password, and a
browser does too. The user name is for the audit; the password is the token.
"""

from __future__ import annotations

import base64
import hmac
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import jwt
from fastapi import HTTPException, Request
from monailabel.config import settings
from monailabel.endpoints.user import auth
from starlette.concurrency import run_in_threadpool

from esp_medsam_app.server.calls import current_call
from esp_medsam_app.server.door.asgi_types import App, Receive, Scope, Send, header
from esp_medsam_app.server.door.image_addresses import BY_ADDRESS
from esp_medsam_app.server.door.refusal import RefusedError

# what must be answered to anybody, so that somebody can log in or look after the server
_OPEN = {"/healthz", "/readyz", "/auth", "/auth/", "/auth/token", "/favicon.ico"}
_SIGNATURES = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
_ISSUED = re.compile(r"for\.([A-Za-z0-9_=-]*)\.(.+)")
# methods and paths of what only admins may, where there is an admin's token
_ADMIN = (
    (None, r"/(model|versions|logs|metrics)(/.*)?"),
    ({"POST", "DELETE"}, r"/train(/.*)?"),
    ({"POST", "DELETE"}, r"/batch(/.*)?"),
    ({"DELETE"}, r"/datastore(/.*)?"),
)

logger = logging.getLogger(__name__)


class TokenGate:
    """Lets those in who send the token, where there is one.

    Args:
        app: gets their requests.
        token: of every client; none: all come in.
        admin_token: of admins; none: the token is theirs too.
    """

    def __init__(self, app: App, token: str | None, admin_token: str | None) -> None:
        self._app = app
        self._token = token
        self._admin_token = admin_token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = current_call()
        if self._token is not None and call is not None:
            user, sent = _sent(header(scope, "authorization"))
            is_admin = same(sent, self._admin_token or self._token)
            known = same(sent, self._token) or is_admin
            call.authenticated, call.is_admin = known, is_admin
            call.user = user or ("admin" if is_admin else "token") if known else ""
            if not known and scope["path"] not in _OPEN and not scope.get(BY_ADDRESS):
                raise RefusedError(
                    401,
                    "This server wants a log-in: its token as bearer token, or as the password of "
                    "any user name.",
                    {"www-authenticate": 'Basic realm="ESP-MedSAM", charset="UTF-8"'},
                )
            if known and not is_admin and _is_admins(scope):
                raise RefusedError(403, "Only admins of this server may do this.")
        await self._app(scope, receive, send)


def same(sent: str, token: str | None) -> bool:
    """Whether these are equal; takes as long wherever they differ."""
    return bool(token) and hmac.compare_digest(sent.encode(), str(token).encode())


def current_user(request: Request) -> auth.User:
    """MONAI Label's `get_current_user` with Keycloak's signatures named, as PyJWT 2 wants them.

    Raises:
        HTTPException: 401 without a token that Keycloak has signed and that is still valid.
        requests.RequestException: Keycloak cannot be asked.
    """
    if not settings.MONAI_LABEL_AUTH_ENABLE:
        return auth.DEFAULT_USER
    if request.scope.get(BY_ADDRESS):
        return auth.User(username="", roles=[settings.MONAI_LABEL_AUTH_ROLE_USER])
    _, sent = _sent(request.headers.get("authorization", ""))
    user = _user_of(sent)
    call = current_call()
    if call is not None:
        call.user, call.authenticated = user.username, True
        call.is_admin = settings.MONAI_LABEL_AUTH_ROLE_ADMIN in user.roles
    return user


def checked_role(role: str) -> Callable[[Scope], Awaitable[None]]:
    """Looks that the sender of a request has a role, for what is answered on the event loop."""
    wanted = auth.RBAC(role)

    async def check(scope: Scope) -> None:
        if settings.MONAI_LABEL_AUTH_ENABLE:
            user = await run_in_threadpool(current_user, Request(scope))
            await wanted(user)

    return check


def _user_of(token: str) -> auth.User:
    refused = HTTPException(401, "Could not validate credentials", {"WWW-Authenticate": "Bearer"})
    if not token:
        raise refused
    key = auth.get_public_key(settings.MONAI_LABEL_AUTH_REALM_URI)
    try:
        told = jwt.decode(token, key, algorithms=_SIGNATURES, options={"verify_aud": False})
    except jwt.InvalidTokenError as error:
        logger.warning("A log-in was refused: %s", error)
        raise refused from error
    roles: Any = told
    for part in settings.MONAI_LABEL_AUTH_TOKEN_ROLES.split("#"):
        roles = roles.get(part) if isinstance(roles, dict) else None
    return auth.User(
        username=str(told.get(settings.MONAI_LABEL_AUTH_TOKEN_USERNAME) or "unnamed"),
        email=told.get(settings.MONAI_LABEL_AUTH_TOKEN_EMAIL),
        name=told.get(settings.MONAI_LABEL_AUTH_TOKEN_NAME),
        roles=[str(role) for role in roles] if isinstance(roles, list) else [],
    )


def _sent(authorization: str) -> tuple[str, str]:
    """User and secret of a header `Authorization`; both empty without."""
    kind, _, rest = authorization.partition(" ")
    if kind.lower() == "bearer":
        issued = _ISSUED.fullmatch(rest.strip())
        return (_unpacked(issued[1]), issued[2]) if issued else ("", rest.strip())
    if kind.lower() == "basic":
        try:
            user, _, password = base64.b64decode(rest, validate=True).decode().partition(":")
        except ValueError:
            return "", ""
        return user[:64], password
    return "", ""


def issued(user: str, token: str) -> str:
    """What a viewer that has logged in sends from then on: the token, and for whom."""
    return f"for.{base64.urlsafe_b64encode(user.encode()).decode()}.{token}"


def _unpacked(user: str) -> str:
    try:
        return base64.urlsafe_b64decode(user).decode()[:64]
    except ValueError:
        return ""


def _is_admins(scope: Scope) -> bool:
    return any(
        (methods is None or scope["method"] in methods) and re.fullmatch(path, scope["path"])
        for methods, path in _ADMIN
    )
