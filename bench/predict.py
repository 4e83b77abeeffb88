"""Coloured maps of any pictures: by the clusters of a stored row, or by K-means fitted on the pictures given."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import paths, predictions, registry
from bench.contracts import Painting, Scope
from bench.datasets.pictures import PictureFiles
from bench.errors import CheckpointError, MismatchError, SettingError
from bench.evaluate import inputs_of, open_session
from bench.files import write_atomic
from bench.images import voc_palette
from bench.plan import Plan, ProtocolChoice, Request, make_plan, parse_method
from bench.runs import new_folder
from bench.settings import apply
from bench.store import Row, Store, arrays_of
from bench.work import MethodWork, build

__all__ = ["PredictRequest", "predict"]

log = logging.getLogger(__name__)

MOST_CLUSTERS = 254
"""A palette file has 256 values: one is void, and one may be what is around the foreground."""

_FIX = "choose another folder with --output"


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictRequest:
    """One `bench predict`, as typed: exactly one of `row` and `clusters` is given."""

    method: str
    pictures: Sequence[Path]
    row: str | None = None
    clusters: int | None = None
    overrides: Sequence[str] = ()
    output: Path | None = None
    size: str | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    results: Path = field(default_factory=paths.results_root)
    cache: Path = field(default_factory=paths.cache_root)


def predict(request: PredictRequest) -> Path:
    """Paint the pictures; returns the folder of the maps: NAME.png at each picture's size, and legend.csv.

    Raises InputErrors for what does not fit, before any forward pass.
    """
    if (request.row is None) == (request.clusters is None):
        raise SettingError(
            "say how to paint: by a finished row (--row KEY), or by K-means on these pictures (--clusters K)"
        )
    if request.row is not None:
        return _by_row(request, Store(request.results).named(request.row))
    return _by_clusters(request)


# --- K-means on the pictures given -------------------------------------------------------------------------


def _by_clusters(request: PredictRequest) -> Path:
    wanted = request.clusters or 0
    if not 1 <= wanted <= MOST_CLUSTERS:
        raise SettingError(f"--clusters {wanted} does not fit: expected 1 to {MOST_CLUSTERS}, a palette holds no more")
    names = [f"cluster {index}" for index in range(wanted)]
    pictures = PictureFiles(request.pictures, classes=names, background=None)
    plan = make_plan(_request(request, "kmeans", request.overrides, f"kmeans.clusters={wanted}"), dataset=pictures)
    with ExitStack() as resources:
        work, choice = _open(plan, resources)
        if choice.settings.compares:
            raise SettingError("there are no labels to choose a map by: name one, --set kmeans.tap=NAME")
        (variant,) = choice.variants(work.scope)
        outcome = registry.load(choice.card.run)(work.work, variant.settings, request.seed)
        for note in (*variant.notes, *outcome.notes):
            work.work.say(note)
        around = outcome.arrays.get("around")
        painting = Painting(
            cells=outcome.assignments,
            objects=outcome.arrays.get("objects"),
            around=None if around is None else int(around),
        )
        legend = ["not foreground", *names] if around is not None else names
        return _write(request, work.work, painting, variant.settings, legend, first_colour=int(around is None))


# --- by a row ----------------------------------------------------------------------------------------------


def _by_row(request: PredictRequest, row: Row) -> Path:
    run = row.run
    _check_method(request, row)
    pictures = PictureFiles(
        request.pictures, classes=run["dataset"]["classes"], background=run["dataset"]["background"]
    )
    asked = _request(replace(request, precision=run["precision"]), f"{run['protocol']}:{run['preset']}", ())
    plan = make_plan(asked, dataset=pictures)
    card = plan.jobs[0].protocols[0].card
    if not card.predict:
        raise MismatchError(f"rows of {card.name} cannot be used on other pictures: give a row of another protocol")
    settings = apply(card.settings(), {**run["settings"], "tap": run["tap"]}, card.name)
    if request.size is not None:
        settings = replace(settings, size=request.size)
    job = plan.jobs[0]
    options = apply(job.card.options(), run["options"], job.card.name)
    choice = replace(job.protocols[0], settings=settings)
    plan = replace(plan, jobs=(replace(job, options=options, protocols=(choice,)),))
    with ExitStack() as resources:
        work, _ = _open(plan, resources)
        _check_weights(request, row, work.weights)
        arrays = arrays_of(row, Store(request.results))
        painting = registry.load(card.predict)(work.work, settings, arrays)
        classes = predictions.classes_of(row)
        return _write(request, work.work, painting, settings, run["dataset"]["classes"], classes=classes)


def _check_method(request: PredictRequest, row: Row) -> None:
    method = parse_method(request.method)
    name = f"{method.card.name}:{method.argument}" if method.argument else method.card.name
    if name != row.run["method"]:
        raise MismatchError(f"the row {row.key} is of {row.run['method']}, not of {name}: give --method its own name")
    if request.overrides:
        raise SettingError("--set is for --clusters: a row has its own settings")


def _check_weights(request: PredictRequest, row: Row, weights: str) -> None:
    wanted = row.provenance.get("weights_sha256", "")
    if weights != wanted:
        raise CheckpointError(
            f"the row {row.key} was made with other weights than those of {request.method} (checkpoint "
            f"{row.run['checkpoint'].get('name')}, sha256 {wanted[:12]}…, here {weights[:12]}…): give "
            f"--method {row.run['method']}@CHECKPOINT the row's own"
        )


# --- both --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Opened:
    work: MethodWork
    scope: Scope
    weights: str


def _request(request: PredictRequest, protocol: str, overrides: Sequence[str], *more: str) -> Request:
    return Request(
        methods=(request.method,),
        protocols=(protocol,),
        dataset=PictureFiles.name,
        split=PictureFiles.eval_split,
        seeds=1,
        seed=request.seed,
        size=request.size,
        device=request.device,
        precision=request.precision,
        overrides=(*overrides, *more),
        results=request.results,
        cache=request.cache,
    )


def _open(plan: Plan, resources: ExitStack) -> tuple[_Opened, ProtocolChoice]:
    """The method built, ready to read the pictures, and the protocol's settings."""
    session, job = open_session(plan, resources), plan.jobs[0]
    choice, built = job.protocols[0], build(session, job)
    work = MethodWork(session, job, built, inputs_of(job, choice, built))
    work.check(choice)
    return _Opened(work, session.scope(work), built.weights_sha256), choice


def _write(
    request: PredictRequest,
    work: MethodWork,
    painting: Painting,
    settings: Any,
    legend: Sequence[str],
    *,
    classes: NDArray[np.uint8] | None = None,
    first_colour: int = 0,
) -> Path:
    """legend: the name of each value of the files. first_colour: of the value 0, among VOC's."""
    stem = re.sub(r"[^\w.-]+", "-", f"predictions-{work.method_name}")
    folder = request.output or new_folder(request.results, stem).path
    palette = np.roll(voc_palette(), -first_colour, axis=0)
    identity = np.arange(256, dtype=np.uint8)
    predictions.write(
        folder, work, painting, settings, identity if classes is None else classes, fix=_FIX, palette=palette
    )
    table = io.StringIO()
    lines = csv.writer(table, lineterminator="\n")
    lines.writerow(["value", "name", "colour"])
    lines.writerows((value, name, f"#{bytes(palette[value]).hex()}") for value, name in enumerate(legend))
    write_atomic(folder / "legend.csv", table.getvalue().encode(), fix=_FIX)
    return folder
