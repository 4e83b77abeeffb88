"""How busy `bench masks` keeps the cores: CPU time over wall time of the command, its children included.

python tests/benchmarks/masks.py FOLDER     (a data set in VOC layout, e.g. some dozens of pictures of 480×360)

`whole`: the command as it is, imports and the building of the network included, which one core does. `pictures`: the
same less a command that makes the mask of one picture alone, so what a larger data set comes to. The limit is for two
cores, and holds for `pictures`; a machine where other programs run at the same time cannot reach it.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

PICTURES, LIMIT = 48, 1.7
ESTIMATORS = {
    "contrast": ("--estimator", "contrast"),
    "u2netp": ("--estimator", "u2net@random", "--set", "u2net.arch=u2netp", "--device", "cpu"),
}
"""Of the networks the narrow one, with random weights: the work is that of the released file."""


class Spent(NamedTuple):
    """Seconds of a command. cpu: of all its processes and threads."""

    wall: float
    cpu: float


def spent(*words: object) -> Spent:
    """What `bench masks` takes in a fresh process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "bench", "masks", *map(str, words)], capture_output=True, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Spent(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def busy(dataset: Path, words: tuple[str, ...]) -> dict[str, Any]:
    """Seconds of the whole command and of one picture alone, and CPU time over wall time of the former and the rest."""
    with tempfile.TemporaryDirectory() as text:
        one, whole = (
            spent(*words, "--dataset", dataset, "--limit", count, "--output", Path(text) / f"{count}")
            for count in (1, PICTURES)
        )
    rest = Spent(whole.wall - one.wall, whole.cpu - one.cpu)
    return {
        "seconds": {name: each._asdict() for name, each in (("one picture", one), ("whole", whole))},
        "CPU over wall": {"whole": round(whole.cpu / whole.wall, 2), "pictures": round(rest.cpu / rest.wall, 2)},
        "limit": LIMIT,
    }


def measure(dataset: Path) -> dict[str, Any]:
    """Everything this script measures."""
    figures = {name: busy(dataset, words) for name, words in ESTIMATORS.items()}
    facts = {"pictures": f"{PICTURES} of {dataset.name}", "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    return {**facts, **figures}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1])), indent=1))  # noqa: T201
