"""The cache: what is read is what was written for that record, or nothing."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from bench.cache import Cache, Writer, code_digest, folder_of

RECORD = {"weights": "abc", "size": [3, 4]}


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def fill(cache, record=RECORD, blocks=3):
    writer = cache.writer(record)
    for index in range(blocks):
        writer.append("maps", np.full((index + 1, 2), index, np.float32))
    writer.append("mean", np.arange(4.0))
    return writer.commit()


def test_what_was_written_is_read(cache):
    assert cache.find(RECORD) is None
    fill(cache)
    entry = cache.find(RECORD)
    assert entry.array("maps").tolist() == [[0, 0], [1, 1], [1, 1], [2, 2], [2, 2], [2, 2]]
    assert [block.shape for block in entry.blocks("maps", [1, 2, 3])] == [(1, 2), (2, 2), (3, 2)]
    assert entry.array("mean").dtype == np.float64
    assert cache.find({**RECORD, "size": [3, 5]}) is None


def test_an_entry_is_invisible_until_committed(cache):
    writer = cache.writer(RECORD)
    writer.append("maps", np.zeros((2, 2), np.float32))
    assert cache.find(RECORD) is None
    assert not cache.holds(RECORD)
    writer.drop()
    assert list((cache.root / "entries").iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "meta", "lost"])
def test_a_torn_entry_is_said_and_never_read(cache, damage, caplog):
    folder = fill(cache).folder
    file = folder / "maps.bin"
    if damage == "flip":
        raw = bytearray(file.read_bytes())
        raw[5] ^= 1
        file.write_bytes(raw)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    elif damage == "meta":
        (folder / "meta.json").write_text("{")
    else:
        file.unlink()
    with caplog.at_level(logging.WARNING, "bench"):
        assert cache.find(RECORD) is None
    assert "made anew" in caplog.text
    fill(cache)
    assert cache.find(RECORD) is not None


def test_a_foreign_entry_in_our_place_is_never_read(cache):
    folder = fill(cache).folder
    meta = json.loads((folder / "meta.json").read_text())
    meta["record"] = {"weights": "another"}
    (folder / "meta.json").write_text(json.dumps(meta))
    assert cache.find(RECORD) is None


def test_the_first_of_two_writers_wins(cache):
    one, other = cache.writer(RECORD), cache.writer(RECORD)
    one.append("maps", np.zeros((1, 1), np.float32))
    other.append("maps", np.ones((1, 1), np.float32))
    one.commit()
    other.commit()
    assert cache.find(RECORD).array("maps").item() == 0
    assert len(list((cache.root / "entries").iterdir())) == 1


@pytest.mark.parametrize("step", ["__init__", "append", "commit"])
def test_a_keeper_gives_up_where_the_disk_refuses_and_says_so_once(cache, monkeypatch, caplog, step):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Writer, step, refuse)
    with caplog.at_level(logging.WARNING, "bench"):
        keeper = cache.keeper(RECORD)
        for _ in range(2):
            keeper.append("maps", np.zeros((1, 1), np.float32))
        assert keeper.commit() is None
    assert [record.message for record in caplog.records] == [
        f"the cache {cache.root} cannot be written ([Errno 28] No space left on device): going on without it"
    ]
    assert not list((cache.root / "entries").glob("*"))


def test_a_keeper_keeps_what_was_committed(cache):
    keeper = cache.keeper(RECORD)
    keeper.append("maps", np.ones((1, 1), np.float32))
    entry = keeper.commit()
    keeper.drop()
    assert entry.array("maps").item() == cache.find(RECORD).array("maps").item() == 1


def test_room_is_half_of_the_free_disk(cache, monkeypatch):
    monkeypatch.setattr(Cache, "free", lambda self: 1000)
    assert cache.room_for(500)
    assert not cache.room_for(501)


def test_clear_frees_everything(cache):
    fill(cache)
    fill(cache, {"other": 1})
    assert len(list(cache.entries())) == 2
    assert cache.clear() > 0
    assert list(cache.entries()) == []


def test_code_is_known_by_the_sources_beside_it(tmp_path, monkeypatch):
    package = tmp_path / "plugin_of_maps"
    package.mkdir()
    for name in ("__init__", "method", "_network"):
        (package / f"{name}.py").write_text(f"# {name}\n")
    (tmp_path / "plugin_alone.py").write_text("# alone\n")
    monkeypatch.syspath_prepend(tmp_path)

    def digests():
        code_digest.cache_clear()
        return [code_digest(folder_of("plugin_of_maps.method:build")), code_digest(folder_of("plugin_alone:build"))]

    first = digests()
    assert digests() == first
    (package / "_network.py").write_text("# another network\n")
    second = digests()
    assert second[0] != first[0]
    assert second[1] == first[1]
    (tmp_path / "plugin_alone.py").write_text("# another\n")
    assert digests()[1] != first[1]
    (package / "notes.txt").write_text("no code")
    assert digests()[0] == second[0]


def test_built_in_code_is_found(monkeypatch):
    names = ("bench.features", "bench.networks.*", folder_of("bench.adapters.swav:build"), "bench.protocols.*")
    empty = code_digest("no_such_module_anywhere")
    assert len({code_digest(name) for name in names} | {empty}) == len(names) + 1
