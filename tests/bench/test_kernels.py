"""Threads and oneDNN of a training: settled once, in use while it runs, and as before afterwards."""

from __future__ import annotations

import logging

import pytest
import torch

from bench.errors import SettingError
from bench.kernels import Kernels, settle


@pytest.fixture(autouse=True)
def plain_shell(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_DYNAMIC", "OMP_MAX_ACTIVE_LEVELS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def onednn() -> bool:
    return bool(torch._C._get_mkldnn_enabled())


def test_two_threads_whatever_the_shell_and_the_machine(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    torch.set_num_threads(5)
    assert settle() == Kernels(threads=2, deterministic=False)
    assert settle(3, True) == Kernels(3, True)


def test_several_processes_have_a_thread_each(monkeypatch):
    monkeypatch.setattr("bench.distributed.world", lambda: 2)
    assert settle().threads == 1
    assert settle(4).threads == 4


def test_a_run_that_is_gone_on_with_keeps_its_own():
    kept = {"threads": 3, "deterministic": True, "seed": 0}
    assert settle(kept=kept) == Kernels(3, True)
    assert settle(1, kept=kept) == Kernels(1, True)
    assert settle(kept={"seed": 0}) == Kernels(2, False)


def test_they_are_in_use_and_then_no_more():
    torch.set_num_threads(1)
    before = onednn()
    with Kernels(3).used():
        assert torch.get_num_threads() == 3
        assert onednn() == torch.backends.mkldnn.is_available()
    with Kernels(2, deterministic=True).used():
        assert torch.get_num_threads() == 2
        assert not onednn()
    assert (torch.get_num_threads(), onednn()) == (1, before)


@pytest.mark.parametrize(
    ("shell", "said"),
    [
        ({"OMP_NUM_THREADS": "4"}, "OMP_NUM_THREADS=4 is not used: training runs with 2 threads"),
        ({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}, "OMP_NUM_THREADS=1 and MKL_NUM_THREADS=1 are not used"),
        ({"OMP_NUM_THREADS": "2"}, ""),
        ({}, ""),
    ],
)
def test_what_the_shell_says_otherwise_is_said_once(monkeypatch, caplog, shell, said):
    caplog.set_level(logging.INFO, "bench")
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    with Kernels(2).used("--threads"):
        pass
    assert len(caplog.messages) == bool(said)
    assert said in "".join(caplog.messages)
    assert ("--threads N" in "".join(caplog.messages)) == bool(said)


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [("OMP_THREAD_LIMIT", "1", "2"), ("OMP_DYNAMIC", "TRUE", "false"), ("OMP_MAX_ACTIVE_LEVELS", "0", "1")],
)
def test_a_shell_that_holds_threads_back_is_refused(monkeypatch, name, bad, good):
    """Training with two threads hangs under each of them."""
    monkeypatch.setenv(name, bad)
    with pytest.raises(SettingError, match=rf"{name}={bad} can hold back .* unset it, or train with --threads 1$"):
        Kernels(2).used("--threads").__enter__()
    with Kernels(1).used("--threads"):
        pass
    monkeypatch.setenv(name, good)
    with Kernels(2).used():
        pass
