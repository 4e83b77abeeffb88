"""Rows: what a run scored, with all that is needed to know where the figures come from.

A row is one JSON file, its arrays one compressed `.npz` beside it. Both are named by the run's key and the number of
seeds (`<key>-s5.json`; a second one of that name is `<key>-s5.r2.json`). Files are written whole, the arrays first,
and never changed or replaced.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import secrets
import shutil
import statistics
import subprocess
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bench import __version__, metrics
from bench.errors import InternalError, StorageError, UnknownNameError
from bench.files import write_new
from bench.registry import near

__all__ = ["SCHEMA", "Row", "Store", "arrays_of", "provenance", "run_key", "summarise"]

log = logging.getLogger(__name__)

SCHEMA = 1
"""Version of the form of a row; it rises when old readers would misread new rows."""

_FIX = "choose another folder with --results or DENSEBENCH_RESULTS"
_NAME = re.compile(r"(?P<key>[0-9a-f]{16})-s(?P<seeds>\d+)(?:\.r(?P<revision>\d+))?\.json")
_NOT_AVERAGED = {"seed", "match", "draws"}
_HASH = re.compile(rb', "sha256": "(?P<sha256>[0-9a-f]{64})"\}\s*\Z')
"""The end of a row's file: the hash of its bytes without this entry."""
_LIBRARIES = (
    "numpy",
    "torch",
    "torchvision",
    "timm",
    "scikit-learn",
    "scipy",
    "faiss-cpu",
    "faiss-gpu-cu12",
    "faiss-gpu",
    "faiss",
)


def run_key(run: Mapping[str, Any]) -> str:
    """16 hex digits that name a run: equal for equal runs, whatever the order of their entries.

    run: plain data (numbers, text, None, lists, mappings with text keys), no NaN; InternalError otherwise.
    """
    try:
        text = json.dumps(run, sort_keys=True, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    except (TypeError, ValueError) as error:
        raise InternalError(f"a run must be plain data without NaN: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def summarise(per_seed: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mean and sample standard deviation (ddof = 1) over seeds, in the same nested form.

    Lists are taken element by element. A figure that is None, NaN or absent for any seed is None in both results, as
    are lists of different lengths and the standard deviation of a single seed. Seeds, matches and text are left out.
    """
    if not per_seed:
        raise InternalError("there is nothing to summarise: a row needs at least one seed")
    return _fold(per_seed, _mean), _fold(per_seed, _deviation)


def _fold(entries: Sequence[Any], statistic: Callable[[Sequence[float]], float | None]) -> Any:
    if all(isinstance(entry, Mapping) for entry in entries):
        names = dict.fromkeys(name for entry in entries for name in entry)
        return {
            name: _fold([entry.get(name) for entry in entries], statistic)
            for name in names
            if _is_averaged(name, entries)
        }
    if all(isinstance(entry, list | tuple | np.ndarray) for entry in entries):
        if len({len(entry) for entry in entries}) > 1:
            return None
        return [_fold(elements, statistic) for elements in zip(*entries, strict=True)]
    if all(_is_number(entry) for entry in entries):
        return statistic([float(entry) for entry in entries])
    return None


def _is_averaged(name: str, entries: Sequence[Mapping[str, Any]]) -> bool:
    return name not in _NOT_AVERAGED and not any(isinstance(entry.get(name), str) for entry in entries)


def _is_number(entry: Any) -> bool:
    return isinstance(entry, int | float | np.number) and not math.isnan(entry)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


_NOT_STORED = {"path", "rescored"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a run scored.

    run: everything that decides the figures except the seeds; `key` is its hash.
    headline: `rule` and `metric` of the figure that stands in the table.
    per_seed: the scores of each seed, raw figures in [0, 1] (see `bench.metrics.evaluate`); mean, std: the same over
    seeds (see `summarise`). scoring: version of what was computed from the counts (`bench.metrics.SCORING`).
    dropped: pictures that could not be scored (0 in a sound row). notes: sentences for the reader of the table.
    provenance: where and with what it was computed. seconds: by phase. peak_memory_bytes: of the process.
    path: the row's file once it has one. rescored: its file is of an older scoring, and was scored again from the
    counts beside it. Neither is part of the row.
    """

    run: Mapping[str, Any]
    headline: Mapping[str, str]
    per_seed: Sequence[Mapping[str, Any]]
    mean: Mapping[str, Any]
    std: Mapping[str, Any]
    scoring: int = metrics.SCORING
    dropped: int = 0
    notes: Sequence[str] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    path: Path | None = field(default=None, compare=False)
    rescored: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, run: Mapping[str, Any], per_seed: Sequence[Mapping[str, Any]], **rest: Any) -> Row:
        """A row with its means and deviations worked out; `rest` are the other fields."""
        mean, std = summarise(per_seed)
        return cls(run=run, per_seed=per_seed, mean=mean, std=std, **rest)

    @classmethod
    def from_json(cls, data: Any, path: Path | None = None) -> Row:
        """The row of a parsed JSON object; ValueError when it is none of ours."""
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise ValueError(f"it is no row of schema {SCHEMA}")
        stored = {f.name for f in fields(cls)} - _NOT_STORED
        missing = sorted(stored - data.keys() - {"scoring"})
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        row = cls(**{"scoring": 1, **{name: data[name] for name in stored & data.keys()}}, path=path)
        row._check(data.get("key"), data.get("seeds"))
        return row

    def _check(self, key: Any, seeds: Any) -> None:
        mappings = (self.run, self.headline, self.mean, self.std, self.provenance)
        if not all(isinstance(value, dict) for value in mappings) or not isinstance(self.per_seed, list):
            raise ValueError("its parts are not of the form of a row")
        if key != self.key:
            raise ValueError(f"its key {key} is not that of its run, {self.key}: it was edited or damaged")
        if not seeds or seeds != self.seeds:
            raise ValueError("its seeds are not those it has scores of")

    @classmethod
    def from_bytes(cls, raw: bytes, path: Path | None = None) -> Row:
        """The row of a file; ValueError when it is none of ours, or not as it was written."""
        row = cls.from_json(json.loads(raw.decode()), path)
        end = _HASH.search(raw)
        if end is None and row.scoring > 1:
            raise ValueError("it does not end with its hash: it was edited or damaged")
        if end is not None and hashlib.sha256(raw[: end.start()] + b"}").hexdigest() != end["sha256"].decode():
            raise ValueError("its hash is not that of its content: it was edited or damaged")
        if end is None and not _is_summary(row):
            raise ValueError("its mean is not that of its seeds: it was edited or damaged")
        return row

    def to_bytes(self) -> bytes:
        """The row's file: JSON, its last entry the hash of the bytes without it."""
        text = json.dumps(self.to_json(), allow_nan=False).encode()
        return text[:-1] + f', "sha256": "{hashlib.sha256(text).hexdigest()}"}}'.encode()

    def to_json(self) -> dict[str, Any]:
        """Plain data; NaN (an undefined figure) becomes None. InternalError for what JSON cannot hold."""
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_STORED}
        first = {"schema": SCHEMA, "key": self.key, "run": parts.pop("run"), "seeds": self.seeds}
        return {name: _plain(value) for name, value in (first | parts).items()}

    @property
    def key(self) -> str:
        """16 hex digits of the run."""
        return run_key(self.run)

    @property
    def seeds(self) -> list[int]:
        """The seeds, in the order in which they were computed."""
        return [int(scores["seed"]) for scores in self.per_seed]

    @property
    def headline_mean(self) -> float | None:
        """The figure that stands in the table, in [0, 1]; None where it is undefined."""
        return self.figure("scores")

    @property
    def headline_std(self) -> float | None:
        """Its sample standard deviation over seeds; None for one seed."""
        return self.figure("scores", statistic="std")

    def figure(
        self, part: str, rule: str | None = None, metric: str | None = None, *, statistic: str = "mean"
    ) -> float | None:
        """A figure over seeds, None where there is none.

        part: "scores", "held_out", "constant", "null" or "exchanged". rule, metric: by default those of the headline;
        `constant` is one prediction, whatever the rule. statistic: mean or std, over seeds.
        """
        found = getattr(self, statistic).get(part) or {}
        scores = found if part == "constant" else found.get(rule or self.headline["rule"]) or {}
        value = scores.get(metric or self.headline["metric"])
        return None if value is None else float(value)

    def spread(self, part: str, rule: str | None = None, metric: str | None = None) -> float | None:
        """The sample standard deviation of all draws of all seeds behind a figure; None where nothing is drawn.

        part: "held_out", "null" or "exchanged". rule, metric: by default those of the headline.
        """
        rule, metric = rule or self.headline["rule"], metric or self.headline["metric"]
        inside, means, total = 0.0, [], 0
        for scores in self.per_seed:
            drawn: Mapping[str, Any] = (scores.get("draws") or {}).get(part) or {}
            deviation = ((drawn.get("sd") or {}).get(rule) or {}).get(metric)
            figure = ((scores.get(part) or {}).get(rule) or {}).get(metric)
            if deviation is None or figure is None or not drawn.get("number"):
                return None
            inside += (drawn["number"] - 1) * deviation**2
            means += [figure] * drawn["number"]
            total += drawn["number"]
        return math.sqrt((inside + statistics.pvariance(means) * total) / (total - 1)) if total > 1 else None

    @property
    def floor(self) -> tuple[str, float, float] | None:
        """Name, mean and standard deviation of the largest of `bench.metrics.FLOORS`; None where there is none."""
        found = [(name, mean) for name in metrics.FLOORS if (mean := self.figure(name)) is not None]
        if not found:
            return None
        name, mean = max(found, key=lambda entry: entry[1])
        return name, mean, self.spread(name) or 0.0

    @property
    def near_floor(self) -> bool:
        """Whether the headline is at most the mean of the largest floor and two of its standard deviations."""
        floor, headline = self.floor, self.headline_mean
        return floor is not None and headline is not None and headline <= floor[1] + 2 * floor[2]

    @property
    def created(self) -> datetime:
        """When the row was made: its provenance, else the time of its file, else the beginning of time."""
        with contextlib.suppress(KeyError, TypeError, ValueError):
            time = datetime.fromisoformat(self.provenance["created"])
            return time if time.tzinfo else time.replace(tzinfo=timezone.utc)
        with contextlib.suppress(OSError, AttributeError):
            return datetime.fromtimestamp(self.path.stat().st_mtime, timezone.utc)  # type: ignore[union-attr]
        return datetime.fromtimestamp(0, timezone.utc)


def _is_summary(row: Row) -> bool:
    """Whether mean and deviation are those of the seeds: how an edited figure is seen in a row without a hash."""
    return [_plain(part) for part in summarise(row.per_seed)] == [row.mean, row.std]


def _plain(value: Any) -> Any:
    """Data that JSON holds as it is: tuples and arrays become lists, numpy scalars numbers, NaN None."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {_text_key(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isinf(value):
        return None if math.isnan(value) else value
    raise InternalError(f"a row holds finite numbers, text and lists of them, not {value!r} ({type(value).__name__})")


def _text_key(name: Any) -> str:
    if not isinstance(name, str):
        raise InternalError(f"a row cannot hold an entry named {name!r}: names must be text")
    return name


class Store:
    """A folder of rows. Nothing is created before something is saved or `check_writable` is called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: str) -> Row | None:
        """The row of a run with most seeds, among equals the latest; None when there is none."""
        return next(self._read(self._files(key)), None)

    def rows(self) -> list[Row]:
        """For every run its row with most seeds (among equals the latest), in the order of first saving.

        Files that are damaged or not ours are left out, each with a warning that names it.
        """
        of_key: dict[str, list[Row]] = {}
        for row in self._read(self._files()):
            of_key.setdefault(row.key, []).append(row)
        first_saved = sorted(of_key, key=lambda key: (min(row.created for row in of_key[key]), key))
        return [of_key[key][0] for key in first_saved]

    def named(self, key: str) -> Row:
        """The row of a key, or of the beginning of one; UnknownNameError where that fits none or several."""
        rows = self.rows()
        found = [row for row in rows if row.key.startswith(key)] if key else []
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownNameError(f"{key} fits {len(found)} rows: {', '.join(row.key for row in found)}")
        known = ", ".join(f"{row.key} ({row.run['method']}, {row.run['protocol']})" for row in rows)
        raise UnknownNameError(
            f"there is no row {key!r} in {self.folder}.{near(key, [row.key for row in rows])} "
            f"Rows there: {known or 'none; make one with `bench eval`'}"
        )

    def save(self, row: Row, arrays: Mapping[str, NDArray[Any]]) -> Path:
        """Write a row and its arrays under names that are still free; return the path of the row's file.

        The arrays are there before the row is, so a row that can be read has its arrays.
        Raises StorageError when either cannot be written; neither is left behind then.
        """
        text = row.to_bytes()
        base = f"{row.key}-s{len(row.seeds)}"
        names = chain([f"{base}.json"], (f"{base}.r{revision}.json" for revision in count(2)))
        return next(path for path in map(self.folder.joinpath, names) if _save_as(path, text, arrays))

    def arrays(self, row: Row) -> Mapping[str, NDArray[Any]]:
        """The arrays saved with a row, each read from the disk when it is asked for; StorageError if they are gone."""
        path = row.path or next((p for p, seeds in self._files(row.key) if seeds == len(row.seeds)), None)
        if path is None:
            raise StorageError(f"no row {row.key} with {len(row.seeds)} seeds lies in {self.folder}; compute it first")
        return _Arrays(_beside(path))

    def check_writable(self, need: int = 64 << 20) -> None:
        """Make the folder and try to write there, before hours of work; StorageError naming the fix.

        need: bytes that must be free on its disk.
        """
        probe = self.folder / f".probe-{secrets.token_hex(8)}"
        write_new(probe, b"", fix=_FIX)
        probe.unlink()
        free = shutil.disk_usage(self.folder).free
        if free < need:
            raise StorageError(
                f"the disk of the results folder {self.folder} has {free / 1e6:.0f} MB left, {need / 1e6:.0f} MB are "
                f"needed; free some space or {_FIX}"
            )

    def _files(self, key: str = "*") -> list[tuple[Path, int]]:
        """Files named like rows and the seeds their names promise: most seeds first, among equals the latest first."""
        found = []
        for path in sorted(self.folder.glob(f"{key}.json" if key == "*" else f"{key}-s*.json")):
            match = _NAME.fullmatch(path.name)
            if match:
                found.append((int(match["seeds"]), int(match["revision"] or 1), path))
            else:
                log.warning("%s is left out: it is not named like a row", path)
        return [(path, seeds) for seeds, _, path in sorted(found, key=lambda f: f[:2], reverse=True)]

    def _read(self, files: Sequence[tuple[Path, int]]) -> Iterator[Row]:
        for path, seeds in files:
            try:
                row = Row.from_bytes(path.read_bytes(), path)
                if not path.name.startswith(f"{row.key}-s{seeds}.") or len(row.seeds) != seeds:
                    raise ValueError("its name is that of another row")
            except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
                log.warning("%s is left out: it is damaged or no row of ours (%s)", path, error)
            else:
                yield row if row.scoring == metrics.SCORING else rescored(row, self)


def rescored(row: Row, store: Store) -> Row:
    """A row of an older scoring, scored again from the counts beside it; as it is where they do not give its headline.

    What needs more than counts, `exchanged`, is left out, and its note says how to get it.
    """
    try:
        per_seed = [_scored_again(row, scores, store) for scores in row.per_seed]
    except (StorageError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        log.warning("%s was scored by version %s and cannot be scored again (%s)", row.path, row.scoring, error)
        return row
    again = Row.of(row.run, per_seed, **_rest_of(row), rescored=True)
    if any(_apart(again.figure("scores", statistic=s), row.figure("scores", statistic=s)) for s in ("mean", "std")):
        log.warning("%s was scored by version %s, and its counts give another headline now", row.path, row.scoring)
        return row
    return again


_AGAIN = "the row is of an older scoring: compute it again with --again"


def _rest_of(row: Row) -> dict[str, Any]:
    taken = {"run", "per_seed", "mean", "std", "scoring", "rescored"}
    return {f.name: getattr(row, f.name) for f in fields(row) if f.name not in taken}


def _apart(one: float | None, other: float | None) -> bool:
    return one != other if one is None or other is None else abs(one - other) > 1e-9


def _scored_again(row: Row, scores: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """One seed's scores, from its counts."""
    arrays, seed = store.arrays(row), int(scores["seed"])
    picture, cluster, label, pixels = arrays[f"seed{seed}_counts"].T
    data, own = row.run["dataset"], scores["scores"]
    match = np.array(next(iter(own.values()))["match"], np.int64)
    shape = (int(data["pictures"]), len(match), len(data["classes"]) + 1)
    picture, cluster, label = (array.astype(np.int32) for array in (picture, cluster, label))
    counts = metrics.Counts(picture, cluster, label, pixels.astype(np.int64), shape)
    around = arrays.get(f"seed{seed}_around")
    about: dict[str, Any] = {
        "names": arrays["names"].tolist() if "names" in arrays else (),
        "background": data["background"],
        "given": () if around is None else (int(around),),
        "seed": seed,
    }
    if metrics.AS_PREDICTED in own:
        found = metrics.evaluate_predictions(counts, match, **about)
    else:
        found = metrics.evaluate(counts, **about)
    found["exchanged_note"] = found["null_note"] or _AGAIN
    return {**scores, **found}


def _beside(path: Path) -> Path:
    """The file of a row's arrays."""
    return path.with_suffix(".npz")


def _save_as(path: Path, text: bytes, arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Write the two files of a row; False when one of the names is taken."""
    if path.exists():
        return False
    beside = _beside(path)
    try:
        write_new(beside, lambda file: _write_arrays(file, arrays), fix=_FIX)
    except FileExistsError:
        return False
    try:
        write_new(path, text, fix=_FIX)
    except FileExistsError:
        beside.unlink()
        return False
    except BaseException:
        beside.unlink()
        raise
    return True


def _write_arrays(file: BinaryIO, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as `numpy.savez_compressed` does, but any name may be used and Python objects are refused.

    Fractions are not compressed: weights of networks hardly shrink, and are most of what is written.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            about = zipfile.ZipInfo(f"{name}.npy", time.localtime()[:6])
            about.compress_type = zipfile.ZIP_STORED if array.dtype.kind == "f" else zipfile.ZIP_DEFLATED
            with archive.open(about, "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)


class _Arrays(Mapping[str, NDArray[Any]]):
    """The arrays of one `.npz` file, which is open only while one of them is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as archive:
            self._names = tuple(archive.files)

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        with self._open() as archive:
            array: NDArray[Any] = archive[name]
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with np.load(self._path, allow_pickle=False) as archive:
                yield archive
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise StorageError(
                f"the arrays {self._path} cannot be read ({error}); compute the row again with --again"
            ) from error


def provenance(device: str, precision: str) -> dict[str, Any]:
    """Where and with what figures are computed: versions, commit, platform, device; no name of a machine or a user.

    created: UTC, ISO 8601. commit, dirty: only where the package lies in its own checkout.
    """
    return {
        "created": datetime.now(timezone.utc).isoformat(),
        "densebench": __version__,
        **_checkout(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "precision": precision,
        "libraries": _versions(),
    }


def _versions() -> dict[str, str]:
    """Versions of the installed libraries that figures depend on, read without importing them."""
    versions = {}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


@functools.cache
def _checkout() -> Mapping[str, Any]:
    """The commit of the running code and whether the code differs from it; empty outside the package's checkout."""
    root = Path(__file__).resolve().parents[1]
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:  # installed inside somebody else's repository
        return {}
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", "bench", "adapters", "protocols")
    return {"commit": commit, "dirty": bool(changes)} if commit else {}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers, stripped; None when it is not there, fails, or takes longer than 5 s."""
    # GIT_DIR and its kin, set while git runs a hook, would lead to another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), "--no-optional-locks", *arguments],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
            env=environment,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return answer.stdout.strip()


def arrays_of(row: Row, store: Store) -> Mapping[str, NDArray[Any]]:
    """The arrays beside a row: those of its first seed under their own names, and the shared ones."""
    stored, prefix = store.arrays(row), f"seed{row.per_seed[0]['seed']}_"
    names = {name.removeprefix(prefix): name for name in stored if name.startswith(prefix)}
    names |= {name: name for name in stored if not name.startswith("seed")}
    return _Renamed(stored, names)


class _Renamed(Mapping[str, Any]):
    """A mapping under other names; nothing is read before it is asked for."""

    def __init__(self, stored: Mapping[str, Any], names: Mapping[str, str]) -> None:
        self._stored, self._names = stored, names

    def __getitem__(self, name: str) -> Any:
        return self._stored[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
