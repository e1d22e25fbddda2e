"""What is installed, compared with what packages say they need.

Free of third-party imports other than `packaging`, and even that only when called: `doctor` runs
this on installations that are broken.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "esp-medsam-app"


@dataclass(frozen=True)
class Need:
    """One line of a package's requirements, with what is there for it.

    Attributes:
        by: the distribution that needs it.
        name: of the needed distribution, normalised (`scikit-image`).
        wanted: versions that do, e.g. `>=2.4.5,<3`; empty if any does.
        found: installed version; None if it is missing.
        met: it is installed in a version that does.
    """

    by: str
    name: str
    wanted: str
    found: str | None
    met: bool


def needs(distribution: str = DISTRIBUTION, extras: Iterable[str] = ("server",)) -> list[Need]:
    """Everything that `distribution` with `extras` needs here, directly or not; met or unmet.

    Markers are evaluated for this interpreter. Direct needs come first, then those of the packages
    found for them, breadth first.

    Raises:
        importlib.metadata.PackageNotFoundError: `distribution` itself is not installed.
    """
    from packaging.utils import canonicalize_name

    importlib.metadata.distribution(distribution)
    result: list[Need] = []
    seen: dict[str, set[str]] = {}
    waiting = [(str(canonicalize_name(distribution)), {"", *extras})]
    while waiting:
        name, wanted_extras = waiting.pop(0)
        fresh = wanted_extras - seen.setdefault(name, set())
        if not fresh:
            continue
        seen[name] |= fresh
        for requirement in _requirements(name, fresh):
            need = _compare(name, requirement)
            if need not in result:
                result.append(need)
            if need.found is not None:
                waiting.append((need.name, {"", *requirement.extras}))
    return result


def _requirements(distribution: str, extras: set[str]) -> list[Requirement]:
    """The requirements of an installed distribution that apply here with any of `extras`."""
    from packaging.requirements import Requirement

    parsed = [Requirement(line) for line in importlib.metadata.requires(distribution) or []]
    return [
        requirement
        for requirement in parsed
        if any(
            requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            for extra in extras
        )
    ]


def _compare(by: str, requirement: Requirement) -> Need:
    from packaging.utils import canonicalize_name

    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        found = None
    met = found is not None and requirement.specifier.contains(found, prereleases=True)
    name = str(canonicalize_name(requirement.name))
    return Need(by, name, str(requirement.specifier), found, met)


def pinned_versions(requirements: Path) -> dict[str, str]:
    """The pins of a `requirements.txt` that apply here: normalised name to version.

    Raises:
        OSError: the file cannot be read.
    """
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    pins = {}
    for line in requirements.read_text(encoding="utf-8").splitlines():
        try:
            requirement = Requirement(line.partition("#")[0].strip())
        except InvalidRequirement:
            # comments, empty lines and options of pip
            continue
        pinned = [item.version for item in requirement.specifier if item.operator == "=="]
        if pinned and (requirement.marker is None or requirement.marker.evaluate()):
            pins[str(canonicalize_name(requirement.name))] = pinned[0]
    return pins
