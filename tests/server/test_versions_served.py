"""Versions and modalities by YAML, as clients and admins of a running server see them."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.app import app as endpoints
from monailabel.config import settings
from monailabel.endpoints.user.auth import User, get_current_user
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.utils import app as registry
from monailabel.utils.others.class_utils import get_class_of_subclass_from_file
from PIL import Image
from support.fake_server import detail
from support.version_stores import NEW, ONE, TWO, add_versions, picture, small_bundle

from esp_medsam_app.errors import InputError
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.conf import AppConf, added_modalities, model_names
from esp_medsam_app.server.launch import app_folder
from esp_medsam_app.server.shared_segmenter import SharedSegmenter
from esp_medsam_app.server.version_routes import add_version_routes
from esp_medsam_app.weights import Bundle
from esp_medsam_app.weights.versions import VersionStore, open_versions

YAML = "title: New\ndescription: Of d.\ndimension: 2\nlabels: [d]\n"
ONE_MODEL, NEW_MODEL = "/infer/esp_medsam_one", "/infer/esp_medsam_new"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def yaml_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "modalities"
    folder.mkdir()
    (folder / "new.yaml").write_text(YAML)
    return folder


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    Image.fromarray(picture().voxels).save(folder / "photo.png")
    return folder


@pytest.fixture
def app(
    tmp_path: Path,
    bundle: Bundle,
    yaml_folder: Path,
    studies: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> EspMedSamApp:
    """`apps/esp_medsam` with the small bundle and `new.yaml`."""
    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    my_app = get_class_of_subclass_from_file("main", str(app_folder() / "main.py"), "MONAILabelApp")
    conf = {
        "bundle": str(bundle.path),
        "modalities": str(yaml_folder),
        "device": "cpu",
        "background_scores": "false",
    }
    return my_app(str(tmp_path / "app"), str(studies), conf)


@pytest.fixture
def store(app: EspMedSamApp, bundle: Bundle, tmp_path: Path) -> VersionStore:
    """Another process's view of the app's versions."""
    return open_versions(tmp_path / "app" / "model" / "versions", bundle)


@pytest.fixture
def client(app: EspMedSamApp, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """MONAI Label's endpoints in this process, after the life cycle's start."""
    monkeypatch.setattr(settings, "MONAI_LABEL_APP_DIR", app.app_dir)
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", app.studies)
    monkeypatch.setitem(registry.apps, f"{app.app_dir}{app.studies}", app)
    monkeypatch.setattr(MONAILabelApp, "on_init_complete", lambda self: None)
    with TestClient(endpoints, raise_server_exceptions=False) as client:
        yield client


def mask_of(client: TestClient, model: str = ONE_MODEL) -> np.ndarray:
    response = client.post(model, params={"image": "photo", "output": "image"})
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(io.BytesIO(response.content)))


def answer_of(client: TestClient, model: str = ONE_MODEL) -> dict[str, Any]:
    response = client.post(model, params={"image": "photo", "output": "json"})
    assert response.status_code == 200, response.text
    return dict(response.json())


# What is published from outside while the server runs


def test_a_published_version_serves_at_once(client: TestClient, store: VersionStore) -> None:
    own, two = mask_of(client), mask_of(client, "/infer/esp_medsam_two")
    assert answer_of(client)["version"] == {"modality": "one", "number": 0}
    add_versions(store, ONE, 2, first=2)
    assert np.array_equal(mask_of(client), own)
    store.publish("one", 2)
    new = mask_of(client)
    assert not np.array_equal(new, own)
    assert answer_of(client)["version"] == {"modality": "one", "number": 2}
    assert np.array_equal(mask_of(client, "/infer/esp_medsam_two"), two)
    store.restore("one", 0)
    assert np.array_equal(mask_of(client), own)
    assert answer_of(client)["version"]["number"] == 0


def test_a_restarted_server_serves_the_same(
    app: EspMedSamApp,
    client: TestClient,
    store: VersionStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_versions(store, ONE, 1, first=2)
    store.publish("one", 1)
    before = mask_of(client)
    again = type(app)(app.app_dir, app.studies, app.conf)
    monkeypatch.setitem(registry.apps, f"{app.app_dir}{app.studies}", again)
    assert np.array_equal(mask_of(client), before)
    assert answer_of(client)["version"]["number"] == 1


def test_a_damaged_version_does_not_stop_the_server(
    client: TestClient, store: VersionStore, caplog: pytest.LogCaptureFixture
) -> None:
    add_versions(store, ONE, 2, first=2)
    store.publish("one", 1)
    first = mask_of(client)
    store.publish("one", 2)
    (store.path / "one" / "2" / "weights.safetensors").write_bytes(b"half a file")
    assert np.array_equal(mask_of(client), first)
    assert answer_of(client)["version"]["number"] == 1
    assert "Version 2 of one cannot serve" in caplog.text


def test_a_version_that_vanishes_while_it_is_loaded(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before goes on serving, and the next request tries again."""
    store = VersionStore(tmp_path / "versions", bundle)
    add_versions(store, ONE, 2)
    shared = SharedSegmenter(bundle, versions=store, device="cpu")
    store.publish("one", 1)
    assert shared.get().version("one") == 1
    store.publish("one", 2)
    file = store.path / "one" / "2" / "weights.safetensors"
    away = file.with_name("away")

    def vanishing(like: Bundle | None = None) -> Bundle:
        found = VersionStore.bundle(store, like)
        file.rename(away)
        return found

    with monkeypatch.context() as context:
        context.setattr(store, "bundle", vanishing)
        assert shared.get().version("one") == 1
    away.rename(file)
    assert shared.get().version("one") == 2


def test_unchanged_versions_load_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = VersionStore(tmp_path / "versions", bundle)
    add_versions(store, ONE, 1)
    shared = SharedSegmenter(bundle, versions=store, device="cpu")
    store.publish("one", 1)
    first = shared.get()
    monkeypatch.setattr(store, "bundle", lambda **_: pytest.fail("it looked again"))
    assert shared.get() is first


def test_no_request_mixes_versions(bundle: Bundle, tmp_path: Path) -> None:
    """Threads segment while versions are published and restored: each mask is that of the version
    that the answer names, and what was published before a request started serves it."""
    store = VersionStore(tmp_path / "versions", bundle)
    add_versions(store, ONE, 3)
    add_versions(store, TWO, 1, first=3)
    expected: dict[str, dict[int, bytes]] = {"one": {}, "two": {}}
    for name, count in (("one", 4), ("two", 2)):
        for number in range(count):
            store.restore(name, number)
            segmenter = Segmenter(store.bundle(), device="cpu")
            expected[name][number] = segmenter.segment(picture(), name).tobytes()
        assert len(set(expected[name].values())) == count
        store.restore(name, 0)
    shared = SharedSegmenter(bundle, versions=VersionStore(store.path, bundle), device="cpu")
    numbers = (0, 1, 2, 0, 3, 1, 3)
    published = [0]
    done = threading.Event()
    seen: set[int] = set()

    def work(name: str) -> None:
        while not done.is_set():
            position = len(published) - 1
            segmenter = shared.get()
            number = segmenter.version(name)
            assert segmenter.segment(picture(), name).tobytes() == expected[name][number]
            if name == "one":
                assert number in numbers[position:]
                seen.add(number)

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(work, name) for name in ("one", "one", "two")]
        try:
            for number in numbers[1:]:
                store.restore("one", number)
                published.append(number)
                assert shared.get().version("one") == number
                store.restore("two", number % 2)
                assert shared.get().version("two") == number % 2
        finally:
            done.set()
        for future in futures:
            future.result()
    assert len(seen) > 1


def test_a_running_request_does_not_wait_for_a_load(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that takes for ever holds up those who come later, but none that has its segmenter."""
    store = VersionStore(tmp_path / "versions", bundle)
    add_versions(store, ONE, 1)
    shared = SharedSegmenter(bundle, versions=store, device="cpu")
    running = shared.get()
    store.publish("one", 1)
    reached, let_go = threading.Event(), threading.Event()
    load = Bundle.load_modality

    def slow(*arguments: Any) -> None:
        reached.set()
        assert let_go.wait(30)
        load(*arguments)

    monkeypatch.setattr(Bundle, "load_modality", slow)
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(shared.get)
        try:
            assert reached.wait(30)
            running.segment(picture(), "one")
            assert not later.done()
        finally:
            let_go.set()
        assert later.result().version("one") == 1


def test_a_swap_is_quick(bundle: Bundle, tmp_path: Path) -> None:
    store = VersionStore(tmp_path / "versions", bundle)
    add_versions(store, ONE, 2)
    shared = SharedSegmenter(bundle, versions=store, device="cpu")
    shared.get()
    seconds = []
    for number in (1, 2, 1):
        store.publish("one", number)
        start = time.perf_counter()
        assert shared.get().version("one") == number
        seconds.append(time.perf_counter() - start)
    # 0.1 s; the rest is for a machine that has other things to do
    assert min(seconds) < 1


# Modalities by YAML


def test_it_is_offered_before_its_first_training(client: TestClient) -> None:
    models = client.get("/info/").json()["models"]
    # beside those of DeSAM's bundle in the package
    assert [name for name in models if name.startswith("esp_medsam")] == [
        "esp_medsam",
        "esp_medsam_new",
        "esp_medsam_one",
        "esp_medsam_two",
    ]
    assert models["esp_medsam_new"] == {
        "type": "segmentation",
        "labels": {"d": 1},
        "dimension": 2,
        "description": "New. Of d. Not trained yet.",
        "config": {},
    }
    assert models["esp_medsam"]["labels"] == {"a": 1, "b": 2, "c": 3}
    response = client.post(NEW_MODEL, params={"image": "photo"})
    assert response.status_code == 422
    assert "not trained yet. Submit labels of d and train esp_medsam_new" in detail(response)


def test_it_segments_once_it_is_trained(client: TestClient, store: VersionStore) -> None:
    before = mask_of(client)
    add_versions(store, NEW, 1, first=0)
    store.publish("new", 1)
    assert mask_of(client, NEW_MODEL).any()
    answer = answer_of(client, NEW_MODEL)
    assert answer["version"] == {"modality": "new", "number": 1}
    assert answer["label_names"] == {"d": 1}
    assert np.array_equal(mask_of(client), before)
    assert client.get("/info/").json()["models"]["esp_medsam_new"]["description"] == "New. Of d."
    store.restore("new", 0)
    assert client.post(NEW_MODEL, params={"image": "photo"}).status_code == 422


def test_the_model_that_reads_the_modality_offers_only_the_bundle_s(
    app: EspMedSamApp, store: VersionStore
) -> None:
    add_versions(store, NEW, 1, first=0)
    store.publish("new", 1)
    auto = app._infers["esp_medsam"]
    assert list(auto.modalities) == ["one", "two"]
    reading = auto.segmenters.get().read_modality(picture())
    assert set(reading.candidates) == {"one", "two"}


def test_names_of_all_models() -> None:
    names = model_names(["xray_chest", "ct_liver"], ["mr_prostate"])
    assert names == [
        "esp_medsam",
        "esp_medsam_ct_liver",
        "esp_medsam_mr_prostate",
        "esp_medsam_xray_chest",
    ]
    assert model_names(["ct_liver"], ["b"]) == ["esp_medsam_b", "esp_medsam_ct_liver"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("one.yaml", YAML, r"one\.yaml: the weights have a modality one already"),
        ("auto.yaml", YAML, r"auto\.yaml: auto is no name"),
        ("new.yaml", YAML + "name: other\n", "its name is other"),
        ("new.yaml", "title: [", "not a YAML mapping"),
        ("new.yaml", "title: New\n", "description: Field required"),
        ("my prostate.yaml", YAML, "is not made of"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        added_modalities(tmp_path, {"one": ONE})


def test_the_folder_of_modalities(tmp_path: Path) -> None:
    assert added_modalities(None, {}) == {}
    assert added_modalities(tmp_path, {}) == {}
    with pytest.raises(InputError, match="no such folder"):
        added_modalities(tmp_path / "nowhere", {})


def test_folders_come_as_text() -> None:
    conf = AppConf.parse({"modalities": "a/b", "versions": ""})
    assert (conf.modalities, conf.versions) == (Path("a/b"), None)


def test_the_folder_of_versions_is_chosen(
    app: EspMedSamApp, bundle: Bundle, tmp_path: Path
) -> None:
    store = app._infers["esp_medsam_one"].segmenters.versions
    assert store.path.parent == tmp_path / "app" / "model" / "versions"
    conf = {"bundle": str(bundle.path), "versions": str(tmp_path / "elsewhere")}
    other = type(app)(str(tmp_path / "app"), app.studies, conf)
    store = other._infers["esp_medsam_one"].segmenters.versions
    assert store.path.parent == tmp_path / "elsewhere"
    # nothing is written before there is something to keep
    assert not (tmp_path / "elsewhere").exists()


# For admins


def test_versions_over_http(client: TestClient, store: VersionStore) -> None:
    own = mask_of(client)
    add_versions(store, ONE, 2, first=2)
    store.publish("one", 2)
    new = mask_of(client)
    found = {entry["modality"]: entry for entry in client.get("/versions/").json()}
    assert {name: entry["serving"] for name, entry in found.items()} == {
        "new": None,
        "one": 2,
        "two": 0,
    }
    assert client.get("/versions/one").json() == found["one"]
    assert [version["number"] for version in found["one"]["versions"]] == [0, 1, 2]
    assert client.get("/versions/one/1").json() == found["one"]["versions"][1]
    response = client.post("/versions/one/restore", params={"number": 0})
    assert response.json() == {"modality": "one", "serving": 0}
    assert np.array_equal(mask_of(client), own)
    client.post("/versions/one/restore", params={"number": 2})
    assert np.array_equal(mask_of(client), new)
    assert [change.number for change in store.history("one")] == [2, 0, 2]


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("GET", "/versions/knee", 404, "no modality 'knee'. Available: new, one, two"),
        ("GET", "/versions/one/9", 404, "one has no version 9. Available: 0, 1"),
        ("GET", "/versions/one/last", 422, "integer"),
        ("GET", "/versions/..%2Fone/1", 404, ""),
        ("POST", "/versions/one/restore?number=9", 404, "no version 9"),
        ("POST", "/versions/one/restore?number=-1", 404, "no version -1"),
        ("POST", "/versions/one/restore", 422, "number"),
        ("POST", "/versions/one/restore?number=1", 422, "damaged"),
    ],
)
def test_what_cannot_be_done_is_told(
    client: TestClient, store: VersionStore, method: str, path: str, status: int, told: str
) -> None:
    add_versions(store, ONE, 1)
    (store.path / "one" / "1" / "weights.safetensors").write_bytes(b"x")
    response = client.request(method, path)
    assert response.status_code == status
    assert told in detail(response)
    assert str(store.path) not in response.text


def test_admins_only(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    roles = [settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR, settings.MONAI_LABEL_AUTH_ROLE_REVIEWER]
    # whatever a token says
    monkeypatch.setattr(
        "esp_medsam_app.server.door.identity._user_of",
        lambda *_: User(username="someone", roles=roles),
    )
    monkeypatch.setitem(
        endpoints.dependency_overrides,
        get_current_user,
        lambda: User(username="someone", roles=roles),
    )
    calls: list[Callable[[], Any]] = [
        lambda: client.get("/versions/"),
        lambda: client.get("/versions/one"),
        lambda: client.get("/versions/one/0"),
        lambda: client.post("/versions/one/restore", params={"number": 0}),
    ]
    assert [call().status_code for call in calls] == [403] * 4
    roles.append(settings.MONAI_LABEL_AUTH_ROLE_ADMIN)
    assert [call().status_code for call in calls] == [200] * 4


def test_the_routes_are_added_once() -> None:
    server = FastAPI()
    server.openapi()
    for _ in range(2):
        add_version_routes(server)
    assert list(server.openapi()["paths"]) == [
        "/versions/",
        "/versions/{modality}",
        "/versions/{modality}/{number}",
        "/versions/{modality}/restore",
    ]
    routes = server.router.routes
    add_version_routes(server)
    assert len(server.router.routes) == len(routes)


def test_the_label_that_is_kept_names_the_version(client: TestClient, store: VersionStore) -> None:
    add_versions(store, ONE, 1, first=2)
    store.publish("one", 1)
    client.post(
        ONE_MODEL, params={"image": "photo"}, data={"params": json.dumps({"save_label": True})}
    )
    objects = client.get("/datastore/", params={"output": "all"}).json()["objects"]
    info = objects["photo"]["labels"]["original"]["info"]
    assert info["params"]["version"] == {"modality": "one", "number": 1}
