"""Assessments of images kept on disk, so that each image is looked at once for each weights."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esp_medsam_app.active_learning.database import Result, retain_images, transact
from esp_medsam_app.inference.assessment import Assessment
from esp_medsam_app.weights.backbones import LITE_MEDSAM
from esp_medsam_app.weights.bundle import DECODER, Bundle, controller_file

# Weights whose scores are kept, of each modality: those that serve and those before.
VERSIONS = 2
# How long a modality is taken care of after somebody asked for its scores: a week.
ASKED_SECONDS = 7 * 24 * 3600.0
# The share of images that suffices for turning to the scores of new weights.
ENOUGH = 0.9

_TABLES = """
CREATE TABLE IF NOT EXISTS scores (
    modality TEXT NOT NULL, version TEXT NOT NULL, image TEXT NOT NULL, fingerprint TEXT NOT NULL,
    uncertainty REAL, disagreement REAL, entropy REAL, embedding BLOB, slices INTEGER, made REAL,
    PRIMARY KEY (modality, version, image)
);
CREATE TABLE IF NOT EXISTS failures (
    image TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS asked (modality TEXT PRIMARY KEY, at REAL NOT NULL);
"""
_KEPT = "image, uncertainty, disagreement, entropy, embedding, slices"


@dataclass(frozen=True)
class ScoreKey:
    """What a score belongs to; with another fingerprint or version it is none.

    Attributes:
        image: its id.
        fingerprint: of its file, see `fingerprint`.
        modality: name of the modality that it was assessed with.
        version: of that modality's weights, see `weights_version`.
    """

    image: str
    fingerprint: str
    modality: str
    version: str


def fingerprint(path: Path) -> str:
    """Size and time of change (ns) of a file, or of all files in a DICOM series' folder.

    Raises:
        OSError: there is no such file.
    """
    if not path.is_dir():
        status = path.stat()
        return f"{status.st_size} {status.st_mtime_ns}"
    listed = sorted(
        f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in path.iterdir()
    )
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


def weights_version(bundle: Bundle, modality: str) -> str:
    """A name for all weights that take part in a modality's masks, from their SHA-256."""
    files = bundle.description.files
    parts = [
        bundle.description.backbone.sha256,
        files.get(DECODER, ""),
        files.get(controller_file(modality), ""),
    ]
    if bundle.usual_size(modality) != LITE_MEDSAM.input_size:
        # the same weights mark other pixels at another size
        parts.append(str(bundle.usual_size(modality)))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class ScoreCache:
    """Scores in a file that threads and processes share; an entry is there whole or not at all.

    An entry that cannot be read counts as absent. Of each modality, scores of the newest weights
    are kept and of those before.

    Args:
        path: of the file.
        versions: of the weights whose scores are kept.
        clock: seconds since 1970.

    All methods raise sqlite3.Error or OSError where the file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        versions: int = VERSIONS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.versions = versions
        self.clock = clock

    def put(self, key: ScoreKey, assessment: Assessment) -> None:
        """Keep a score; that of another fingerprint is replaced, and a failure forgotten."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM failures WHERE image = ?", (key.image,))
            connection.execute(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    key.modality,
                    key.version,
                    key.image,
                    key.fingerprint,
                    assessment.uncertainty,
                    assessment.disagreement,
                    assessment.entropy,
                    assessment.embedding.astype("<f4").tobytes(),
                    assessment.slices,
                    self.clock(),
                ),
            )
            connection.execute(
                """DELETE FROM scores WHERE modality = ? AND version NOT IN (
                    SELECT version FROM scores WHERE modality = ?
                    GROUP BY version ORDER BY MAX(made) DESC LIMIT ?)""",
                (key.modality, key.modality, self.versions),
            )

        self._transact(write)

    def get(self, key: ScoreKey) -> Assessment | None:
        """The score of exactly this image under exactly these weights."""
        rows = self._transact(
            lambda connection: connection.execute(
                f"SELECT {_KEPT} FROM scores WHERE modality = ? AND version = ? AND image = ?"
                " AND fingerprint = ?",
                (key.modality, key.version, key.image, key.fingerprint),
            ).fetchall()
        )
        return next((_read(row[1:]) for row in rows), None)

    def known(self, modality: str, version: str) -> Mapping[str, str]:
        """Images that have a score under these weights, with the fingerprint it is of."""
        rows = self._transact(
            lambda connection: connection.execute(
                f"SELECT fingerprint, {_KEPT} FROM scores WHERE modality = ? AND version = ?",
                (modality, version),
            ).fetchall()
        )
        return {image: of for of, image, *kept in rows if _read(kept) is not None}

    def scores(self, modality: str, version: str) -> Mapping[str, Assessment]:
        """Scores under exactly these weights, by image."""
        return self._tables(modality).get(version, {})

    def table(self, modality: str, version: str) -> Mapping[str, Assessment]:
        """Scores of all images for comparing them, by id; all under the same weights.

        Under those of `version`, once nearly as many images have been assessed with them as with
        the weights before; until then under the latter: they rank images better than no score.
        """
        tables = self._tables(modality)
        serving = tables.get(version, {})
        fullest = max(tables.values(), key=len, default={})
        return serving if len(serving) >= ENOUGH * len(fullest) else fullest

    def _tables(self, modality: str) -> dict[str, dict[str, Assessment]]:
        """Scores by version and image."""
        rows = self._transact(
            lambda connection: connection.execute(
                f"SELECT version, {_KEPT} FROM scores WHERE modality = ?", (modality,)
            ).fetchall()
        )
        tables: dict[str, dict[str, Assessment]] = {}
        for version, image, *kept in rows:
            assessment = _read(kept)
            if assessment is not None:
                tables.setdefault(version, {})[image] = assessment
        return tables

    def fail(self, image: str, fingerprint: str, reason: str) -> None:
        """Note that an image cannot be assessed as it is; what it was before is forgotten."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM scores WHERE image = ?", (image,))
            connection.execute(
                "INSERT OR REPLACE INTO failures VALUES (?, ?, ?)", (image, fingerprint, reason)
            )

        self._transact(write)

    def failed(self) -> Mapping[str, str]:
        """Images that cannot be assessed, with the fingerprint that this holds for."""
        return dict(
            self._transact(
                lambda connection: connection.execute(
                    "SELECT image, fingerprint FROM failures"
                ).fetchall()
            )
        )

    def reasons(self) -> Mapping[str, str]:
        """Why images cannot be assessed."""
        return dict(
            self._transact(
                lambda connection: connection.execute(
                    "SELECT image, reason FROM failures"
                ).fetchall()
            )
        )

    def retain(self, images: Iterable[str]) -> None:
        """Forget all images but these."""
        wanted = set(images)
        self._transact(lambda connection: retain_images(connection, ("scores", "failures"), wanted))

    def ask(self, modality: str) -> None:
        """Note that scores under a modality are wanted."""
        self._transact(
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO asked VALUES (?, ?)", (modality, self.clock())
            )
        )

    def asked(self, within: float = ASKED_SECONDS) -> list[str]:
        """Modalities whose scores were wanted in the last `within` seconds, the latest first."""
        rows = self._transact(
            lambda connection: connection.execute(
                "SELECT modality FROM asked WHERE at >= ? ORDER BY at DESC, modality",
                (self.clock() - within,),
            ).fetchall()
        )
        return [modality for (modality,) in rows]

    def _transact(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        return transact(self.path, _TABLES, work)


def _read(kept: Iterable[object]) -> Assessment | None:
    """From a row's columns; none if they make no sense."""
    *numbers, blob, slices = kept
    if not isinstance(blob, bytes) or len(blob) % 4 or not isinstance(slices, int):
        return None
    values = [number for number in numbers if isinstance(number, float)]
    embedding = np.frombuffer(blob, "<f4").astype(np.float32)
    if len(values) != 3 or not (np.isfinite(values).all() and np.isfinite(embedding).all()):
        return None
    return Assessment(values[0], values[1], values[2], embedding, slices)
