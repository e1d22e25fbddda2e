"""The datastore in a folder, which loses no label."""

from __future__ import annotations

import copy
import filecmp
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

from fastapi import HTTPException
from monailabel.datastore.local import (
    DataModel,
    ImageLabelModel,
    LocalDatastore,
    LocalDatastoreModel,
)

from esp_medsam_app.data.attached import check_attached
from esp_medsam_app.data.formats import is_dicom_file, suffix_of
from esp_medsam_app.errors import EspMedSamError, InputError, UnknownNameError
from esp_medsam_app.server.datastore_file import Change, DatastoreFile
from esp_medsam_app.server.disks import advice_on_room, full_disk
from esp_medsam_app.server.file_changes import Kept, Replacement
from esp_medsam_app.server.http_errors import as_http_error
from esp_medsam_app.server.sources import ImageSource
from esp_medsam_app.server.told_texts import (
    MOST_TAGS,
    check_size,
    check_told,
    checked_name,
    checked_tag,
    text_of,
)

HISTORY = "label_versions"
# marks a label as the model's own, which can be computed again
PREDICTED = "predicted"

# beside the versions: the info of a label whose image is gone
_GONE = "gone.json"
Prepare = Callable[
    [Path, Path, Mapping[str, Any]], AbstractContextManager[tuple[Path, dict[str, Any]]]
]

logger = logging.getLogger(__name__)


class SafeDatastore(LocalDatastore):
    """MONAI Label's own datastore, with every change a transaction; see `DatastoreFile`.

    The folder looks as MONAI Label leaves it. Beside that there is `label_versions/`: whenever a
    label is submitted again or removed, the one before is kept there as `<tag>/<image>/<number>`
    with its info in JSON, all of them and for ever, unless the image itself is removed. They are
    no `version_N` tags, since MONAI Label's reviewer takes the highest of those for the latest.
    Predictions that were saved on this server are replaced without that.

    Errors are HTTPExceptions (404 unknown, 422 refused, 500 the disk), since MONAI Label's
    endpoints pass them on as they are and make a bare 500 of anything else.

    Args:
        datastore_path: folder of the images; made if it is not there.
        prepare: turns a submitted label map, its image and its info into those to be kept, for
            the time of a `with` block; raises InputError for what it refuses.
        images_dir: of the images, relative to the folder.
        labels_dir: of the labels, likewise.
        datastore_config: name of MONAI Label's file.
        extensions: patterns of the files that are images.
        auto_reload: whether to watch the folder.
        read_only: leave the folder as it is when starting.

    Raises:
        OSError: the folder cannot be used.
    """

    # what the server alone notes of a label: said by a client, it would cost a version
    _own_notes: ClassVar[frozenset[str]] = frozenset({PREDICTED})

    def __init__(
        self,
        datastore_path: str,
        prepare: Prepare | None = None,
        images_dir: str = ".",
        labels_dir: str = "labels",
        datastore_config: str = "datastore_v2.json",
        extensions: Sequence[str] = ("*.nii.gz", "*.nii"),
        auto_reload: bool = False,
        read_only: bool = False,
    ) -> None:
        self._folder = Path(datastore_path)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._hidden: set[str] = set()
        self._prepare: Prepare = prepare or (lambda file, _, info: nullcontext((file, dict(info))))
        self._file = DatastoreFile(
            self._folder / datastore_config,
            LocalDatastoreModel(
                name="new-dataset",
                description="New Dataset",
                images_dir=images_dir,
                labels_dir=labels_dir,
                base_path=datastore_path,
            ),
            read_only=read_only,
            complete=self._follow_files,
        )
        super().__init__(
            datastore_path,
            images_dir,
            labels_dir,
            datastore_config,
            extensions,
            auto_reload=auto_reload,
            read_only=read_only,
        )
        if not read_only:
            self._remove_partials()
        if auto_reload:
            # what is moved here is there all at once, as rsync does it
            self._handler.on_moved = self._on_any_event

    @property
    def folder(self) -> Path:
        """Where labels are, and images that are no PACS's."""
        return self._folder

    # --- reading: everything of the base class goes through here --------------------------------

    @property
    def _datastore(self) -> LocalDatastoreModel:
        return self._file.read()

    @_datastore.setter
    def _datastore(self, model: LocalDatastoreModel) -> None:
        """The base class begins with an empty model; `_file` has its own."""

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        self._file.read()

    def _to_id(self, file: str) -> tuple[str, str]:
        """Name and suffix of a file. The suffix stands at the end and nowhere else."""
        endings = [pattern.replace("*", "") for pattern in self._extensions]
        known = [end for end in endings if end and file.lower().endswith(end.lower())]
        length = len(max(known, key=len) if known else suffix_of(file) or Path(file).suffix)
        return file[: len(file) - length], file[len(file) - length :]

    def label_versions(self, label_id: str, label_tag: str) -> list[Path]:
        """The files of labels that were replaced or removed, oldest first."""
        folder = self._history(checked_name(label_id), checked_tag(label_tag))
        return sorted(path for path in folder.glob("[0-9]*") if path.suffix != ".json")

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """A label's info, to be altered at will; empty if there is no such label."""
        return copy.deepcopy(dict(super().get_label_info(label_id, label_tag)))

    # --- changes --------------------------------------------------------------------------------

    def set_name(self, name: str) -> None:
        """Name the dataset."""
        with _told(), self._file.transaction() as change:
            change.model.name = name

    def set_description(self, description: str) -> None:
        """Describe the dataset."""
        with _told(), self._file.transaction() as change:
            change.model.description = description

    def add_image(self, image_id: str, image_filename: str, image_info: Mapping[str, Any]) -> str:
        """Take a copy of an image; of the same one again only the info counts.

        Raises:
            HTTPException: 409 there is another image of this id, whose labels would lie on the
                wrong one; 422 for an id that is no file name, or a file that is no image.
        """
        with _told():
            source = Path(image_filename)
            check_attached(source)
            stem, suffix = self._image_suffix(source)
            image_id = checked_name(image_id or stem)
            info = _plain(image_info)
            with self._file.transaction() as change:
                model = change.model
                target = _image_file(model, image_id, suffix)
                before = model.objects.get(image_id)
                entry = before or ImageLabelModel(image=DataModel())
                if before is not None:
                    _check_same(_image_file(model, image_id, before.image.ext), source, image_id)
                    logger.info("Image %r again; labels stay: %s", image_id, list(before.labels))
                    if before.image.ext != suffix:
                        change.removed.append(_image_file(model, image_id, before.image.ext))
                entry.image.ext = suffix
                entry.image.info.update(info, ts=int(time.time()), name=target.name)
                model.objects[image_id] = entry
                check_told(change, entry.image.info)
                change.files.append((target, source))
            return image_id

    def remove_image(self, image_id: str) -> None:
        """Remove an image with all its labels, those that were replaced too.

        Raises:
            HTTPException: 404 unknown image.
        """
        with _told(), self._file.transaction() as change:
            entry = _entry(change.model, image_id)
            for tag, label in entry.labels.items():
                change.removed.append(_label_file(change.model, image_id, tag, label.ext))
            for folder in self._histories():
                change.removed.append(folder / image_id)
            change.removed.append(_image_file(change.model, image_id, entry.image.ext))
            del change.model.objects[image_id]

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: Mapping[str, Any]
    ) -> str:
        """Keep a copy of a label that somebody submits; the one before becomes a version.

        Raises:
            HTTPException: 404 unknown image; 422 for what `prepare` refuses and a tag that is no
                folder's name. The label before is then still there.
        """
        file = Path(label_filename)
        with _told(ImageSource(file, "", "the submitted label map")):
            tag = checked_tag(label_tag)
            entry = _entry(self._datastore, image_id)
            image = _image_file(self._datastore, image_id, entry.image.ext)
            info = self._without_own_notes(label_info)
            check_size(info)
            with self._prepare(file, image, info) as (prepared, info):
                self._keep_label(image_id, tag, prepared, info)
        return image_id

    def save_prediction(
        self, image_id: str, label_filename: str, label_tag: str, label_info: Mapping[str, Any]
    ) -> str:
        """Keep a copy of a label map that a model of this server drew, as it is.

        Raises:
            HTTPException: 404 unknown image; 422 for a tag that is no folder's name.
        """
        with _told():
            info = {**_plain(label_info), PREDICTED: True}
            self._keep_label(image_id, checked_tag(label_tag), Path(label_filename), info)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Take a label away; it becomes a version.

        Raises:
            HTTPException: 404 unknown label.
        """
        with _told(), self._file.transaction() as change:
            tag = text_of(label_tag)
            label = _label(change.model, label_id, tag)
            self._to_history(change, label_id, tag, label)
            change.removed.append(_label_file(change.model, label_id, tag, label.ext))
            del change.model.objects[label_id].labels[tag]

    def update_image_info(self, image_id: str, info: Mapping[str, Any]) -> None:
        """Add to an image's info, or alter it.

        Raises:
            HTTPException: 404 unknown image.
        """
        with _told():
            plain = _plain(info)
            with self._file.transaction() as change:
                known = _entry(change.model, image_id).image.info
                known.update(plain)
                check_told(change, known)

    def update_label_info(self, label_id: str, label_tag: str, info: Mapping[str, Any]) -> None:
        """Add to a label's info, or alter it.

        Raises:
            HTTPException: 404 unknown label.
        """
        with _told():
            plain = self._without_own_notes(info)
            with self._file.transaction() as change:
                known = _label(change.model, label_id, text_of(label_tag)).info
                known.update(plain)
                check_told(change, known)

    def _without_own_notes(self, info: Any) -> dict[str, Any]:
        return {key: value for key, value in _plain(info).items() if key not in self._own_notes}

    def _keep_label(self, image_id: str, tag: str, source: Path, info: dict[str, Any]) -> None:
        suffix = self._to_id(source.name)[1]
        if not suffix:
            raise InputError("the file's name does not tell its format", path=source)
        with self._file.transaction() as change:
            entry = _entry(change.model, image_id)
            target = _label_file(change.model, image_id, tag, suffix)
            before = entry.labels.get(tag)
            if before is None and len(entry.labels) >= MOST_TAGS:
                raise InputError(
                    f"image {image_id!r} has labels of {MOST_TAGS} tags already",
                    remedy="Submit the label with one of these tags",
                )
            info = {**info, "ts": int(time.time()), "name": target.name}
            if before is not None:
                file = _label_file(change.model, image_id, tag, before.ext)
                same_names = before.info.get("label_info") == info.get("label_info")
                if not (same_names and file.is_file() and filecmp.cmp(file, source, shallow=False)):
                    self._to_history(change, image_id, tag, before)
                if before.ext != suffix:
                    change.removed.append(file)
            entry.labels[tag] = DataModel(ext=suffix, info=info)
            change.files.append((target, source))
        logger.info("Kept label %r of image %r (%s)", tag, image_id, suffix)

    def _to_history(self, change: Change, image_id: str, tag: str, label: DataModel) -> None:
        file = _label_file(change.model, image_id, tag, label.ext)
        if label.info.get(PREDICTED) or not file.is_file():
            return
        folder = self._history(image_id, tag)
        numbers = [int(p.stem) for p in folder.glob("[0-9]*.json")]
        name = f"{max(numbers, default=0) + 1:06d}"
        info = json.dumps(label.info, indent=2).encode()
        change.files += [
            (folder / f"{name}{label.ext}", Kept(file)),
            (folder / f"{name}.json", info),
        ]

    def _history(self, image_id: str, tag: str) -> Path:
        return self._folder / HISTORY / tag / image_id

    def _histories(self) -> list[Path]:
        folder = self._folder / HISTORY
        return [tag for tag in folder.iterdir() if tag.is_dir()] if folder.is_dir() else []

    def _image_suffix(self, source: Path) -> tuple[str, str]:
        stem, suffix = self._to_id(source.name)
        if any(suffix.lower() == pattern.replace("*", "").lower() for pattern in self._extensions):
            return stem, suffix
        if suffix_of(source) is not None:
            return stem, suffix
        if is_dicom_file(source):
            return source.name, ".dcm"
        raise InputError(
            "the file's name does not end as an image's",
            remedy="NIfTI, NRRD, MetaImage, DICOM, PNG, JPEG and TIFF can be read",
        )

    # --- what comes into the folder by other ways ------------------------------------------------

    def _reconcile_datastore(self) -> None:
        with self._file.transaction() as change:
            change.files += self._follow_files(change.model)

    def _remove_partials(self) -> None:
        """Remove the hidden files that processes left which were killed while they wrote."""
        model = self._datastore
        labels = Path(model.label_path(None))
        folders = [Path(model.image_path())]
        folders += [entry for entry in _entries(labels) if entry.is_dir()]
        folders += [image for tag in self._histories() for image in _entries(tag)]
        try:
            count = self._file.remove_partials(folders)
        except OSError:
            logger.warning("Half-written files cannot be removed", exc_info=True)
            return
        if count:
            logger.info("Removed %d files that were left half-written", count)

    def _follow_files(self, model: LocalDatastoreModel) -> list[Replacement]:
        """Make a model agree with the files there are.

        Returns:
            What to write down of labels whose image is gone: it may be back in a moment, as when
            somebody replaces it by hand, and the label shall then have its info.
        """
        remembered: list[Replacement] = []
        for image_id, entry in list(model.objects.items()):
            if not _image_file(model, image_id, entry.image.ext).exists():
                logger.info("Image %r is not there any more", image_id)
                for tag, label in entry.labels.items():
                    stamp = _stamp(_label_file(model, image_id, tag, label.ext))
                    content = json.dumps({"file": stamp, "info": label.info}, indent=2).encode()
                    remembered.append((self._history(image_id, tag) / _GONE, content))
                del model.objects[image_id]
        for image_id, suffix, file in self._files(Path(model.image_path())):
            if image_id not in model.objects:
                logger.info("New image %r: %s", image_id, file.name)
                model.objects[image_id] = ImageLabelModel(image=_found(file, suffix))
            elif suffix != model.objects[image_id].image.ext and file.name not in self._hidden:
                self._hidden.add(file.name)
                shown = f"{image_id}{model.objects[image_id].image.ext}"
                logger.warning(
                    "%s is not offered: image %r is %s. Rename one of them",
                    file.name,
                    image_id,
                    shown,
                )
        folder = Path(model.label_path(None))
        tags = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
        for image_id, entry in model.objects.items():
            for tag, label in list(entry.labels.items()):
                if not _label_file(model, image_id, tag, label.ext).exists():
                    logger.info("Label %r of image %r is not there any more", tag, image_id)
                    del entry.labels[tag]
        for tag in tags:
            for image_id, suffix, file in self._files(folder / tag):
                found = model.objects.get(image_id)
                if found is not None and tag not in found.labels:
                    logger.info("New label %r of image %r: %s", tag, image_id, file.name)
                    found.labels[tag] = _found(file, suffix, self._history(image_id, tag) / _GONE)
        return remembered

    def _files(self, folder: Path) -> list[tuple[str, str, Path]]:
        """Id, suffix and path of what a folder holds; hidden files are still being written."""
        if not folder.is_dir():
            return []
        names = sorted(n for n in self._list_files(folder, self._extensions) if n[0] != ".")
        return [(*self._to_id(name), folder / name) for name in names]

    def _on_any_event(self, event: Any) -> None:
        """Follow the files if they differ from what is known; after our own changes they do not."""
        paths = [Path(str(p)) for p in (event.src_path, getattr(event, "dest_path", "")) if p]
        try:
            # a transaction replaces files one after another: news are what is left at its end
            if any(self._is_news(path) for path in paths):
                with self._file.settled():
                    if any(self._is_news(path) for path in paths):
                        self.refresh()
        except Exception:
            # the observer's thread would end with it
            logger.exception("The datastore could not follow %s", event)

    def _on_modify_event(self, event: Any) -> None:
        """Nothing to do: every reading looks whether the file is another one."""

    def _is_news(self, path: Path) -> bool:
        if path.name.startswith(".") or path.name == self._file.path.name:
            return False
        model = self._datastore
        image_id, suffix = self._to_id(path.name)
        entry = model.objects.get(image_id)
        if path.parent.resolve() == Path(model.image_path()).resolve():
            known = entry is not None and entry.image.ext == suffix
        else:
            label = entry.labels.get(path.parent.name) if entry is not None else None
            known = label is not None and label.ext == suffix
        return known != path.exists()


def _found(file: Path, suffix: str, remembered: Path | None = None) -> DataModel:
    info = {"ts": int(time.time()), "name": file.name}
    if remembered is not None and remembered.is_file():
        known = json.loads(remembered.read_bytes())
        if known["file"] == _stamp(file):
            info |= known["info"]
    return DataModel(ext=suffix, info=info)


def _check_same(there: Path, source: Path, image_id: str) -> None:
    if there.is_file() and not filecmp.cmp(there, source, shallow=False):
        raise HTTPException(
            409,
            f"there is another image {image_id!r} already. Remove it first, or rename this one",
        )


def _stamp(file: Path) -> list[int]:
    """Size and time of change, which tell that a label is still the same; empty without file."""
    if not file.is_file():
        return []
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _image_file(model: LocalDatastoreModel, image_id: str, suffix: str) -> Path:
    return Path(model.image_path()) / f"{image_id}{suffix}"


def _label_file(model: LocalDatastoreModel, image_id: str, tag: str, suffix: str) -> Path:
    return Path(model.label_path(tag)) / f"{image_id}{suffix}"


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _entry(model: LocalDatastoreModel, image_id: str) -> ImageLabelModel:
    if image_id not in model.objects:
        raise UnknownNameError(f"there is no image {image_id!r} in the datastore")
    return model.objects[image_id]


def _label(model: LocalDatastoreModel, image_id: str, tag: str) -> DataModel:
    label = _entry(model, image_id).labels.get(tag)
    if label is None:
        raise UnknownNameError(f"image {image_id!r} has no label {tag!r}")
    return label


def _plain(info: Any) -> dict[str, Any]:
    """What JSON can hold of an info."""
    if not isinstance(info or {}, Mapping):
        raise InputError("params: a mapping of names to values is needed")
    text = json.dumps(
        info or {}, default=lambda value: value.item() if hasattr(value, "item") else str(value)
    )
    # NaN is no JSON: an answer that holds one would fail
    return dict(json.loads(text, parse_constant=lambda _: None))


def _room(error: OSError) -> str:
    from monailabel.config import settings

    where = error.filename or settings.MONAI_LABEL_STUDIES or "."
    return advice_on_room("images and labels", Path(str(where)))


@contextmanager
def _told(source: ImageSource | None = None) -> Iterator[None]:
    """Errors as the client shall see them."""
    try:
        yield
    except EspMedSamError as error:
        raise as_http_error(error, source) from error
    except OSError as error:
        told = full_disk(error) or EspMedSamError(
            f"the datastore cannot be written ({error.strerror or error})",
            remedy=f"{_room(error)}. Another process may hold its lock, or the folder is read-only",
        )
        raise as_http_error(told, source) from error
