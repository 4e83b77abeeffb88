"""What the tests of several producers share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.checkpoints import read_checkpoint


@pytest.fixture
def learnt_alike(bench, unusual, tmp_path) -> Callable[[Callable[..., list[object]]], None]:
    """Train on pictures that are stored in an unusual way, and on what a viewer shows of them: the same bits.

    Called with what makes a command of two steps of a data set, an output folder and options.
    """

    def check(command: Callable[..., list[object]]) -> None:
        for number, folder in enumerate(unusual):
            status, _, err = bench(*command(folder, tmp_path / f"{number}", "--workers", 0))
            assert status == 0, err
        paths = (tmp_path / f"{number}" / "checkpoints" / "step-2.pt" for number in range(2))
        stored, plain = (read_checkpoint(path)["model"] for path in paths)
        assert all(torch.equal(value, plain[key]) for key, value in stored.items())

    return check


@pytest.fixture
def resumed(bench, tmp_path) -> Callable[..., Path]:
    """Train straight through, and again from an early checkpoint with other workers: both end with the same bits.

    Called with what makes a command of an output folder and options, the early step and the last; gives the folder of
    the straight run.
    """

    def check(command: Callable[..., list[object]], early: int, last: int) -> Path:
        straight, again = tmp_path / "straight", tmp_path / "again"
        assert bench(*command(straight, "--workers", 0))[0] == 0
        (again / "checkpoints").mkdir(parents=True)
        shutil.copy(straight / "record.json", again)
        shutil.copy(straight / "checkpoints" / f"step-{early}.pt", again / "checkpoints")
        status, _, err = bench(*command(again, "--workers", 1, "--resume"))
        assert status == 0, err
        assert f"resumed at step {early} of {last}" in err
        one, two = (read_checkpoint(folder / "checkpoints" / f"step-{last}.pt") for folder in (straight, again))
        assert all(torch.equal(value, two["model"][key]) for key, value in one["model"].items())
        for key, state in one["optimizer"]["state"].items():
            assert all(torch.equal(value, two["optimizer"]["state"][key][name]) for name, value in state.items())
        return straight

    return check
