"""One folder for all that a server writes, so that everything else may be read-only.

```
app/        the app's code, copied anew at each start; below it model/ (versions) and logs/
studies/    images and labels, where they are in a folder
dicom/      of a PACS: labels, those that are still to be sent, and the images used last
sessions/   volumes that viewers uploaded for a while
cache/      what libraries keep
tmp/        of the running server
```

Free of MONAI Label and torch.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from esp_medsam_app.errors import InputError

_CODE = ("main.py", "lib")


@dataclass(frozen=True)
class DataFolder:
    """Where things are in it.

    Attributes:
        path: of the folder.
    """

    path: Path

    @property
    def app(self) -> Path:
        """The app that is served."""
        return self.path / "app"

    @property
    def studies(self) -> Path:
        """Images in a folder."""
        return self.path / "studies"

    def environment(self) -> dict[str, str]:
        """What a server process needs to write nowhere else."""
        cache = str(self.path / "cache")
        return {
            "HOME": cache,
            "XDG_CACHE_HOME": cache,
            "XDG_CONFIG_HOME": cache,
            "MPLCONFIGDIR": f"{cache}/matplotlib",
            "TMPDIR": str(self.path / "tmp"),
            "MONAI_LABEL_SESSION_PATH": str(self.path / "sessions"),
            "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(self.path / "dicom"),
        }

    def prepare(self, source: Path) -> None:
        """Make what is missing, and bring the app's code up to date.

        Args:
            source: the app's folder in the installation.

        Raises:
            InputError: the folder cannot be written to.
        """
        try:
            for name in ("app", "sessions", "cache", "dicom", "tmp"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            for name in _CODE:
                _renew(source / name, self.app / name)
        except OSError as error:
            raise InputError(
                f"the data folder cannot be used ({error.strerror or error})",
                path=error.filename or self.path,
                remedy=f"It has to be writable for user {os.getuid()}",
            ) from error


def _renew(source: Path, target: Path) -> None:
    """Copy code over what an earlier release left."""
    if not source.is_dir():
        shutil.copyfile(source, target)
        return
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(
        source,
        target,
        ignore=shutil.ignore_patterns("__pycache__"),
        copy_function=shutil.copyfile,
    )
