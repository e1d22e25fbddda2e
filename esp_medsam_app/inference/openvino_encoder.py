"""The encoder by OpenVINO, on CPUs: the same function in less time, where the package is installed.

A graph holds encoder and controller together, so each modality has one of its own. Making it takes
about 15 s of CPU time; it is made once and kept in a folder of the user's cache, named by the
SHA-256 of its weights. Until it is there, passes go through the fused encoder.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import logging
import os
import sys
import tempfile
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from esp_medsam_app.errors import InputError
from esp_medsam_app.inference.device import autocast_type
from esp_medsam_app.networks.compact_linear import CompactLinear
from esp_medsam_app.networks.fused_tiny_vit import FusedController, FusedTinyViT
from esp_medsam_app.networks.modality_controller import ModalityController
from esp_medsam_app.networks.tiny_vit import TinyViT
from esp_medsam_app.weights.user_cache import cache_folder

RUNTIMES = ("torch", "openvino")

logger = logging.getLogger(__name__)


def check_runtime(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """See whether the encoder can run so.

    Raises:
        InputError: no such runtime, it is not installed, or it is not for this device or type.
    """
    if name not in RUNTIMES:
        raise InputError(f"there is no runtime {name!r}", remedy=f"Use {' or '.join(RUNTIMES)}")
    if name == "torch":
        return
    if device.type != "cpu":
        raise InputError(f"OpenVINO is for CPUs, not for {device}", remedy="Use runtime torch")
    if dtype is torch.float16:
        raise InputError(
            "OpenVINO computes in float32 or bfloat16, not in float16",
            remedy="Use --precision auto, or runtime torch",
        )
    if dtype is torch.bfloat16 and autocast_type(device) is None:
        # OpenVINO would emulate it, and crashes the process at that (2026.4.1)
        raise InputError(
            "this CPU does not compute in bfloat16, and OpenVINO needs one that does",
            remedy="Use --precision auto, or runtime torch",
        )
    if importlib.util.find_spec("openvino") is None:
        raise InputError(
            "OpenVINO is not installed", remedy="pip install 'esp-medsam-app[cpu]', or use torch"
        )


def graphs_folder() -> Path:
    """Where graphs are kept."""
    return cache_folder() / "openvino"


class OpenVinoEncoder:
    """Stands for a `FusedTinyViT` in a `FastNetwork`. Not for several threads at once.

    Args:
        encoder: in evaluation mode, on the CPU.
        dtype: of the graphs, and of the fused encoder.
        side: of the images that graphs are made for, pixels; others go through the fused encoder.
        wait: for a graph that has to be made; else the fused encoder runs until it is there.
        folder: of the graphs; `graphs_folder` by default.
    """

    def __init__(
        self,
        encoder: TinyViT,
        dtype: torch.dtype,
        side: int,
        *,
        wait: bool = False,
        folder: Path | None = None,
    ) -> None:
        self._openvino: Any = _silent_openvino()
        self.dtype = dtype
        self.side = side
        self.wait = wait
        self.folder = folder or graphs_folder()
        self.fused = FusedTinyViT(encoder, dtype)
        self._encoder = encoder
        self._encoder_digest = _digest(encoder)
        self._core: Any = self._openvino.Core()
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="openvino")
        self._made: dict[Path, Future[None]] = {}

    def fuse(self, controller: ModalityController | None) -> Graph:
        """What images go through under a controller, or under none."""
        name = "-".join(
            (
                hashlib.sha256(
                    f"{self._encoder_digest} {_digest(controller)}".encode()
                ).hexdigest(),
                str(self.side),
                self._openvino.__version__.split("-")[0],
            )
        )
        return Graph(self, controller, self.folder / f"{name}.xml")

    def __call__(self, image: Tensor, controller: Graph) -> Tensor:
        """Embed images `[B, 3, S, S]` to `[B, 256, E, E]`, channels last in memory."""
        return controller(image)

    def make(self, controller: ModalityController | None, path: Path) -> bool:
        """Whether a graph is there, or was made; begins to make it if not."""
        if path.is_file():
            return True
        if path not in self._made:
            # in a thread in any case: contexts of precision and gradients stay out of it
            self._made[path] = self._maker.submit(self._make, controller, path)
        making = self._made[path]
        if not (self.wait or making.done()):
            return False
        error = making.exception()
        if error is not None:
            logger.warning("OpenVINO cannot run this encoder, torch goes on: %s", error)
        return error is None

    def compiled(self, path: Path) -> Any:
        """A graph, ready to be called with a float32 array `[1, 3, S, S]`."""
        hint = "bf16" if self.dtype is torch.bfloat16 else "f32"
        options = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": hint,
            "CACHE_DIR": str(self.folder / "compiled"),
        }
        return self._core.compile_model(str(path), "CPU", options)

    def _make(self, controller: ModalityController | None, path: Path) -> None:
        logger.info("Making the graph %s; once", path.name)
        whole = _Whole(self._encoder, controller)
        shape = (1, 3, self.side, self.side)
        with warnings.catch_warnings():
            # tracing warns of every size that it takes for fixed, as it is meant to
            warnings.simplefilter("ignore")
            model = self._openvino.convert_model(
                whole, example_input=torch.rand(shape), input=list(shape)
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as made:
            partial = Path(made) / path.name
            self._openvino.save_model(model, partial, compress_to_fp16=False)
            # the one that is looked for comes last
            for file in (partial.with_suffix(".bin"), partial):
                os.replace(file, self.folder / file.name)


def _silent_openvino() -> ModuleType:
    """OpenVINO less its telemetry, which tells its makers of conversions unless it is missing.

    Nothing leaves a hospital's server that nobody sends.
    """
    sys.modules.setdefault("openvino_telemetry", cast("ModuleType", None))
    return importlib.import_module("openvino")


class Graph:
    """Encoder and controller in one graph, or the fused encoder until that is there.

    Args:
        encoder: whose.
        controller: of the modality.
        path: of the graph.
    """

    def __init__(
        self, encoder: OpenVinoEncoder, controller: ModalityController | None, path: Path
    ) -> None:
        self.encoder = encoder
        self.controller = controller
        self.path = path
        self._compiled: Any = None
        self._fused: FusedController | None = None
        self._broken = False

    def __call__(self, image: Tensor) -> Tensor:
        """Embed images `[B, 3, S, S]`."""
        if not self._ready(image):
            if self._fused is None:
                self._fused = self.encoder.fused.fuse(self.controller)
            return self.encoder.fused(image, self._fused)
        self._fused = None
        rows = [torch.from_numpy(self._compiled(one.float().numpy())[0]) for one in image.split(1)]
        embedding = torch.cat(rows).to(self.encoder.dtype)
        return embedding.contiguous(memory_format=torch.channels_last)

    def _ready(self, image: Tensor) -> bool:
        if self._broken or tuple(image.shape[-2:]) != (self.encoder.side,) * 2:
            return False
        if self._compiled is None and self.encoder.make(self.controller, self.path):
            try:
                self._compiled = self.encoder.compiled(self.path)
            except RuntimeError as error:
                self._broken = True
                self.path.unlink(missing_ok=True)
                reason = str(error).strip().splitlines()[-1:]
                logger.warning("OpenVINO cannot use %s, torch goes on: %s", self.path, reason)
        return self._compiled is not None


class _Whole(nn.Module):
    """Copies of encoder and controller, in float32 as they are written down."""

    def __init__(self, encoder: TinyViT, controller: ModalityController | None) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.controller = copy.deepcopy(controller)
        _plain(self)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        if self.controller is None:
            found: Tensor = self.encoder(image)
        else:
            found = self.encoder(image, self.controller)
        return found


def _plain(module: nn.Module) -> None:
    """Give a module its large matrices back in float32."""
    for name, layer in list(module.named_children()):
        if isinstance(layer, CompactLinear):
            rows, columns = layer.weight.shape
            plain = nn.Linear(columns, rows)
            plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
            setattr(module, name, plain)
        else:
            _plain(layer)


def _digest(module: nn.Module | None) -> str:
    """SHA-256 of a module's tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()) if module is not None else ():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
