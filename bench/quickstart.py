"""The whole story on the embedded data set: train MaskContrast several times, and score it beside its floors."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tabulate

from bench import registry
from bench.datasets import open_dataset
from bench.errors import SettingError
from bench.evaluate import evaluate
from bench.families import Family, leader
from bench.plan import Plan, Request, make_plan
from bench.produce import TrainRequest, produce
from bench.settings import pick_preset
from bench.store import Row
from bench.tables import percent

__all__ = ["quickstart"]

_DATASET, _PRESET, _ARCH = "shapes", "quickstart", "small"
_SEEDS = (0, 1, 2)
"""Of training; the untrained network is drawn anew for each."""

_CLUSTERINGS, _PICTURES = 3, 200
"""Seeds of K-means on each network, and pictures that are scored."""

_WAYS = {
    "all pixels": "kmeans.background=cluster",
    "own objects": "kmeans.foreground=auto",
    "true objects": "kmeans.foreground=masks:clean",
}
_WITHOUT_OWN = ("all pixels", "true objects")
_COUNTED = {"constant": "one class everywhere", "exchanged": "maps of other pictures"}
"""Floors that stand in the rows themselves."""

_MASKS = ("clean", "noisy")
_RANKED = tuple(f"maskcontrast, {masks} masks" for masks in _MASKS)

_Figures = Mapping[tuple[str, str], Family | None]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of the table. members: method and options (texts of `--set`) for each training seed, or one for all."""

    name: str
    members: Sequence[tuple[str, Sequence[str]]]
    ways: Sequence[str] = tuple(_WAYS)


def quickstart(results: Path, cache: Path, *, limit: int | None = None, steps: int | None = None) -> str:
    """Train with clean and with noisy masks, three seeds each, and score all beside floors and ceiling by K-means.

    Returns a table of means and standard deviations over training seeds. All are scored by pixels and on the true
    objects, what has a foreground of its own also on that; random embeddings below a trained saliency head show what
    that foreground alone is worth.
    limit: pictures that are scored. steps: of each training; None: the preset's. What is finished is not done again,
    and a training that was interrupted goes on from its last checkpoint.
    """
    runs = {masks: [_train(results, masks, seed, steps) for seed in _SEEDS] for masks in _MASKS}
    entries = _entries(runs)
    plan = _plan(entries, results, cache, limit or _PICTURES)
    figures = _figures(entries, evaluate(plan))
    about = (
        f"K-means (K = {len(plan.dataset.classes)}), mIoU in percent on {len(plan.names)} pictures of {_DATASET} "
        f"{plan.split}; mean ± sd over {len(_SEEDS)} training seeds"
    )
    return "\n".join([about, "", _table(figures, entries), "", *_remarks(figures, results)])


def _train(results: Path, masks: str, seed: int, steps: int | None) -> Path:
    """The folder of a finished run; each version of the preset and each number of steps has its own."""
    preset = pick_preset(registry.card("producers", "maskcontrast"), _PRESET, _PRESET)
    course = f"{preset.name}-v{preset.version}" + (f"-{steps}-steps" if steps else "")
    request = TrainRequest(
        producer="maskcontrast",
        dataset=_DATASET,
        masks=masks,
        preset=_PRESET,
        seed=seed,
        steps=steps,
        output=results / "quickstart" / course / f"{masks}-{seed}",
        resume=True,
    )
    try:
        return produce(request)
    except SettingError as error:
        raise SettingError(f"{error} (`bench quickstart` has --results DIR for that)") from error


# --- what is scored ----------------------------------------------------------------------------------------


def _entries(runs: Mapping[str, Sequence[Path]]) -> list[_Entry]:
    """What was trained, then the floors that are methods, and the ceiling last."""
    trained = [
        _Entry(name, [(f"maskcontrast@{folder}", ()) for folder in runs[masks]])
        for name, masks in zip(_RANKED, _MASKS, strict=True)
    ]
    random = ("maskcontrast.embedding=random",)
    drawn = [(f"maskcontrast.arch={_ARCH}", f"checkpoint.seed={seed}") for seed in _SEEDS]
    return [
        *trained,
        _Entry(
            f"objects of {_RANKED[0]}, random embeddings",
            [(f"maskcontrast@{folder}", random) for folder in runs["clean"]],
            ("own objects",),
        ),
        _Entry("maskcontrast, untrained", [("maskcontrast@random", options) for options in drawn]),
        *(_Entry(name, [(name, ())], _WITHOUT_OWN) for name in ("colour", "noise", "oracle")),
    ]


def _plan(entries: Iterable[_Entry], results: Path, cache: Path, limit: int) -> Plan:
    """All of them as one command: a job for each member, scored in all its ways from one pass over the pictures."""
    dataset = open_dataset(_DATASET)

    def plan(method: str, options: Sequence[str], way: str) -> Plan:
        request = Request(
            methods=(method,),
            protocols=("kmeans",),
            dataset=_DATASET,
            seeds=_CLUSTERINGS,
            limit=limit,
            overrides=(*options, _WAYS[way]),
            results=results,
            cache=cache,
        )
        return make_plan(request, dataset=dataset)

    plans = [[plan(*member, way) for way in entry.ways] for entry in entries for member in entry.members]
    jobs = [replace(ways[0].jobs[0], protocols=tuple(one.jobs[0].protocols[0] for one in ways)) for ways in plans]
    return replace(plans[0][0], jobs=tuple(jobs))


def _figures(entries: Sequence[_Entry], rows: Sequence[Row]) -> _Figures:
    """What every line has in every way. rows: of each member of each line, in the order of its ways."""
    left, found = iter(rows), dict[tuple[str, str], Family | None]()
    for entry in entries:
        made = [[next(left) for _ in entry.ways] for _ in entry.members]
        for way, of_seeds in zip(entry.ways, zip(*made, strict=True), strict=True):
            found[entry.name, way] = Family.of(of_seeds)
            if entry is entries[0]:
                found |= {(name, way): Family.of(of_seeds, part) for part, name in _COUNTED.items()}
    return found


# --- what is shown -----------------------------------------------------------------------------------------


def _table(figures: _Figures, entries: Sequence[_Entry]) -> str:
    """One line each: what was trained, the floors, the ceiling."""
    *above, ceiling = (entry.name for entry in entries)
    names = [*above, *_COUNTED.values(), ceiling]
    columns = [_column(figures, names, way) for way in _WAYS]
    return tabulate.tabulate(
        list(zip(names, *columns, strict=True)),
        headers=["", *_WAYS],
        tablefmt="simple",
        disable_numparse=True,
        colalign=["left", *["right"] * len(columns)],
    )


def _column(figures: _Figures, names: Sequence[str], way: str) -> list[str]:
    ahead = leader([figures[name, way] for name in _RANKED])
    texts = []
    for name in names:
        mark = "**" if ahead is not None and name == _RANKED[ahead] else ""
        texts.append(mark + _shown(figures.get((name, way))))
    return texts


def _shown(figure: Family | None) -> str:
    if figure is None:
        return "–"
    return percent(figure.mean) + (f" ± {percent(figure.std)}" if figure.std is not None else "")


def _remarks(figures: _Figures, results: Path) -> list[str]:
    """What the table's words mean, and where the rows are."""
    within = [figure.within for (name, _), figure in figures.items() if name in _RANKED and figure and figure.within]
    again = f", whose sd is at most {percent(max(within))} for what was trained" if within else ""
    return [
        f"± is the sample standard deviation over {len(_SEEDS)} seeds of training (untrained: of initial weights).",
        f"Each figure is a mean over {_CLUSTERINGS} seeds of K-means{again}.",
        "** leads by more than that spread; where neither does, none is marked. Floors and oracle are not ranked.",
        "all pixels: --set kmeans.background=cluster; own objects: the default; true objects: foreground=masks:clean.",
        f"Every figure of every row: bench table --results {shlex.quote(str(results))}",
    ]
