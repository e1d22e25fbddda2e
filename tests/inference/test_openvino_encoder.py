"""The encoder by OpenVINO: once made, found again; torch until then and wherever it fails.

Most tests run around a stand-in for the package; one uses the package where it is installed.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support.small_starter import TILE, small_starter

from esp_medsam_app.errors import InputError
from esp_medsam_app.inference import Segmenter, openvino_encoder
from esp_medsam_app.inference.openvino_encoder import OpenVinoEncoder, check_runtime, graphs_folder
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.networks.tiny_vit import TinyViT
from esp_medsam_app.weights import Bundle, load_bundle

NUCLEI = "microscopy_nuclei"
INSTALLED = importlib.util.find_spec("openvino") is not None
CPU = torch.device("cpu")


class StandIn(ModuleType):
    """Runs the module that it was given, marked by a small offset; counts what it does."""

    def __init__(self) -> None:
        super().__init__("openvino")
        self.__spec__ = importlib.machinery.ModuleSpec("openvino", None)
        self.__version__ = "2026.4.1-123-x"
        self.converted: list[Any] = []
        self.compiled: list[str] = []
        self.failure: BaseException | None = None
        self.gate = threading.Event()
        self.gate.set()

    def Core(self) -> StandIn:  # noqa: N802
        return self

    def convert_model(self, module: Any, example_input: torch.Tensor, input: list[int]) -> Any:  # noqa: A002
        assert self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
        assert list(example_input.shape) == input
        self.converted.append(module)
        return module

    def save_model(self, module: Any, path: Path, compress_to_fp16: bool) -> None:
        assert not compress_to_fp16
        torch.save(module, path.with_suffix(".bin"))
        path.write_text("graph")

    def compile_model(self, path: str, device: str, options: dict[str, Any]) -> Any:
        if Path(path).read_text() != "graph":
            raise RuntimeError("Unable to read the model")
        self.compiled.append(options["INFERENCE_PRECISION_HINT"])
        module = torch.load(Path(path).with_suffix(".bin"), weights_only=False)

        def call(array: np.ndarray) -> list[np.ndarray]:
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                return [module(torch.from_numpy(array)).numpy() + 1000]

        return call


@pytest.fixture
def openvino(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "openvino", stand_in)
    monkeypatch.setenv("ESP_MEDSAM_CACHE", str(tmp_path / "cache"))
    return stand_in


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(small_starter(tmp_path_factory.mktemp("bundle")))


@pytest.fixture
def network(bundle: Bundle) -> EspMedSam:
    return bundle.load_network()


Make = Callable[..., OpenVinoEncoder]


@pytest.fixture
def encoder_of(network: EspMedSam) -> Make:
    def make(wait: bool = True, dtype: torch.dtype = torch.float32) -> OpenVinoEncoder:
        assert isinstance(network.encoder, TinyViT)
        return OpenVinoEncoder(network.encoder, dtype, TILE, wait=wait)

    return make


def tiles(count: int = 2, side: int = TILE) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def embed(encoder: OpenVinoEncoder, network: EspMedSam, image: torch.Tensor) -> torch.Tensor:
    reduced = encoder.dtype is torch.bfloat16
    with torch.inference_mode(), torch.autocast("cpu", enabled=reduced):
        return encoder(image, encoder.fuse(network.controller(NUCLEI)))


def by_torch(network: EspMedSam, image: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network.embed(image, NUCLEI)


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found - wanted).norm() < 1e-2 * wanted.norm())


def test_the_graph_is_made_once_and_found_again(
    openvino: StandIn, encoder_of: Make, network: EspMedSam
) -> None:
    wanted = by_torch(network, tiles())
    for _ in range(2):
        found = embed(encoder_of(), network, tiles())
        assert torch.allclose(found - 1000, wanted, atol=1e-3)
        assert found.is_contiguous(memory_format=torch.channels_last)
    assert len(openvino.converted) == 1
    assert openvino.compiled == ["f32", "f32"]
    names = sorted(path.suffix for path in graphs_folder().iterdir() if path.is_file())
    assert names == [".bin", ".xml"]


def test_other_weights_are_another_graph(
    openvino: StandIn, encoder_of: Make, network: EspMedSam
) -> None:
    embed(encoder_of(), network, tiles())
    with torch.no_grad():
        network.controllers[NUCLEI][3].token += 1
    found = embed(encoder_of(), network, tiles())
    assert len(openvino.converted) == 2
    assert torch.allclose(found - 1000, by_torch(network, tiles()), atol=1e-3)


def test_precision_is_that_of_the_network(
    openvino: StandIn, encoder_of: Make, network: EspMedSam
) -> None:
    assert embed(encoder_of(dtype=torch.bfloat16), network, tiles()).dtype is torch.bfloat16
    assert openvino.compiled == ["bf16"]


def test_nobody_waits_for_a_graph(openvino: StandIn, encoder_of: Make, network: EspMedSam) -> None:
    openvino.gate.clear()
    encoder = encoder_of(wait=False)
    graph = encoder.fuse(network.controller(NUCLEI))
    wanted = by_torch(network, tiles())
    with torch.inference_mode():
        assert close(graph(tiles()), wanted)
        assert close(graph(tiles()), wanted)
        openvino.gate.set()
        for future in encoder._made.values():
            future.result(10)
        assert close(graph(tiles()) - 1000, wanted)
    assert len(openvino.converted) == 1


@pytest.mark.parametrize("wait", [True, False])
def test_torch_goes_on_where_openvino_fails(
    openvino: StandIn, encoder_of: Make, network: EspMedSam, wait: bool
) -> None:
    openvino.failure = RuntimeError("no such operation")
    assert close(embed(encoder_of(wait), network, tiles()), by_torch(network, tiles()))


def test_a_damaged_graph_is_removed(
    openvino: StandIn, encoder_of: Make, network: EspMedSam
) -> None:
    embed(encoder_of(), network, tiles())
    (path,) = graphs_folder().glob("*.xml")
    path.write_text("half a gra")
    assert close(embed(encoder_of(), network, tiles()), by_torch(network, tiles()))
    assert not path.exists()


def test_images_of_another_size_go_through_torch(
    openvino: StandIn, encoder_of: Make, network: EspMedSam
) -> None:
    image = tiles(side=TILE // 2)
    assert close(embed(encoder_of(), network, image), by_torch(network, image))
    assert not openvino.converted


def test_runtimes_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    check_runtime("torch", torch.device("cuda"))
    with pytest.raises(InputError, match="no runtime 'tpu'"):
        check_runtime("tpu", CPU)
    with pytest.raises(InputError, match="for CPUs"):
        check_runtime("openvino", torch.device("cuda"))
    # that crashes OpenVINO
    monkeypatch.setattr(openvino_encoder, "autocast_type", lambda device: None)
    with pytest.raises(InputError, match="does not compute in bfloat16"):
        check_runtime("openvino", CPU, torch.bfloat16)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="not installed"):
        check_runtime("openvino", CPU)


@pytest.mark.skipif(not INSTALLED, reason="openvino is not installed")
@pytest.mark.filterwarnings("ignore")
def test_masks_are_those_of_torch(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ESP_MEDSAM_CACHE", str(tmp_path))
    options: dict[str, Any] = {"device": "cpu", "precision": "float32"}
    wanted = Segmenter(bundle, **options).logits(tiles(3), NUCLEI)
    found = Segmenter(bundle, **options, runtime="openvino").logits(tiles(3), NUCLEI)
    assert list(graphs_folder().glob("*.xml"))
    assert (found - wanted).norm() < 1e-4 * wanted.norm()
    # a graph was made, and nobody was told
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__.endswith("telemetry_stub")
