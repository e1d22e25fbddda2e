"""Who sent a request: nobody has to say, a token, or MONAI Label's Keycloak.

With a token, viewers log in as with Keycloak: 3D Slicer asks for a user and a password, and a
browser does too. The user name is for the audit; the password is the token.
"""

from __future__ import annotations

import base64
import hmac
import logging
import re
from typing import Any

import jwt
from fastapi import HTTPException, Request
from monailabel.config import settings
from monailabel.endpoints.user import auth
from starlette.concurrency import run_in_threadpool

from esp_medsam_app.server.calls import Call, current_call
from esp_medsam_app.server.door.access import Role, access_of
from esp_medsam_app.server.door.asgi_types import App, Receive, Scope, Send, header
from esp_medsam_app.server.door.image_addresses import BY_ADDRESS
from esp_medsam_app.server.door.refusal import RefusedError

_SIGNATURES = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
# what every token has to say: who made it, and until when it holds
_NEEDED = ["exp", "iss"]
_CLOCK_SECONDS = 5
_ISSUED = re.compile(r"for\.([A-Za-z0-9_=-]*)\.(.+)")
_USER = "esp_medsam.user"

logger = logging.getLogger(__name__)


class Gate:
    """Lets those in who may ask for what they ask, before anything of the body is read.

    Where there is neither a token nor Keycloak, all come in.

    Args:
        app: gets their requests.
        token: of every client; none: there is no token.
        admin_token: of admins; none: the token is theirs too.
        issuer: who makes Keycloak's tokens; the realm's address by default.
        audience: for whom they are made; MONAI Label's client by default.
    """

    def __init__(
        self,
        app: App,
        token: str | None = None,
        admin_token: str | None = None,
        issuer: str | None = None,
        audience: str | None = None,
    ) -> None:
        self._app = app
        self._token = token
        self._admin_token = admin_token
        self._issuer = issuer
        self._audience = audience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = current_call() or Call()
        role = access_of(scope["method"], scope["path"]).role
        if self._token is not None:
            self._check_token(scope, call, role)
        elif (
            settings.MONAI_LABEL_AUTH_ENABLE
            and role is not Role.ANYBODY
            and not scope.get(BY_ADDRESS)
        ):
            scope = {**scope, _USER: await run_in_threadpool(self._keycloak_s, scope, call, role)}
        await self._app(scope, receive, send)

    def _check_token(self, scope: Scope, call: Call, role: Role) -> None:
        user, sent = _sent(header(scope, "authorization"))
        is_admin = same(sent, self._admin_token or self._token)
        known = same(sent, self._token) or is_admin
        call.authenticated, call.is_admin = known, is_admin
        call.user = user or ("admin" if is_admin else "token") if known else ""
        call.role = (Role.ADMIN.value if is_admin else Role.ANNOTATOR.value) if known else ""
        if not known and role is not Role.ANYBODY and not scope.get(BY_ADDRESS):
            raise RefusedError(
                401,
                "This server wants a log-in: its token as bearer token, or as the password of "
                "any user name.",
                {"www-authenticate": 'Basic realm="ESP-MedSAM", charset="UTF-8"'},
            )
        if known and not is_admin and role is Role.ADMIN:
            raise RefusedError(403, "Only admins of this server may do this.")

    def _keycloak_s(self, scope: Scope, call: Call, role: Role) -> auth.User:
        _, sent = _sent(header(scope, "authorization"))
        user = _user_of(sent, self._issuer, self._audience)
        named = _roles()
        call.user, call.authenticated = user.username, True
        call.is_admin = named[Role.ADMIN] in user.roles
        # the highest one
        call.role = next((one.value for one, name in named.items() if name in user.roles), "none")
        if role in named and named[role] not in user.roles:
            raise RefusedError(403, f'Role "{named[role]}" is required to perform this action')
        return user


def _roles() -> dict[Role, str]:
    """Keycloak's names of the roles, the highest first."""
    return {
        Role.ADMIN: settings.MONAI_LABEL_AUTH_ROLE_ADMIN,
        Role.ANNOTATOR: settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR,
        Role.USER: settings.MONAI_LABEL_AUTH_ROLE_USER,
    }


def same(sent: str, token: str | None) -> bool:
    """Whether these are equal; takes as long wherever they differ."""
    return bool(token) and hmac.compare_digest(sent.encode(), str(token).encode())


def current_user(request: Request) -> auth.User:
    """MONAI Label's `get_current_user`: whom the gate has let in.

    Raises:
        HTTPException: 401 somebody whom it has not looked at.
    """
    if not settings.MONAI_LABEL_AUTH_ENABLE:
        return auth.DEFAULT_USER
    if request.scope.get(BY_ADDRESS):
        return auth.User(username="", roles=[settings.MONAI_LABEL_AUTH_ROLE_USER])
    user = request.scope.get(_USER)
    if not isinstance(user, auth.User):
        raise _refused()
    return user


def _user_of(token: str, issuer: str | None, audience: str | None) -> auth.User:
    """Whom Keycloak has given a token that is still valid, and meant for this server.

    Raises:
        HTTPException: 401 another token, or none.
        requests.RequestException: Keycloak cannot be asked.
    """
    if not token:
        raise _refused()
    realm = str(settings.MONAI_LABEL_AUTH_REALM_URI)
    key = auth.get_public_key(realm)
    try:
        told = jwt.decode(
            token,
            key,
            algorithms=_SIGNATURES,
            issuer=issuer or realm.rstrip("/"),
            leeway=_CLOCK_SECONDS,
            # Keycloak names the client in `azp`, and others in `aud`
            options={"verify_aud": False, "require": _NEEDED},
        )
        _check_meant(told, audience or settings.MONAI_LABEL_AUTH_CLIENT_ID)
    except jwt.InvalidTokenError as error:
        logger.warning("A log-in was refused: %s", error)
        raise _refused() from error
    roles: Any = told
    for part in settings.MONAI_LABEL_AUTH_TOKEN_ROLES.split("#"):
        roles = roles.get(part) if isinstance(roles, dict) else None
    return auth.User(
        username=str(told.get(settings.MONAI_LABEL_AUTH_TOKEN_USERNAME) or "unnamed"),
        email=_text(told.get(settings.MONAI_LABEL_AUTH_TOKEN_EMAIL)),
        name=_text(told.get(settings.MONAI_LABEL_AUTH_TOKEN_NAME)),
        roles=[str(role) for role in roles] if isinstance(roles, list) else [],
    )


def _check_meant(told: dict[str, Any], audience: str) -> None:
    """Whether a token is one for asking, made for this server."""
    # an identity token or a refresh token of Keycloak's is no access token
    if told.get("typ", "Bearer") != "Bearer":
        raise jwt.InvalidTokenError(f"a token of the kind {str(told['typ'])[:32]!r}")
    for_whom = told.get("aud")
    named = for_whom if isinstance(for_whom, list) else [for_whom]
    if audience not in (*named, told.get("azp")):
        raise jwt.InvalidAudienceError("the token is meant for another service")


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _refused() -> HTTPException:
    return HTTPException(401, "Could not validate credentials", {"WWW-Authenticate": "Bearer"})


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
