"""The whole story on the embedded data set: train MaskContrast, and score it beside its floors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import registry
from bench.datasets import open_dataset
from bench.errors import SettingError
from bench.evaluate import evaluate
from bench.plan import Job, Plan, Request, make_plan
from bench.produce import TrainRequest, produce
from bench.settings import pick_preset
from bench.store import Row

__all__ = ["quickstart"]

_DATASET, _PRESET = "shapes", "small"
_SEEDS = 3

_PIXELS = "kmeans.background=cluster"
_OWN_OBJECTS = "kmeans.foreground=auto"
_TRUE_OBJECTS = "kmeans.foreground=masks:clean"


@dataclass(frozen=True, slots=True)
class _Contestants:
    """Methods that are scored in the same ways; an option or a way is a text of `--set`."""

    methods: Sequence[str]
    ways: Sequence[str]
    options: Sequence[str] = ()


def quickstart(results: Path, cache: Path, *, limit: int | None = None, steps: int | None = None) -> list[Row]:
    """Train with clean and with noisy masks, and score both beside an untrained network and the floors by K-means.

    All are scored by pixels and on the true objects, what has a foreground of its own also on that; random embeddings
    below a trained saliency head show what that foreground alone is worth.
    limit: pictures that are scored. steps: of each training; None: the preset's. What is finished is not done again,
    and a training that was interrupted goes on from its last checkpoint.
    """
    clean, noisy = (f"maskcontrast@{_train(results, masks, steps)}" for masks in ("clean", "noisy"))
    contestants = (
        _Contestants((clean, noisy), (_PIXELS, _OWN_OBJECTS, _TRUE_OBJECTS)),
        _Contestants((clean,), (_OWN_OBJECTS,), ("maskcontrast.embedding=random",)),
        _Contestants(
            ("maskcontrast@random",), (_PIXELS, _OWN_OBJECTS, _TRUE_OBJECTS), (f"maskcontrast.arch={_PRESET}",)
        ),
        _Contestants(("colour", "noise", "oracle"), (_PIXELS, _TRUE_OBJECTS)),
    )
    return evaluate(_plan(contestants, results, cache, limit))


def _train(results: Path, masks: str, steps: int | None) -> Path:
    """The folder of a finished run; each version of the preset and each number of steps has its own."""
    preset = pick_preset(registry.card("producers", "maskcontrast"), _PRESET, _PRESET)
    course = f"{preset.name}-v{preset.version}" + (f"-{steps}-steps" if steps else "")
    request = TrainRequest(
        producer="maskcontrast",
        dataset=_DATASET,
        masks=masks,
        preset=_PRESET,
        steps=steps,
        output=results / "quickstart" / course / masks,
        resume=True,
    )
    try:
        return produce(request)
    except SettingError as error:
        raise SettingError(f"{error} (`bench quickstart` has --results DIR for that)") from error


def _plan(contestants: Iterable[_Contestants], results: Path, cache: Path, limit: int | None) -> Plan:
    """All of them as one command, so that each method's maps are computed once."""
    dataset, plans = open_dataset(_DATASET), []
    for these in contestants:
        for way in these.ways:
            request = Request(
                methods=tuple(these.methods),
                protocols=("kmeans",),
                dataset=_DATASET,
                seeds=_SEEDS,
                limit=limit,
                overrides=(*these.options, way),
                results=results,
                cache=cache,
            )
            plans.append(make_plan(request, dataset=dataset))
    return replace(plans[0], jobs=tuple(_merged(job for plan in plans for job in plan.jobs)))


def _merged(jobs: Iterable[Job]) -> list[Job]:
    """One job of each method and its options, with the protocols of all."""
    found: dict[tuple[str, str], Job] = {}
    for job in jobs:
        key = (job.spec, repr(job.options))
        found[key] = replace(job, protocols=(*found[key].protocols, *job.protocols)) if key in found else job
    return list(found.values())
