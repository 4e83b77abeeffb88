"""Where things lie: data, weights, cache and results, each movable by an environment variable."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_root", "data_root", "results_root", "weights_dir"]


def _home(variable: str, kind: str) -> Path:
    given = os.environ.get(variable)
    if given:
        return Path(given).expanduser()
    import platformdirs

    return Path(getattr(platformdirs, kind)("densebench"))


def data_root() -> Path:
    """Folder of data sets and weights: `DENSEBENCH_DATA`, else the user's data folder."""
    return _home("DENSEBENCH_DATA", "user_data_dir")


def cache_root() -> Path:
    """Folder of the feature cache: `DENSEBENCH_CACHE`, else the user's cache folder."""
    return _home("DENSEBENCH_CACHE", "user_cache_dir")


def results_root() -> Path:
    """Folder of rows: `DENSEBENCH_RESULTS`, else `results/runs` below the current folder."""
    given = os.environ.get("DENSEBENCH_RESULTS")
    return Path(given).expanduser() if given else Path("results") / "runs"


def weights_dir() -> Path:
    """Folder where released weights are kept."""
    return data_root() / "weights"
