"""The training loop: two phases on cached features, checkpoints that resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.evaluation.pairs import CasePair
from esp_medsam_app.inference.device import autocast, autocast_type
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.training.losses import SegmentationLoss
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.views import Views, make_views
from esp_medsam_app.weights.backbones import (
    Backbone,
    load_encoder,
    starting_decoder,
    starting_queries,
)

ENCODE_BATCH = 4
CHECKPOINT_EVERY = 100
WARM_UP = 50
CLIP = 1.0
# The tokens' logits start far below those of the image; their gradient is as small.
TOKEN_BIAS_RATE = 20.0

Report = Callable[[str, int, int, float], None]


@dataclass(frozen=True)
class _Phase:
    name: str
    steps: int
    batch: int
    features: Mapping[str, Tensor]
    groups: list[dict[str, Any]]
    forward: Callable[[Tensor, str], tuple[Tensor, Tensor]]


def new_network(backbone: Backbone, modalities: Sequence[Modality]) -> EspMedSam:
    """An untrained network on a backbone: its own decoder, fresh SPPG, queries and controllers."""
    network = EspMedSam(load_encoder(backbone))
    decoder, prompt_encoder = starting_decoder(backbone)
    network.decoder.load_state_dict(decoder)
    network.prompt_encoder.load_state_dict(prompt_encoder)
    for modality in modalities:
        add_fresh_modality(network, backbone, modality)
    return network


def add_fresh_modality(network: EspMedSam, backbone: Backbone, modality: Modality) -> None:
    """Put an untrained modality beside those of a network: a neutral controller, fresh queries."""
    network.add_modality(modality.name, starting_queries(backbone, len(modality.labels)))


def train(
    data: Mapping[str, Sequence[CasePair]],
    modalities: Sequence[Modality],
    backbone: Backbone,
    recipe: Recipe,
    *,
    work: Path,
    start: EspMedSam | None = None,
    device: str = "cpu",
    report: Report = lambda phase, done, total, value: None,
) -> EspMedSam:
    """Train controllers, SPPG and QDMD of some modalities together; or go on with some alone.

    Args:
        data: training cases of each modality, by name.
        modalities: what to train.
        backbone: frozen encoder.
        recipe: all numbers.
        work: folder for views and checkpoints. A run that was stopped goes on from there.
        start: a trained network. Then only the controllers and queries of `modalities` learn, in
            the joint phase alone: what other modalities give stays as it is, bit by bit.
        device: torch device; bfloat16 is used where it multiplies in it.
        report: called with phase, steps done, steps in all and the running loss.

    Returns:
        The trained network in evaluation mode, on the CPU.

    Raises:
        InputError: a case that cannot be used.
        WeightsError: the backbone is missing or damaged.
    """
    torch.manual_seed(recipe.seed)
    work.mkdir(parents=True, exist_ok=True)
    network = (start or new_network(backbone, modalities)).to(device)
    network.eval()  # the backbone's batch norm keeps its statistics
    features, labels = {}, {}
    for index, modality in enumerate(modalities):
        views = _views(data[modality.name], modality, backbone, recipe, index, work)
        features[modality.name] = _features(
            network, views, modality.name, recipe.cached_stage, work, device, report
        )
        labels[modality.name] = views.labels
    progress = _Progress(work / "checkpoint.pt", network)
    if start is None and not progress.finished("decoder", recipe.decoder_steps):
        embeddings = {
            name: _encode(
                lambda batch: network.encoder.encode_from(batch, recipe.cached_stage),
                tensor,
                device,
                lambda done, total, name=name: report(f"embed {name}", done, total, 0.0),  # type: ignore[misc]
            )
            for name, tensor in features.items()
        }
        phase = _Phase(
            "decoder",
            recipe.decoder_steps,
            recipe.decoder_batch,
            embeddings,
            _decoder_groups(network, recipe, recipe.decoder_rate),
            network.decode,
        )
        _run(phase, network, labels, recipe, device, progress, report)
        del embeddings, phase
    phase = _Phase(
        "joint",
        recipe.joint_steps,
        recipe.joint_batch,
        features,
        _joint_groups(network, recipe, [modality.name for modality in modalities], start is None),
        lambda batch, name: network.decode(
            network.encoder.encode_from(batch, recipe.cached_stage, network.controller(name)), name
        ),
    )
    _run(phase, network, labels, recipe, device, progress, report)
    return network.cpu().eval().requires_grad_(False)


class _Progress:
    """The checkpoint: what is trained, the optimiser, the phase and the step."""

    def __init__(self, path: Path, network: EspMedSam) -> None:
        self.path = path
        self.network = network
        self.state: dict[str, Any] = {}
        if path.exists():
            self.state = torch.load(path, map_location="cpu", weights_only=True)
            network.load_state_dict(self.state["network"], strict=False)

    def finished(self, phase: str, steps: int) -> bool:
        later = phase == "decoder" and self.state.get("phase") == "joint"
        return later or (self.state.get("phase") == phase and self.state["step"] >= steps)

    def resume(self, phase: str, optimiser: torch.optim.Optimizer) -> int:
        if self.state.get("phase") != phase:
            return 0
        optimiser.load_state_dict(self.state["optimiser"])
        return int(self.state["step"])

    def save(self, phase: str, step: int, optimiser: torch.optim.Optimizer) -> None:
        trained = {
            name: value
            for name, value in self.network.state_dict().items()
            if not name.startswith("encoder.")
        }
        self.state = {
            "phase": phase,
            "step": step,
            "network": trained,
            "optimiser": optimiser.state_dict(),
        }
        with written_whole(self.path) as partial:
            torch.save(self.state, partial)


def _run(
    phase: _Phase,
    network: EspMedSam,
    labels: Mapping[str, Tensor],
    recipe: Recipe,
    device: str,
    progress: _Progress,
    report: Report,
) -> None:
    network.requires_grad_(False)
    parameters = [parameter for group in phase.groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(phase.groups, weight_decay=recipe.weight_decay)
    scheduled = [group["lr"] for group in optimiser.param_groups]
    done = progress.resume(phase.name, optimiser)
    loss_of = SegmentationLoss(recipe.patch_weight)
    running = 0.0
    for step, (name, chosen) in enumerate(
        _batches({k: len(v) for k, v in labels.items()}, phase.batch, phase.steps, recipe.seed)
    ):
        if step < done:
            continue
        for group, rate in zip(optimiser.param_groups, scheduled, strict=True):
            group["lr"] = rate * _schedule(step, phase.steps)
        truth = labels[name][chosen].to(device)
        batch = _placed(phase.features[name][chosen], device)
        with autocast(torch.device(device)):
            masks, patches = phase.forward(batch, name)
        loss = loss_of(masks, patches, truth)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimiser.step()
        value = loss.item()
        running = value if not running else 0.98 * running + 0.02 * value
        report(phase.name, step + 1, phase.steps, running)
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == phase.steps:
            progress.save(phase.name, step + 1, optimiser)


def _batches(
    sizes: Mapping[str, int], batch: int, steps: int, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Batches of one modality each, the modalities in turn; each goes through all of its views."""
    generator = torch.Generator().manual_seed(seed)
    waiting: dict[str, list[int]] = {name: [] for name in sizes}
    names = list(sizes)
    for step in range(steps):
        name = names[step % len(names)]
        if len(waiting[name]) < batch:
            waiting[name] += torch.randperm(sizes[name], generator=generator).tolist()
        yield name, torch.tensor([waiting[name].pop(0) for _ in range(batch)])


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then cosine to nothing."""
    warm = min(WARM_UP, max(1, steps // 10))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _joint_groups(
    network: EspMedSam, recipe: Recipe, names: Sequence[str], with_shared_parts: bool
) -> list[dict[str, Any]]:
    if with_shared_parts:
        decoder = _decoder_groups(network, recipe, recipe.joint_decoder_rate)
    else:
        queries = [p for name in names for p in network.queries[name].parameters()]
        decoder = [{"params": queries, "lr": recipe.joint_decoder_rate}]
    return decoder + _controller_groups(network, recipe, names)


def _decoder_groups(network: EspMedSam, recipe: Recipe, rate: float) -> list[dict[str, Any]]:
    fresh = recipe.fresh_rate * rate / recipe.decoder_rate
    return [
        {"params": list(network.decoder.parameters()), "lr": rate},
        {"params": list(network.queries.parameters()), "lr": rate},
        {"params": list(network.patch_prompt_generator.parameters()), "lr": fresh},
    ]


def _controller_groups(
    network: EspMedSam, recipe: Recipe, names: Sequence[str]
) -> list[dict[str, Any]]:
    named = [item for name in names for item in network.controllers[name].named_parameters()]
    biases = [parameter for name, parameter in named if name.endswith("token_bias")]
    others = [parameter for name, parameter in named if not name.endswith("token_bias")]
    return [
        {"params": others, "lr": recipe.controller_rate},
        {
            "params": biases,
            "lr": recipe.controller_rate * TOKEN_BIAS_RATE,
            "weight_decay": 0.0,
        },
    ]


def _views(
    pairs: Sequence[CasePair],
    modality: Modality,
    backbone: Backbone,
    recipe: Recipe,
    index: int,
    work: Path,
) -> Views:
    path = work / f"views_{modality.name}.pt"
    if path.exists():
        stored = torch.load(path, weights_only=True)
        return Views(stored["images"], stored["labels"])
    views = make_views(
        pairs,
        modality,
        tile=backbone.input_size,
        count=recipe.views,
        seed=recipe.seed * 1000 + index,
    )
    torch.save({"images": views.images, "labels": views.labels}, path)
    return views


def _features(
    network: EspMedSam,
    views: Views,
    name: str,
    stage: int,
    work: Path,
    device: str,
    report: Report,
) -> Tensor:
    path = work / f"features_{stage}_{name}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    features = _encode(
        lambda batch: network.encoder.encode_until(batch.float(), stage),
        views.images,
        device,
        lambda done, total: report(f"features {name}", done, total, 0.0),
    )
    torch.save(features, path)
    return features


def _placed(stored: Tensor, device: str) -> Tensor:
    """Features, stored in bfloat16, as what the device computes in."""
    precision = autocast_type(torch.device(device))
    return stored.to(device, torch.float32 if precision is None else stored.dtype)


@torch.no_grad()
def _encode(
    encode: Callable[[Tensor], Tensor],
    inputs: Tensor,
    device: str,
    report: Callable[[int, int], None],
) -> Tensor:
    """All inputs through a part of the frozen encoder, as bfloat16 on the CPU."""
    outputs: list[Tensor] = []
    for start in range(0, len(inputs), ENCODE_BATCH):
        batch = _placed(inputs[start : start + ENCODE_BATCH], device)
        with autocast(torch.device(device)):
            outputs.append(encode(batch).to("cpu", torch.bfloat16))
        report(min(start + ENCODE_BATCH, len(inputs)), len(inputs))
    return torch.cat(outputs)
