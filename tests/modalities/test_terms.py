"""Codes and colours of labels."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from pydicom.sr._concepts_dict import concepts

from esp_medsam_app.modalities import Modality, catalogue
from esp_medsam_app.modalities.catalogue import term_of
from esp_medsam_app.modalities.terms import TISSUE, Code, Term

# SNOMED CT's code for it is in CID 8135, which pydicom's dictionary lacks
NUCLEUS = "84640000"


def test_every_label_of_the_catalogue_has_a_term_of_its_own() -> None:
    for modality in catalogue().values():
        assert set(modality.terms) == set(modality.labels)
        colours = [term.colour for term in modality.terms.values()]
        assert len(set(colours)) == len(colours)
        meanings = [(term.type, term.modifier) for term in modality.terms.values()]
        assert len(set(meanings)) == len(meanings)


def test_codes_are_those_of_snomed() -> None:
    known = {value for values in concepts["SCT"].values() for value in values}
    for modality in catalogue().values():
        for term in modality.terms.values():
            for code in (term.category, term.type, term.modifier, term.region):
                if code is not None and code.value != NUCLEUS:
                    assert code.scheme == "SCT"
                    assert code.value in known, code


def test_a_label_without_a_term_is_tissue() -> None:
    modality = Modality(name="own", title="t", description="d", dimension=3, labels=["Läsion", "b"])
    terms = [term_of(modality, label) for label in modality.labels]
    assert {term.type for term in terms} == {TISSUE}
    assert terms[0].colour != terms[1].colour


def test_a_bundle_from_before_terms_gets_the_catalogue_s() -> None:
    old = catalogue()["ct_liver"].model_copy(update={"terms": {}})
    assert term_of(old, "liver").type.meaning == "Liver"


def test_terms_are_of_labels() -> None:
    liver = Term(category=TISSUE, type=Code(value="1", meaning="x"), colour=(1, 2, 3))
    with pytest.raises(ValidationError, match="none of the labels"):
        Modality(
            name="own", title="t", description="d", dimension=3, labels=["a"], terms={"b": liver}
        )
