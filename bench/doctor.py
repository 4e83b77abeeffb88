"""`bench doctor`: everything is opened for real, and each finding names its fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.errors import InputError

__all__ = ["Finding", "examine"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    fine: bool
    text: str


def examine(
    dataset: str | None, methods: tuple[str, ...], device: str, results: Path, cache: Path
) -> Iterator[Finding]:
    """Libraries, device, folders, the data set's every file, and for each method its weights and one forward pass."""
    yield from _libraries()
    yield from _guard(_device(device))
    yield from _guard(_folders(results, cache))
    yield from _guard(_dataset(dataset))
    for method in methods:
        yield from _guard(_method(method, dataset, device, results, cache))


def _guard(findings: Iterator[Finding]) -> Iterator[Finding]:
    """The findings; an InputError is one more, and the last."""
    try:
        yield from findings
    except InputError as error:
        yield Finding(False, str(error))


def _libraries() -> Iterator[Finding]:
    from bench.cluster import faiss_available
    from bench.store import provenance

    versions = provenance("cpu", "fp32")["libraries"]
    yield Finding(True, "libraries: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    if not faiss_available():
        yield Finding(False, "faiss is not installed: pip install 'densebench[cpu]' or 'densebench[gpu]'")


def _device(wanted: str) -> Iterator[Finding]:
    import torch

    from bench.processes import usable_device

    yield Finding(True, f"device: {usable_device(wanted)}, {torch.get_num_threads()} threads")


def _folders(results: Path, cache: Path) -> Iterator[Finding]:
    from bench.cache import Cache
    from bench.store import Store

    Store(results).check_writable()
    yield Finding(True, f"rows can be written to {results}")
    yield Finding(True, f"cache {cache}: {Cache(cache).free() / 1e9:.1f} GB of disk free")


def _dataset(name: str | None) -> Iterator[Finding]:
    from bench.datasets import default_dataset, open_dataset
    from bench.progress import track

    found = open_dataset(name or default_dataset())
    for split in found.splits():
        names = found.names(split)
        problems = list(track(found.check(split), len(names), f"{found.name} {split}"))
        for problem in problems:
            yield Finding(False, problem)
        if not problems:
            seen = f"{len(names)} pictures and their masks opened, {len(found.classes)} classes"
            yield Finding(True, f"{found.name} {split}: {seen}")


def _method(spec: str, dataset: str | None, device: str, results: Path, cache: Path) -> Iterator[Finding]:
    from bench.datasets import default_dataset
    from bench.evaluate import inputs_of, open_session
    from bench.plan import Request, make_plan
    from bench.work import MethodWork, build

    request = Request(
        methods=(spec,),
        protocols=("kmeans",),
        dataset=dataset or default_dataset(),
        device=device,
        limit=1,
        results=results,
        cache=cache,
    )
    with ExitStack() as resources:
        plan = make_plan(request)
        session = open_session(plan, resources)
        job = plan.jobs[0]
        built = build(session, job)
        work = MethodWork(session, job, built, inputs_of(job, job.protocols[0], built))
        maps = work.maps("eval")
        for _ in maps.compute():
            pass
        seen = f"map {work.tap} of {plan.names[0]} is {maps.grids[0]} × {maps.channels}"
        yield Finding(True, f"{spec}: weights loaded, {seen}")
