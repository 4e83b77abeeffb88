"""What a command shares, and what a protocol is handed: the maps of one method and the services around them."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench import registry, weights
from bench.cache import Cache, record_key
from bench.contracts import Adapter, Scope
from bench.errors import MismatchError, SettingError, StorageError
from bench.features import Runtime, SplitMaps
from bench.labels import CellLabels
from bench.metrics import Counts
from bench.plan import Job, Plan, ProtocolChoice
from bench.progress import progress, track
from bench.records import AdapterRequest
from bench.settings import InputSettings
from bench.store import Store

__all__ = ["Built", "MethodWork", "Session", "build"]

log = logging.getLogger(__name__)

_RECENT = 128 << 20
"""Bytes of clusterings kept for the other protocols of a command."""


@dataclass(slots=True)
class Session:
    """What one command shares: runtime, store, cache, fingerprints."""

    plan: Plan
    runtime: Runtime
    store: Store
    cache: Cache
    resources: ExitStack
    fingerprints: dict[tuple[str, bool], str] = field(default_factory=dict)

    def fingerprint(self, split: str, *, labels: bool) -> str:
        """Content hash of a split's pictures (and labels), computed once."""
        key = (split, labels)
        if key not in self.fingerprints:
            with self.runtime.clock.phase("fingerprint"):
                self.fingerprints[key] = self.plan.dataset.fingerprint(self.names(split), labels=labels)
        return self.fingerprints[key]

    def names(self, split: str) -> tuple[str, ...]:
        """The pictures of a split, cut to `--limit`."""
        if split == self.plan.split:
            return self.plan.names
        return self.plan.dataset.names(split)[: self.plan.request.limit]

    def identify(self, split: str) -> dict[str, Any]:
        """What a row says of a split that is read beside the scored one."""
        return {"split": split, "pictures": len(self.names(split)), "fingerprint": self.fingerprint(split, labels=True)}

    def scope(self, vectors: int | None) -> Scope:
        """What protocols may know before the first forward pass."""
        return Scope(classes=len(self.plan.dataset.classes), device=self.runtime.device, vectors=vectors)


@dataclass(slots=True)
class Built:
    """A method that was built: its adapter, the identity of its weights, and the cache its maps go to."""

    adapter: Adapter
    weights_sha256: str
    cache: Cache
    reusable: bool


def build(session: Session, job: Job) -> Built:
    """Build the method, move it to the device and hash the weights it really holds."""
    request = AdapterRequest(
        card=job.card,
        checkpoint=job.checkpoint,
        argument=job.argument,
        options=job.options,
        classes=len(session.plan.dataset.classes),
    )
    adapter = registry.load(job.card.factory)(request)
    sha256 = ""
    if isinstance(adapter, torch.nn.Module):
        sha256 = weights.state_sha256(adapter)
        adapter.eval().requires_grad_(False).to(session.runtime.device)
        if all(parameter.dim() < 5 for parameter in adapter.parameters()):
            adapter.to(memory_format=torch.channels_last)
    reusable = not job.card.file or bool(adapter.fingerprint)
    cache = session.cache if reusable else _command_cache(session)
    return Built(adapter, sha256, cache, reusable)


def _command_cache(session: Session) -> Cache:
    """A cache that ends with the command, for methods whose code nobody can fingerprint."""
    root = session.cache.entries_root
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = session.resources.enter_context(tempfile.TemporaryDirectory(dir=root, prefix=".command-"))
    except OSError as error:
        raise StorageError(
            f"the cache folder {root} cannot be written ({error}): set DENSEBENCH_CACHE or --cache"
        ) from error
    return Cache(Path(folder))


class MethodWork:
    """What a protocol is handed (`bench.contracts.Work`): the maps of one tap at one input size, and services."""

    def __init__(self, session: Session, job: Job, built: Built, inputs: InputSettings) -> None:
        self._session, self._job, self._built, self._inputs = session, job, built, inputs
        self.tap = inputs.tap or built.adapter.default_tap
        if self.tap not in built.adapter.taps:
            known = ", ".join(built.adapter.taps)
            raise SettingError(
                f"{job.name} has no map {self.tap!r}.{registry.near(self.tap, built.adapter.taps)} Its maps: {known}"
            )
        self.classes = len(session.plan.dataset.classes)
        self.background = session.plan.dataset.background
        self.device = session.runtime.device
        self._maps: dict[str, SplitMaps] = {}
        self._labels: CellLabels | None = None
        self._kept: dict[str, Mapping[str, NDArray[Any]]] = {}
        self._recent: dict[str, Mapping[str, NDArray[Any]]] = {}
        self._said: set[str] = set()

    def maps(self, split: str = "eval") -> SplitMaps:
        plan = self._session.plan
        name = {"eval": plan.split, "train": plan.dataset.train_split}[split]
        if name not in self._maps:
            self._maps[name] = SplitMaps(
                self._built.adapter,
                plan.dataset,
                self._session.names(name),
                tap=self.tap,
                inputs=self._inputs,
                runtime=self._session.runtime,
                cache=self._built.cache,
                record=self._maps_record(name),
                cheap=not (self._job.card.trainable or self._job.card.file),
                user_code=self._job.card.file is not None,
            )
        return self._maps[name]

    def _maps_record(self, split: str) -> dict[str, Any]:
        """Everything that changes the maps."""
        session, adapter = self._session, self._built.adapter
        return {
            "stage": "maps",
            "method": [self._job.name, self._job.card.version, asdict(self._job.options), adapter.fingerprint],
            "file": self._job.card.file_sha256,
            "weights": self._built.weights_sha256,
            "tap": asdict(adapter.taps[self.tap]),
            "pictures": session.fingerprint(split, labels=adapter.needs_labels),
            "inputs": [self._inputs.size, self._inputs.interpolation, self._inputs.dtype, adapter.pad_to],
            "runtime": [
                session.runtime.device.partition(":")[0],
                session.runtime.precision,
                session.runtime.batch_size,
            ],
            "versions": {
                name: metadata.version(name) for name in ("densebench", "torch", "torchvision", "timm", "pillow")
            },
        }

    def check(self, choice: ProtocolChoice) -> None:
        """MismatchError when the protocol cannot score this map."""
        kind = self._built.adapter.taps[self.tap].kind
        if kind not in choice.card.kinds:
            raise MismatchError(
                f"{choice.card.name} scores maps of kind {' or '.join(choice.card.kinds)}, but {self.tap!r} of "
                f"{self._job.name} is a {kind}: choose another map with --set {choice.card.name}.tap=NAME"
            )

    def remember(
        self, record: Mapping[str, Any], compute: Callable[[], dict[str, NDArray[Any]]], *, keep: bool
    ) -> Mapping[str, NDArray[Any]]:
        splits = [self.maps("eval").key] + ([self.maps("train").key] if record.get("fit") == "train" else [])
        full = {
            "maps": splits,
            "versions": {n: metadata.version(n) for n in ("densebench", "numpy", "scipy")},
            **record,
        }
        key = record_key(full)
        for shelf in (self._kept, self._recent):
            if key in shelf:
                return shelf[key]
        clock, stage = self._session.runtime.clock, str(record.get("stage", "protocol"))
        entry = self._built.cache.find(full) if keep else None
        if entry is not None:
            arrays: Mapping[str, NDArray[Any]] = {name: entry.array(name) for name in entry.arrays}
        else:
            with clock.phase(stage):
                arrays = compute()
            if keep:
                self._keep_on_disk(full, arrays)
        (self._kept if keep else self._recent)[key] = arrays
        while (
            sum(a.nbytes for shelf in self._recent.values() for a in shelf.values()) > _RECENT and len(self._recent) > 1
        ):
            self._recent.pop(next(iter(self._recent)))
        return arrays

    def _keep_on_disk(self, record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        cache = self._built.cache
        if not cache.room_for(sum(array.nbytes for array in arrays.values())):
            return
        try:
            writer = cache.writer(record)
        except OSError as error:
            log.warning("the cache %s cannot be written (%s): going on without it", cache.root, error)
            return
        try:
            for name, array in arrays.items():
                writer.append(name, array)
            writer.commit()
        except OSError as error:
            log.warning("the cache %s cannot be written (%s): going on without it", cache.root, error)
            writer.drop()

    def count(self, assignments: Sequence[NDArray[np.integer[Any]]], clusters: int) -> Counts:
        labels = self.read_labels()
        with self._session.runtime.clock.phase("count"):
            return labels.count(assignments, clusters)

    def read_labels(self) -> CellLabels:
        """The labels of the scored split by cell, read once; a broken mask is found before any forward pass."""
        if self._labels is None:
            with self._session.runtime.clock.phase("labels"):
                maps = self.maps("eval")
                names = track(maps.names, len(maps.names), "labels")
                self._labels = CellLabels.read(self._session.plan.dataset, maps, names)
        return self._labels

    def say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            log.info("%s: %s", self._job.name, text)

    def progress(self, total: int, what: str) -> AbstractContextManager[Callable[[int], None]]:
        return progress(total, f"{self._job.name}: {what}")
