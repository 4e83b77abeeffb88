"""IIC and Co-Occurrence in two processes: the steps of one process on the same batch, and equal weights in the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = """
import copy, os, sys, torch
from torch import nn
from bench import cli
from bench.producers import _crops

folder, kind = sys.argv.pop(1), sys.argv.pop(1)
kept = {}
begin = _crops.CropLearner.__init__
adam = torch.optim.Adam

def keep(self, network, order):
    begin(self, network, order)
    kept["network"], kept["before"] = network.train(), copy.deepcopy(network)

def optimizer(parameters, lr):
    # Adam's first step is the sign of each gradient: it would make a difference of one of rounding
    kept["optimizer"] = torch.optim.SGD(parameters, lr) if kind == "exact" else adam(parameters, lr)
    return kept["optimizer"]

_crops.CropLearner.__init__ = keep
torch.optim.Adam = optimizer
if kind == "exact":
    nn.BatchNorm2d.train = lambda self, mode=True: nn.Module.train(self, False)
try:
    cli.main()
finally:
    state = {name: one.state_dict() for name, one in kept.items()}
    torch.save(state, f"{folder}/{kind}-{os.environ.get('WORLD_SIZE', 1)}-{os.environ.get('RANK', 0)}.pt")
"""
COMMON = ("width=4", "batch=4", "run.log_every=2", "run.save_every=4")
PRODUCERS = {
    "iic": ("reach=3", "augment.size=32", "weight_b=1.5"),
    "cooccurrence": ("branch=8", "side=10", "augment.size=48", "dropout=0"),
}


def states(voc: Path, folder: Path, producer: str, kind: str, count: int, *more: str) -> list[dict[str, Any]]:
    """Network and optimizer of every process after four steps. kind: `exact` is with SGD and batch norms at rest."""
    script = folder / "kept.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    sets = [word for change in (*COMMON, *PRODUCERS[producer], *more) for word in ("--set", change)]
    words = [
        "train", producer, "--dataset", voc, "--output", folder / f"run-{kind}-{count}", "--device", "cpu",
        "--steps", 4, "--workers", 0, *sets,
    ]  # fmt: skip
    command = [sys.executable, *launcher, script, folder, kind, *words]
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True, text=True, timeout=200, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{kind}-{count}-{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.mark.parametrize(("producer", "rate"), [("iic", "lr=0.1"), ("cooccurrence", "lr=10")])
def test_two_processes_take_the_steps_of_one(voc, tmp_path, producer, rate):
    """The loss is that of the whole batch. Batch norms are left out: each process has the statistics of its own share,
    as each GPU has in the released code of IIC."""
    (one,) = states(voc, tmp_path, producer, "exact", 1, rate)
    first, second = states(voc, tmp_path, producer, "exact", 2, rate)
    weights = [(one["before"][key], value) for key, value in one["network"].items() if value.dim() > 1]
    moved = [float((after - before).abs().max()) for before, after in weights]
    assert min(moved) > 0
    assert max(moved) > 1e-3
    for key, value in one["network"].items():
        assert torch.equal(first["network"][key], second["network"][key])
        torch.testing.assert_close(first["network"][key], value, rtol=1e-6, atol=1e-7)


def test_two_processes_end_with_equal_weights(voc, tmp_path):
    """With batch norms on; what both producers do with them is the training loop's."""
    first, second = states(voc, tmp_path, "iic", "plain", 2)
    assert first["network"].keys() == second["network"].keys()
    assert all(torch.equal(value, second["network"][key]) for key, value in first["network"].items())
    for key, state in first["optimizer"]["state"].items():
        assert all(torch.equal(value, second["optimizer"]["state"][key][name]) for name, value in state.items())
