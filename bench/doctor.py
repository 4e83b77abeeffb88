"""`bench doctor`: everything is opened for real, and each finding names its fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import InputError

if TYPE_CHECKING:
    from bench.contracts import Dataset

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
    from bench.datasets.folder import occurrence
    from bench.progress import track

    found = open_dataset(name or default_dataset())
    found.check_classes()
    for split in found.splits():
        names, seen = found.names(split), set[int]()
        problems = list(track(found.check(split, occurring=seen), len(names), f"{found.name} {split}"))
        for problem in problems:
            yield Finding(False, problem)
        for masks in found.mask_sets():
            if empty := found.without_foreground(names, masks):
                told = f"{len(empty)} of {len(names)} pictures are all background in the masks {masks}"
                yield Finding(True, f"{found.name} {split}: {told}")
        if not problems:
            absent = occurrence(found.classes, seen) if found.has_labels else ""
            opened = f"{len(names)} pictures and their masks opened, {len(found.classes)} classes"
            yield Finding(True, f"{found.name} {split}: {opened}{absent and f'; {absent}'}")
    if found.train_split in found.splits() and found.train_split != found.eval_split:
        yield from _overlap(found)


def _overlap(dataset: Dataset) -> Iterator[Finding]:
    """Pictures that are learnt from and scored."""
    from bench.plan import find_overlap

    overlap = find_overlap(dataset, dataset.eval_split)
    if overlap.names:
        yield Finding(False, f"{dataset.name}: {overlap.refusal}")
    if overlap.twins:
        yield Finding(False, f"{dataset.name}: {overlap.twinned}; take them off one of the two lists")


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
