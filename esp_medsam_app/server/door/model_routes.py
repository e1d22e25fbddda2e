"""Weights of single modalities, for admins: out, and in after a look that they work.

MONAI Label copies whatever is sent over the file that serves. Here it becomes a version, which can
be taken back; `GET /versions/` lists them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, UploadFile
from fastapi.responses import FileResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC

from esp_medsam_app.errors import UnknownNameError, WeightsError
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.audit import audit
from esp_medsam_app.server.calls import current_call
from esp_medsam_app.server.door.refusal import RefusedError
from esp_medsam_app.server.door.uploads import received, the_app
from esp_medsam_app.weights.bundle import controller_file
from esp_medsam_app.weights.integrity import sha256_of
from esp_medsam_app.weights.version_import import import_version
from esp_medsam_app.weights.versions import VersionStore

router = APIRouter(
    prefix="/model",
    tags=["Model"],
    dependencies=[Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))],
)


@router.get("/info/{model}", summary="Digest and age of the weights that serve")
def info(model: str) -> dict[str, Any]:
    """`checksum` and `modified_time`, as in MONAI Label; and `version`."""
    file, number = _file(model)
    return {
        "checksum": f"SHA256:{sha256_of(file)}",
        "modified_time": int(file.stat().st_mtime),
        "version": number,
    }


@router.get("/{model}", summary="The weights that serve")
def download(model: str) -> FileResponse:
    """Those of the modality; backbone and decoder are the bundle's."""
    file, _ = _file(model)
    return FileResponse(
        file, media_type="application/octet-stream", filename=f"{model}.safetensors"
    )


@router.put("/{model}", summary="Weights from elsewhere as a new version")
def upload(model: str, file: Annotated[UploadFile, File()], serve: bool = True) -> dict[str, Any]:
    """Safetensors only. `serve`: from now on; else when it is restored."""
    call = current_call()
    if call is None or not call.authenticated:
        raise RefusedError(
            403,
            "Weights are taken from admins only, and this server knows none. Set "
            "ESP_MEDSAM_TOKEN or MONAI Label's Keycloak.",
        )
    modality, store = _modality(model)
    with received(file) as path:
        try:
            version = import_version(store, modality, path, f"uploaded by {call.user}")
        except WeightsError as error:
            raise RefusedError(422, f"the uploaded weights: {error.problem}") from error
    audit("model.upload", modality=modality, version=version.number, sha256=version.sha256)
    if serve:
        store.restore(modality, version.number, f"uploaded by {call.user}")
        audit("model.serve", modality=modality, version=version.number)
    file_ = store.path / modality / str(version.number) / "weights.safetensors"
    return {
        "checksum": f"SHA256:{version.sha256}",
        "modified_time": int(file_.stat().st_mtime),
        "version": version.number,
    }


@router.delete("/{model}", summary="Not offered: versions are restored, not removed")
def remove(model: str) -> None:
    """Not here."""
    raise RefusedError(
        405,
        f"Weights are not removed. POST /versions/{model.removeprefix('esp_medsam_')}/restore lets "
        "an earlier version serve.",
        {"allow": "GET, PUT"},
    )


def _modality(model: str) -> tuple[str, VersionStore]:
    """The modality of a model, and the versions of it."""
    app = the_app()
    task = app._trainers.get(model) or app._infers.get(model)
    modality = getattr(task, "modality", None)
    stores = (
        getattr(getattr(one, "segmenters", None), "versions", None) for one in app._infers.values()
    )
    store = next((one for one in stores if isinstance(one, VersionStore)), None)
    if store and isinstance(modality, Modality) and modality.name in store.modalities():
        return modality.name, store
    raise RefusedError(404, f"there is no model {model!r} of a single modality")


def _file(model: str) -> tuple[Path, int]:
    modality, store = _modality(model)
    bundle = store.bundle()
    if modality not in bundle.modalities:
        raise UnknownNameError(f"{model} is not trained yet")
    return bundle.file(controller_file(modality)), bundle.version(modality)
