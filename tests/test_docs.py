"""What the README shows runs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from bench import registry
from bench.cli import app
from bench.records import ProtocolCard
from bench.testing import MemorySplit, MemoryWork

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def snippet(start: str) -> str:
    """The Python block of the README that begins with a line starting so; it must stay under 20 lines."""
    block = next(text for text in re.findall(r"```python\n(.*?)```", README, re.S) if text.startswith(start))
    assert len(block.splitlines()) < 20
    return block


def test_the_backbone_of_the_readme(bench, voc, tmp_path, monkeypatch):
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "mine.pth")
    (tmp_path / "mine.py").write_text(snippet("# mine.py"))
    monkeypatch.chdir(tmp_path)
    words = ("--method", "mine.py:factory", "--method", "colour", "--protocol", "kmeans", "--dataset", voc)
    status, out, err = bench("eval", *words, "--seeds", 1, "--json")
    assert status == 0, err
    assert [row["run"]["method"] for row in json.loads(out)] == ["mine.factory", "colour"]


def test_the_protocol_of_the_readme(tmp_path, monkeypatch):
    (tmp_path / "mine_protocol.py").write_text(snippet("# mine_protocol.py"))
    monkeypatch.syspath_prepend(tmp_path)
    card = registry.load("mine_protocol:CARD")
    assert isinstance(card, ProtocolCard)
    maps = [np.array([[[1.0], [-1.0]], [[-1.0], [1.0]]])]
    labels = [np.array([[1, 0], [0, 1]], np.uint8).repeat(2, 0).repeat(2, 1)]
    outcome = registry.load(card.run)(MemoryWork(MemorySplit(maps=maps, labels=labels), classes=2), card.settings(), 0)
    assert outcome.counts.confusion().tolist() == [[8, 0], [0, 8]]
    sys.modules.pop("mine_protocol")


def test_every_command_of_the_readme_exists():
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups}
    shown = set(re.findall(r"(?:^|[`$ ])bench ([a-z]+)", README, re.M))
    assert shown <= known, shown - known


@pytest.mark.parametrize("kind", ["protocols", "datasets", "producers", "estimators"])
def test_what_is_registered_is_documented(kind):
    for name in registry.names(kind):
        assert name in README, f"{name} is not in the README"
