"""Reading the catalogue's YAML files."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from esp_medsam_app.data.texts import read_yaml
from esp_medsam_app.errors import InputError, UnknownNameError
from esp_medsam_app.modalities.modality import Modality
from esp_medsam_app.modalities.terms import Term, unspecified_term


def read_modality(path: Path) -> Modality:
    """One modality from its YAML file; the file's stem is the modality's name.

    Raises:
        InputError: missing, not YAML, or against the schema; says which field.
    """
    try:
        content = read_yaml(path)
        return Modality(**{"name": path.stem, **content})
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "modality"
        raise InputError(f"{where}: {first['msg']}", path=path) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"not a YAML mapping ({error})", path=path) from error


@cache
def catalogue() -> dict[str, Modality]:
    """All modalities that ship with the package, by name."""
    folder = Path(str(resources.files("esp_medsam_app.modalities")))
    return {path.stem: read_modality(path) for path in sorted(folder.glob("*.yaml"))}


def get_modality(name: str) -> Modality:
    """Look a modality up.

    Raises:
        UnknownNameError: there is none of that name.
    """
    known = catalogue()
    if name not in known:
        raise UnknownNameError(
            f"there is no modality {name!r}", remedy=f"Known: {', '.join(known)}"
        )
    return known[name]


def find_modality(name: str) -> Modality:
    """A modality of the catalogue by its name, or one's own by its YAML file.

    Raises:
        UnknownNameError: the catalogue has none of that name.
        InputError: the file cannot be used.
    """
    return read_modality(Path(name)) if name.endswith((".yaml", ".yml")) else get_modality(name)


def term_of(modality: Modality, label: str) -> Term:
    """Codes and colour of a label: its own, else the catalogue's, else those of any tissue.

    A bundle may be from before its modalities had terms, and so tells only of labels.
    """
    known = modality.terms or getattr(catalogue().get(modality.name), "terms", {})
    return known.get(label) or unspecified_term(modality.labels[label])
