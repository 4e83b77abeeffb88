"""`bench quickstart`: trained, scored, taken up again; on fewer pictures and steps than it has by itself."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from bench import quickstart as module
from bench.datasets import shapes
from bench.producers.maskcontrast import SMALL

STEPS = 2
SCORED = {
    ("maskcontrast@clean", "pixels"), ("maskcontrast@clean", "own"), ("maskcontrast@clean", "true"),
    ("maskcontrast@noisy", "pixels"), ("maskcontrast@noisy", "own"), ("maskcontrast@noisy", "true"),
    ("maskcontrast@random", "pixels"), ("maskcontrast@random", "own"), ("maskcontrast@random", "true"),
    ("maskcontrast@clean embedding=random", "own"),
    ("colour", "pixels"), ("noise", "pixels"), ("oracle", "pixels"),
    ("colour", "true"), ("noise", "true"), ("oracle", "true"),
}  # fmt: skip


@pytest.fixture
def quickstart(bench, monkeypatch, tmp_path):
    """Run it on 40 + 16 pictures, where nobody can reach the network; gives (status, output, errors)."""
    connect = socket.socket.connect

    def refuse(own: socket.socket, address: object) -> None:
        assert own.family == socket.AF_UNIX, f"the quickstart wants to reach {address}"
        connect(own, address)

    monkeypatch.setattr(shapes, "COUNTS", {"train": 40, "val": 16})
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    return lambda *more: bench("quickstart", "--steps", STEPS, "--results", tmp_path / "results", *more)


def scored(row: dict) -> tuple[str, str]:
    run = row["run"]
    name, settings = run["method"], run["settings"]
    if name == "maskcontrast":
        name += f"@{run['checkpoint']['name']}"
        name += " embedding=random" * (run["options"]["embedding"] == "random")
    ways = {"masks:clean": "true", "auto": "own" if settings["background"] == "auto" else "pixels"}
    return name, ways[settings["foreground"]]


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_everything_is_scored_once_and_nothing_is_done_again(quickstart, tmp_path):
    status, out, err = quickstart("--limit", 12)
    assert status == 0, err
    assert f"{STEPS} steps, loss" in err
    rows = [json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")]
    assert sorted(map(scored, rows)) == sorted(SCORED)
    assert {(row["run"]["dataset"]["pictures"], len(row["seeds"])) for row in rows} == {(12, 3)}
    columns = ("kmeans", "background=cluster", "foreground=masks:clean")
    assert all(word in out.split("mIoU")[0] for word in columns)
    assert "masks=" not in out

    before = files(tmp_path / "results")
    status, again, err = quickstart("--limit", 12)
    assert (status, again) == (0, out), err
    assert err.count("all done before") == 2
    assert files(tmp_path / "results") == before


def test_a_training_that_was_interrupted_goes_on(quickstart, tmp_path, monkeypatch):
    produce = module.produce
    monkeypatch.setattr(module, "produce", lambda request: 1 / 0 if request.masks == "noisy" else produce(request))
    with pytest.raises(ZeroDivisionError):
        quickstart("--limit", 11)
    (clean,) = (tmp_path / "results").rglob("step-*.pt")
    written = clean.stat().st_mtime_ns
    monkeypatch.setattr(module, "produce", produce)
    status, _, err = quickstart("--limit", 11)
    assert status == 0, err
    assert err.count("all done before") == 1
    assert clean.stat().st_mtime_ns == written


def test_a_folder_of_another_run_is_refused_with_the_option_that_helps(quickstart, tmp_path):
    course = f"small-v{SMALL.version}-{STEPS}-steps"
    record = tmp_path / "results" / "quickstart" / course / "clean" / "record.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"format": 1, "producer": "maskcontrast", "seed": 7}))
    status, _, err = quickstart()
    assert status == 2
    assert "seed: 7 there, 0 here" in err.splitlines()[-1]
    assert "--results DIR" in err.splitlines()[-1]
