from __future__ import annotations

import json

import pytest

from bench import registry
from bench.listing import listing, render
from bench.records import CheckpointCard, MethodCard

FULL = CheckpointCard(
    name="800ep",
    filename="net.pth",
    url="https://example.org/models.tar.gz",
    member="800/best.pth",
    sha256="0676ba61",
    md5="a04e12f8",
    bytes=102_530_333,
    licence="MIT",
    training_data="ImageNet-1k without labels " * 4,
    verified="Address: the README. " * 20,
)
BARE = CheckpointCard(name="old", filename="old.pth", manual="ask the authors")


@pytest.fixture
def one_method(monkeypatch):
    card = MethodCard(name="method", summary="", factory="", checkpoints=(FULL, BARE))
    monkeypatch.setattr(registry, "cards", lambda kind: {"method": card} if kind == "methods" else {})


@pytest.mark.usefixtures("one_method")
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_every_fact_of_a_checkpoint_fits_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = render("checkpoints", listing("checkpoints"))
    assert max(map(len, text.splitlines())) <= columns
    words = " ".join(text.split())
    for fact in (
        "method@800ep", "file net.pth", "from https://example.org/models.tar.gz, in it 800/best.pth", "size 102.5 MB",
        "hash sha256 0676ba61, md5 a04e12f8", "licence MIT", f"trained on {FULL.training_data.strip()}",
        f"verified {FULL.verified.strip()}",
    ):  # fmt: skip
        assert fact in words
    bare = words.partition("method@old ")[2]
    assert bare == (
        "file old.pth from ask the authors hash not published licence not stated "
        "trained on not stated verified not stated"
    )


def test_no_file_is_said_to_have_no_size_beside_the_text_that_knows_it(bench):
    status, out, _ = bench("list", "checkpoints")
    assert status == 0
    blocks = {block.partition("\n")[0]: " ".join(block.split()) for block in out.strip().split("\n\n")}
    assert "176.3 MB" in blocks["u2net@u2net"]
    assert not [name for name, text in blocks.items() if "size not published" in text]


def test_json_has_every_field(bench):
    status, out, _ = bench("list", "checkpoints", "--json")
    assert status == 0
    rows = {(row["method"], row["checkpoint"]): row for row in json.loads(out)}
    owners = (*registry.cards("methods").items(), *registry.cards("estimators").items())
    cards = {name: card for name, card in owners if card.checkpoints}
    assert set(rows) == {(name, one.name) for name, card in cards.items() for one in card.checkpoints}
    moco = rows["moco_v2", "800ep"]
    assert (moco["md5"], moco["bytes"], moco["sha256"]) == ("a04e12f8", 0, "")
    assert moco["url"].startswith("https://")
    assert moco["verified"]


def test_what_is_listed_for_people_names_every_method_and_file(bench):
    status, out, _ = bench("list", "checkpoints")
    assert status == 0
    for name, card in registry.cards("methods").items():
        for one in card.checkpoints:
            assert f"{name}@{one.name}\n" in out
            assert one.url in out


def test_other_lists_are_tables():
    assert render("datasets", []) == "nothing is registered"
    assert render("datasets", listing("datasets")).splitlines()[0].split()[:2] == ["name", "summary"]
