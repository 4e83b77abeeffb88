"""`bench quickstart`: trained, scored, taken up again; on fewer pictures, seeds and steps than it has by itself."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest

from bench import quickstart as module
from bench.datasets import shapes
from bench.families import Family
from bench.producers.maskcontrast import QUICKSTART

STEPS, SEEDS, CLUSTERINGS = 2, (0, 1), 1
COURSE = f"quickstart-v{QUICKSTART.version}-{STEPS}-steps"
LINES = {
    "maskcontrast, clean masks": {"pixels", "own", "true"},
    "maskcontrast, noisy masks": {"pixels", "own", "true"},
    "objects of maskcontrast, clean masks, random embeddings": {"own"},
    "maskcontrast, untrained": {"pixels", "own", "true"},
    "colour": {"pixels", "true"}, "noise": {"pixels", "true"}, "oracle": {"pixels", "true"},
}  # fmt: skip
TIMES = dict.fromkeys(list(LINES)[:4], len(SEEDS))


@pytest.fixture
def quickstart(bench, monkeypatch, tmp_path):
    """Run it on 40 + 16 pictures, where nobody can reach the network; gives (status, output, errors)."""
    connect = socket.socket.connect

    def refuse(own: socket.socket, address: object) -> None:
        assert own.family == socket.AF_UNIX, f"the quickstart wants to reach {address}"
        connect(own, address)

    monkeypatch.setattr(shapes, "COUNTS", {"train": 40, "val": 16})
    monkeypatch.setattr(module, "_SEEDS", SEEDS)
    monkeypatch.setattr(module, "_CLUSTERINGS", CLUSTERINGS)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    return lambda *more: bench("quickstart", "--steps", STEPS, "--results", tmp_path / "results", *more)


def scored(row: dict) -> tuple[str, str]:
    """Line and column of a row."""
    run = row["run"]
    name, settings = run["method"], run["settings"]
    if name == "maskcontrast":
        masks = run["checkpoint"]["name"].partition("-")[0]
        name = "maskcontrast, untrained" if masks == "random" else f"maskcontrast, {masks} masks"
        if run["options"]["embedding"] == "random":
            name = f"objects of {name}, random embeddings"
    ways = {"masks:clean": "true", "auto": "own" if settings["background"] == "auto" else "pixels"}
    return name, ways[settings["foreground"]]


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def cells(out: str) -> dict[str, list[str]]:
    """The table's lines by name."""
    table = out.split("\n\n")[1].splitlines()
    return {line[: table[1].index(" ")].strip(): line[table[1].index(" ") :].split("  ") for line in table[2:]}


def test_everything_is_scored_once_and_nothing_is_done_again(quickstart, tmp_path):
    status, out, err = quickstart("--limit", 6)
    assert status == 0, err
    assert err.count(f"{STEPS} steps, loss") == 2 * len(SEEDS)
    rows = [json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")]
    expected = [(name, way) for name, ways in LINES.items() for way in ways for _ in range(TIMES.get(name, 1))]
    assert sorted(map(scored, rows)) == sorted(expected)
    assert {(row["run"]["dataset"]["pictures"], len(row["seeds"])) for row in rows} == {(6, CLUSTERINGS)}

    clean = [
        100 * row["mean"]["scores"]["one_to_one_iou"]["miou"]
        for row in rows if scored(row) == ("maskcontrast, clean masks", "true")
    ]  # fmt: skip
    assert len(clean) == len(SEEDS)
    assert f"{np.mean(clean):.1f} ± {np.std(clean, ddof=1):.1f}" in cells(out)["maskcontrast, clean masks"][-1]
    assert set(cells(out)) == {*LINES, "one class everywhere", "maps of other pictures"}
    assert f"mean ± sd over {len(SEEDS)} training seeds" in out

    before = files(tmp_path / "results")
    status, again, err = quickstart("--limit", 6)
    assert (status, again) == (0, out), err
    assert err.count("all done before") == 2 * len(SEEDS)
    assert files(tmp_path / "results") == before


def test_what_leads_by_less_than_the_spread_is_not_marked():
    clean, noisy = module._RANKED
    way = "all pixels"
    figures = {(clean, way): Family(0.5, 0.04, 0.01, 3), (noisy, way): Family(0.47, 0.01, 0.01, 3)}
    figures["oracle", way] = Family(1.0, None, 0.0, 1)
    assert module._column(figures, [clean, noisy, "oracle"], way) == ["50.0 ± 4.0", "47.0 ± 1.0", "100.0"]
    figures[noisy, way] = Family(0.45, 0.01, 0.01, 3)
    assert module._column(figures, [clean, noisy, "oracle"], way) == ["**50.0 ± 4.0", "45.0 ± 1.0", "100.0"]


def test_a_training_that_was_interrupted_goes_on(quickstart, tmp_path, monkeypatch, capsys):
    produce, scored = module.produce, []
    monkeypatch.setattr(module, "_SEEDS", (0,))
    monkeypatch.setattr(module, "evaluate", lambda plan: scored.append(plan) or 1 / 0)
    monkeypatch.setattr(module, "produce", lambda request: 1 / 0 if request.masks == "noisy" else produce(request))
    with pytest.raises(ZeroDivisionError):
        quickstart("--limit", 11)
    (clean,) = (tmp_path / "results").rglob("step-*.pt")
    written = clean.stat().st_mtime_ns
    monkeypatch.setattr(module, "produce", produce)
    capsys.readouterr()
    with pytest.raises(ZeroDivisionError):
        quickstart("--limit", 11)
    assert len(scored) == 1
    assert capsys.readouterr().err.count("all done before") == 1
    assert clean.stat().st_mtime_ns == written


def test_a_folder_of_another_run_is_refused_with_the_option_that_helps(quickstart, tmp_path):
    record = tmp_path / "results" / "quickstart" / COURSE / "clean-0" / "record.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"format": 1, "producer": "maskcontrast", "seed": 7}))
    status, _, err = quickstart()
    assert status == 2
    assert "seed: 7 there, 0 here" in err.splitlines()[-1]
    assert "--results DIR" in err.splitlines()[-1]
