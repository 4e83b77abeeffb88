"""What a command shares, and what a protocol is handed: the maps of one method and the services around them."""

from __future__ import annotations

import copy
import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from bench import dense, fitting, foregrounds, registry, weights
from bench.cache import Cache, code_digest, folder_of, record_key
from bench.contracts import Adapter, Dataset, Learner, Lessons, Maps, Outcome, Predicted, Scope, Scores
from bench.errors import CheckpointError, MismatchError, SettingError, StorageError
from bench.exchange import Exchange
from bench.features import Runtime, SplitMaps, pictures_at_once
from bench.files import write_atomic
from bench.images import cell_index
from bench.labels import CellLabels, LabelPixels, count_cells
from bench.metrics import Counts, count_pixels
from bench.objects import Objects
from bench.packed import PackedMaps
from bench.plan import Job, Plan, ProtocolChoice
from bench.processes import on_rank_0
from bench.progress import progress, track
from bench.records import IGNORE, AdapterRequest, ProtocolCard
from bench.runs import RunFolder
from bench.settings import SEARCH, InputSettings, ObjectSettings, mask_set
from bench.store import Store, arrays_of

__all__ = ["Built", "MethodWork", "Session", "build", "tap_for"]

log = logging.getLogger(__name__)

_MAKE_MAPS = ("bench.features", "bench.dense", "bench.images", "bench.backbone", "bench.networks.*", "bench.datasets.*")
"""Whose code decides maps, beside the method's own: that of pictures, sizes and networks."""

_MAKE_VECTORS = ("bench.cluster", "bench.distinct", "bench.foregrounds", "bench.objects", "bench.neighbours")
"""Whose code decides what protocols keep of maps, beside their own."""

_OTHER_RESULTS = "choose another folder with --results"
_THREADS = 8
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
    said: set[str] = field(default_factory=set)

    def say(self, text: str) -> None:
        """Say something of the data set, once in a command."""
        if text not in self.said:
            self.said.add(text)
            log.info("%s: %s", self.plan.dataset.name, text)

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

    def scope(self, work: MethodWork | None = None, settings: InputSettings | None = None) -> Scope:
        """What protocols may know before the first forward pass; `work` is None while the method is not built.

        settings: of the protocol that asks, where it may read the train split.
        """
        dataset = self.plan.dataset
        trains = dataset.train_split in dataset.splits()
        reads = trains and settings is not None and settings.reads_of_train != "nothing"
        return Scope(
            classes=len(dataset.classes),
            device=self.runtime.device,
            vectors=None if work is None else work.fewest_vectors,
            pictures=len(self.plan.names),
            foreground=None if work is None else work.foreground,
            background=dataset.background is not None,
            train=len(self.names(dataset.train_split)) if trains else None,
            train_split=dataset.train_split,
            train_vectors=work.maps("train").vectors if work and reads else None,
            channels=None if work is None else work.maps("eval").channels,
            own_clusters=None if work is None else work.own_clusters,
            decoder_tap=None if work is None else getattr(work.network, "decoder_tap", ""),
            classifier=None if work is None else work.classifier,
            parameters=None if work is None else has_parameters(work.network),
            method="" if work is None else work.method_name,
        )


def has_parameters(network: Adapter) -> bool:
    """Whether there is something to train."""
    return isinstance(network, torch.nn.Module) and any(True for _ in network.parameters())


def feature_taps(network: Adapter) -> tuple[str, ...]:
    """Names of the maps of features, in the network's order, each map once."""
    return tuple(tap.name for tap in network.taps.values() if tap.kind == "feature" and not tap.alias_of)


@dataclass(frozen=True, slots=True)
class LabelledPictures:
    """Pictures and labels of a split, readable in any process; implements `bench.contracts.Examples`."""

    dataset: Dataset
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Picture, uint8 RGB (H, W, 3), and label map, uint8 (H, W) with 255 = void."""
        return self.dataset.picture(self.names[index]), self.label(index)

    def label(self, index: int) -> NDArray[np.uint8]:
        """The label map alone."""
        return self.dataset.label(self.names[index])


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


def tap_for(adapter: Adapter, protocol: ProtocolCard) -> str:
    """The map that a protocol reads unless told otherwise: the default one, or the first of the kind it scores best."""
    if adapter.taps[adapter.default_tap].kind in protocol.kinds:
        return adapter.default_tap
    fitting = [name for kind in protocol.kinds for name, tap in adapter.taps.items() if tap.kind == kind]
    return fitting[0] if fitting else adapter.default_tap  # which is refused by name


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
        self.method_name, self.network = job.name, built.adapter
        self.tap = inputs.tap or built.adapter.default_tap
        self.taps = feature_taps(built.adapter) if self.tap == SEARCH else tuple(self.tap.split(","))
        for name in self.taps:
            if self.taps.count(name) > 1:
                raise SettingError(f"tap={self.tap} names {name!r} twice: name each map once")
            if name not in built.adapter.taps:
                known = ", ".join(built.adapter.taps)
                raise SettingError(
                    f"{job.name} has no map {name!r}.{registry.near(name, built.adapter.taps)} Its maps: {known}"
                )
        dataset = session.plan.dataset
        self.classes, self.class_names = len(dataset.classes), tuple(dataset.classes)
        self.background = dataset.background
        self.device, self.precision = session.runtime.device, session.runtime.precision
        self.kind: str = built.adapter.taps[self.taps[0]].kind
        logits = [tap.name for tap in built.adapter.taps.values() if tap.kind == "foreground_logit"]
        self.foreground = bool(logits)
        self._taps = tuple(dict.fromkeys((*self.taps, *logits[:1])))
        self._part: frozenset[int] | None = None
        self._whole: MethodWork | None = None
        self._said: set[str] = set()
        self.row_key = self.protocol = ""
        """Of the row that is being made: where what is learnt for it is kept meanwhile, and who learns it."""
        self._lists: dict[str, str] = {}
        self._begin()

    def _begin(self) -> None:
        """Nothing is known yet of the maps and labels that this work reads."""
        self._objects: dict[tuple[object, ...], Objects] = {}
        self._maps: dict[str, SplitMaps] = {}
        self._labels: CellLabels | None = None
        self._occurring: frozenset[int] | None = None
        self._exchange: Exchange | None = None
        self._cells: dict[tuple[object, ...], list[NDArray[np.bool_]]] = {}
        self._inside: dict[tuple[object, ...], CellLabels] = {}
        self._kept: dict[str, Mapping[str, NDArray[Any]]] = {}
        self._recent: dict[str, Mapping[str, NDArray[Any]]] = {}
        self._label_counts: dict[str, NDArray[np.int64]] = {}
        self._opened: set[tuple[str, str]] = set()
        self._narrower: dict[object, MethodWork] = {}

    @property
    def fewest_vectors(self) -> int:
        """Cells of the coarsest of the maps over the scored split."""
        return min(layout.vectors for layout in self.maps("eval").layouts[: len(self.taps)])

    def alone(self, which: int) -> MethodWork:
        """The same work with one of the taps alone. Its vectors leave memory when another is asked for."""
        if len(self.taps) == 1:
            return self
        if which not in self._narrower:
            twin = self._twin(which)
            twin.taps, twin.tap, twin._whole = (self.taps[which],), self.taps[which], self
            twin.kind = self._built.adapter.taps[twin.tap].kind
        for key, other in self._narrower.items():
            if key != which:
                other._kept.clear()
        return self._narrower[which]

    def part(self, pictures: Sequence[int]) -> MethodWork:
        """The same work on the train split: some of its pictures stand for the scored ones, the rest for the split."""
        if self._whole is not None:
            return self._whole.part(pictures).alone(self._whole.taps.index(self.tap))
        key = frozenset(pictures)
        if key not in self._narrower:
            self._twin(key)._part = key
        return self._narrower[key]

    def _twin(self, key: object) -> MethodWork:
        twin = self._narrower[key] = copy.copy(self)
        twin._begin()
        return twin

    @property
    def own_clusters(self) -> int | None:
        """K where the map holds probabilities of the network's own clusters, else None."""
        return self._built.adapter.taps[self.taps[0]].channels if self.kind == "cluster_prob" else None

    @property
    def classifier(self) -> int:
        """Classes that the method's own classifier knows, 0 where it brings none."""
        taps = self._built.adapter.taps.values()
        return next((tap.channels for tap in taps if tap.kind == "class_logit"), 0)

    def _split(self, split: str) -> str:
        plan = self._session.plan
        scored = plan.split if self._part is None else plan.dataset.train_split
        return {"eval": scored, "train": plan.dataset.train_split}[split]

    def _names(self, split: str) -> tuple[str, ...]:
        """The pictures of "eval" or "train"."""
        names = self._session.names(self._split(split))
        if self._part is None:
            return names
        return tuple(name for index, name in enumerate(names) if (index in self._part) == (split == "eval"))

    def maps(self, split: str = "eval") -> SplitMaps:
        """The maps of "eval" or "train"."""
        place = self._split(split) if self._part is None else split
        if place not in self._maps:
            self._maps[place] = self._all_taps(split) if self._whole is None else self._one_tap(split)
        return self._maps[place]

    def _one_tap(self, split: str) -> SplitMaps:
        assert self._whole is not None
        return self._whole.maps(split).alone(self._whole.taps.index(self.tap))

    def _all_taps(self, split: str) -> SplitMaps:
        return self._over(split, self._built.adapter, self._taps, self._maps_record(split))

    def _over(self, split: str, network: Adapter, taps: Sequence[str], record: Mapping[str, Any] | None) -> SplitMaps:
        """The maps of a network over "eval" or "train". record: see `SplitMaps`; without one they are not kept."""
        card = self._job.card
        return SplitMaps(
            network,
            self._session.plan.dataset,
            self._names(split),
            taps=taps,
            inputs=self._inputs,
            runtime=self._session.runtime,
            cache=self._built.cache,
            record=record,
            cheap=record is None or not (card.trainable or card.file),
            user_code=card.file is not None,
        )

    def forward(self, pictures: torch.Tensor, labels: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """The maps (B, h, w, D) of `taps` of some pictures, uint8 (B, 3, H, W), without gradients."""
        runtime, network = self._session.runtime, self.network
        at_once = pictures_at_once(runtime, (pictures.shape[2], pictures.shape[3]))
        found: list[tuple[torch.Tensor, ...]] = []
        with torch.no_grad(), torch.autocast(runtime.kind, torch.bfloat16, enabled=runtime.precision == "bf16"):
            for start in range(0, len(pictures), at_once):
                part = slice(start, start + at_once)
                inputs = network.preprocess(pictures[part].to(runtime.device, non_blocking=True))
                inputs = inputs.contiguous(memory_format=torch.channels_last)
                given = labels[part].to(runtime.device) if network.needs_labels and labels is not None else None
                maps = network(inputs, self.taps, labels=given)
                found.append(tuple(maps[name].permute(0, 2, 3, 1).contiguous() for name in self.taps))
        return tuple(torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*found, strict=True))

    def maps_by(self, network: Adapter, tap: str, split: str = "eval") -> SplitMaps:
        """The maps of another network over "eval" or "train", computed for every pass."""
        return self._over(split, network, (tap,), None)

    def examples(self, split: str = "train") -> LabelledPictures:
        """Pictures and labels of "train" or "eval"."""
        dataset, names = self._session.plan.dataset, self._names(split)
        return LabelledPictures(dataset, names, tuple(dataset.size(name) for name in names))

    def _maps_record(self, split: str) -> dict[str, Any]:
        """Everything that changes the maps."""
        session, adapter = self._session, self._built.adapter
        return {
            "stage": "maps",
            "method": [self._job.name, self._job.card.version, asdict(self._job.options), adapter.fingerprint],
            "file": self._job.card.file_sha256,
            "weights": self._built.weights_sha256,
            "taps": [asdict(adapter.taps[name]) for name in self._taps],
            "pictures": session.fingerprint(self._split(split), labels=adapter.needs_labels),
            **self._part_record(split),
            "inputs": [self._inputs.size, self._inputs.interpolation, self._inputs.dtype, adapter.pad_to],
            "runtime": [
                session.runtime.device.partition(":")[0],
                session.runtime.precision,
                session.runtime.batch_size,
            ],
            "code": code_digest(*_MAKE_MAPS, *(() if self._job.card.file else (folder_of(self._job.card.factory),))),
            "versions": {name: metadata.version(name) for name in ("torch", "torchvision", "timm", "pillow")},
        }

    def _part_record(self, split: str) -> dict[str, str]:
        """What tells a part of the train split from all of it."""
        if self._part is None:
            return {}
        return {"part": hashlib.sha256("\n".join(self._names(split)).encode()).hexdigest()}

    def check(self, choice: ProtocolChoice) -> None:
        """Refuse what does not fit before any forward pass.

        Raises MismatchError when the protocol cannot score this map, or needs a foreground that nobody gives, and
        whatever the network says of the size of its input and the store of a row whose head or network is named.
        """
        owner = choice.card.name
        for name in self.taps:
            kind = self._built.adapter.taps[name].kind
            if kind not in choice.card.kinds:
                raise MismatchError(
                    f"{owner} scores maps of kind {' or '.join(choice.card.kinds)}, but {name!r} of "
                    f"{self._job.name} is a {kind}: choose another map with --set {owner}.tap=NAME"
                )
        if len(self.taps) > 1 and not choice.card.layers:
            raise SettingError(f"{owner} reads one map, not {self.tap}: name one with --set {owner}.tap=NAME")
        kinds = {name: self._built.adapter.taps[name].kind for name in self.taps}
        if len(set(kinds.values())) > 1:
            shown = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            raise SettingError(f"{owner}.tap={self.tap} compares maps of one kind, and these are {shown}: name fewer")
        self._check_foreground(choice)
        self._check_inputs(choice.settings)
        for named in (getattr(choice.settings, "head", ""), getattr(choice.settings, "network", "")):
            if named.startswith("row:"):
                self.stored(named.removeprefix("row:"))

    def _check_inputs(self, settings: InputSettings) -> None:
        takes = getattr(self.network, "check_input", None)
        if takes is None:
            return
        pad_to = self.network.pad_to
        for split in ("eval", "train") if settings.reads_of_train != "nothing" else ("eval",):
            for size in dict.fromkeys(self.maps(split).extents):
                takes(tuple(side + -side % pad_to for side in size))

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

    @property
    def _protocol_run(self) -> str:
        """Where the code of the protocol lies that is being run."""
        run: str = registry.card("protocols", self.protocol).run if self.protocol else "bench.protocols.kmeans"
        return run

    def remember(
        self, record: Mapping[str, Any], compute: Callable[[], dict[str, NDArray[Any]]], *, keep: bool
    ) -> Mapping[str, NDArray[Any]]:
        splits = [self.maps("eval").key] + ([self.maps("train").key] if record.get("fit") == "train" else [])
        full = {
            "maps": splits,
            "code": code_digest(*_MAKE_VECTORS, folder_of(self._protocol_run)),
            "versions": {n: metadata.version(n) for n in ("numpy", "scipy")},
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
        if not self._built.cache.room_for(sum(array.nbytes for array in arrays.values())):
            return
        keeper = self._built.cache.keeper(record)
        for name, array in arrays.items():
            keeper.append(name, array)
        keeper.commit()

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

    def labels(self, split: str = "eval") -> Iterable[Sequence[NDArray[Any]]]:
        """Per picture (cell, label, pixels) of the pixels of each label in each cell; those of "train" as asked for."""
        return self.read_labels().pictures if split == "eval" else self._count_cells(self.maps(split))

    def _count_cells(self, maps: SplitMaps) -> Iterator[LabelPixels]:
        for index in range(len(maps.names)):
            with self._session.runtime.clock.phase("labels"):
                found = count_cells(self._session.plan.dataset, maps, index)
            yield found

    def label_counts(self, split: str = "train") -> NDArray[np.int64]:
        """Pixels of each class and, last, void, of every picture (pictures, classes + 1), read once."""
        if split not in self._label_counts:
            examples = self.examples(split)

            def count(index: int) -> NDArray[np.int64]:
                counts = np.bincount(examples.label(index).reshape(-1), minlength=IGNORE + 1)
                return np.append(counts[: self.classes], counts[IGNORE])

            with self._session.runtime.clock.phase("labels"), ThreadPoolExecutor(_THREADS) as pool:
                number = len(examples.names)
                self._label_counts[split] = np.stack(list(track(pool.map(count, range(number)), number, "labels")))
        return self._label_counts[split]

    def count_scores(
        self, maps: Maps, scores: Iterable[Scores], *, at: Literal["label", "input"] = "label"
    ) -> list[Predicted]:
        """What maps of class scores predict, one `Predicted` per head."""
        tables: list[list[NDArray[np.int64]]] = []
        packed: list[PackedMaps] = []
        for name, heads in zip(maps.names, self._decided(maps, scores, at), strict=True):
            with self._session.runtime.clock.phase("count"):
                label = self._session.plan.dataset.label(name)
                tables.append([count_pixels(ids, label, self.classes, self.classes) for ids in heads])
            packed = packed or [PackedMaps() for _ in heads]
            with self._session.runtime.clock.phase("exchange"):
                for ids, kept in zip(heads, packed, strict=True):
                    kept.append(ids)
        of_heads = zip(zip(*tables, strict=True), packed, strict=True)
        return [Predicted(counts=Counts.from_dense(list(own)), maps=kept) for own, kept in of_heads]

    def exchanged(self, outcome: Outcome, settings: Any) -> list[Counts]:
        """The counts of an outcome under the layouts of other pictures, one for each draw (see `bench.exchange`).

        settings: of the row; labels that do not count in the outcome are void here too.
        """
        painting = outcome.layout
        if painting is None:
            return []
        if len(self.taps) > 1:
            return self.alone(painting.which).exchanged(outcome, settings)
        if self._exchange is None:
            self._exchange = Exchange(self._session.plan.dataset, self.maps("eval"), self.read_labels)
        counts = outcome.counts
        with self._session.runtime.clock.phase("exchange"):
            if painting.around is None:
                found = self._exchange.counts(painting, counts.shape[1])
            else:
                how = settings.with_own_foreground
                key = (how.foreground, how.threshold)
                found = self._exchange.counts(painting, counts.shape[1], key, lambda: self._packed_masks(how))
            scored = np.asarray(counts.total().any(0), np.bool_)
            return [drawn.restricted(scored) for drawn in found]

    def _packed_masks(self, how: ObjectSettings) -> PackedMaps:
        """The foreground of every scored picture, from the pass that made its objects where there was one."""
        for (split, *foreground, _), objects in self._objects.items():
            if split == "eval" and foreground == [how.foreground, how.threshold] and objects.masks:
                return objects.masks
        return PackedMaps(mask.view(np.uint8) for mask in self.masks(how))

    def paint_scores(
        self, maps: Maps, scores: Iterable[Scores], *, at: Literal["label", "input"] = "label"
    ) -> Iterator[NDArray[np.uint8]]:
        """The class of every pixel (H, W) by the first head."""
        return (heads[0] for heads in self._decided(maps, scores, at))

    def _decided(self, maps: Maps, scores: Iterable[Scores], at: Literal["label", "input"]) -> Iterator[list[Any]]:
        """The class of every pixel of each picture by each head, uint8 (H, W)."""
        for index, of_picture in enumerate(scores):
            found: list[NDArray[np.uint8]] = []
            for which, logits in of_picture:
                ids = dense.argmax(logits, *maps.axes(index, which, at=at)).cpu().numpy()
                if at == "input":
                    sides = self._session.plan.dataset.size(maps.names[index])
                    rows, columns = (
                        cell_index(side, extent, extent, 1) for side, extent in zip(sides, ids.shape[1:], strict=True)
                    )
                    ids = ids[:, rows[:, None], columns[None, :]]
                found += list(ids)
            yield found

    def train(self, learner: Learner, optimizer: torch.optim.Optimizer, lessons: Lessons, seed: int) -> None:
        """Teach a learner, in a folder of its own below the results, where a killed run is taken up again."""
        runtime = self._session.runtime
        with runtime.clock.phase("train"):
            fitting.fit(
                learner,
                optimizer,
                lessons,
                folder=RunFolder(self.training_folder(seed), fix=_OTHER_RESULTS),
                rate=f"{self.protocol}.lr",
                facts={"method": self._job.name, "row": self.row_key, "precision": self.precision},
                device=self.device,
                workers=runtime.workers,
                seed=seed,
            )

    def training_folder(self, seed: int) -> Path:
        """Where the training for a seed of the row is kept until the row is saved."""
        return self._session.store.folder / "training" / f"{self.row_key}-seed{seed}"

    def stored(self, key: str) -> Mapping[str, NDArray[Any]]:
        """The arrays that the first seed of a finished row kept; the row must be of these weights and maps."""
        store = self._session.store
        row = store.named(key)
        wanted, seen = row.provenance.get("weights_sha256", ""), self._built.weights_sha256
        if row.run["method"] != self.method_name or wanted != seen or row.run["tap"] != self.tap:
            raise CheckpointError(
                f"the row {row.key} is of {row.run['method']}, map {row.run['tap']}, weights {wanted[:12]}, not of "
                f"{self.method_name}, map {self.tap}, weights {seen[:12]}: name a row of the same method and map"
            )
        theirs = tuple(row.run["dataset"]["classes"])
        if theirs != self.class_names:
            raise CheckpointError(
                f"the row {row.key} knows the classes {', '.join(theirs)}, the data set has "
                f"{', '.join(self.class_names)}: name a row of the same classes"
            )
        return arrays_of(row, store)

    def keep_list(self, name: str, lines: Sequence[str]) -> None:
        """Write a list of pictures into `lists/` of the folder of results, in a file named by its content too."""
        text = "".join(f"{line}\n" for line in lines).encode()
        digest = hashlib.sha256(text).hexdigest()[:8]
        file = f"lists/{self._session.plan.dataset.name}-{name}-{digest}.txt"
        path = self._session.store.folder / file
        on_rank_0(lambda: write_atomic(path, text, fix=_OTHER_RESULTS))
        self._lists[name] = file

    def take_lists(self) -> dict[str, str]:
        """The files, relative to the folder of results, of the lists that were kept since the last call, by name."""
        taken, self._lists = self._lists, {}
        return taken

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

    def occurring(self) -> frozenset[int]:
        """The numbers of the classes that have a pixel in the scored split, looked for once."""
        if self._occurring is None:
            self._occurring = frozenset(self.read_labels().occurring())
        return self._occurring

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
