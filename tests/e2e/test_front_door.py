"""A real server behind the front door: under load, killed, and with a log-in."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
from monailabel.client import MONAILabelClient
from PIL import Image
from support.discs import draw_discs
from support.real_server import START_SECONDS, copy_app
from support.small_starter import small_starter

from esp_medsam_app.server.launch import FRONT_DOOR, ServerProcess, start_server

pytestmark = pytest.mark.e2e

DISC, NUCLEI = "esp_medsam_disc", "esp_medsam_microscopy_nuclei"
YAML = "title: Disc\ndescription: A bright disc.\ndimension: 2\nlabels: [disc]\n"
CASES = [f"case{n}" for n in range(40)]
CLIENTS, REQUESTS = 8, 200
INFO_SECONDS = 0.5
TRAINING = {"max_epochs": 200, "views": 24, "early_stop_patience": 0, "tracking": "None"}
PATIENCE = 300


class Ward:
    """Servers on one and the same data, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.drawn = draw_discs(folder / "drawn", len(CASES))
        self.studies = self.drawn / "images"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        (folder / "modalities").mkdir()
        (folder / "modalities" / "disc.yaml").write_text(YAML)
        self.bundle = small_starter(folder / "bundle")
        self.app = copy_app(folder)
        self.log = folder / "log.txt"
        self.server: ServerProcess | None = None

    def start(self, **environment: str) -> str:
        """Start a server; its address."""
        with self.log.open("ab") as output:
            self.server = start_server(
                self.app,
                str(self.studies),
                port=0,
                conf={
                    "device": "cpu",
                    "bundle": str(self.bundle),
                    "background_scores": "false",
                    "modalities": str(self.folder / "modalities"),
                    "models": "disc,microscopy_nuclei",
                    "preload": "true",
                },
                arguments=FRONT_DOOR,
                environment={
                    "MONAI_LABEL_SESSION_PATH": str(self.folder / "sessions"),
                    "TMPDIR": str(self.temporary),
                    **environment,
                },
                output=output.fileno(),
            )
        self.server.wait_until_ready(START_SECONDS)
        return self.server.url

    def kill(self) -> None:
        assert self.server is not None
        self.server.process.kill()
        self.server.process.wait(30)

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()

    def temporary_folders(self) -> list[Path]:
        """Beside them MONAI Label leaves the settings of its log, a file at each start."""
        return [path for path in self.temporary.iterdir() if path.suffix != ".json"]

    def children(self) -> list[psutil.Process]:
        assert self.server is not None
        return psutil.Process(self.server.process.pid).children(recursive=True)


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    made = Ward(tmp_path)
    try:
        yield made
    finally:
        made.stop()
        print(made.log.read_text(errors="replace")[-20_000:])


def label(value: int) -> bytes:
    """A label map of the disc that is told from all others: a square of this width."""
    voxels = np.zeros((48, 48), np.uint8)
    voxels[:value, :value] = 1
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"label_{threading.get_ident()}.png"
    Image.fromarray(voxels).save(path)
    content = path.read_bytes()
    path.unlink()
    return content


def submit(url: str, case: str, content: bytes) -> requests.Response:
    params = {"label_info": [{"name": "disc", "idx": 1}], "model": DISC}
    return requests.put(
        f"{url}/datastore/label",
        params={"image": case},
        files={"label": ("label.png", content)},
        data={"params": json.dumps(params)},
        timeout=PATIENCE,
    )


def test_eight_clients_at_once(ward: Ward) -> None:
    """Nothing fails, nothing is lost, and whoever asks for `/info/` never waits."""
    url = ward.start()
    chance = random.Random(0)
    labels = {case: label(1 + number) for number, case in enumerate(CASES)}
    picture = (ward.studies / "case0.png").read_bytes()

    def infer(number: int) -> requests.Response:
        query = {"image": CASES[number % len(CASES)], "output": chance.choice(["image", "all"])}
        return requests.post(f"{url}/infer/{NUCLEI}", params=query, timeout=PATIENCE)

    def upload(number: int) -> requests.Response:
        file = {"file": ("x.png", picture)}
        query = {"output": "json"}
        return requests.post(f"{url}/infer/{NUCLEI}", params=query, files=file, timeout=PATIENCE)

    def session(number: int) -> requests.Response:
        made = requests.put(
            f"{url}/session/", files={"files": ("x.png", picture)}, timeout=PATIENCE
        )
        query = {"session_id": made.json()["session_id"], "output": "json"}
        return requests.post(f"{url}/infer/{NUCLEI}", params=query, timeout=PATIENCE)

    def image(number: int) -> requests.Response:
        query = {"image": CASES[number % len(CASES)]}
        return requests.get(f"{url}/datastore/image", params=query, timeout=PATIENCE)

    def sample(number: int) -> requests.Response:
        return requests.post(f"{url}/activelearning/random", json={}, timeout=PATIENCE)

    def stored(number: int) -> requests.Response:
        return requests.get(f"{url}/datastore/", params={"output": "all"}, timeout=PATIENCE)

    work: list[tuple[Callable[[int], requests.Response], int]] = []
    for kind, count in ((infer, 70), (upload, 20), (session, 20), (image, 30), (sample, 20)):
        work += [(kind, number) for number in range(count)]
    work += [(lambda n: submit(url, CASES[n], labels[CASES[n]]), n) for n in range(len(CASES))]
    assert len(work) == REQUESTS
    chance.shuffle(work)

    waits: list[float] = []
    done = threading.Event()

    def ask() -> None:
        with requests.Session() as asking:
            while not done.is_set():
                started = time.monotonic()
                assert asking.get(f"{url}/info/", timeout=PATIENCE).status_code == 200
                waits.append(time.monotonic() - started)

    asking = threading.Thread(target=ask)
    asking.start()
    started = time.monotonic()
    try:
        with ThreadPoolExecutor(CLIENTS) as clients:
            answers = list(clients.map(lambda one: one[0](one[1]), work))
    finally:
        done.set()
        asking.join()
    seconds = time.monotonic() - started
    statuses = Counter(answer.status_code for answer in answers)
    waits.sort()
    p99 = waits[int(0.99 * (len(waits) - 1))]
    print(
        f"{REQUESTS} requests of {CLIENTS} clients in {seconds:.1f} s: {dict(statuses)}; "
        f"/info/ {len(waits)} times, median {waits[len(waits) // 2]:.3f} s, p99 {p99:.3f} s"
    )
    assert statuses == {200: REQUESTS}
    assert len(waits) > 20
    for case, content in labels.items():
        assert (ward.studies / "labels" / "final" / f"{case}.png").read_bytes() == content
    (folder,) = ward.temporary_folders()
    assert [path.name for path in folder.iterdir()] == [".in_use"]
    metrics = requests.get(f"{url}/metrics", timeout=PATIENCE).text
    assert 'esp_medsam_requests_total{method="POST",route="infer",status="200"} 110' in metrics
    audited = (ward.app / "logs" / "audit.jsonl").read_text().splitlines()
    saved = [json.loads(line) for line in audited if '"label.save"' in line]
    assert sorted(line["image"] for line in saved) == sorted(CASES)
    ward.stop()
    assert ward.temporary_folders() == []
    assert p99 < INFO_SECONDS


def test_a_server_that_is_killed_while_labels_come_in(ward: Ward) -> None:
    """What the server said it kept is there, and it starts."""
    kept: dict[str, list[bytes]] = {case: [] for case in CASES[:8]}
    sent: dict[str, list[bytes]] = {case: [] for case in kept}
    for round_number in range(3):
        url = ward.start()

        def annotate(case: str, url: str = url, first: int = 1 + 10 * round_number) -> None:
            for value in range(first, first + 10):
                content = label(value)
                sent[case].append(content)
                try:
                    answer = submit(url, case, content)
                except requests.ConnectionError:
                    return
                assert answer.status_code == 200, answer.text
                kept[case].append(content)

        with ThreadPoolExecutor(len(kept)) as people:
            running = [people.submit(annotate, case) for case in kept]
            while sum(map(len, kept.values())) < 15 * (round_number + 1):
                assert not all(one.done() for one in running), [one.exception() for one in running]
                time.sleep(0.005)
            ward.kill()
            for one in running:
                one.result()
        url = ward.start()
        objects = requests.get(f"{url}/datastore/?output=all", timeout=60).json()["objects"]
        for case, contents in kept.items():
            if not contents:
                continue
            assert "final" in objects[case]["labels"]
            now = (ward.studies / "labels" / "final" / f"{case}.png").read_bytes()
            # the last one that was confirmed, or one that came after it
            assert now in sent[case][sent[case].index(contents[-1]) :]
            history = ward.studies / "label_versions" / "final" / case
            there = [now, *(path.read_bytes() for path in history.glob("*.png"))]
            assert set(contents) <= set(there)
        ward.stop()


def test_a_server_that_is_killed_while_it_trains(ward: Ward) -> None:
    """The training ends with it, what served serves, and the next server trains again."""
    url = ward.start()
    for case in CASES[:4]:
        content = (ward.drawn / "labels" / f"{case}.png").read_bytes()
        assert submit(url, case, content).status_code == 200
    client = MONAILabelClient(url, str(ward.folder))
    before = client.infer(NUCLEI, "case0", {"result_extension": ".png"})[0]
    mask = Path(before).read_bytes()
    client.train_start(DISC, TRAINING)
    wait_for(client, "Epoch 1 of")
    again = requests.post(f"{url}/train/{DISC}", json=TRAINING, timeout=60)
    assert again.status_code == 429
    assert "already running" in again.json()["detail"]
    family = ward.children()
    assert family
    ward.kill()
    psutil.wait_procs(family, timeout=30)
    assert [process for process in family if process.is_running()] == []

    url = ward.start()
    client = MONAILabelClient(url, str(ward.folder))
    after = client.infer(NUCLEI, "case0", {"result_extension": ".png"})[0]
    assert Path(after).read_bytes() == mask
    assert requests.get(f"{url}/versions/disc", timeout=60).json()["serving"] is None
    # what the killed one left is gone
    assert len(ward.temporary_folders()) == 1
    client.train_start(DISC, TRAINING)
    wait_for(client, "Epoch 1 of")
    family = ward.children()
    assert ward.server is not None
    ward.server.process.send_signal(signal.SIGTERM)
    ward.server.process.wait(60)
    psutil.wait_procs(family, timeout=30)
    assert [process for process in family if process.is_running()] == []
    assert ward.temporary_folders() == []


def wait_for(client: MONAILabelClient, line: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        now: dict[str, Any] = dict(client.train_status())
        if line in "\n".join(now.get("details", [])):
            return
        assert now["status"] in ("SUBMITTED", "RUNNING"), now
        time.sleep(0.2)
    raise AssertionError(f"no {line!r}")


def test_slicer_s_client_logs_in(ward: Ward) -> None:
    token = "the token of this ward"
    url = ward.start(ESP_MEDSAM_TOKEN=token)
    client = MONAILabelClient(url, str(ward.folder))
    assert client.auth_enabled()
    assert requests.get(f"{url}/info/", timeout=60).status_code == 401
    client.update_auth(client.auth_token("ann", token))
    assert client.auth_valid_token()
    assert list(client.info()["models"])
    file, _ = client.infer(NUCLEI, "case1", {"result_extension": ".png"})
    assert Path(file).is_file()
    saved = client.save_label("case1", file, params={"model": NUCLEI})
    assert saved["label"] == "case1"
    audited = (ward.app / "logs" / "audit.jsonl").read_text().splitlines()
    assert json.loads(audited[-1])["user"] == "ann"
    assert token not in ward.log.read_text(errors="replace")
