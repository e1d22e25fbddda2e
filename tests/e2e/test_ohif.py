"""OHIF in a real browser, before a real Orthanc and a real server behind the front door.

ESP_MEDSAM_SCREENSHOTS=docs/images python -m pytest tests/e2e/test_ohif.py   renews docs/images.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pydicom
import pytest
import requests
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from support.browser import Seen, browser, page, picture
from support.browser import why_not as why_no_browser
from support.orthanc import Orthanc
from support.orthanc import why_not as why_no_orthanc
from support.pacs_server import server_before

_WHY_NOT = why_no_orthanc() or why_no_browser()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT or "all is there"),
]

LIVER = "esp_medsam_ct_liver"
# OHIF knows the labels of all models, in the order of their names; the liver is the second
OHIF_LIVER = 2
PATIENCE = 300
# the panel asks whether a training runs, and none ever ran
KNOWN_FAILURE = ("GET", "/train/?check_if_running=true", 404)
KNOWN_ERROR = "Failed to load resource: the server responded with a status of 404 (Not Found)"

LABEL_MAP = """() => {
    const volume = services.segmentationService.getLabelmapVolume('1');
    return {
        dimensions: Array.from(volume.dimensions),
        spacing: Array.from(volume.spacing),
        origin: Array.from(volume.origin),
        direction: Array.from(volume.direction),
        voxels: Array.from(volume.voxelManager.getCompleteScalarDataArray()),
    };
}"""
SET = """voxels => services.segmentationService.getLabelmapVolume('1')
    .voxelManager.setCompleteScalarDataArray(Uint8Array.from(voxels))"""
SHOWN = """() => {
    const engine = window.cornerstone && cornerstone.getRenderingEngines()[0];
    const viewports = engine ? engine.getViewports() : [];
    return viewports.length === 3 && viewports.every(one => one.getImageData());
}"""


@dataclass(frozen=True)
class Study:
    """One in the PACS, with one series."""

    patient: str
    name: str
    date: str
    count: int
    uid: str
    series: str


@dataclass(frozen=True)
class Hospital:
    """All of it."""

    url: str
    studies: list[Study]
    audit: Path
    log: Path
    archive: Orthanc
    slices: list[Dataset]

    def get(self, path: str, **query: str) -> Any:
        return requests.get(self.url + path, params=query, timeout=PATIENCE).json()

    def audited(self, action: str) -> list[dict[str, Any]]:
        lines = map(json.loads, self.audit.read_text().splitlines())
        return [line for line in lines if line["action"] == action]


def numbered_downwards(slices: list[Dataset]) -> list[Dataset]:
    """The same slices, the highest the first instance."""
    result = copy.deepcopy(slices)
    for number, slice_ in enumerate(reversed(result), start=1):
        slice_.InstanceNumber = number
    return result


def stored(archive: Orthanc, slices: list[Dataset], patient: str, name: str, date: str) -> Study:
    """The slices as a study of another patient."""
    told = {
        "PatientID": patient,
        "PatientName": name,
        "StudyDate": date,
        **{
            f"{kind}UID": generate_uid()
            for kind in ("StudyInstance", "SeriesInstance", "FrameOfReference")
        },
    }
    made = []
    for slice_ in slices:
        one = copy.deepcopy(slice_)
        for attribute, value in told.items():
            setattr(one, attribute, value)
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        made.append(one)
    series = archive.put(made)
    uid = str(told["StudyInstanceUID"])
    return Study(patient, name, date, len(slices), uid, series)


@pytest.fixture(scope="module")
def hospital(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    """A PACS with three studies of two patients, and the server."""
    folder = tmp_path_factory.mktemp("hospital")
    files = sorted((samples / "dicom" / "abdomen_phantom").iterdir())
    slices = sorted(map(pydicom.dcmread, files), key=lambda one: one.ImagePositionPatient[2])
    archive = Orthanc(folder / "orthanc")
    archive.start()
    studies = [
        stored(archive, slices[5:9], "ALPHA1", "Alpha^Anna", "20260101"),
        stored(archive, slices[6:9], "ALPHA1", "Alpha^Anna", "20260202"),
        stored(archive, numbered_downwards(slices[5:8]), "BETA2", "Beta^Bob", "20260303"),
    ]
    with server_before(archive, folder) as server:
        yield Hospital(server.url, studies, server.audit, server.log, archive, slices)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture
def viewer(chromium: Any, hospital: Hospital) -> Iterator[Any]:
    """A page, of which nothing may go wrong unseen."""
    seen = Seen()
    with page(chromium, seen) as opened:
        yield opened
    assert seen.hosts == {urlsplit(hospital.url).netloc}
    assert [one for one in seen.failed if one != KNOWN_FAILURE] == []
    assert [one for one in seen.errors if one != KNOWN_ERROR] == []


@pytest.fixture
def refused(chromium: Any) -> Iterator[Any]:
    """A page to which something may be refused."""
    with page(chromium, Seen()) as opened:
        yield opened


def study_list(viewer: Any, hospital: Hospital) -> None:
    viewer.goto(f"{hospital.url}/ohif/")
    viewer.locator("[data-cy=confirm-and-hide-button]").click()
    count(viewer, len(hospital.studies))


def count(viewer: Any, expected: int) -> None:
    """Wait until the list has so many studies."""
    viewer.wait_for_function(
        "n => document.querySelector('[data-cy=num-studies]').innerText === String(n)",
        arg=expected,
    )


def open_study(viewer: Any, hospital: Hospital, study: Study) -> None:
    """In the mode of MONAI Label, connected."""
    viewer.goto(f"{hospital.url}/ohif/monai-label?StudyInstanceUIDs={study.uid}")
    viewer.wait_for_function(SHOWN)
    connect(viewer, hospital)


def connect(viewer: Any, hospital: Hospital) -> None:
    # nobody has typed it
    assert viewer.input_value("#monailabelServerURL") == f"{hospital.url}/"
    viewer.locator(".settingsTable button").click()
    viewer.locator("label", has_text="Auto-Segmentation").wait_for()
    # the panel makes the segmentation a second after
    viewer.wait_for_function("() => services.segmentationService.getLabelmapVolume('1')")


def run(viewer: Any, model: str) -> None:
    """Press Run, and wait until the mask is there."""
    panel = viewer.locator(".tab", has=viewer.locator("label", has_text="Auto-Segmentation"))
    panel.locator("select").select_option(model)
    with viewer.expect_console_message(
        lambda told: "updated the segmentation" in told.text, timeout=PATIENCE * 1000
    ):
        panel.get_by_role("button", name="Run").click()
    viewer.get_by_text("Running Segmentation - Successful").wait_for()


def label_map(viewer: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """What OHIF shows, `[z, y, x]`, and where."""
    told = viewer.evaluate(LABEL_MAP)
    voxels = np.array(told.pop("voxels"), np.uint8).reshape(told["dimensions"][::-1])
    return voxels, told


def test_the_study_list_finds_patients(viewer: Any, hospital: Hospital) -> None:
    study_list(viewer, hospital)
    rows = viewer.locator("tbody tr")
    viewer.locator("[data-cy=input-patientName]").fill("beta")
    count(viewer, 1)
    assert "BETA2" in rows.first.inner_text()
    assert "ALPHA1" not in viewer.locator("tbody").first.inner_text()
    viewer.locator("[data-cy=input-patientName]").fill("")
    viewer.locator("[data-cy=input-mrn]").fill("ALPHA1")
    count(viewer, 2)
    assert "BETA2" not in viewer.locator("tbody").first.inner_text()
    picture(viewer, "ohif_studies")
    viewer.locator("[data-cy=input-mrn]").fill("nobody")
    count(viewer, 0)


def test_a_mask_is_drawn_corrected_and_submitted(
    viewer: Any, hospital: Hospital, tmp_path: Path
) -> None:
    study = hospital.studies[0]
    study_list(viewer, hospital)
    viewer.locator("tbody tr", has_text="Jan-01-2026").first.click()
    viewer.get_by_role("link", name="MONAI Label").click()
    viewer.wait_for_function(SHOWN)
    # this patient's studies, and nobody else's
    studies = viewer.locator("[data-cy=studyBrowser-panel]")
    studies.get_by_text("02-Feb-2026").wait_for()
    dates = set(re.findall(r"\d\d-\w{3}-2026", studies.inner_text()))
    assert dates == {"01-Jan-2026", "02-Feb-2026"}
    connect(viewer, hospital)
    run(viewer, LIVER)
    picture(viewer, "ohif_mask")
    shown, where = label_map(viewer)
    answer = requests.post(
        f"{hospital.url}/infer/{LIVER}",
        params={"image": study.series, "output": "image"},
        data={"params": json.dumps({"result_extension": ".nrrd"})},
        timeout=PATIENCE,
    )
    assert answer.status_code == 200, answer.text
    (tmp_path / "reference.nrrd").write_bytes(answer.content)
    reference = sitk.ReadImage(str(tmp_path / "reference.nrrd"))
    expected = sitk.GetArrayFromImage(reference)
    print(f"{(shown != expected * OHIF_LIVER).sum()} wrong of {shown.size} voxels")
    assert (expected == 1).sum() > 1000
    assert np.array_equal(shown, expected * OHIF_LIVER)
    assert np.allclose(where["spacing"], reference.GetSpacing(), atol=1e-4)
    assert np.allclose(where["origin"], reference.GetOrigin(), atol=1e-3)
    # by column here, by row there
    direction = np.array(where["direction"]).reshape(3, 3).T
    assert np.allclose(direction.ravel(), reference.GetDirection(), atol=1e-5)

    paint(viewer)
    export(viewer, "Liver, corrected")
    picture(viewer, "ohif_export")
    corrected, _ = label_map(viewer)
    added = corrected != shown
    assert 0 < added.sum() < 2000
    assert (corrected[added] == OHIF_LIVER).all()
    label = submitted(hospital, study, tmp_path)
    found = sitk.GetArrayFromImage(label) * OHIF_LIVER
    print(f"{(found != corrected).sum()} wrong after export, {added.sum()} painted")
    assert np.allclose(label.GetOrigin(), reference.GetOrigin(), atol=1e-3)
    assert np.allclose(label.GetDirection(), reference.GetDirection(), atol=1e-5)
    assert np.array_equal(found, corrected)
    assert hospital.get("/info/")["datastore"]["completed"] == 1
    (line,) = hospital.audited("label.save")
    assert line["image"] == study.series
    assert len(hospital.audited("dicom.store")) == 1
    # the first tab has lost its connection meanwhile, and nothing else
    viewer.locator("[data-cy=monailabel-btn]").click()
    connect(viewer, hospital)
    viewer.locator("[title='1/3 samples annotated']").wait_for(state="attached")
    assert np.array_equal(label_map(viewer)[0], corrected)
    # nobody's name in what the server keeps of it
    assert "Alpha" not in hospital.log.read_text() + hospital.audit.read_text()


def submitted(hospital: Hospital, study: Study, folder: Path) -> sitk.Image:
    """The final label of a study's image, as soon as there is one."""

    def told() -> dict[str, Any]:
        image = hospital.get("/datastore/", output="all")["objects"][study.series]
        return dict(image["labels"]["final"])

    until(told)
    content = requests.get(
        f"{hospital.url}/datastore/label",
        params={"label": study.series, "tag": "final"},
        timeout=PATIENCE,
    )
    (folder / "label.nii.gz").write_bytes(content.content)
    return sitk.ReadImage(str(folder / "label.nii.gz"))


def paint(viewer: Any) -> None:
    """Add a dab to the liver with the brush of the panel Segmentation."""
    viewer.locator("[data-cy=panelSegmentationWithTools-btn]").click()
    viewer.locator("[data-cy=data-row]", has_text="liver").first.click()
    viewer.locator("[data-cy=Brush]").click()
    box = viewer.locator("[data-cy=viewport-pane]").first.bounding_box()
    x, y = box["x"] + 0.72 * box["width"], box["y"] + 0.5 * box["height"]
    changed = "() => services.segmentationService.getLabelmapVolume('1').voxelManager"
    before = viewer.evaluate(f"{changed}.getCompleteScalarDataArray().filter(v => v).length")
    viewer.mouse.move(x, y)
    viewer.mouse.down()
    viewer.mouse.move(x + 4, y, steps=3)
    viewer.mouse.up()
    viewer.wait_for_function(
        f"n => ({changed})().getCompleteScalarDataArray().filter(v => v).length > n", arg=before
    )


def export(viewer: Any, name: str) -> None:
    """Export & Download, Export DICOM SEG, Save."""
    chosen = viewer.get_by_role("combobox").filter(has_text="Segmentations")
    viewer.locator("div", has=chosen).last.locator("button[aria-haspopup=menu]").first.click()
    viewer.get_by_role("menuitem", name="Export & Download").click()
    viewer.get_by_role("menuitem", name="Export DICOM SEG").click()
    viewer.wait_for_function("() => document.querySelectorAll('[role=menu]').length === 0")
    viewer.locator("input[data-cy=input-undefined]").fill(name)
    with viewer.expect_response(lambda answer: answer.request.method == "POST") as storing:
        viewer.locator("[data-cy=Save-btn]").click()
    assert storing.value.status == 200
    assert urlsplit(storing.value.url).path == "/proxy/dicom/wado/studies"
    viewer.get_by_text("The segmentation is stored").wait_for()
    viewer.locator("[data-cy=studyBrowser-panel]").get_by_text(name).wait_for()


def until(ask: Any) -> Any:
    """What `ask` answers as soon as it does."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return ask()
        except (KeyError, AssertionError):
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_the_next_sample_is_opened(viewer: Any, hospital: Hospital) -> None:
    study = hospital.studies[0]
    open_study(viewer, hospital, study)
    viewer.locator("label", has_text="Active Learning").click()
    with viewer.expect_request("**/activelearning/**") as asking:
        viewer.get_by_role("button", name="Next Sample").click()
    # what OHIF cannot show is not offered to it
    assert parse_qs(urlsplit(asking.value.url).query) == {"viewer": ["ohif"]}
    form = viewer.locator(".nextSampleForm").first
    form.get_by_text("Patient ID").wait_for()
    picture(viewer, "ohif_next")
    told = form.inner_text()
    labelled = hospital.get("/datastore/", output="all")["objects"]
    offered = next(one for one in hospital.studies if one.series in told)
    assert not labelled.get(offered.series, {}).get("labels")
    assert offered.patient in told
    assert offered.uid in told
    # the PACS is nobody's business: links of the form lead to this server, or nowhere
    links = form.locator("a").evaluate_all("all => all.map(one => one.href)")
    assert {urlsplit(link).netloc for link in links if link} <= {urlsplit(hospital.url).netloc}
    viewer.on("dialog", lambda dialog: dialog.accept())
    form.get_by_role("button", name="OK").click()
    viewer.wait_for_url(f"**/monai-label?StudyInstanceUIDs={offered.uid}")
    assert parse_qs(urlsplit(viewer.url).query) == {"StudyInstanceUIDs": [offered.uid]}
    viewer.wait_for_function(SHOWN)
    connect(viewer, hospital)


def test_slices_that_are_numbered_the_other_way(
    viewer: Any, hospital: Hospital, tmp_path: Path
) -> None:
    """The export has to find the image of each mask by its place."""
    study = hospital.studies[2]
    open_study(viewer, hospital, study)
    shown, where = label_map(viewer)
    for index in range(len(shown)):
        shown[index, 20 * (index + 1) : 20 * (index + 2), 30:60] = OHIF_LIVER
    viewer.evaluate(SET, shown.ravel().tolist())
    viewer.locator("[data-cy=panelSegmentationWithTools-btn]").click()
    export(viewer, "The other way")
    label = submitted(hospital, study, tmp_path)
    assert np.allclose(label.GetOrigin(), where["origin"], atol=1e-3)
    assert np.array_equal(sitk.GetArrayFromImage(label) * OHIF_LIVER, shown)


def test_training_is_started_and_stopped(viewer: Any, hospital: Hospital) -> None:
    study = hospital.studies[0]
    # of two patients: one to learn from, one to compare on
    for one in (study, hospital.studies[2]):
        labelled(hospital, one)
    open_study(viewer, hospital, study)
    viewer.locator("label", has_text="Active Learning").click()
    update = viewer.get_by_role("button", name="Update Model")
    stop = viewer.get_by_role("button", name="Stop Training")
    # the model that has a label, and not the other one
    assert list(pressed(viewer, update)) == [LIVER]
    viewer.get_by_text(f"Training of {LIVER} is started").wait_for()
    stop.wait_for()
    assert requests.get(f"{hospital.url}/train/", timeout=PATIENCE).status_code == 200
    assert hospital.audited("train.start")
    # it ends elsewhere: the panel notices, and says what became of it
    assert requests.delete(f"{hospital.url}/train/", timeout=PATIENCE).status_code == 200
    update.wait_for()
    viewer.get_by_text("Training: not activated, because the training was stopped").wait_for()
    assert list(pressed(viewer, update)) == [LIVER]
    stop.wait_for()
    with viewer.expect_response(lambda answer: answer.request.method == "DELETE") as stopping:
        stop.click()
    assert stopping.value.status == 200
    viewer.get_by_role("button", name="Update Model").wait_for()
    until(lambda: check_stopped(hospital))


def pressed(viewer: Any, button: Any) -> dict[str, Any]:
    """What the server answers to Update Model."""
    with viewer.expect_response(lambda answer: answer.request.method == "POST") as starting:
        button.click()
    assert starting.value.status == 200, starting.value.text()
    assert urlsplit(starting.value.url).path == "/train/"
    return dict(starting.value.json())


def labelled(hospital: Hospital, study: Study) -> None:
    """Submit what the model draws as the label of a study."""
    drawn = requests.post(
        f"{hospital.url}/infer/{LIVER}",
        params={"image": study.series, "output": "image"},
        timeout=PATIENCE,
    )
    saved = requests.put(
        f"{hospital.url}/datastore/label",
        params={"image": study.series},
        files={"label": ("label.nii.gz", drawn.content)},
        data={"params": json.dumps({"model": LIVER})},
        timeout=PATIENCE,
    )
    assert saved.status_code == 200, saved.text


def test_why_a_run_fails_is_told(refused: Any, hospital: Hospital) -> None:
    """A slice is missing: OHIF shows the series all the same, and the server will not guess."""
    slices = [*hospital.slices[2:8], *hospital.slices[9:13]]
    study = stored(hospital.archive, slices, "GAMMA3", "Gamma^Gil", "20260404")
    open_study(refused, hospital, study)
    press_run(refused)
    refused.get_by_text(re.compile("Failed to Run Segmentation: .*1 missing")).wait_for()


def test_where_there_is_no_volume_it_is_told(refused: Any, hospital: Hospital) -> None:
    study = stored(hospital.archive, hospital.slices[5:6], "DELTA4", "Delta^Dan", "20260505")
    refused.goto(f"{hospital.url}/ohif/monai-label?StudyInstanceUIDs={study.uid}")
    refused.locator("[data-cy=studyBrowser-panel]").get_by_text("05-May-2026").wait_for()
    refused.locator(".settingsTable button").click()
    refused.locator("label", has_text="Auto-Segmentation").wait_for()
    press_run(refused)
    refused.get_by_text("There is no volume here to run on").wait_for()


def test_a_server_that_is_gone_is_told(refused: Any, hospital: Hospital) -> None:
    open_study(refused, hospital, hospital.studies[0])
    refused.route("**/infer/**", lambda route: route.abort())
    press_run(refused)
    refused.get_by_text("Failed to Run Segmentation: the server does not answer").wait_for()


def press_run(viewer: Any) -> None:
    panel = viewer.locator(".tab", has=viewer.locator("label", has_text="Auto-Segmentation"))
    panel.get_by_role("button", name="Run").click()


def check_stopped(hospital: Hospital) -> None:
    url = f"{hospital.url}/train/?check_if_running=true"
    assert requests.get(url, timeout=PATIENCE).status_code == 404
