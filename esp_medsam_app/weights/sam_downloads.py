"""SAM's released encoders: fetched once when the user asks for them, and found again.

Nothing is fetched at start-up or on inference. Files lie in ESP_MEDSAM_CACHE, or in
`esp_medsam` of the user's cache folder.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import UnknownNameError, WeightsError
from esp_medsam_app.weights.integrity import check_sha256, sha256_of
from esp_medsam_app.weights.sam_checkpoints import RELEASES
from esp_medsam_app.weights.user_cache import cache_folder

OFFICIAL = "https://dl.fbaipublicfiles.com/segment_anything/"
_BLOCK = 1 << 20
_TIMEOUT_SECONDS = 60

OnBytes = Callable[[int, int], None]


@dataclass(frozen=True)
class SamRelease:
    """A checkpoint that segment-anything's authors released (Apache-2.0).

    Attributes:
        name: as in a bundle and on the command line.
        file: its name.
        sha256: of the file.
    """

    name: str
    file: str
    sha256: str

    @property
    def path(self) -> Path:
        """Where it lies once it was fetched."""
        return cache_folder() / self.file

    def fetched(self) -> Path:
        """Where it lies.

        Raises:
            WeightsError: it was not fetched yet.
        """
        if not self.path.is_file():
            raise WeightsError(
                f"SAM's encoder {self.name} is not on this machine",
                path=self.path,
                remedy=f"Fetch it: esp-medsam weights pull {self.name}",
            )
        return self.path


# "sam_vit_b" of "sam_vit_b_01ec64.pth"
SAM_RELEASES = {
    name: SamRelease(name, file, digest)
    for file, digest in RELEASES.items()
    for name in [file.rpartition("_")[0]]
}


def get_release(name: str) -> SamRelease:
    """Look a release up.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in SAM_RELEASES:
        raise UnknownNameError(
            f"there are no weights {name!r} to fetch", remedy=f"Known: {', '.join(SAM_RELEASES)}"
        )
    return SAM_RELEASES[name]


def pull(
    release: SamRelease,
    *,
    source: str = OFFICIAL,
    on_bytes: OnBytes = lambda done, total: None,
) -> Path:
    """Fetch a release unless it is there already; the file appears whole or not at all.

    Args:
        release: what.
        source: address of the folder on the web.
        on_bytes: called with bytes done and in all (0 where the server does not tell).

    Raises:
        WeightsError: it cannot be fetched or written, or is not what was released.
    """
    if release.path.is_file():
        with suppress(WeightsError):
            check_sha256(release.path, release.sha256)
            return release.path
    address = source.rstrip("/") + "/" + release.file
    try:
        release.path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(release.path) as partial:
            _fetch(address, partial, on_bytes)
            found = sha256_of(partial)
            if found != release.sha256:
                raise WeightsError(
                    f"{address} is not what was released: SHA-256 is {found}, "
                    f"{release.sha256} was expected",
                    remedy="Try again; if that does not help, another server was reached",
                )
    except urllib.error.URLError as error:
        raise WeightsError(
            f"{address} cannot be fetched ({error.reason})",
            remedy=f"Check the network, or put the file into {release.path.parent} yourself",
        ) from error
    except OSError as error:
        raise WeightsError(
            f"{address} cannot be fetched or written ({error.strerror or error})",
            path=release.path,
            remedy="Check network and disk, then try again",
        ) from error
    return release.path


def _fetch(address: str, target: Path, on_bytes: OnBytes) -> None:
    with (
        urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as answer,
        target.open("wb") as file,
    ):
        total, done = int(answer.headers.get("Content-Length") or 0), 0
        while block := answer.read(_BLOCK):
            file.write(block)
            done += len(block)
            on_bytes(done, total)
