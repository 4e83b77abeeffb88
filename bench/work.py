"""What a command shares, and what a protocol is handed: the maps of one method and the services around them."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench import foregrounds, registry, weights
from bench.cache import Cache, record_key
from bench.contracts import Adapter, Scope
from bench.errors import MismatchError, SettingError, StorageError
from bench.features import Runtime, SplitMaps
from bench.labels import CellLabels
from bench.metrics import Counts
from bench.objects import Objects
from bench.plan import Job, Plan, ProtocolChoice
from bench.progress import progress, track
from bench.records import AdapterRequest
from bench.settings import InputSettings, ObjectSettings, mask_set
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
    mask_fingerprints: dict[tuple[tuple[str, ...], str], str] = field(default_factory=dict)

    def fingerprint(self, split: str, *, labels: bool) -> str:
        """Content hash of a split's pictures (and labels), computed once."""
        key = (split, labels)
        if key not in self.fingerprints:
            with self.runtime.clock.phase("fingerprint"):
                self.fingerprints[key] = self.plan.dataset.fingerprint(self.names(split), labels=labels)
        return self.fingerprints[key]

    def mask_fingerprint(self, names: tuple[str, ...], masks: str) -> str:
        """Content hash of the files of a mask set, computed once."""
        key = (names, masks)
        if key not in self.mask_fingerprints:
            with self.runtime.clock.phase("fingerprint"):
                self.mask_fingerprints[key] = self.plan.dataset.mask_fingerprint(names, masks)
        return self.mask_fingerprints[key]

    def names(self, split: str) -> tuple[str, ...]:
        """The pictures of a split, cut to `--limit`."""
        if split == self.plan.split:
            return self.plan.names
        return self.plan.dataset.names(split)[: self.plan.request.limit]

    def scope(self, work: MethodWork | None = None) -> Scope:
        """What protocols may know before the first forward pass; `work` is None while the method is not built."""
        dataset = self.plan.dataset
        return Scope(
            classes=len(dataset.classes),
            device=self.runtime.device,
            vectors=None if work is None else work.maps("eval").vectors,
            pictures=len(self.plan.names),
            foreground=None if work is None else work.foreground,
            background=dataset.background is not None,
        )


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
        self.method_name = job.name
        self.tap = inputs.tap or built.adapter.default_tap
        if self.tap not in built.adapter.taps:
            known = ", ".join(built.adapter.taps)
            raise SettingError(
                f"{job.name} has no map {self.tap!r}.{registry.near(self.tap, built.adapter.taps)} Its maps: {known}"
            )
        dataset = session.plan.dataset
        self.classes, self.class_names = len(dataset.classes), tuple(dataset.classes)
        self.background = dataset.background
        self.device = session.runtime.device
        logits = [tap.name for tap in built.adapter.taps.values() if tap.kind == "foreground_logit"]
        self.foreground = bool(logits)
        self._taps = tuple(dict.fromkeys((self.tap, *logits[:1])))
        self._objects: dict[tuple[object, ...], Objects] = {}
        self._maps: dict[str, SplitMaps] = {}
        self._labels: CellLabels | None = None
        self._cells: dict[tuple[object, ...], list[NDArray[np.bool_]]] = {}
        self._inside: dict[tuple[object, ...], CellLabels] = {}
        self._kept: dict[str, Mapping[str, NDArray[Any]]] = {}
        self._recent: dict[str, Mapping[str, NDArray[Any]]] = {}
        self._said: set[str] = set()
        self._opened: set[tuple[str, str]] = set()

    def maps(self, split: str = "eval") -> SplitMaps:
        plan = self._session.plan
        name = {"eval": plan.split, "train": plan.dataset.train_split}[split]
        if name not in self._maps:
            self._maps[name] = SplitMaps(
                self._built.adapter,
                plan.dataset,
                self._session.names(name),
                taps=self._taps,
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
            "taps": [asdict(adapter.taps[name]) for name in self._taps],
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
        """MismatchError when the protocol cannot score this map, or needs a foreground that nobody gives."""
        kind = self._built.adapter.taps[self.tap].kind
        if kind not in choice.card.kinds:
            raise MismatchError(
                f"{choice.card.name} scores maps of kind {' or '.join(choice.card.kinds)}, but {self.tap!r} of "
                f"{self._job.name} is a {kind}: choose another map with --set {choice.card.name}.tap=NAME"
            )
        plan = self._session.plan
        if choice.settings.reads_of_train == "labels" and plan.split == plan.dataset.train_split:
            raise MismatchError(
                f"{choice.card.name} learns from the split {plan.split}, which is the one to be scored: choose another "
                "with --split"
            )
        self._check_foreground(choice)

    def _check_foreground(self, choice: ProtocolChoice) -> None:
        source = getattr(choice.settings, "foreground", "none")
        if not self.foreground and (source == "adapter" or (source == "auto" and choice.card.needs_objects)):
            sets = ", ".join(self._session.plan.dataset.mask_sets()) or "none here"
            raise MismatchError(
                f"{self._job.name} gives no foreground of its own, which {choice.card.name} needs: give mask files "
                f"with --set {choice.card.name}.foreground=masks:NAME (mask sets: {sets})"
            )
        if source == "none" and choice.card.needs_objects:
            raise MismatchError(
                f"{choice.card.name} needs a foreground: drop --set {choice.card.name}.foreground=none, or name masks"
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

    def count(
        self,
        assignments: Sequence[NDArray[np.integer[Any]]],
        clusters: int,
        *,
        inside: ObjectSettings | None = None,
    ) -> Counts:
        labels = self.read_labels() if inside is None else self._labels_inside(inside)
        if inside is not None:
            assignments = [np.append(ids, 0) for ids in assignments]
        with self._session.runtime.clock.phase("count"):
            return labels.count(assignments, clusters)

    def cells(self, split: str, inside: ObjectSettings) -> list[NDArray[np.bool_]]:
        key = (split, inside.foreground, inside.threshold)
        if key not in self._cells:
            self._cells[key] = foregrounds.cells(self._session.plan.dataset, self.maps(split), inside)
        return self._cells[key]

    def _labels_inside(self, how: ObjectSettings) -> CellLabels:
        """As `read_labels`, with what is outside the foreground as a cell of its own."""
        key = (how.foreground, how.threshold)
        if key not in self._inside:
            maps = self.maps("eval")
            self._inside[key] = CellLabels.read(self._session.plan.dataset, maps, maps.names, self.masks(how))
        return self._inside[key]

    def read_labels(self) -> CellLabels:
        """The labels of the scored split by cell, read once; a broken mask is found before any forward pass."""
        if self._labels is None:
            with self._session.runtime.clock.phase("labels"):
                maps = self.maps("eval")
                names = track(maps.names, len(maps.names), "labels")
                self._labels = CellLabels.read(self._session.plan.dataset, maps, names)
        return self._labels

    def objects(self, split: str, how: ObjectSettings, *, labels: bool = True) -> Objects:
        key = (split, how.foreground, how.threshold, how.pooling)
        found = self._objects.get(key)
        if found is None or (labels and found.pixels is None):
            dataset = self._session.plan.dataset
            found = foregrounds.collect(dataset, self.maps(split), how, label=dataset.label if labels else None)
            self._objects[key] = found
        return found

    def masks(self, how: ObjectSettings) -> Iterator[NDArray[np.bool_]]:
        """The foreground of every scored picture at its own size, bool (H, W)."""
        return foregrounds.masks(self._session.plan.dataset, self.maps("eval"), how)

    def read_masks(self, settings: InputSettings) -> None:
        """Open every mask file that the settings name, once, so that a broken one is found before any forward pass."""
        wanted = mask_set(getattr(settings, "foreground", "none"))
        if not wanted:
            return
        dataset = self._session.plan.dataset
        for split in ("eval", "train") if settings.reads_of_train != "nothing" else ("eval",):
            if (split, wanted) in self._opened:
                continue
            names = self.maps(split).names
            with self._session.runtime.clock.phase("masks"):
                for name in track(names, len(names), "masks"):
                    dataset.mask(name, wanted)
            self._opened.add((split, wanted))

    def say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            log.info("%s: %s", self._job.name, text)

    def progress(self, total: int, what: str) -> AbstractContextManager[Callable[[int], None]]:
        return progress(total, f"{self._job.name}: {what}")
