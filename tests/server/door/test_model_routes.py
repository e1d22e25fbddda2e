"""Weights over HTTP: for admins, checked, and never in place of what works."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save
from support.fake_server import FakeSegmenters
from support.version_stores import ONE, TWO, small_bundle

from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.infer_task import EspMedSamInferTask
from esp_medsam_app.weights.bundle import Bundle, controller_file
from esp_medsam_app.weights.versions import VersionStore

TOKEN = {"authorization": "Bearer a token of the admins"}
MODEL = "/model/esp_medsam_one"


class Opened:
    """Tells when a pickle is run."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return Path.touch, (self.witness,)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def store(
    app: EspMedSamApp, segmenters: FakeSegmenters, bundle: Bundle, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> VersionStore:  # fmt: skip
    """The versions of a server that serves ONE and TWO."""
    found = VersionStore(tmp_path / "versions", bundle)
    monkeypatch.setattr(segmenters, "versions", found)
    tasks = {f"esp_medsam_{m.name}": EspMedSamInferTask(m, segmenters) for m in (ONE, TWO)}
    monkeypatch.setattr(app, "_infers", tasks)
    return found


@pytest.fixture
def admin(enter: Callable[..., TestClient], store: VersionStore) -> TestClient:
    client = enter(token="a token of the admins")
    client.headers.update(TOKEN)
    return client


def put(client: TestClient, content: bytes, **query: Any) -> Any:
    return client.put(MODEL, params=query, files={"file": ("x.safetensors", content)})


def weights(bundle: Bundle, name: str = "one", scale: float = 1.0) -> bytes:
    tensors = load_file(bundle.file(controller_file(name)))
    return save({key: (tensor * scale).to(tensor.dtype) for key, tensor in tensors.items()})


def test_what_goes_out_comes_in_again(
    admin: TestClient, store: VersionStore, bundle: Bundle, audited: Callable[[], Any],
    temporary: Path,
) -> None:  # fmt: skip
    sent = admin.get(MODEL).content
    assert sent == bundle.file(controller_file("one")).read_bytes()
    assert admin.get("/model/info/esp_medsam_one").json()["version"] == 0
    told = put(admin, weights(bundle, scale=0.5)).json()
    assert told["version"] == 1
    assert store.serving() == {"one": 1, "two": 0}
    assert admin.get("/model/info/esp_medsam_one").json()["checksum"] == told["checksum"]
    assert store.get("one", 1).reason == "uploaded by admin"
    assert [line["action"] for line in audited()] == ["model.upload", "model.serve"]
    assert list(temporary.iterdir()) == []


def test_weights_can_wait_until_they_are_restored(
    admin: TestClient, store: VersionStore, bundle: Bundle
) -> None:
    assert put(admin, weights(bundle), serve=False).json()["version"] == 1
    assert store.serving()["one"] == 0


def test_what_is_no_weights_of_the_model_is_refused(
    admin: TestClient, store: VersionStore, bundle: Bundle, tmp_path: Path, temporary: Path
) -> None:
    witness = tmp_path / "opened"
    torch.save({"a": Opened(witness)}, tmp_path / "x.pt")
    odd = load_file(bundle.file(controller_file("one")))
    name = next(iter(odd))
    nan = {**odd, name: torch.full_like(odd[name].float(), torch.nan)}
    good = weights(bundle)
    # a tensor, and the scale without which one is of no use
    missing = [name, next(key for key in odd if key.endswith(".scale"))]
    for content in (
        b"", b"text", pickle.dumps(Opened(witness)), (tmp_path / "x.pt").read_bytes(),
        good[:1000], good[:-10], b"\xff" * 8 + good[8:], weights(bundle, "two"),
        save({"a": torch.zeros(3)}), save(nan), save({**odd, "extra": torch.zeros(1)}),
        *(save({key: odd[key] for key in odd if key != left_out}) for left_out in missing),
    ):  # fmt: skip
        answer = put(admin, content)
        assert answer.status_code == 422, answer.text
        assert "uploaded weights" in answer.json()["detail"]
        assert str(tmp_path) not in answer.text
    assert not witness.exists()
    assert store.serving() == {"one": 0, "two": 0}
    assert [version.number for version in store.versions("one")] == [0]
    assert list(temporary.iterdir()) == []


def test_in_monai_label_anything_takes_the_place_of_the_weights(
    either: TestClient, app: EspMedSamApp, store: VersionStore, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    live = tmp_path / "live.pt"
    live.write_bytes(b"weights")
    monkeypatch.setattr(
        EspMedSamInferTask, "get_path", lambda self, validate=True: str(live), raising=False
    )
    put(either, b"text")
    assert live.read_bytes() == b"weights"


def test_only_known_admins_may(
    enter: Callable[..., TestClient], store: VersionStore, bundle: Bundle
) -> None:
    for client, headers in (
        (enter(), {}),
        (enter(token="x" * 16, admin_token="y" * 16), {"authorization": f"Bearer {'x' * 16}"}),
    ):
        client.headers.update(headers)
        assert put(client, weights(bundle)).status_code == 403
    assert store.serving()["one"] == 0


def test_weights_are_not_removed(admin: TestClient, store: VersionStore, bundle: Bundle) -> None:
    answer = admin.delete(MODEL)
    assert answer.status_code == 405
    assert "/versions/one/restore" in answer.json()["detail"]
    assert bundle.file(controller_file("one")).is_file()


@pytest.mark.parametrize("model", ["esp_medsam_knee", "%2e%2e", "esp_medsam_one%2f..", "%00"])
def test_models_that_are_not_there(admin: TestClient, model: str) -> None:
    for method in ("GET", "PUT"):
        files = {"files": {"file": ("x", b"x")}} if method == "PUT" else {}
        answer = admin.request(method, f"/model/{model}", **files)
        assert answer.status_code in (404, 405)
