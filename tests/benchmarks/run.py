"""`make bench`: every speed claim, as ratios measured in one run, kept with date, machine and command.

    python tests/benchmarks/run.py [FOLDER]

FOLDER is a data set in VOC layout with a `val` split, by default the street frames beside the checkout; without them 30
generated pictures of 480×360 stand in.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import clustering
import heads
import loader
import pipeline
import scoring
import step

from bench.store import provenance

ROOT = Path(__file__).parents[2]


def machine() -> dict[str, Any]:
    facts = provenance("cpu", "fp32")
    model = next(
        (line.partition(": ")[2] for line in _cpu_lines() if line.startswith("model name")), platform.processor()
    )
    return {"processor": model, "cores": os.cpu_count(), "commit": facts.get("commit"), "libraries": facts["libraries"]}


def _cpu_lines() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []


def main() -> None:
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "data" / "camvid-mini"
    target = ROOT / "results" / "benchmarks" / f"{date.today().isoformat()}.json"
    report: dict[str, Any] = {"date": date.today().isoformat(), "command": "make bench", "machine": machine()}
    with tempfile.TemporaryDirectory() as text:
        dataset = given if given.is_dir() else pipeline.make_pictures(Path(text) / "generated", 30, (360, 480), 11)
        parts: dict[str, Callable[[], Any]] = {
            "scoring": scoring.measure,
            "clustering": clustering.measure,
            "pipeline": lambda: pipeline.measure(dataset),
            "step": step.measure,
            "heads": heads.measure,
            "loader": loader.measure,
        }
        for name, measure in parts.items():
            report[name] = measure()
            # after each part: the whole takes a quarter of an hour, and may be interrupted
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
