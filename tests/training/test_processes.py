"""Several processes give what one gives."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esp_medsam_app.evaluation.pairs import CasePair

SCRIPT = Path(__file__).with_name("two_processes.py")


def test_two_processes_train_the_same_network_as_one(
    disc_pairs: list[CasePair], tmp_path: Path
) -> None:
    data = disc_pairs[0].image.parent.parent
    output = tmp_path / "two.pt"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
         str(SCRIPT), str(data), str(tmp_path / "two"), str(output)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:3000]
    spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    try:
        alone = module.run(data, tmp_path / "one")
    finally:
        torch.set_num_threads(threads)
    together = torch.load(output, weights_only=True)
    moved = [
        name
        for name in alone
        # AdamW's first steps have the size of the rate even where the gradient is rounding noise
        if not torch.allclose(alone[name], together[name], rtol=1e-2, atol=2e-3)
    ]
    assert moved == []


def test_shares_are_disjoint_and_whole() -> None:
    from esp_medsam_app.training.processes import Processes

    shares = [list(Processes(rank, 3).share(range(6, 12))) for rank in range(3)]
    assert sorted(number for share in shares for number in share) == list(range(6, 12))
    assert {len(share) for share in shares} == {2}


@pytest.mark.parametrize(
    ("name", "rank", "own"), [("cuda", "1", "cuda:1"), ("cpu", "1", "cpu"), ("cuda", None, "cuda")]
)
def test_each_process_takes_its_own_gpu(
    name: str, rank: str | None, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from esp_medsam_app.training.processes import own_device

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert own_device(name) == own
