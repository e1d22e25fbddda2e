"""The versions over HTTP, for admins: what there is, what serves, and another choice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException
from monailabel.config import RBAC_ADMIN, settings
from monailabel.endpoints.user.auth import RBAC
from monailabel.interfaces.utils.app import app_instance

from esp_medsam_app.errors import EspMedSamError, WeightsError
from esp_medsam_app.server.audit import audit
from esp_medsam_app.server.http_errors import as_http_error
from esp_medsam_app.weights.versions import VersionStore, overview

_MARK = "esp_medsam_versions"

router = APIRouter(
    prefix="/versions",
    tags=["Versions"],
    dependencies=[Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))],
    responses={404: {"description": "Not found"}},
)


def add_version_routes(endpoints: FastAPI) -> None:
    """Put the routes beside MONAI Label's own; a second time changes nothing."""
    if getattr(endpoints.state, _MARK, False):
        return
    endpoints.include_router(router, prefix=settings.MONAI_LABEL_API_STR)
    setattr(endpoints.state, _MARK, True)
    # FastAPI keeps the description that it made before
    endpoints.openapi_schema = None


# Not `async`: they read files, for which the server's other requests are not to wait.
@router.get("/", summary=f"{RBAC_ADMIN}Versions of all modalities")
def list_versions() -> list[dict[str, Any]]:
    """As `esp-medsam weights list --json`."""
    with _explained():
        return overview(_store())


@router.get("/{modality}", summary=f"{RBAC_ADMIN}Versions of a modality")
def list_versions_of(modality: str) -> dict[str, Any]:
    """One entry of `GET /versions/`."""
    with _explained():
        return overview(_store(), [modality])[0]


@router.get("/{modality}/{number}", summary=f"{RBAC_ADMIN}One version of a modality")
def show_version(modality: str, number: int) -> dict[str, Any]:
    """As in its `version.json`; 0 is the bundle's own."""
    with _explained():
        return _store().get(modality, number).model_dump(mode="json")


@router.post("/{modality}/restore", summary=f"{RBAC_ADMIN}Let a version serve")
def restore_version(modality: str, number: int) -> dict[str, Any]:
    """Every request that starts after the answer gets it; 0 is the bundle's own."""
    with _explained():
        store = _store()
        store.restore(modality, number, "restored by HTTP")
        audit("model.restore", modality=modality, version=number)
        return {"modality": modality, "serving": store.serving()[modality]}


def _store() -> VersionStore:
    for task in app_instance()._infers.values():
        store = getattr(getattr(task, "segmenters", None), "versions", None)
        if isinstance(store, VersionStore):
            return store
    raise HTTPException(404, "This server keeps no versions.")


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except HTTPException:
        raise
    except WeightsError as error:
        # the server is well: this version is not
        told = as_http_error(error)
        raise HTTPException(422, told.detail) from error
    except EspMedSamError as error:
        raise as_http_error(error) from error
