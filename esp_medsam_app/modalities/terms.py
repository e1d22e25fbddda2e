"""What a label is called outside this project: coded concepts and a colour (PS3.3 C.8.20.4)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

_Value = Annotated[str, StringConstraints(min_length=1, max_length=16)]
_Meaning = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_Byte = Annotated[int, Field(ge=0, le=255)]


class Code(BaseModel):
    """A coded concept.

    Attributes:
        value: of the code.
        meaning: in words.
        scheme: whose code it is; SCT is SNOMED CT.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: _Value
    meaning: _Meaning
    scheme: _Value = "SCT"


class Term(BaseModel):
    """What a label stands for.

    Attributes:
        category: kind of thing (PS3.16 CID 7150).
        type: the thing.
        modifier: which one of several, such as left or right.
        region: where in the body, if the thing itself does not say.
        colour: red, green and blue in which viewers shall show it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    category: Code
    type: Code
    modifier: Code | None = None
    region: Code | None = None
    colour: tuple[_Byte, _Byte, _Byte]


TISSUE = Code(value="85756007", meaning="Tissue")
# Far apart for the eye, and for eyes that see no red or green.
_COLOURS = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167),
    (86, 180, 233), (213, 94, 0), (240, 228, 66),
)  # fmt: skip


def unspecified_term(number: int) -> Term:
    """The term of a label that has none: tissue, as Slicer calls a segment of which it knows
    nothing, in a colour by its number."""
    return Term(category=TISSUE, type=TISSUE, colour=_COLOURS[(number - 1) % len(_COLOURS)])
