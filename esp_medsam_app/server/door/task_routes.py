"""Trainings, batches, scorings: what is wrong is told at once, not ten seconds later in a log."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request
from monailabel.config import settings
from monailabel.endpoints import activelearning
from monailabel.endpoints.user.auth import RBAC
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from monailabel.utils.async_tasks import utils as background
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import tasks

from esp_medsam_app.errors import InputError
from esp_medsam_app.server.audit import audit
from esp_medsam_app.server.calls import current_call
from esp_medsam_app.server.door.digests import known_digest
from esp_medsam_app.server.door.image_addresses import ADDRESSES, wants_address
from esp_medsam_app.server.door.refusal import RefusedError
from esp_medsam_app.server.door.uploads import check_plain, the_app
from esp_medsam_app.server.newly_labelled import models_to_update
from esp_medsam_app.server.ohif_volumes import OHIF
from esp_medsam_app.server.options import InferOptions
from esp_medsam_app.server.train_options import TrainOptions
from esp_medsam_app.server.train_outcome import result_of

_GPUS = re.compile(r"all|\d{1,3}(,\d{1,3})*")
# what MONAI Label takes from parameters, though only the server or the address may say it
_OWN = ("bundle_path", "local_rank", "method", "strategy")
_BUSY = ("SUBMITTED", "RUNNING")
_BEGINNING_SECONDS = 5.0
# two starts at once would both find nothing running
_starting = threading.Lock()

Params = Annotated[dict[str, Any] | None, Body()]

router = APIRouter()
_user = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
_annotator = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
_admin = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))


@router.post(
    "/activelearning/{strategy}",
    tags=["ActiveLearning"],
    dependencies=[_user],
    summary="The image to look at next",
)
def next_sample(
    request: Request,
    strategy: str,
    params: Params = None,
    viewer: Annotated[str | None, Query(pattern=f"^{OHIF}$")] = None,
) -> dict[str, Any]:
    """`id` and what is known of the image; nothing when all have labels.

    `viewer=ohif`: only images that OHIF shows, or 404 with the reason.

    `name` is that of the file which `GET /datastore/image` sends, and `checksum` its own. 3D Slicer
    gets an id with which it may read the image for some minutes without a log-in.
    """
    options = _checked(params)
    labels = options.get("labels")
    if not isinstance(options.get("label_tag", ""), str) or not (
        labels is None or (isinstance(labels, list) and all(isinstance(o, str) for o in labels))
    ):
        raise RefusedError(422, "params: label_tag is a text, and labels a list of them")
    options["viewer"] = viewer
    found = dict(activelearning.sample(strategy, options, None))
    if not found:
        if viewer == OHIF:
            raise RefusedError(404, _nothing_for_ohif())
        return {}
    # a viewer would take it for a file of its own
    path = found.pop("path", None)
    if path:
        file = Path(path)
        # viewers keep what they downloaded by its name, and another image may have had that one
        found |= {"name": file.name, "checksum": f"SHA256:{known_digest(file)}"}
    call = current_call()
    if call is not None and wants_address(request.scope, call):
        found["id"] = request.scope[ADDRESSES].give(call, found["id"])
    return found


@router.get("/train/", tags=["Train"], dependencies=[_user], summary="How the last training goes")
def training(all: bool = False, check_if_running: bool = False) -> Any:  # noqa: A002
    """Of the one that runs, else of the one that ran last: state, last lines, `result`.

    `queue`: those that wait for their turn. `check_if_running`: 404 where none runs or waits.
    """
    return _states("train", "training", all, check_if_running, result=result_of)


@router.post("/train/{model}", tags=["Train"], dependencies=[_admin], summary="Start a training")
def train(
    model: str, params: Params = None, run_sync: bool = False, enqueue: bool = False
) -> dict[str, Any]:
    """In a process of its own; `GET /train/` tells how it goes. 429 while another one runs.

    422 without labels of two patients.
    """
    if run_sync:
        raise RefusedError(422, "run_sync: trainings run in a process of their own")
    options = _checked(params, "model")
    _check_trainable([model], options)
    the_app()._trainers[model].check_labels(the_app().datastore())
    with _starting:
        return _start_training(model, options, enqueue)


@router.post("/train/", tags=["Train"], dependencies=[_admin], include_in_schema=False)
def train_all(
    params: Params = None, run_sync: bool = False, new_labels: bool = False
) -> dict[str, Any]:
    """One training after another: of the models that `params` names, else of all with labels.

    `new_labels`, as OHIF asks for: else those with labels younger than their last training. Of a
    model that is left out, `detail` says why; 422 where that is all of them.
    """
    if run_sync:
        raise RefusedError(422, "run_sync: trainings run in a process of their own")
    options = _checked(params, "model")
    app = the_app()
    named = [model for model in app._trainers if isinstance(options.get(model), Mapping)]
    chosen = named or list(app._trainers)
    if not named and new_labels:
        used = app.active_learning.used_models()
        chosen = models_to_update(app._trainers, app.datastore(), used)
    own = {model: {**options, **_checked(options.get(model), "model")} for model in chosen}
    problems: dict[str, InputError] = {}
    for model in chosen:
        _check_trainable([model], own[model])
        try:
            app._trainers[model].check_labels(app.datastore())
        except InputError as error:
            problems[model] = error
    if problems and (named or len(problems) == len(chosen)):
        raise next(iter(problems.values()))
    with _starting:
        return {
            model: {"result": None, "detail": str(problems[model])}
            if model in problems
            else {"result": _start_training(model, own[model], True), "detail": None}
            for model in chosen
        }


@router.delete("/train/", tags=["Train"], dependencies=[_admin], summary="Stop the training")
def stop_training() -> Any:
    """Those that wait for their turn do not start any more. What serves stays as it is."""
    with _starting:
        _wait_for_its_process("train")
        _drop_waiting("train")
        stopped = AsyncTask.stop("train")
    audit("train.stop", stopped=stopped is not None)
    return stopped


@router.get("/batch/infer", tags=["Infer"], dependencies=[_user], summary="How the batch goes")
def batch_state(all: bool = False, check_if_running: bool = False) -> Any:  # noqa: A002
    """As of a training."""
    return _states("batch_infer", "batch", all, check_if_running)


@router.post(
    "/batch/infer/{model}", tags=["Infer"], dependencies=[_admin], summary="Segment many images"
)
def batch(
    model: str,
    images: BatchInferImageType = BatchInferImageType.IMAGES_ALL,
    params: Params = None,
    run_sync: bool = False,
) -> Any:
    """`params.images`: ids, in place of `images`. The label maps are kept under `label_tag`."""
    app = the_app()
    if model not in app._infers:
        raise RefusedError(404, f"there is no model {model!r}. Available: {', '.join(app._infers)}")
    options = {"save_label": True, "label_tag": "original", **_checked(params, "model")}
    _check_batch(options)
    request = {"model": model, "images": images.value}
    with _starting:
        _check_idle("batch_infer", "A batch")
        audit("batch.start", model=model, images=options.get("images", images.value))
        if not run_sync:
            return _started("batch_infer", request, options, enqueue=False)
    return AsyncTask.run("batch_infer", request=request, params=options, force_sync=True)[0]


@router.delete("/batch/infer", tags=["Infer"], dependencies=[_admin], summary="Stop the batch")
def stop_batch() -> Any:
    """What is done is kept."""
    audit("batch.stop")
    return AsyncTask.stop("batch_infer")


@router.get("/scoring/", tags=["Scoring"], dependencies=[_user], summary="How the scoring goes")
def scoring_state(all: bool = False, check_if_running: bool = False) -> Any:  # noqa: A002
    """As of a training."""
    return _states("scoring", "scoring", all, check_if_running)


@router.post(
    "/scoring/{method}", tags=["Scoring"], dependencies=[_annotator], summary="Score the labels"
)
def score(method: str, params: Params = None, run_sync: bool = False) -> Any:
    """With one method."""
    methods = the_app()._scoring_methods
    if method not in methods:
        raise RefusedError(
            404, f"there is no scoring method {method!r}. Available: {', '.join(methods)}"
        )
    options = _checked(params)
    request = {"method": method}
    if run_sync:
        return AsyncTask.run("scoring", request=request, params=options, force_sync=True)[0]
    with _starting:
        _check_idle("scoring", "A scoring")
        return _started("scoring", request, options, enqueue=False)


@router.post("/scoring/", tags=["Scoring"], dependencies=[_annotator], include_in_schema=False)
def score_all(params: Params = None) -> dict[str, Any]:
    """One method after another."""
    options = _checked(params)
    with _starting:
        return {
            method: {
                "result": _started("scoring", {"method": method}, options, True),
                "detail": None,
            }
            for method in the_app()._scoring_methods
        }


def _states(
    method: str,
    name: str,
    everything: bool,
    busy: bool,
    result: Callable[[Mapping[str, Any]], str | None] | None = None,
) -> Any:
    """What viewers ask while they wait: of the task that runs, else the last one; or of all.

    To MONAI Label a task runs only when its process does, so that a training which was started a
    moment ago, or waits for the one before, would be none.

    Raises:
        RefusedError: 404 there is none.
    """
    # the process that is read from adds lines meanwhile
    found = [{**task, "details": list(task.get("details", ()))} for task in tasks(method)]
    if result is not None:
        for task in found:
            task["result"] = result(task)
    waiting = sorted(
        (task for task in found if task["status"] in _BUSY),
        key=lambda task: task["status"] != "RUNNING",
    )
    if not (waiting if busy else found):
        raise RefusedError(404, f"No {name} runs or waits." if busy else f"No {name} ran yet.")
    if everything and not busy:
        return found
    # of one that was stopped before its turn there is nothing to tell
    ran = [task for task in found if task["status"] != "STOPPED" or task["details"]]
    now = waiting[0] if waiting else (ran or found)[-1]
    queue = [
        {
            "id": task["id"],
            "status": task["status"],
            "model": task.get("request", {}).get("model"),
            "start_ts": task.get("start_ts"),
        }
        for task in waiting[1:]
    ]
    return {**now, "queue": queue}


def _nothing_for_ohif() -> str:
    left = len(the_app().datastore().get_unlabeled_images())
    if not left:
        return "Every image has a label, or cannot be segmented."
    return (
        f"OHIF shows none of the {left} images that have no label yet: they are no volumes of CT "
        "or MR, of one series each. Use 3D Slicer for these."
    )


def _start_training(model: str, options: dict[str, Any], enqueue: bool) -> dict[str, Any]:
    if not enqueue:
        _check_idle("train", "A training")
    task = _started("train", {"model": model}, options, enqueue)
    audit("train.start", model=model, task=task["id"])
    return task


def _started(
    method: str, request: dict[str, Any], options: dict[str, Any], enqueue: bool
) -> dict[str, Any]:
    task, reason = AsyncTask.run(method, request=request, params=options, enqueue=enqueue)
    if task is None:
        raise RefusedError(429, str(reason), {"retry-after": "30"})
    return dict(task)


def _wait_for_its_process(method: str) -> None:
    """A task that begins this moment can only be stopped when there is something to stop."""
    deadline = time.monotonic() + _BEGINNING_SECONDS
    while time.monotonic() < deadline:
        states = {task["status"] for task in tasks(method)}
        if "SUBMITTED" not in states or "RUNNING" in states:
            return
        time.sleep(0.02)


def _drop_waiting(method: str) -> None:
    """Forget the tasks of a queue, as MONAI Label does not: the next one would start at once."""
    executor = background.background_executors.pop(method, None)
    if executor is None:
        return
    executor.shutdown(wait=False, cancel_futures=True)
    running = background.background_processes.get(method) or {}
    for task in tasks(method):
        if task["status"] == "SUBMITTED" and task["id"] not in running:
            task["status"] = "STOPPED"
            task["end_ts"] = datetime.now().strftime("%Y-%m-%d %H:%M:%S")


def _check_idle(method: str, name: str) -> None:
    if any(task["status"] in _BUSY for task in tasks(method)):
        raise RefusedError(429, f"{name} is already running.", {"retry-after": "30"})


def _check_trainable(models: list[str], options: dict[str, Any]) -> None:
    trainers = the_app()._trainers
    for model in models:
        if model not in trainers:
            raise RefusedError(
                404, f"there is no model {model!r} to train. Available: {', '.join(trainers)}"
            )
    parsed = TrainOptions.parse(options)
    # a file's address would let MLflow write anywhere
    if parsed.tracking_uri and not parsed.tracking_uri.startswith(("http://", "https://")):
        raise RefusedError(422, "params.tracking_uri: http:// or https:// is needed")


def _check_batch(options: dict[str, Any]) -> None:
    chosen = options.get("images")
    if chosen is not None and not isinstance(chosen, str):
        if not isinstance(chosen, list) or not all(isinstance(one, str) for one in chosen):
            raise RefusedError(422, "params.images: a list of ids is needed")
        unknown = sorted(set(chosen) - set(the_app().datastore().list_images()))
        if unknown:
            raise RefusedError(404, f"there is no image {unknown[0]!r} in the datastore")
    elif isinstance(chosen, str) and chosen not in [kind.value for kind in BatchInferImageType]:
        raise RefusedError(422, "params.images: all, labeled, unlabeled, or a list of ids")
    for name, least in (("max_workers", 1), ("max_batch_size", 0)):
        value = options.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1_000_000:
            raise RefusedError(422, f"params.{name}: a whole number is needed")
    InferOptions.parse(options)


def _checked(params: dict[str, Any] | None, *further: str) -> dict[str, Any]:
    """Parameters that may go on to MONAI Label, without those that it would take for its own.

    Args:
        params: of the request.
        further: names of parameters that the address says here.

    Raises:
        RefusedError: 422 not to be used.
    """
    own = {*_OWN, *further}
    params = {name: value for name, value in (params or {}).items() if name not in own}
    check_plain(params)
    gpus = params.get("gpus", "all") or "all"
    if not isinstance(gpus, str) or not _GPUS.fullmatch(gpus):
        raise RefusedError(422, "params.gpus: all, or numbers separated by commas")
    return params
