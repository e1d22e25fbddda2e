"""Logging in with the server's token, the way MONAI Label's viewers do it with Keycloak."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form

from esp_medsam_app.server.calls import current_call
from esp_medsam_app.server.door.identity import issued, same
from esp_medsam_app.server.door.refusal import RefusedError


def login_routes(token: str, admin_token: str | None) -> APIRouter:
    """The routes of `/auth`, where there is a token."""
    router = APIRouter(prefix="/auth", tags=["Auth"])

    @router.get("/", summary="Whether a log-in is wanted")
    def wanted() -> dict[str, Any]:
        return {"enabled": True, "client_id": "esp-medsam", "realm": ""}

    @router.post("/token", summary="Log in")
    def log_in(
        username: Annotated[str, Form(max_length=64)], password: Annotated[str, Form()]
    ) -> dict[str, str]:
        if not (same(password, token) or same(password, admin_token)):
            raise RefusedError(401, "The password is not this server's token.")
        return {"access_token": issued(username, password), "token_type": "bearer"}

    @router.get("/token/valid", summary="Who is logged in")
    def valid() -> dict[str, Any]:
        call = current_call()
        return {"username": call.user if call else "", "is_admin": bool(call and call.is_admin)}

    return router
