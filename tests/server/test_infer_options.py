"""What a request may ask for."""

from __future__ import annotations

from typing import Any

import pytest

from esp_medsam_app.errors import InputError
from esp_medsam_app.server.options import InferOptions

LABELS = {"heart": 1, "left_lung": 2, "right_lung": 3}


def test_what_slicer_sends() -> None:
    options = InferOptions.parse(
        {
            "client_id": "user-xyz",
            "result_extension": ".nrrd",
            "result_dtype": "uint8",
            "model": "m",
        }
    )
    assert options.result_extension == ".nrrd"
    assert options.dropped_labels(LABELS) == []


def test_what_ohif_sends() -> None:
    options = InferOptions.parse(
        {
            "result_extension": ".nrrd",
            "result_dtype": "uint8",
            "result_compress": False,
            "restore_label_idx": False,
            "label_prompt": [1, 3],
        }
    )
    assert options.result_compress is False
    assert options.dropped_labels(LABELS) == [2]


def test_unknown_keys_and_empty_values_count_as_not_given() -> None:
    request = {"device": "", "result_extension": "", "logging": None, "roi": [1, 2], "cache": True}
    assert InferOptions.parse(request) == InferOptions()


@pytest.mark.parametrize("text", ["nrrd", ".NRRD", " .nrrd"])
def test_extensions_are_read_leniently(text: str) -> None:
    assert InferOptions.parse({"result_extension": text}).result_extension == ".nrrd"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("result_extension", ".stl"),
        # lossy
        ("result_extension", ".jpg"),
        ("result_extension", 3),
        ("result_dtype", "float32"),
        ("result_compress", "perhaps"),
        ("restore_label_idx", [1]),
        ("label_prompt", {"a": 1}),
        ("device", "tpu"),
        ("device", "meta"),
        ("logging", "LOUD"),
    ],
)
def test_a_bad_value_is_named(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^params.{key}: (?!Value error)"):
        InferOptions.parse({key: value})


@pytest.mark.parametrize(
    ("prompt", "dropped"),
    [([], []), ([2], [1, 3]), (2, [1, 3]), (["heart", 2], [3]), ("heart", [2, 3])],
)
def test_label_prompt_names_what_stays(prompt: Any, dropped: list[int]) -> None:
    assert InferOptions.parse({"label_prompt": prompt}).dropped_labels(LABELS) == dropped


@pytest.mark.parametrize("prompt", [[4], [0], ["liver"], [1, "liver"]])
def test_label_prompt_with_other_labels_is_refused(prompt: list[Any]) -> None:
    with pytest.raises(InputError, match="2 left_lung"):
        InferOptions.parse({"label_prompt": prompt}).dropped_labels(LABELS)
