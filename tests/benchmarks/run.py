"""`make bench`: every speed claim, as ratios measured in one run, kept with date, machine and command.

    python tests/benchmarks/run.py [FOLDER] [--only PART …]

FOLDER is a data set in VOC layout with the splits `train` and `val`, by default the street frames beside the checkout;
without them 30 generated pictures of 480×360 stand in. Parts that are measured on one day lie in one file; each says
with which command and at which commit it was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import clustering
import heads
import hummingbird
import iic
import loader
import masks
import pipeline
import probe
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


def parts(dataset: Path) -> dict[str, Callable[[], Any]]:
    return {
        "scoring": scoring.measure,
        "clustering": clustering.measure,
        "pipeline": lambda: pipeline.measure(dataset),
        "step": step.measure,
        "loader": loader.measure,
        "heads": heads.measure,
        "probe": lambda: probe.measure(dataset),
        "iic": iic.measure,
        "masks": lambda: masks.measure(dataset),
        "hummingbird": hummingbird.measure,
    }


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("folder", nargs="?", type=Path, default=ROOT.parent / "shared" / "data" / "camvid-mini")
    options.add_argument("--only", nargs="+", default=[], choices=list(parts(ROOT)), metavar="PART")
    given = options.parse_args()
    target = ROOT / "results" / "benchmarks" / f"{date.today().isoformat()}.json"
    report = json.loads(target.read_text()) if target.exists() else {}
    command = f"make bench PARTS='{' '.join(given.only)}'" if given.only else "make bench"
    with tempfile.TemporaryDirectory() as text:
        generated = Path(text) / "generated"
        dataset = given.folder if given.folder.is_dir() else pipeline.make_pictures(generated, 30, (360, 480), 11)
        for name, measure in parts(dataset).items():
            if given.only and name not in given.only:
                continue
            found = measure()
            about = {"date": date.today().isoformat(), "command": command, "machine": machine()}
            report[name] = {**about, "figures": found}
            # after each part: the whole takes half an hour, and may be interrupted
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
