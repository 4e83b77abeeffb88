"""What a job will cost, said before it starts (`--dry-run`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from bench import registry
from bench.evaluate import inputs_of, open_session, stored_row, wanted_seeds
from bench.plan import Job, Plan
from bench.records import Checkpoint
from bench.settings import InputSettings
from bench.work import MethodWork, Session, build

__all__ = ["price"]


def price(plan: Plan) -> str:
    """Lines that price a job: forward passes, bytes kept, disk free, what is there already. Computes no map."""
    with ExitStack() as resources:
        session = open_session(plan, resources)
        free = session.cache.free() / 1e9
        lines = [f"{plan.dataset.name} {plan.split}: {len(plan.names)} pictures; {free:.1f} GB of disk free"]
        for job in plan.jobs:
            lines += _price_job(session, job)
    return "\n".join(lines)


def _price_job(session: Session, job: Job) -> Iterator[str]:
    missing = job.checkpoint.kind == "released" and job.checkpoint.path is None
    if missing:
        yield f"{job.name}: the weights {job.checkpoint.name} have to be fetched first (bench fetch {job.name})"
        # the same architecture without its weights has maps of the same size
        job = replace(job, checkpoint=Checkpoint(name="random", kind="random"))
    built = build(session, job)
    works: dict[InputSettings, MethodWork] = {}
    for choice in job.protocols:
        inputs = inputs_of(job, choice, built)
        if inputs not in works:
            works[inputs] = MethodWork(session, job, built, inputs)
            yield _price_maps(session, works[inputs], job, known=not missing)
        work = works[inputs]
        scope = session.scope(work, choice.settings)
        variants = choice.variants(scope)
        wanted = [wanted_seeds(session, choice, variant) for variant in variants]
        rows = [] if missing else [stored_row(session, job, choice, variant, built) for variant in variants]
        done = sum(row is not None and set(seeds) <= set(row.seeds) for row, seeds in zip(rows, wanted, strict=False))
        name = f"{choice.card.name}:{choice.preset.name}"
        yield f"  {name}: {len(variants)} rows × {max(map(len, wanted))} seeds, {done} rows finished"
        if choice.card.price and done < len(variants):
            sentence = registry.load(choice.card.price)
            yield from (f"    {sentence(variant.settings, scope)}" for variant in variants)


def _price_maps(session: Session, work: MethodWork, job: Job, *, known: bool) -> str:
    """known: the weights are there, so that their maps may be in the cache."""
    maps = work.maps("eval")
    size = f"{maps.vectors} vectors × {maps.channels}, {maps.nbytes / 1e9:.2f} GB as {maps.dtype}"
    if maps.cheap:
        return f"{job.name}, map {work.tap}: {size}; no network, computed for every pass"
    if known and maps.cached:
        return f"{job.name}, map {work.tap}: {size}; in the cache, no forward pass"
    if session.cache.room_for(maps.nbytes):
        return f"{job.name}, map {work.tap}: {size}; {len(maps.names)} forward passes, then kept in the cache"
    return (
        f"{job.name}, map {work.tap}: {size}; does not fit in the cache: up to {2 * len(maps.names)} forward "
        "passes (one for the PCA, one for the vectors), only reduced vectors are kept"
    )
