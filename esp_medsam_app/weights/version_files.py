"""What lies in a store of versions: descriptions, and which version serves.

Everything is written so that power loss at any moment leaves the old or the new, never a part.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    computed_field,
)

from esp_medsam_app.data.texts import read_json
from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import EspMedSamError, WeightsError
from esp_medsam_app.modalities import Modality

SERVING = "serving.json"
SERVING_COPY = "serving.copy.json"
WEIGHTS = "weights.safetensors"
DESCRIPTION = "version.json"
_LOCK = ".lock"
_PART = ".part"
_PATIENCE_SECONDS = 60

logger = logging.getLogger(__name__)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Shared(_Frozen):
    """SHA-256s of the weights that a version works with."""

    backbone: str
    decoder: str


class Cases(_Frozen):
    """Images that a version was trained on and judged by, by id."""

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()


class Dice(_Frozen):
    """Dice of the validation cases, 0 to 1, by id.

    Attributes:
        before: of the version that served then; empty if none did.
        after: of this one.
    """

    before: dict[str, FiniteFloat] = Field(default_factory=dict)
    after: dict[str, FiniteFloat] = Field(default_factory=dict)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def means(self) -> dict[str, float | None]:
        """Over the cases; none where there is none."""
        return {
            when: sum(values.values()) / len(values) if values else None
            for when, values in (("before", self.before), ("after", self.after))
        }


class Version(_Frozen):
    """The content of `version.json`.

    Attributes:
        schema_version: of this file.
        number: 1, 2, ... as they were made; 0 is the bundle's own.
        modality: as it was when the version was trained.
        parent: the version that its training started from; none: the backbone.
        created: in UTC; none for the bundle's own.
        state: what the promotion decided. Which version serves is another matter.
        reason: why.
        cases: it was trained on and judged by.
        dice: of the validation cases.
        training: how: recipe, steps, seconds.
        sha256: of the weights.
        shared: weights that it works with.
    """

    schema_version: Literal[1] = 1
    number: int = Field(ge=0)
    modality: Modality
    parent: int | None = None
    created: datetime | None = None
    state: Literal["published", "kept_back"] = "published"
    reason: str = ""
    cases: Cases = Cases()
    dice: Dice = Dice()
    training: dict[str, Any] = Field(default_factory=dict)
    sha256: str
    shared: Shared


class Change(_Frozen):
    """What served from when on, and why.

    Attributes:
        time: in UTC.
        modality: whose.
        number: version that serves from then on.
        before: version that served until then.
        reason: for people.
    """

    time: datetime
    modality: str
    number: int
    before: int
    reason: str = ""


class Serving(_Frozen):
    """The content of `serving.json`.

    Attributes:
        schema_version: of this file.
        serving: which version of a modality serves; a modality that is not here serves the
            bundle's own.
        history: every change, the oldest first.
    """

    schema_version: Literal[1] = 1
    serving: dict[str, int] = Field(default_factory=dict)
    history: tuple[Change, ...] = ()


def version_folder(store: Path, modality: str, number: int) -> Path:
    """Where a version lies in a store."""
    return store / modality / str(number)


def read_version(folder: Path) -> Version:
    """The description in a version's folder.

    Raises:
        WeightsError: missing, not JSON or against the schema.
    """
    file = folder / DESCRIPTION
    try:
        return Version.model_validate(read_json(file))
    except (OSError, ValueError) as error:
        raise WeightsError(f"not a readable description ({_first(error)})", path=file) from error


def read_serving(store: Path) -> Serving:
    """Which versions serve; from the second copy where the first one is damaged or missing.

    Nothing serves, which the log tells, where both are.
    """
    for name in (SERVING, SERVING_COPY):
        file = store / name
        try:
            found = Serving.model_validate(read_json(file))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            logger.error("%s cannot be read (%s)", file, _first(error))
            continue
        if name == SERVING_COPY:
            logger.error("%s is used in place of %s", file, SERVING)
        return found
    return Serving()


def write_serving(store: Path, serving: Serving) -> None:
    """Write both copies, one after the other."""
    for name in (SERVING, SERVING_COPY):
        with written_whole(store / name) as partial:
            write_json(partial, serving)
        sync(store)


def write_json(path: Path, content: BaseModel) -> None:
    """Write a description and wait until the disk has it."""
    text = json.dumps(content.model_dump(mode="json"), indent=2) + "\n"
    path.write_text(text, encoding="utf-8")
    sync(path)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which is `folder` at the end; for one process at a time.

    What another one left that was killed in between is removed.
    """
    folder.parent.mkdir(exist_ok=True)
    for leftover in folder.parent.glob(f"*{_PART}"):
        shutil.rmtree(leftover)
    part = folder.with_name(f".{folder.name}{_PART}")
    part.mkdir()
    try:
        yield part
        sync(part)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until the disk has a file's content, or the names in a folder."""
    is_folder = path.is_dir()
    if is_folder and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(store: Path) -> Iterator[None]:
    """One process at a time changes a store; the lock of one that was killed is free again.

    Raises:
        EspMedSamError: another one does not finish, or the store cannot be written to.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
        with FileLock(store / _LOCK, timeout=_PATIENCE_SECONDS):
            yield
    except Timeout as error:
        raise EspMedSamError(
            f"another process has been writing for {_PATIENCE_SECONDS} s",
            path=store,
            remedy="Try again when it has finished",
        ) from error
    except OSError as error:
        raise EspMedSamError(
            f"the versions cannot be written ({error.strerror or error})",
            path=store,
            remedy="The server needs a folder that it may write to, on a disk with space left",
        ) from error


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return getattr(error, "strerror", None) or str(error)
