"""The whole path over HTTP: a real `monailabel start_server` and MONAI Label's own client."""

from __future__ import annotations

import gzip
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests
import SimpleITK as sitk
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException
from PIL import Image
from support.real_server import Served

from esp_medsam_app.evaluation.metrics import score_mask
from esp_medsam_app.server.auto_task import everything
from esp_medsam_app.server.desam_bundles import desam_models
from esp_medsam_app.weights import load_bundle

pytestmark = pytest.mark.e2e

CHEST, LIVER = "esp_medsam_xray_chest", "esp_medsam_ct_liver"
MODALITIES = load_bundle().modalities
# Dice that the starter weights reach on the phantoms, less a margin; they are drawings, and the
# weights were trained on patients.
FLOORS = {
    CHEST: {"heart_mediastinum": 0.6, "left_lung": 0.75, "right_lung": 0.85},
    LIVER: {"liver": 0.8},
}
# More address space than one tile takes, and less than a batch of four.
ROOM_FOR_A_TILE, NO_ROOM = 256 << 20, 64 << 20


def voxels(path: str | Path) -> np.ndarray:
    """A label map in index order, from any format."""
    name = str(path)
    if name.endswith(".png"):
        return np.asarray(Image.open(name)).T
    if name.endswith(".nrrd"):
        return sitk.GetArrayFromImage(sitk.ReadImage(name)).T
    return np.asarray(nib.load(name).dataobj)


def refused(call: Callable[[], Any]) -> tuple[int, str]:
    """Status and explanation of a request that must fail."""
    with pytest.raises(MONAILabelClientException) as caught:
        call()
    status, response = caught.value.msg.split("; Response: ", 1)
    return int(status.removeprefix("Status: ")), json.loads(response)["detail"]


def serving(served: Served) -> bool:
    answer = requests.get(f"{served.process.url}/info/", timeout=60)
    return served.process.process.poll() is None and answer.status_code == 200


# --- what is offered -----------------------------------------------------------------------------


def test_info_is_what_the_viewers_rely_on(client: MONAILabelClient) -> None:
    info = client.info()
    assert not info.get("config")
    assert isinstance(info["labels"], list)
    assert info["labels"] == sorted(info["labels"])
    offered = {"esp_medsam": everything(MODALITIES.values())}
    offered |= {f"esp_medsam_{name}": modality for name, modality in sorted(MODALITIES.items())}
    # those of the package's weights of DeSAM, where there are some
    desam = {f"desam_{name}": modality for name, modality in MODALITIES.items()}
    offered |= {name: desam[name] for name in desam_models(None, "all", {})}
    assert list(info["models"]) == list(offered)
    for name, model in info["models"].items():
        modality = offered[name]
        assert model["type"] == "segmentation"
        assert model["dimension"] == modality.dimension
        assert model["description"]
        assert model["labels"] == {n: i for i, n in enumerate(sorted(modality.labels), start=1)}
        assert set(model["labels"]) <= set(info["labels"])
        for value in model["config"].values():
            assert isinstance(value, str | bool | int | float | list)
    assert {"name", "description", "version", "trainers", "strategies", "scoring"} <= set(info)
    assert "random" in info["strategies"]
    assert info["datastore"]["total"] == 2


def test_next_sample(client: MONAILabelClient, served: Served) -> None:
    for _ in range(3):
        sample = client.next_sample("random", {})
        assert sample["id"] in {"chest_phantom", "thin_abdomen"}
        assert Path(sample["path"]).parent == served.studies


# --- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "image", "suffix"),
    [(LIVER, "thin_abdomen", ".nii.gz"), (CHEST, "chest_phantom", ".png")],
)
def test_served_is_what_the_command_line_writes(
    client: MONAILabelClient,
    served: Served,
    segmented: dict[str, Path],
    model: str,
    image: str,
    suffix: str,
) -> None:
    file, answer = client.infer(model, image, {})
    assert file.endswith(suffix)
    assert answer["label_names"] == dict(MODALITIES[model.removeprefix("esp_medsam_")].labels)
    assert np.array_equal(voxels(file), voxels(segmented[model]))
    if suffix == ".nii.gz":
        image_header = nib.load(served.studies / f"{image}{suffix}").header
        for name in ("srow_x", "srow_y", "srow_z", "pixdim", "qform_code", "sform_code"):
            assert np.array_equal(nib.load(file).header[name], image_header[name]), name


@pytest.mark.parametrize(
    ("model", "case"), [(CHEST, "chest_phantom.png"), (LIVER, "thin_abdomen.nii.gz")]
)
def test_dice_is_above_its_floor(
    served: Served, segmented: dict[str, Path], model: str, case: str
) -> None:
    # the file of the command line: the test above shows that it is the served one
    labels, reference = voxels(segmented[model]), voxels(served.references / case)
    names = MODALITIES[model.removeprefix("esp_medsam_")].labels
    for label, floor in FLOORS[model].items():
        value = names[label]
        score = score_mask(reference == value, labels == value, [1.0] * labels.ndim)
        assert score.dice > floor, label


def test_a_session_gives_the_same(
    client: MONAILabelClient, served: Served, segmented: dict[str, Path]
) -> None:
    session = client.create_session(str(served.studies / "thin_abdomen.nii.gz"))["session_id"]
    # as Slicer does: NRRD, by session
    params = {"result_extension": ".nrrd", "result_dtype": "uint8"}
    file, _ = client.infer(LIVER, "", params, session_id=session)
    written = sitk.ReadImage(file)
    image = sitk.ReadImage(str(served.studies / "thin_abdomen.nii.gz"))
    assert np.array_equal(voxels(file), voxels(segmented[LIVER]))
    for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(written, get)(), getattr(image, get)()), get
    client.remove_session(session)
    status, text = refused(lambda: client.infer(LIVER, "", {}, session_id=session))
    assert status == 404
    assert "session" in text


def test_a_session_of_dicom_files(
    client: MONAILabelClient, served: Served, segmented: dict[str, Path]
) -> None:
    parts = [("files", (path.name, path.read_bytes())) for path in served.series]
    answer = requests.put(f"{served.process.url}/session/", files=parts, timeout=60)
    session = answer.json()["session_id"]
    file, _ = client.infer(LIVER, "", {"result_extension": ".nrrd"}, session_id=session)
    # the same slices as NIfTI, whose voxels may run the other way
    expected = sitk.ReadImage(str(segmented[LIVER]))
    written = sitk.Resample(sitk.ReadImage(file), expected, interpolator=sitk.sitkNearestNeighbor)
    assert sitk.ReadImage(file).GetSize() == expected.GetSize()
    same = sitk.GetArrayFromImage(written) == sitk.GetArrayFromImage(expected)
    assert same.mean() > 0.999
    assert sitk.GetArrayFromImage(written).any()


def test_an_uploaded_picture_gives_the_same(
    client: MONAILabelClient, served: Served, segmented: dict[str, Path]
) -> None:
    file, _ = client.infer(CHEST, "", {}, file=str(served.studies / "chest_phantom.png"))
    assert np.array_equal(voxels(file), voxels(segmented[CHEST]))


def test_the_modality_is_read_from_the_image(
    client: MONAILabelClient, samples: Path, tmp_path: Path
) -> None:
    """A real fundus photograph: no model named, the vessels of the right one in the answer."""
    small = tmp_path / "small.png"
    Image.open(samples / "studies" / "retina.jpg").resize((384, 384)).save(small)
    file, answer = client.infer("esp_medsam", "", {}, file=str(small))
    assert answer["modality"] == "fundus_vessels"
    assert answer["modality_source"] == "classifier"
    assert answer["modality_confidence"] > 0.5
    union = everything(MODALITIES.values()).labels
    assert answer["label_names"] == union
    assert answer["modality_labels"] == {"vessel": union["vessel"]}
    own, _ = client.infer("esp_medsam_fundus_vessels", "", {}, file=str(small))
    expected = np.where(voxels(own) > 0, union["vessel"], 0)
    assert expected.any()
    assert np.array_equal(voxels(file), expected)


def test_what_cannot_be_told_is_asked(client: MONAILabelClient, tmp_path: Path) -> None:
    stripes = np.tile(np.arange(96, dtype=np.uint8) % 16 * 16, (96, 1))
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    status, text = refused(
        lambda: client.infer("esp_medsam", "", {}, file=str(tmp_path / "stripes.png"))
    )
    assert status == 422
    assert "likeliest: " in text
    assert "Run the model of its modality" in text


def test_ohif_gets_raw_voxels_of_the_labels_it_asked_for(
    served: Served, segmented: dict[str, Path]
) -> None:
    params = {
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
        "result_compress": False,
        "restore_label_idx": False,
        "label_prompt": [2],
    }
    answer = requests.post(
        f"{served.process.url}/infer/{CHEST}",
        params={"image": "chest_phantom", "output": "image"},
        data={"params": json.dumps(params)},
        timeout=120,
    )
    header, body = answer.content.split(b"\n\n", 1)
    assert b"encoding: raw" in header
    expected = voxels(segmented[CHEST])
    received = np.frombuffer(body, np.uint8).reshape(expected.shape, order="F")
    assert np.array_equal(received, np.where(expected == 2, 2, 0))


def test_a_submitted_label_is_kept(
    client: MONAILabelClient, served: Served, segmented: dict[str, Path], tmp_path: Path
) -> None:
    name = "submitted"
    shutil.copy(served.studies / "chest_phantom.png", tmp_path / f"{name}.png")
    client.upload_image(str(tmp_path / f"{name}.png"), name)
    try:
        client.save_label(name, str(segmented[CHEST]), params={"label_info": []})
        assert client.info()["datastore"]["completed"] == 1
        kept = client.download_label(name, "final")
        assert np.array_equal(voxels(kept), voxels(segmented[CHEST]))
    finally:
        requests.delete(f"{served.process.url}/datastore/image?id={name}", timeout=60)


# --- bad input -----------------------------------------------------------------------------------


def a_text(path: Path, good: Path) -> None:
    path.write_text("This is no image.\n" * 100)


def truncated(path: Path, good: Path) -> None:
    content = good.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def truncated_inside(path: Path, good: Path) -> None:
    # whole as gzip, cut as NIfTI
    content = gzip.decompress(good.read_bytes())
    path.write_bytes(gzip.compress(content[: len(content) // 2]))


def volume(path: Path, values: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


def with_nan(path: Path, good: Path) -> None:
    values = np.random.default_rng(0).normal(size=(32, 32, 2)).astype(np.float32)
    values[4, 4, 1] = np.nan
    volume(path, values)


def four_dimensions(path: Path, good: Path) -> None:
    volume(path, np.random.default_rng(0).integers(0, 99, (16, 16, 2, 3)).astype(np.int16))


def all_zero(path: Path, good: Path) -> None:
    volume(path, np.zeros((32, 32, 2), np.int16))


def one_pixel(path: Path, good: Path) -> None:
    Image.fromarray(np.full((1, 1), 9, np.uint8)).save(path)


BAD = [
    (a_text, ".nii.gz", "NIfTI"),
    (truncated, ".nii.gz", "truncated|damaged|cut|incomplete|end"),
    (truncated_inside, ".nii.gz", "truncated|damaged|cut|incomplete|end|shorter|missing"),
    (with_nan, ".nii.gz", "NaN"),
    (four_dimensions, ".nii.gz", "4|dimension"),
    (all_zero, ".nii.gz", "nothing to segment"),
    (one_pixel, ".png", "small"),
]


@pytest.mark.parametrize(("make", "suffix", "told"), BAD, ids=[case[0].__name__ for case in BAD])
def test_bad_images_are_explained(
    client: MONAILabelClient,
    served: Served,
    tmp_path: Path,
    make: Callable[[Path, Path], None],
    suffix: str,
    told: str,
) -> None:
    path = tmp_path / f"bad{suffix}"
    make(path, served.studies / "thin_abdomen.nii.gz")
    status, text = refused(lambda: client.infer(LIVER, "", {}, file=str(path)))
    assert status == 422
    assert np.any([word.lower() in text.lower() for word in told.split("|")]), text
    assert text.startswith("the uploaded image: ")
    assert str(served.temporary) not in text
    assert serving(served)


def test_unknown_names_are_explained(client: MONAILabelClient, served: Served) -> None:
    status, text = refused(lambda: client.infer("esp_medsam_knee", "thin_abdomen", {}))
    assert (status, "'esp_medsam_knee'" in text, LIVER in text) == (404, True, True)
    status, text = refused(lambda: client.infer(LIVER, "nobody", {}))
    assert (status, "'nobody'" in text) == (404, True)
    status, text = refused(lambda: client.infer(LIVER, "thin_abdomen", {"result_dtype": "text"}))
    assert (status, "result_dtype" in text) == (422, True)
    assert serving(served)


def test_files_of_the_server_are_not_read(client: MONAILabelClient, served: Served) -> None:
    path = str(served.studies / "thin_abdomen.nii.gz")
    assert refused(lambda: client.infer(LIVER, path, {}))[0] == 404
    assert refused(lambda: client.infer(LIVER, "thin_abdomen", {"image": path}))[0] == 404


@contextmanager
def address_space(served: Served, more: int) -> Iterator[None]:
    """Leave the server as many bytes more than it has now."""
    pid = served.process.process.pid
    status = Path(f"/proc/{pid}/status").read_text().split("VmSize:")[1]
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    now = int(status.split()[0]) << 10
    resource.prlimit(pid, resource.RLIMIT_AS, (now + more, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, before)


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit")
def test_a_batch_that_memory_does_not_hold(
    client: MONAILabelClient, served: Served, segmented: dict[str, Path], tmp_path: Path
) -> None:
    # as many slices as go through the network at a time where memory suffices
    image = nib.load(served.studies / "thin_abdomen.nii.gz")
    thick = np.concatenate([np.asarray(image.dataobj)] * 2, axis=2)
    nib.save(nib.Nifti1Image(thick, image.affine), tmp_path / "thick.nii.gz")
    # weights and threads have their room already
    client.infer(CHEST, "chest_phantom", {})
    with address_space(served, ROOM_FOR_A_TILE):
        file, _ = client.infer(LIVER, "", {}, file=str(tmp_path / "thick.nii.gz"))
    same = voxels(file) == np.concatenate([voxels(segmented[LIVER])] * 2, axis=2)
    # other batches, other rounding: a voxel at the edge may differ
    assert same.mean() > 0.9999
    # what earlier passes left is reused, and a tile fits into it; a large volume does not
    many = np.concatenate([np.asarray(image.dataobj)] * (NO_ROOM // image.get_fdata().size), axis=2)
    nib.save(nib.Nifti1Image(many, image.affine), tmp_path / "many.nii")
    with address_space(served, NO_ROOM):
        status, text = refused(lambda: client.infer(LIVER, "", {}, file=str(tmp_path / "many.nii")))
    # refused where it is read or where it is computed with
    assert status in (422, 503)
    assert "memory" in text
    assert serving(served)


def images_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith((".nii.gz", ".png", ".nrrd"))]


def eventually(condition: Callable[[], bool], seconds: float = 30) -> bool:
    """Whether it holds in time: the server tidies up after it has answered."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
    return True


# --- after all that ------------------------------------------------------------------------------


def test_it_still_works_and_leaves_nothing_behind(
    client: MONAILabelClient, served: Served, segmented: dict[str, Path]
) -> None:
    file, _ = client.infer(CHEST, "chest_phantom", {})
    assert np.array_equal(voxels(file), voxels(segmented[CHEST]))
    assert eventually(lambda: not images_in(served.temporary)), images_in(served.temporary)
    assert "Traceback" not in served.log.read_text(errors="replace")


def test_the_network_was_not_needed(served: Served, tmp_path: Path) -> None:
    assert served.network_log.read_text() == ""
    # the guard itself, in the same surroundings
    log = tmp_path / "log.txt"
    code = "import urllib.request as u; u.urlopen('http://192.0.2.1/', timeout=1)"
    tried = subprocess.run(
        [sys.executable, "-c", code],
        env={**served.environment, "NETWORK_LOG": str(log)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "there is no network here" in tried.stderr
    assert log.read_text() == "192.0.2.1\n"
