"""Who is trained on and who is held out, for ever.

A model is only ever compared on patients that none of its versions has seen. So a side, once
given, is never taken back: not when cases are added, not when the wanted share changes, not when
an image is uploaded again under another name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import InputError

Side = Literal["train", "validation"]
TRAIN: Side = "train"
VALIDATION: Side = "validation"


class Split(NamedTuple):
    """Names of cases.

    Attributes:
        train: to learn from.
        validation: held out.
        left_out: of patients that stand on both sides, as the ledger learned too late that two
            names are one patient.
    """

    train: list[str]
    validation: list[str]
    left_out: list[str]


class _Book(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid")
    schema_version: Literal[1] = 1
    sides: dict[str, Side] = Field(default_factory=dict)


class SplitLedger:
    """The sides of all patients that one modality has met, in a file.

    A case is known by one or more keys: its patient, its image's content. Cases that share a key
    stand on the same side. The file is replaced as a whole under a lock, so that it survives a
    kill, and two trainings at a time agree.

    Args:
        path: the file; made at the first call.
        share: of the patients that shall be held out, 0 to 1. At least one is, once there are two.
    """

    def __init__(self, path: Path, share: float = 0.2) -> None:
        self.path = path
        self.share = share

    def assign(self, cases: Mapping[str, Sequence[str]]) -> Split:
        """Sides of some cases; those that are new are given one and written down.

        Known patients keep theirs. Among new ones, in the order of a hash of their keys, the first
        are held out until the share of the patients at hand is reached: whoever comes later changes
        nothing about the earlier ones.

        Args:
            cases: keys of each case, by its name; one at least.

        Raises:
            InputError: the file is damaged. It is never started afresh: that would train on what
                was held out.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(self.path) + ".lock"):
            book = self._read()
            groups = _groups(cases)
            new = []
            for group in groups:
                sides = {book.sides[key] for key in group.keys if key in book.sides}
                if sides:
                    # keys that were not known before stand where their patient does; on both
                    # sides: held out, and used for nothing
                    side = sides.pop() if len(sides) == 1 else None
                    group.side = side
                    for key in group.keys:
                        book.sides.setdefault(key, side or VALIDATION)
                else:
                    new.append(group)
            self._place(new, book, groups)
            with written_whole(self.path) as partial:
                partial.write_text(book.model_dump_json(indent=1) + "\n", encoding="utf-8")
        by_side: dict[Side | None, list[str]] = {TRAIN: [], VALIDATION: [], None: []}
        for group in groups:
            by_side[group.side] += group.cases
        return Split(*(sorted(by_side[side]) for side in (TRAIN, VALIDATION, None)))

    def _place(self, new: list[_Patient], book: _Book, groups: Sequence[_Patient]) -> None:
        known = [group.side for group in groups if group not in new]
        held_out, total = known.count(VALIDATION), len(known) + len(new)
        wanted = max(1, round(self.share * total)) if self.share and total > 1 else 0
        for group in sorted(new, key=lambda group: group.order):
            group.side = VALIDATION if held_out < wanted else TRAIN
            held_out += group.side == VALIDATION
            for key in group.keys:
                book.sides[key] = group.side

    def _read(self) -> _Book:
        try:
            return _Book.model_validate_json(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return _Book()
        except (OSError, ValidationError, json.JSONDecodeError) as error:
            raise InputError(
                "the ledger of held-out cases cannot be read",
                path=self.path,
                remedy="Restore it from a backup. Without it a training could learn from cases "
                "that earlier versions were compared on; remove it only to start over",
            ) from error


class _Patient:
    """Cases that share a key, with all of their keys."""

    def __init__(self) -> None:
        self.cases: list[str] = []
        self.keys: set[str] = set()
        self.side: Side | None = None

    @property
    def order(self) -> str:
        return hashlib.sha256(min(self.keys).encode("utf-8", "surrogateescape")).hexdigest()


def _groups(cases: Mapping[str, Sequence[str]]) -> list[_Patient]:
    """Cases that share a key, directly or through others, together."""
    by_key: dict[str, _Patient] = {}
    for name in sorted(cases):
        keys = set(cases[name])
        if not keys:
            raise InputError(f"case {name!r} has no key to know it by")
        merged = _Patient()
        merged.cases.append(name)
        merged.keys |= keys
        for other in {id(by_key[key]): by_key[key] for key in keys if key in by_key}.values():
            merged.cases += other.cases
            merged.keys |= other.keys
        for key in merged.keys:
            by_key[key] = merged
    return list({id(group): group for group in by_key.values()}.values())
