"""All endpoints behind the front door: ours first, MONAI Label's for the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from monailabel.endpoints.user.auth import get_current_user
from starlette.exceptions import HTTPException as StarletteHTTPException

from esp_medsam_app import __version__
from esp_medsam_app.server.disks import full_disk
from esp_medsam_app.server.door import (
    datastore_routes,
    infer_routes,
    info_routes,
    model_routes,
    ohif,
    session_routes,
    task_routes,
)
from esp_medsam_app.server.door.failures import problems
from esp_medsam_app.server.door.identity import current_user
from esp_medsam_app.server.door.login_routes import login_routes
from esp_medsam_app.server.door.pages import pages
from esp_medsam_app.server.door.refusal import RefusedError
from esp_medsam_app.server.door.settings import DoorSettings
from esp_medsam_app.server.http_errors import as_http_error


def rooms(
    monai_label: FastAPI,
    settings: DoorSettings,
    opened: Callable[[], None],
    closed: Callable[[], None],
) -> FastAPI:
    """The application with all endpoints.

    Args:
        monai_label: `monailabel.app.app`.
        settings: of the front door.
        opened: called when the app answers.
        closed: called when the server ends.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with monai_label.router.lifespan_context(monai_label):
            opened()
            try:
                yield
            finally:
                closed()

    app = FastAPI(
        title="ESP-MedSAM",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    for routes in (
        info_routes.router,
        infer_routes.router,
        datastore_routes.router,
        session_routes.router,
        task_routes.router,
        model_routes.router,
        ohif.router,
        pages(lambda: app.openapi()),
    ):
        app.include_router(routes)
    if settings.token is not None:
        admin = settings.admin_token
        app.include_router(
            login_routes(
                settings.token.get_secret_value(), admin.get_secret_value() if admin else None
            )
        )

    @app.exception_handler(RequestValidationError)
    def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI's own would send back what was sent, even where that is no JSON
        return JSONResponse({"detail": problems(error.errors())}, 422)

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        # FastAPI takes a body that the disk has no room for to be one that cannot be read
        if (full := full_disk(error)) is not None:
            error = as_http_error(full)
        return await http_exception_handler(request, error)

    @app.post("/reload", include_in_schema=False)
    def reload() -> None:
        # it would make a second app beside the first one, with all its weights
        raise RefusedError(405, "This server is not reloaded. Restart it.", {"allow": ""})

    # FastAPI's own way to exchange what endpoints depend on
    for one in (app, monai_label):
        one.dependency_overrides[get_current_user] = current_user
    app.mount("/", monai_label)
    app.openapi = lambda: _described(app, monai_label)  # type: ignore[method-assign]
    return app


def _described(app: FastAPI, monai_label: FastAPI) -> dict[str, Any]:
    """OpenAPI's description of ours and of those of MONAI Label's that are left."""
    if app.openapi_schema is None:
        ours = get_openapi(title=app.title, version=app.version, routes=app.routes)
        theirs = monai_label.openapi()
        for path, methods in theirs["paths"].items():
            ours["paths"][path] = {**methods, **ours["paths"].get(path, {})}
        for kind, found in theirs.get("components", {}).items():
            there = ours.setdefault("components", {}).setdefault(kind, {})
            for name, schema in found.items():
                there.setdefault(name, schema)
        app.openapi_schema = ours
    return app.openapi_schema
