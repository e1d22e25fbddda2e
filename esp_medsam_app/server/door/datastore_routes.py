"""Images and labels by id: read, sent in, described, removed."""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse, Response
from monailabel.config import settings
from monailabel.datastore.local import LocalDatastore
from monailabel.endpoints import datastore as endpoint
from monailabel.endpoints.datastore import ResultType
from monailabel.endpoints.user.auth import RBAC
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException
from monailabel.utils.others.generic import get_mime_type

from esp_medsam_app.server.audit import audit
from esp_medsam_app.server.calls import current_call
from esp_medsam_app.server.disks import TEMPORARY, current_room
from esp_medsam_app.server.door.image_addresses import ADDRESSES
from esp_medsam_app.server.door.refusal import RefusedError
from esp_medsam_app.server.door.sent_once import SentOnce
from esp_medsam_app.server.door.uploads import (
    checked_text,
    file_name,
    mapping,
    received,
    suffix,
    the_app,
)
from esp_medsam_app.server.submitted_labels import stored_names

_HASHES = {"SHA256": "sha256", "SHA512": "sha512", "MD5": "md5"}
# a SeriesInstanceUID, and which of the images in the series
_PACS_ID = re.compile(r"[0-9.]{1,64}(_[0-9]{1,6})?")
# when an image was shown or written; what a client says in their place could not be worked with
_NOTED = ("strategy", "ts", "name", "path")
# an id that is taken in between would be given twice
_adding = threading.Lock()

router = APIRouter(prefix="/datastore", tags=["Datastore"])
_user = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
_annotator = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
_admin = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))


@router.get("/", dependencies=[_user], summary="Counts, or all images and labels")
def datastore(request: Request, output: ResultType | None = None) -> Any:
    """`stats`; `all`: by image, with labels and what is known of them; `train`: what has labels."""
    found = endpoint.datastore(output)
    given = request.scope.get(ADDRESSES)
    if output is ResultType.all and given is not None:
        return {**found, "objects": given.with_given(current_call(), found.get("objects", {}))}
    return found


# --- images --------------------------------------------------------------------------------------


@router.put("/", dependencies=[_annotator], include_in_schema=False)
@router.put("/image", dependencies=[_annotator], summary="Add an image")
def add_image(
    file: Annotated[UploadFile, File()],
    image: str | None = None,
    params: Annotated[str, Form()] = "{}",
) -> dict[str, Any]:
    """Its id is `image`, else the file's name; one that is there already stays as it is."""
    datastore = _folder("Images are sent to the PACS, not here.")
    info = mapping(params)
    name = checked_text(image or "", "image") or _stem(file)
    with received(file) as path, _adding:
        if name in datastore.list_images() and not _is_same(datastore, name, path):
            raise RefusedError(
                409, f"there is another image {name!r} already. Remove it first, or rename this one"
            )
        added = datastore.add_image(name, str(path), _signed(info))
    audit("image.add", image=added)
    return {"image": added}


@router.delete("/", dependencies=[_admin], include_in_schema=False)
@router.delete("/image", dependencies=[_admin], summary="Remove an image and its labels")
def remove_image(id: str) -> dict[str, Any]:  # noqa: A002
    """With all labels of it, those that were replaced too."""
    datastore = _folder("Images are removed in the PACS, not here.")
    _known_image(datastore, id)
    datastore.remove_image(id)
    audit("image.remove", image=id)
    return {}


@router.head("/image", dependencies=[_user], summary="Whether there is an image")
def check_image(image: str, check_sum: str | None = None) -> Response:
    """Of this very content, if `check_sum` (`SHA256:...`, `SHA512:...`, `MD5:...`) is given."""
    file = _image_file(image)
    if check_sum is not None and not _fits(file, check_sum):
        raise RefusedError(404, f"image {image!r} has another content")
    return Response()


@router.get("/image", dependencies=[_user], summary="An image")
def get_image(image: str) -> FileResponse:
    """The file as it is."""
    return _sent(_image_file(image))


@router.get("/image/info", dependencies=[_user], summary="What is known of an image")
def image_info(image: str) -> dict[str, Any]:
    """As it was sent, and what the server added."""
    datastore = the_app().datastore()
    _known_image(datastore, image)
    info = dict(datastore.get_image_info(image))
    if not info:
        raise RefusedError(404, f"nothing is known of image {image!r}")
    return info


@router.put("/image/info", dependencies=[_annotator], summary="Describe an image")
def update_image_info(image: str, info: Annotated[str, Form()] = "{}") -> None:
    """Adds to what is known of it."""
    datastore = the_app().datastore()
    _known_image(datastore, image)
    datastore.update_image_info(image, _signed(mapping(info, "info")))
    audit("image.describe", image=image)


# --- labels --------------------------------------------------------------------------------------


@router.put("/label", dependencies=[_annotator], summary="Submit a label")
def save_label(
    image: str,
    label: Annotated[UploadFile, File()],
    params: Annotated[str, Form()] = "{}",
    tag: str = str(DefaultLabelTag.FINAL.value),
) -> dict[str, Any]:
    """The one before stays as a version. `params.label_info` names the segments."""
    app = the_app()
    datastore = app.datastore()
    info = _of_label(mapping(params))
    _known_image(datastore, image)
    with received(label) as path:
        if not path.stat().st_size:
            raise RefusedError(422, "the submitted label map is empty")
        saved = datastore.save_label(
            image, str(path), tag or str(DefaultLabelTag.FINAL.value), _signed(info)
        )
        digest = _digest(path, "sha256")
    told = app.on_save_label(image, saved) or {}
    audit("label.save", image=image, tag=tag, label=saved, submitted_sha256=digest)
    return {**told, "image": image, "label": saved}


@router.delete("/label", dependencies=[_admin], summary="Remove a label")
def remove_label(id: str, tag: str) -> dict[str, Any]:  # noqa: A002
    """It stays as a version."""
    datastore = the_app().datastore()
    _known_label(datastore, id, tag)
    datastore.remove_label(id, tag)
    audit("label.remove", label=id, tag=tag)
    return {}


@router.head("/label", dependencies=[_user], summary="Whether there is a label")
def check_label(tag: str, image: str | None = None, label: str | None = None) -> Response:
    """Of an image."""
    _label_file(_either(image, label), tag)
    return Response()


@router.get("/label", dependencies=[_user], summary="A label")
def get_label(tag: str, image: str | None = None, label: str | None = None) -> FileResponse:
    """The file as it is."""
    return _sent(_label_file(_either(image, label), tag))


@router.get("/label/info", dependencies=[_user], summary="What is known of a label")
def label_info(label: str, tag: str) -> dict[str, Any]:
    """As it was sent, and what the server added."""
    datastore = the_app().datastore()
    _known_label(datastore, label, tag)
    return dict(datastore.get_label_info(label, tag))


@router.put("/label/info", dependencies=[_annotator], summary="Describe a label")
def update_label_info(label: str, tag: str, info: Annotated[str, Form()] = "{}") -> None:
    """Adds to what is known of it."""
    _describe_label(label, tag, mapping(info, "info"))


@router.put("/updatelabelinfo", dependencies=[_annotator], include_in_schema=False)
def update_label_info_as_before(
    label: str, tag: str, params: Annotated[str, Form()] = "{}"
) -> None:
    """As 3D Slicer's reviewer still asks."""
    _describe_label(label, tag, mapping(params))


@router.get("/dataset", dependencies=[_annotator], summary="All images and labels as ZIP")
def dataset(limit_cases: Annotated[int | None, Query(ge=1)] = None) -> FileResponse:
    """Those that have a final label."""
    datastore = _folder("The PACS has the images: there is no archive here.")
    cases = datastore.datalist()
    if not cases:
        raise RefusedError(404, "there is no image with a final label yet")
    if (room := current_room()) is not None:
        # it is built as a temporary file
        files = [Path(case[kind]) for case in cases for kind in ("image", "label")]
        room.promise(TEMPORARY, sum(file.stat().st_size for file in files if file.is_file()))
    archive = datastore.get_dataset_archive(limit_cases)
    return SentOnce(archive, media_type="application/zip", filename="dataset.zip")


def _describe_label(label: str, tag: str, info: dict[str, Any]) -> None:
    datastore = the_app().datastore()
    _known_label(datastore, label, tag)
    datastore.update_label_info(label, tag, _signed(_of_label(info)))
    audit("label.describe", label=label, tag=tag)


def _folder(otherwise: str) -> LocalDatastore:
    """The datastore, if it is a folder; else 405."""
    datastore = the_app().datastore()
    # the one of a PACS has a local one's methods as well
    if _is_pacs() or not isinstance(datastore, LocalDatastore):
        raise RefusedError(405, otherwise)
    return datastore


def _is_pacs() -> bool:
    return the_app().studies.startswith(("http://", "https://"))


def _known_image(datastore: Datastore, image: str) -> None:
    checked_text(image, "image")
    # a PACS has more images than it lists, and is asked in a moment; it may also be away
    if not (_PACS_ID.fullmatch(image) if _is_pacs() else image in datastore.list_images()):
        raise RefusedError(404, f"there is no image {image!r} in the datastore")


def _known_label(datastore: Datastore, label: str, tag: str) -> None:
    checked_text(label, "label")
    checked_text(tag, "tag")
    try:
        tags = datastore.get_labels_by_image_id(label)
    except (ImageNotFoundException, LabelNotFoundException, KeyError):
        tags = {}
    if tag not in tags:
        raise RefusedError(404, f"there is no label {tag!r} of image {label!r}")


def _image_file(image: str) -> Path:
    datastore = the_app().datastore()
    _known_image(datastore, image)
    file = Path(datastore.get_image_uri(image) or "")
    if not file.is_file():
        raise RefusedError(404, f"there is no file of image {image!r}")
    return file


def _label_file(label: str, tag: str) -> Path:
    datastore = the_app().datastore()
    _known_label(datastore, label, tag)
    file = Path(datastore.get_label_uri(label, tag) or "")
    if not file.is_file():
        raise RefusedError(404, f"there is no file of label {tag!r} of image {label!r}")
    return file


def _either(image: str | None, label: str | None) -> str:
    # MONAI Label asks for one of them on HEAD, and for the other on GET
    found = label or image
    if not found:
        raise RefusedError(422, "label: the id is needed")
    return found


def _sent(file: Path) -> FileResponse:
    return FileResponse(file, media_type=get_mime_type(str(file)), filename=file.name)


def _stem(upload: UploadFile) -> str:
    name = checked_text(file_name(upload), "file")
    end = suffix(upload) if name else ""
    return name[: len(name) - len(end)] if end else name


def _is_same(datastore: Datastore, image: str, file: Path) -> bool:
    there = Path(datastore.get_image_uri(image) or "")
    return there.is_file() and _digest(there, "sha256") == _digest(file, "sha256")


def _signed(info: dict[str, Any]) -> dict[str, Any]:
    """What a client tells of an image or label, without what the server itself notes there."""
    info = {key: value for key, value in info.items() if key not in _NOTED}
    call = current_call()
    return {**info, "user": call.user} if call is not None and call.user else info


def _of_label(info: dict[str, Any]) -> dict[str, Any]:
    """What a client tells of a label, if its model and names can be read again.

    Raises:
        RefusedError: 422 the model is no name.
        InputError: the segments' names and numbers are none.
    """
    if not isinstance(info.get("model") or "", str):
        raise RefusedError(422, "params.model: a name is needed")
    stored_names(info)
    return info


def _fits(file: Path, told: str) -> bool:
    algorithm, _, digest = told.rpartition(":")
    name = _HASHES.get((algorithm or "SHA256").upper())
    if name is None:
        raise RefusedError(422, f"check_sum: one of {', '.join(_HASHES)} is needed")
    return _digest(file, name) == digest.lower()


def _digest(file: Path, algorithm: str) -> str:
    found = hashlib.new(algorithm, usedforsecurity=False)
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            found.update(block)
    return found.hexdigest()
