"""Training within an evaluation: its threads are its own, and what is kept says so."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from bench.contracts import Lessons
from bench.errors import SettingError
from bench.fitting import fit
from bench.runs import RunFolder


class Convolution:
    """A network whose weight gradient is summed by threads; remembers how many there were."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
        self.threads: set[int] = set()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1)

    def step(self, batch):
        self.threads.add(torch.get_num_threads())
        loss = self.network(batch).square().mean()
        loss.backward()
        return {"loss": loss}

    def state_dict(self):
        return self.network.state_dict()

    def load_state_dict(self, state):
        self.network.load_state_dict(state)


def picture(key):
    return torch.randn(3, 40, 40, generator=torch.Generator().manual_seed(key[1]))


def stacked(pictures):
    return torch.stack(list(pictures))


LESSONS = Lessons(
    make=picture, collate=stacked, samples=8, batch=8, steps=3, schedule=lambda step: 1.0,
    architecture={"network": "convolution"}, here=True,
)  # fmt: skip


def taught(folder) -> Convolution:
    learner = Convolution()
    fit(
        learner, learner.optimizer, LESSONS, folder=RunFolder(folder), rate="x.lr", facts={}, device="cpu", workers=0,
        seed=0,
    )  # fmt: skip
    return learner


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("of_shell", [1, 5])
def test_what_is_learnt_does_not_depend_on_the_shell(tmp_path, threads, of_shell):
    threads(2)
    usual = taught(tmp_path / "usual")
    threads(of_shell)
    other = taught(tmp_path / "other")
    assert usual.threads == other.threads == {2}
    assert torch.get_num_threads() == of_shell
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in usual.state_dict().items())
    record = json.loads((tmp_path / "other" / "record.json").read_text())
    assert (record["threads"], record["deterministic"]) == (2, False)


def test_one_that_was_begun_with_other_threads_is_not_gone_on_with(tmp_path):
    taught(tmp_path)
    path = tmp_path / "record.json"
    path.write_text(path.read_text().replace('"threads": 2', '"threads": 1'))
    with pytest.raises(SettingError, match="threads: 1 there, 2 here"):
        taught(tmp_path)
