"""The training task of one modality."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from filelock import FileLock, Timeout
from ignite.engine import Events
from ignite.handlers import EarlyStopping
from monai.data import DataLoader, partition_dataset
from monai.handlers import LrScheduleHandler, StatsHandler
from monailabel.interfaces.datastore import Datastore
from monailabel.tasks.train.basic_train import BasicTrainTask, Context
from monailabel.utils.others.generic import device_list, name_to_device
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Subset

from esp_medsam_app.errors import InputError
from esp_medsam_app.inference.device import choose_device
from esp_medsam_app.learning.case_dice import CaseDice, Output
from esp_medsam_app.learning.judging import judge
from esp_medsam_app.learning.learner import ModalityLearner
from esp_medsam_app.learning.material import Material
from esp_medsam_app.learning.promotion import Decision, decide_promotion
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.annotated_cases import annotated_cases, readable_cases
from esp_medsam_app.server.audit import audit
from esp_medsam_app.server.conf import model_name
from esp_medsam_app.server.train_failures import memory_explained
from esp_medsam_app.server.train_job import LEDGER, TrainJob, split_cases
from esp_medsam_app.server.train_options import TrainOptions
from esp_medsam_app.server.train_outcome import announce, outcome
from esp_medsam_app.server.train_progress import TrainProgress, told, write_stats
from esp_medsam_app.server.train_tracking import Tracking
from esp_medsam_app.server.trainable import check_labels
from esp_medsam_app.training.optimisation import rate_of
from esp_medsam_app.weights.bundle import round_modality
from esp_medsam_app.weights.version_files import Cases, Dice, Version
from esp_medsam_app.weights.versions import VersionStore

# MONAI Label's names in a run's folder
BEST, LAST = "model.pt", "checkpoint_final.pt"

logger = logging.getLogger(__name__)


class EspMedSamTrainTask(BasicTrainTask):
    """Learns one modality from submitted labels: its controller and its queries, nothing else.

    A run prepares its material (views, held-out tiles, all that the frozen part computes), trains
    with MONAI's engines in MONAI Label's own loop, and then compares the best epoch with the
    serving version on whole held-out cases. Only if it is better it becomes the serving version;
    it is kept in any case. Whatever stops a run in between leaves what serves untouched.

    Args:
        modality: what it trains.
        versions: where versions are kept.
        folder: for the ledger of held-out patients, statistics and runs.
        models: names of all models of single modalities.
        device: the server's own.
        pattern: finds the patient in an image's file name, where DICOM names none.
        tracking: draw curves in MLflow unless a request says otherwise.
    """

    job_type: type[TrainJob] = TrainJob

    def __init__(
        self,
        modality: Modality,
        versions: VersionStore,
        folder: Path,
        models: Collection[str],
        *,
        device: str = "auto",
        pattern: re.Pattern[str] | None = None,
        tracking: bool = True,
    ) -> None:
        self.modality = modality
        self.versions = versions
        self.folder = folder / modality.name
        self.models = frozenset(models)
        self.device = device
        self.pattern = pattern
        super().__init__(
            str(self.folder / "runs"),
            description=f"Trains {modality.title} on submitted labels",
            config=TrainOptions.shown(["auto", *device_list()], tracking),
            stats_path=str(self.folder / "train_stats.json"),
            # bfloat16 is the learner's own; a GPU without it computes in float16
            amp=torch.cuda.is_available(),
            n_saved=1,
            load_strict=True,
            labels=dict(modality.labels),
            tracking="mlflow" if tracking else None,
        )

    @property
    def model(self) -> str:
        """What viewers call it."""
        return model_name(self.modality.name)

    def recipe(self, options: TrainOptions, device: str, cases: int) -> Any:
        """The numbers for so many annotated cases."""
        return options.recipe(device, cases)

    def config(self) -> dict[str, Any]:
        """What viewers offer."""
        shown = TrainOptions.shown([], False)
        return {key: value for key, value in self._config.items() if key in shown}

    def stats(self) -> dict[str, Any]:
        """Of the last training; `{}` if there was none."""
        try:
            return dict(super().stats())
        except ValueError:  # left half-written by a power loss
            return {}

    def check_labels(self, datastore: Datastore) -> None:
        """Raises InputError where there are no labels, or all are of one patient."""
        check_labels(datastore, self.modality, self.models, self.pattern)

    def last_start(self) -> float:
        """Unix time at which the last training that came to its end began; 0 if none did."""
        ended = [one for one in self.versions.versions(self.modality.name) if one.cases.train]
        if not ended or ended[-1].created is None:
            return 0.0
        return ended[-1].created.timestamp() - float(ended[-1].training.get("seconds") or 0)

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, compare and publish or keep back.

        Args:
            request: see `TrainOptions`.
            datastore: with the labels.

        Returns:
            The statistics that viewers read, with `version` and `promotion`.

        Raises:
            EspMedSamError: bad options, no label to learn from, another training of this modality
                under way, no memory.
        """
        options = TrainOptions.parse({**self._config, **request})
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                return self._trained(options, datastore)
        except Timeout:
            raise InputError(
                f"{self.modality.name} is being trained already",
                remedy="Wait for its end, or stop it",
            ) from None

    def _trained(self, options: TrainOptions, datastore: Datastore) -> dict[str, Any]:
        started = time.time()
        job = self._split(options, datastore)
        tracking = job.tracking
        wait = tracking.begin(_told_of(job)) if tracking else None
        try:
            logger.info("Preparing %d views on %s", job.recipe.views, job.device)
            with memory_explained():
                job = job.prepared()
            if wait:
                wait()
            stats = self._learned_and_judged(job, started)
        except BaseException:
            if tracking:
                tracking.end("FAILED", {}, {})
            raise
        if tracking:
            promotion = dict(stats["promotion"])
            figures = {key: promotion.pop(key) for key in ("before", "after")}
            figures = {f"dice_{key}": value for key, value in figures.items() if value is not None}
            tracking.end("FINISHED", figures, {"version": stats["version"], **promotion})
        return stats

    def _learned_and_judged(self, job: TrainJob, started: float) -> dict[str, Any]:
        options = job.options
        has_gpu = torch.cuda.is_available()
        request = {
            **options.model_dump(),
            "model": self.model,
            "name": job.work.name,
            "device": job.device,
            "val_batch_size": options.train_batch_size,
            "dataset": "features on disk",
            "dataloader": "DataLoader",
            # of a machine without a GPU, processes may share the work all the same
            "multi_gpu": options.multi_gpu and (job.device != "cpu" or not has_gpu),
            "distributed_backend": "nccl" if has_gpu else "gloo",
            # MONAI Label would take a port by chance
            "distributed_url": f"file://{job.work / 'rendezvous'}",
            # ours, see `finalize`
            "tracking": "None",
            "job": job,
            "started": started,
        }
        with memory_explained(options.train_batch_size):
            super().__call__(request, None)
        learned = time.time()
        with memory_explained():
            version, decision = self._judged(job, started, learned)
        stats = {
            **self.stats(),
            "total_time": told(time.time() - started),
            "version": version.number,
            "promotion": {
                "published": decision.publish,
                "reason": version.reason,
                "gain": decision.gain,
                "cases": len(job.validation),
                "before": version.dice.means["before"],
                "after": version.dice.means["after"],
            },
        }
        stats["result"] = outcome(decision.publish, version.number, version.reason)
        write_stats(Path(self._stats_path), stats)
        announce(stats["result"])
        shutil.rmtree(job.work, ignore_errors=True)
        return stats

    def _split(self, options: TrainOptions, datastore: Datastore) -> TrainJob:
        runs = Path(self._model_dir)
        # left by trainings that were killed
        shutil.rmtree(runs, ignore_errors=True)
        work = runs / time.strftime("run_%Y%m%d_%H%M%S")
        work.mkdir(parents=True)
        cases = annotated_cases(datastore, self.modality, self.models, self.pattern)
        cases = readable_cases(cases, self.modality, work / "renumbered")
        if not cases:
            raise InputError(
                f"no submitted label of {self.modality.name} to learn from",
                remedy=f"Submit labels with {', '.join(self.modality.labels)} first",
            )
        train, validation = split_cases(cases, self.folder / LEDGER, options.val_split)
        device = options.device if options.device != "auto" else self.device
        device = str(choose_device("auto" if device == "auto" else name_to_device(device)))
        return self.job_type(
            modality=self.modality,
            bundle=self.versions.bundle(),
            options=options,
            recipe=self.recipe(options, device, len(train)),
            device=device,
            work=work,
            train=train,
            validation=validation,
            tracking=Tracking.wanted(options, self.model, work.name, self.folder.parent),
        )

    def _judged(self, job: TrainJob, started: float, learned: float) -> tuple[Version, Decision]:
        device = torch.device(job.device)
        learner = job.learner(device)
        best = job.work / BEST
        state = torch.load(
            best if best.exists() else job.work / LAST, map_location="cpu", weights_only=True
        )
        learner.load_state_dict(state)
        round_modality(learner.network, self.modality.name)
        logger.info("Comparing with what serves on %d held-out cases", len(job.validation))
        options: dict[str, Any] = {"tile": job.tile, "device": device, "masks": job.masks}
        after = judge(learner.network, self.modality, job.validation, **options)
        before = dict.fromkeys(after, 0.0)
        if job.serves:
            served = job.bundle.load_network([self.modality.name]).to(device)
            before = judge(served, self.modality, job.validation, **options)
        decision = decide_promotion(before, after, job.options.margin)
        number = job.bundle.version(self.modality.name) if job.serves else 0
        version = self.versions.add(
            learner.network,
            self.modality,
            state="published" if decision.publish else "kept_back",
            parent=number if job.from_serving else None,
            reason=decision.reason,
            cases=Cases(
                train=tuple(case.name for case in job.train),
                validation=tuple(case.name for case in job.validation),
            ),
            dice=Dice(before=before if job.serves else {}, after=after),
            training={
                "recipe": job.recipe.model_dump(mode="json"),
                "epochs": self.stats().get("epoch"),
                "batch_size": job.options.train_batch_size,
                "device": job.device,
                "seconds_learning": round(learned - started, 1),
                "seconds": round(time.time() - started, 1),
            },
        )
        if decision.publish:
            self.versions.publish(
                self.modality.name, version.number, over=number, reason=decision.reason
            )
        audit(
            "model.publish" if decision.publish else "model.keep_back",
            modality=self.modality.name,
            version=version.number,
            over=number,
            reason=decision.reason,
        )
        logger.info(
            "Version %d of %s %s: %s",
            version.number,
            self.modality.name,
            "serves" if decision.publish else "is kept back",
            decision.reason,
        )
        return version, decision

    # What MONAI Label's loop asks for

    def pre_process(self, request: Mapping[str, Any], datastore: Datastore) -> list[Any]:
        """Nothing: the material is on disk already."""
        del request, datastore
        return []

    def cleanup(self, request: Mapping[str, Any]) -> None:
        """Nothing: the run's folder goes when its best epoch was judged."""
        del request

    def partition_datalist(
        self, context: Context, shuffle: bool = False
    ) -> tuple[Material, Material | list[Any]]:
        """The material: views, held-out tiles."""
        del shuffle
        job = _job(context)
        assert job.material is not None
        if job.held_out is None:
            return job.read(job.material), []
        return job.read(job.material), job.read(job.held_out)

    def network(self, context: Context) -> ModalityLearner:
        """The modality's own parts on the frozen network."""
        return _job(context).learner(context.device)

    def _device(self, context: Context) -> torch.device:
        """This process's; MONAI Label knows no processes without GPUs."""
        if context.multi_gpu and not torch.cuda.is_available():
            return torch.device("cpu")
        device: torch.device = super()._device(context)
        return device

    def _create_network_and_optimizer(
        self, context: Context
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """As MONAI Label does, but for any device."""
        context.network = learner = self.network(context)
        # it also decides what needs gradients, which the processes agree on below
        optimizer = self.optimizer(context)
        if not context.multi_gpu:
            return learner, optimizer
        return DistributedDataParallel(learner, find_unused_parameters=True), optimizer

    def optimizer(self, context: Context) -> torch.optim.Optimizer:
        """AdamW over them."""
        recipe = _job(context).recipe
        return torch.optim.AdamW(context.network.groups(recipe), weight_decay=recipe.weight_decay)

    def loss_function(self, context: Context) -> nn.Module:
        """Of the family."""
        return _job(context).loss()

    def lr_scheduler_handler(self, context: Context) -> LrScheduleHandler:
        """A warm-up, then half a cosine down to nothing, step by step."""
        recipe = _job(context).recipe
        processes = context.world_size if context.multi_gpu else 1
        views = -(-len(context.train_datalist) // processes)
        steps = context.max_epochs * -(-views // context.train_batch_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            context.optimizer, lambda step: rate_of(min(step, steps - 1), steps, recipe)
        )
        return LrScheduleHandler(schedule, print_lr=False, epoch_level=False)

    def train_data_loader(
        self, context: Context, num_workers: int = 0, shuffle: bool = True
    ) -> DataLoader:
        """Views in another order each epoch; each process has its part."""
        views = context.train_datalist
        if context.multi_gpu:
            parts = partition_dataset(
                list(range(len(views))), num_partitions=context.world_size, even_divisible=True
            )
            views = Subset(views, parts[context.local_rank])
        order = torch.Generator().manual_seed(_job(context).recipe.seed)
        return DataLoader(
            views,
            batch_size=context.train_batch_size,
            shuffle=shuffle,
            num_workers=num_workers,
            generator=order,
        )

    def val_data_loader(self, context: Context, num_workers: int = 0) -> DataLoader:
        """All held-out tiles, in every process: they then agree when to stop."""
        return DataLoader(
            context.val_datalist, batch_size=context.val_batch_size, num_workers=num_workers
        )

    def val_iteration_update(self, context: Context) -> Callable[[Any, Mapping[str, Tensor]], Any]:
        """Masks of a batch of held-out tiles."""

        def update(engine: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
            with torch.no_grad():
                masks = engine.network(batch["image"].to(context.device))[0]
            return {"pred": masks > 0, "label": batch["label"], "case": batch["case"]}

        return update

    def train_pre_transforms(self, context: Context) -> None:
        """None: views are augmented when they are made."""

    def train_post_transforms(self, context: Context) -> None:
        """None."""

    def val_post_transforms(self, context: Context) -> None:
        """None."""

    def val_inferer(self, context: Context) -> None:
        """None: `val_iteration_update` runs the network."""

    def train_key_metric(self, context: Context) -> dict[str, CaseDice]:
        """Dice of all views together."""

        # MONAI's trainer takes batches apart
        def masks(items: Sequence[Mapping[str, Any]]) -> Output:
            found = [item["pred"][0] > 0 for item in items]
            return found, [item["label"] for item in items], [0] * len(items)

        return {self.TRAIN_METRIC_MEAN_DICE: CaseDice(len(self.modality.labels), masks)}

    def val_key_metric(self, context: Context) -> dict[str, CaseDice]:
        """Mean Dice of the held-out cases, by their tiles."""

        def masks(output: Mapping[str, Any]) -> Output:
            return list(output["pred"]), list(output["label"]), output["case"].tolist()

        return {self.VAL_METRIC_MEAN_DICE: CaseDice(len(self.modality.labels), masks)}

    def train_handlers(self, context: Context) -> list[Any]:
        """MONAI Label's, without a line in the log for every step."""
        return [h for h in super().train_handlers(context) if not isinstance(h, StatsHandler)]

    def val_handlers(self, context: Context) -> list[Any]:
        """MONAI Label's, without lines in the log."""
        handlers = super().val_handlers(context) or []
        return [h for h in handlers if not isinstance(h, StatsHandler)]

    def finalize(self, context: Context) -> None:
        """Progress and early stop; MONAI Label would publish whatever epoch was the first."""
        if context.local_rank == 0:
            tracking = _job(context).tracking
            TrainProgress(
                Path(self._stats_path),
                context.request["started"],
                context.trainer,
                context.evaluator,
                **({"on_epoch": tracking.epoch} if tracking else {}),
            ).attach()
        patience = context.request["early_stop_patience"]
        if patience and context.evaluator is not None:

            def score(evaluator: Any) -> float:
                # the first process's: one that stopped alone would leave the others waiting
                dice = float(evaluator.state.metrics[self.VAL_METRIC_MEAN_DICE])
                shared: Any = idist.broadcast(dice, src=0)
                return float(shared)

            context.evaluator.add_event_handler(
                Events.EPOCH_COMPLETED, EarlyStopping(patience, score, context.trainer)
            )

    def _load_checkpoint(self, context: Context, train_handlers: list[Any]) -> None:
        """Nothing: the learner starts from what serves, whatever earlier runs left behind."""


def _told_of(job: TrainJob) -> dict[str, Any]:
    """What MLflow is told of a training."""
    asked = {k: v for k, v in job.options.model_dump().items() if not k.startswith("tracking")}
    return {
        **asked,
        "modality": job.modality.name,
        "device": job.device,
        "views": job.recipe.views,
        "cases_train": len(job.train),
        "cases_held_out": len(job.validation),
    }


def _job(context: Context) -> TrainJob:
    job = context.request["job"]
    assert isinstance(job, TrainJob)
    return job
