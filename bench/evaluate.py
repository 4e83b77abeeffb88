"""One method's maps through every protocol, K and seed that was asked for, to rows: the flow of the harness.

data set → adapter → maps → protocol → counts → scores → row
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import distributed, fitting, metrics, predictions, registry
from bench.cache import Cache
from bench.clock import Clock, peak_memory
from bench.contracts import Outcome, Variant
from bench.datasets.folder import occurrence
from bench.errors import DatasetError
from bench.features import Runtime
from bench.plan import Job, Plan, ProtocolChoice
from bench.processes import on_rank_0, usable_device
from bench.progress import track
from bench.settings import InputSettings, deciding, mask_set
from bench.store import Row, Store, provenance, run_key
from bench.work import Built, MethodWork, Session, build, tap_for

__all__ = ["evaluate", "inputs_of", "open_session", "stored_row", "wanted_seeds"]

log = logging.getLogger(__name__)


def evaluate(plan: Plan) -> list[Row]:
    """Make every row of the plan, or read it where it is finished; rows are saved as they are made."""
    with ExitStack() as resources:
        session = open_session(plan, resources)
        on_rank_0(session.store.check_writable)
        _state_defaults(session)
        finished = [_finished(session, job) for job in plan.jobs]
        _refuse_early(session, [job for job, rows in zip(plan.jobs, finished, strict=True) if rows is None])
        made = (
            _evaluate_method(session, job) if there is None else there
            for job, there in zip(plan.jobs, finished, strict=True)
        )
        rows = [row for of_method in made for row in of_method]
    if plan.request.seeds:
        _say_other_seeds(rows, plan.request.seeds)
    return rows


def _refuse_early(session: Session, waiting: Sequence[Job]) -> None:
    """Whatever does not fit is found before the first forward pass of the first method, not when its turn comes.

    waiting: the methods that have something to compute. Each is built for that and let go again, so that memory holds
    one network at a time; the first one is looked at when it is built for good. What building says is said then.
    """
    for job in waiting[1:]:
        with _silence(), session.runtime.clock.phase("check"):
            _todo(session, job, build(session, job))


@contextmanager
def _silence() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _say_other_seeds(rows: Sequence[Row], wanted: int) -> None:
    for seeds in {tuple(row.seeds) for row in rows if len(row.seeds) > wanted}:
        log.info("rows with more seeds than asked for were there already: figures are over seeds %s", list(seeds))


def _state_defaults(session: Session) -> None:
    """The first line of output: what was chosen where nothing was said."""
    plan, request, runtime = session.plan, session.plan.request, session.runtime
    presets = ", ".join(dict.fromkeys(_seeded_name(session, choice) for choice in plan.jobs[0].protocols))
    log.info(
        "%s %s: %d pictures, %d classes; %s; %s %s; rows in %s, cache in %s",
        plan.dataset.name, plan.split, len(plan.names), len(plan.dataset.classes), presets, runtime.device,
        runtime.precision, request.results, request.cache,
    )  # fmt: skip


def _seeded_name(session: Session, choice: ProtocolChoice) -> str:
    seeds = wanted_seeds(session, choice)
    return (
        f"{choice.card.name}:{choice.preset.name} ({f'seeds {seeds[0]} to {seeds[-1]}' if seeds[1:] else 'one seed'})"
    )


def open_session(plan: Plan, resources: ExitStack) -> Session:
    """What the command shares; `resources` holds what has to be removed when it ends."""
    request = plan.request
    device = usable_device(request.device)
    runtime = Runtime(
        device=device,
        precision=request.precision,
        batch_size=request.batch_size,
        workers=request.workers if request.workers >= 0 else (8 if device.startswith("cuda") else 1),
        clock=Clock(),
        track=track,
    )
    return Session(plan, runtime, Store(request.results), Cache(request.cache), resources)


def _evaluate_method(session: Session, job: Job) -> Iterator[Row]:
    with session.runtime.clock.phase("build"):
        built = build(session, job)
    for choice, work, variant in _todo(session, job, built):
        row = _evaluate_row(session, job, built, work, choice, variant)
        if (
            session.plan.request.save_predictions
            and not distributed.rank()
            and not predictions.are_saved(row, session.plan.names)
        ):
            predictions.save(row, session.store, work, choice, variant.settings)
        yield row


def _todo(session: Session, job: Job, built: Built) -> list[tuple[ProtocolChoice, MethodWork, Variant]]:
    """The rows of a method, in order; whatever does not fit is found here, before the first forward pass."""
    works: dict[InputSettings, MethodWork] = {}
    todo = []
    for choice in job.protocols:
        inputs = inputs_of(job, choice, built)
        if inputs not in works:
            works[inputs] = MethodWork(session, job, built, inputs)
        work = works[inputs]
        work.check(choice)
        variants = choice.variants(session.scope(work, choice.settings))
        todo += [(choice, work, variant) for variant in variants]
    return todo


def inputs_of(job: Job, choice: ProtocolChoice, built: Built) -> InputSettings:
    """The part of a protocol's settings that decides the maps: protocols that agree on it share them."""
    settings, tap = choice.settings, _tap(job, choice, built)
    return InputSettings(size=settings.size, interpolation=settings.interpolation, tap=tap, dtype=settings.dtype)


def _tap(job: Job, choice: ProtocolChoice, built: Built | None) -> str:
    """The map that a protocol reads; what the card says of it where the method is not built."""
    named: str = choice.settings.tap or job.card.tap_for(choice.card)
    return named or (tap_for(built.adapter, choice.card) if built else job.card.default_tap)


def wanted_seeds(session: Session, choice: ProtocolChoice, variant: Variant | None = None) -> tuple[int, ...]:
    """`--seeds` seeds from `--seed` on, or as many as the protocol has; one where nothing depends on them."""
    request, card = session.plan.request, choice.card
    seeded = card.seeded and (variant is None or variant.seeded)
    return tuple(range(request.seed, request.seed + ((request.seeds or card.seeds) if seeded else 1)))


def _finished(session: Session, job: Job) -> list[Row] | None:
    """The job's rows when the store has all of them with the seeds that are wanted; the network is not built then.

    With `--save-predictions` those must lie beside the rows too.
    """
    request = session.plan.request
    if request.again or _is_known_only_when_built(job):
        return None
    rows = []
    for choice in job.protocols:
        for variant in choice.variants(session.scope()):
            row = stored_row(session, job, choice, variant)
            if row is None or not set(wanted_seeds(session, choice, variant)) <= set(row.seeds):
                return None
            if request.save_predictions and not predictions.are_saved(row, session.plan.names):
                return None
            rows.append(row)
    return rows


def _is_known_only_when_built(job: Job) -> bool:
    """Weights that a user's code or another library brings have no hash before they are in the network."""
    return job.card.file is not None or job.checkpoint.kind == "pretrained"


def stored_row(
    session: Session, job: Job, choice: ProtocolChoice, variant: Variant, built: Built | None = None
) -> Row | None:
    """The row of this run with most seeds, or None."""
    return session.store.find(run_key(describe_run(session, job, choice, variant, built)))


def describe_run(
    session: Session, job: Job, choice: ProtocolChoice, variant: Variant, built: Built | None = None
) -> dict[str, Any]:
    """The run of a row: everything that decides its figures but the seeds. Its hash is the row's key."""
    plan = session.plan
    checkpoint = {**job.checkpoint.identity, **job.read_as}
    if built and _is_known_only_when_built(job):
        checkpoint["weights"] = [built.weights_sha256, built.adapter.fingerprint]
    settings = deciding(variant.settings)
    del settings["tap"]
    tap = _tap(job, choice, built)
    return {
        "method": job.name,
        "method_version": job.card.version_of(tap),
        "options": asdict(job.options),
        "checkpoint": checkpoint,
        "tap": tap,
        "protocol": choice.card.name,
        "protocol_version": choice.card.version,
        "preset": choice.preset.name,
        "preset_version": choice.preset.version,
        "settings": settings,
        "dataset": {
            "name": plan.dataset.name,
            "split": plan.split,
            "fingerprint": session.fingerprint(plan.split, labels=True),
            "pictures": len(plan.names),
            "classes": list(plan.dataset.classes),
            "background": plan.dataset.background,
            "limit": plan.limit,
            **_read_beside(session, variant.settings),
        },
        "precision": session.runtime.precision,
    }


def _read_beside(session: Session, settings: InputSettings) -> dict[str, Any]:
    """What else of the data set the figures depend on: the train split, and mask files."""
    dataset, names = session.plan.dataset, session.plan.names
    found: dict[str, dict[str, Any]] = {}
    needs = settings.reads_of_train
    if needs != "nothing":
        split = dataset.train_split
        found["train"] = {"split": split, "fingerprint": session.fingerprint(split, labels=needs == "labels")}
        overlap = session.plan.overlap
        if overlap and overlap.names:
            found["train"]["overlap"] = len(overlap.names)
        names += session.names(split)
    masks = mask_set(getattr(settings, "foreground", "none"))
    if masks:
        found["masks"] = {"set": masks, "fingerprint": session.mask_fingerprint(tuple(names), masks)}
    return found


def _evaluate_row(
    session: Session, job: Job, built: Built, work: MethodWork, choice: ProtocolChoice, variant: Variant
) -> Row:
    """Compute the seeds that are missing, score them, and save the row."""
    stored = stored_row(session, job, choice, variant, built)
    missing = list(wanted_seeds(session, choice, variant))
    if stored is not None and (session.plan.request.again or not built.reusable):
        # the row with most seeds is the one that is read: fewer new ones would stay in its shadow
        missing, stored = sorted({*missing, *stored.seeds}), None
    elif stored is not None and stored.rescored and not set(missing) <= set(stored.seeds):
        missing, stored = sorted({*missing, *stored.seeds}), None  # figures of two scorings do not mix
    elif stored is not None:
        missing = [seed for seed in missing if seed not in stored.seeds]
    if stored is not None and not missing:
        return stored
    run = describe_run(session, job, choice, variant, built)
    work.row_key, work.protocol = run_key(run), choice.card.name
    for note in variant.notes:
        work.say(note)
    data_notes = _data_notes(session, work, variant.settings)
    work.read_masks(variant.settings)
    protocol = registry.load(choice.card.run)
    per_seed = list(stored.per_seed) if stored else []
    arrays = dict(session.store.arrays(stored)) if stored else {}
    notes = [*data_notes, *variant.notes, *(stored.notes if stored else ())]
    for seed in missing:
        outcome: Outcome = protocol(work, variant.settings, seed)
        with session.runtime.clock.phase("score"):
            per_seed.append(_score(session, work, outcome, variant.settings, seed))
        arrays |= _arrays(work, outcome, seed, first=len(per_seed) == 1)
        notes += outcome.notes
    row = Row.of(
        run,
        per_seed,
        headline={"rule": variant.headline or choice.card.headline, "metric": "miou"},
        notes=list(dict.fromkeys(notes)),
        provenance={
            **provenance(session.runtime.device, session.runtime.precision),
            "weights_sha256": built.weights_sha256,
            "weights_account": getattr(built.adapter, "account", {}),
            "map": [asdict(built.adapter.taps[name]) for name in outcome.read or work.taps],
            **({"earlier": stored.provenance} if stored else {}),
        },
        seconds=session.runtime.clock.take(),
        peak_memory_bytes=peak_memory(),
    )
    saved = replace(row, path=on_rank_0(lambda: session.store.save(row, arrays)))
    if not distributed.rank():
        for seed in missing:
            fitting.forget_checkpoints(work.training_folder(seed))
    return saved


def _data_notes(session: Session, work: MethodWork, settings: InputSettings) -> list[str]:
    """What a figure must not be read without of the data set: pictures in both splits, and classes without a pixel."""
    overlap = session.plan.overlap_of(settings)
    notes = list(overlap.notes if overlap else ())
    absent = occurrence(work.class_names, work.occurring())
    if absent:
        notes.append(f"{session.plan.split}: {absent}")
        session.say(notes[-1])
    return notes


def _score(session: Session, work: MethodWork, outcome: Outcome, settings: Any, seed: int) -> dict[str, Any]:
    """Every convention and floor from one seed's counts."""
    plan, lists = session.plan, work.take_lists()
    about: dict[str, Any] = {
        "names": plan.names,
        "background": plan.dataset.background,
        "seed": seed,
        "given": outcome.given,
        "exchanged": work.exchanged(outcome, settings),
    }
    if outcome.matched is None:
        scores = metrics.evaluate(outcome.counts, **about)
    else:
        scores = metrics.evaluate_predictions(outcome.counts, outcome.matched, among=outcome.among, **about)
    if scores["void_pictures"] == len(plan.names):
        raise DatasetError(
            f"the label maps of {plan.split!r} of {plan.dataset.name} hold nothing but void (255): nothing can be "
            "scored; choose another --split or correct the maps"
        )
    named = {"lists": lists} if lists else {}
    return {"seed": seed, **named, **outcome.facts, **scores}


def _arrays(work: MethodWork, outcome: Outcome, seed: int, *, first: bool) -> dict[str, NDArray[Any]]:
    """What is kept beside a row: counts and centroids of every seed, the assignments of the first.

    The assignments of the other seeds follow from their centroids, at a fiftieth of the size.
    """
    counts = outcome.counts
    table = np.stack([counts.picture, counts.cluster, counts.label, counts.pixels], axis=1).astype(np.int32)
    kept: dict[str, NDArray[Any]] = {f"seed{seed}_counts": table}
    kept |= {f"seed{seed}_{name}": array for name, array in outcome.arrays.items()}
    kept |= outcome.shared
    if first and outcome.assignments is not None:
        kept["assignments"] = np.concatenate([ids.ravel() for ids in outcome.assignments])
        kept["grids"] = np.array([ids.shape for ids in outcome.assignments], np.int32)
        kept["names"] = np.array(work.maps("eval").names)
    return kept
