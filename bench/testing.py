"""Contract checks and fakes for authors of plugins; the built-ins pass the same checks.

    from bench.testing import check_adapter, check_protocol

    def test_my_backbone():
        check_adapter(factory())

A check raises AssertionError that says which promise was broken.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from bench import dense, images, registry
from bench.backbone import Backbone
from bench.batches import Batches, fetch
from bench.contracts import Adapter, Estimator, Examples, Learner, Lessons, Maps, Outcome, Predicted, Scope, Scores
from bench.features import grid
from bench.metrics import Counts, count_pixels, evaluate, evaluate_predictions
from bench.objects import Frame, Objects, foreground, gather, tally
from bench.records import IGNORE, EstimatorCard, MethodCard, ProtocolCard, Tap
from bench.settings import InputSettings, ObjectSettings, apply, mask_set, parse_size
from bench.trainer import Course, train

__all__ = [
    "MemoryMaps",
    "MemorySplit",
    "MemoryWork",
    "PaintedLabels",
    "check_adapter",
    "check_estimator",
    "check_estimator_card",
    "check_method_card",
    "check_protocol",
    "painted",
]


def check_method_card(card: MethodCard) -> None:
    """The facts a method must state: a lazy factory, options with defaults, a source and keys for every file."""
    _check_facts(card)


def check_estimator_card(card: EstimatorCard) -> None:
    """The facts an estimator must state: the same."""
    _check_facts(card)
    assert card.trainable or not card.checkpoints, f"{card.name} has files of weights and says that it needs none"


def _check_facts(card: MethodCard | EstimatorCard) -> None:
    assert card.name.isidentifier(), f"{card.name!r} must be a plain name, as people type it"
    assert card.summary, f"{card.name} needs a summary"
    assert ":" in card.factory, f"the factory of {card.name} must be 'module:function', got {card.factory!r}"
    assert dataclasses.is_dataclass(card.options), f"the options of {card.name} must be a dataclass"
    card.options()
    names = [checkpoint.name for checkpoint in card.checkpoints]
    assert len(set(names)) == len(names), f"{card.name} has two checkpoints of one name: {names}"
    for checkpoint in card.checkpoints:
        assert checkpoint.url or checkpoint.manual, f"{card.name}@{checkpoint.name} needs a URL or manual steps"
        assert checkpoint.filename, f"{card.name}@{checkpoint.name} needs a file name"
        assert checkpoint.layouts, f"{card.name}@{checkpoint.name} needs key rules"


def check_adapter(
    adapter: Adapter, *, size: tuple[int, int] = (70, 52), classes: int = 3, tolerance: float = 1e-4
) -> None:
    """An adapter keeps its contract: named maps of the promised shapes, pure, differentiable, blind to its batch."""
    assert adapter.default_tap in adapter.taps, f"default_tap {adapter.default_tap!r} is none of {list(adapter.taps)}"
    assert adapter.pad_to >= 1, "pad_to must be at least 1"
    rng = np.random.default_rng(0)
    height, width = size
    pictures = np.stack(
        [images.pad_picture(p, adapter.pad_to) for p in rng.integers(0, 256, (2, height, width, 3), np.uint8)]
    )
    batch = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    labels = torch.from_numpy(rng.integers(0, classes, (2, height, width), np.uint8)) if adapter.needs_labels else None
    if isinstance(adapter, torch.nn.Module):
        adapter.eval()

    before = batch.clone()
    inputs = adapter.preprocess(batch)
    assert torch.equal(batch, before), "preprocess must not change its argument"
    assert inputs.is_floating_point(), f"preprocess must return floats, got {inputs.dtype}"
    assert torch.equal(inputs, adapter.preprocess(batch)), "preprocess must be a pure function"

    taps = tuple(adapter.taps)
    with torch.no_grad():
        maps = adapter(inputs, taps, labels=labels)
        assert set(maps) == set(taps), f"asked for {taps}, got {tuple(maps)}"
        for name, tap in adapter.taps.items():
            expected = (2, tap.channels, *grid(tap, size, size, adapter.pad_to))
            assert tuple(maps[name].shape) == expected, (
                f"map {name!r} is {tuple(maps[name].shape)}, its tap promises {expected}"
            )
            assert maps[name].is_floating_point(), f"map {name!r} must be floats, got {maps[name].dtype}"
            assert torch.isfinite(maps[name]).all(), f"map {name!r} holds NaN or infinity"
            alone = adapter(inputs[1:], (name,), labels=None if labels is None else labels[1:])
            assert tuple(alone) == (name,), f"asked for {name!r} alone, got {tuple(alone)}"
            scale = maps[name].abs().max().clamp_min(1e-12)
            apart = ((alone[name] - maps[name][1:]).abs().max() / scale).item()
            assert apart <= tolerance, (
                f"map {name!r} of a picture changes by {apart:.1e} with its batch (is eval mode honoured?)"
            )
            if tap.alias_of:
                assert torch.equal(maps[name], maps[tap.alias_of]), f"map {name!r} is not that of {tap.alias_of!r}"
    _check_differentiable(adapter, inputs, labels)
    _check_decoder(adapter)


def check_estimator(estimator: Estimator, *, tolerance: int = 1) -> None:
    """A saliency estimator keeps its contract: maps of bytes, pure, blind to the batch, at ease with any picture.

    tolerance: steps of 255 by which a map may change with its batch.
    """
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((70, 52), (40, 90), (33, 33))]
    pictures += [np.full((48, 64, 3), value, np.uint8) for value in (0, 200)]
    pictures.append(np.repeat(rng.integers(0, 256, (30, 40, 1), np.uint8), 3, 2))
    before = [picture.copy() for picture in pictures]
    maps = estimator.saliency([estimator.prepare(picture) for picture in pictures])
    assert all(map(np.array_equal, pictures, before)), "prepare must not change the picture"
    assert len(maps) == len(pictures), f"{len(pictures)} pictures gave {len(maps)} maps"
    for saliency in maps:
        assert saliency.dtype == np.uint8, f"a map must be uint8, got {saliency.dtype}"
        assert saliency.ndim == 2, f"a map must be (h, w), got {saliency.shape}"
    for index in (0, 4, 5):  # a picture of noise, a flat one and a grey one: a large network takes seconds for each
        (alone,) = estimator.saliency([estimator.prepare(pictures[index])])
        apart = int(np.abs(alone.astype(int) - maps[index]).max())
        assert apart <= tolerance, f"the map of a picture changes by {apart} of 255 with its batch"


def _check_decoder(adapter: Any) -> None:
    """What fine-tuning reads of an adapter that has it: see `bench.contracts.Adapter`."""
    for what in ("body_tap", "decoder_tap"):
        name = getattr(adapter, what, "")
        assert not name or name in adapter.taps, f"{what} {name!r} is none of {list(adapter.taps)}"
    if getattr(adapter, "decoder_tap", ""):
        assert hasattr(adapter, "decoder_parameters"), "an adapter with a decoder_tap needs decoder_parameters()"
        own, named = set(adapter.parameters()), set(adapter.decoder_parameters())
        assert named, "decoder_parameters() gives none"
        assert named < own, "decoder_parameters() must be some of the network's parameters, and not all"


def _check_differentiable(adapter: Any, inputs: Any, labels: Any) -> None:
    parameters = [p for p in getattr(adapter, "parameters", list)() if p.is_floating_point()]
    if not parameters:
        return
    wanted = [p.requires_grad for p in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    adapter(inputs, (adapter.default_tap,), labels=labels)[adapter.default_tap].float().mean().backward()
    reached = sum(p.grad is not None for p in parameters)
    for parameter, flag in zip(parameters, wanted, strict=True):
        parameter.requires_grad_(flag)
        parameter.grad = None
    assert reached, "no parameter received a gradient: the maps must be differentiable"


class MemoryMaps:
    """Maps of one tap that lie in memory: `arrays` are float (h, w, D), one per picture of `sizes` (H, W).

    extents: (H, W) of the network's inputs; None: the pictures' own.
    """

    def __init__(
        self,
        arrays: Sequence[NDArray[np.floating[Any]]],
        key: str = "memory",
        sizes: Sequence[tuple[int, int]] | None = None,
        extents: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self.arrays = [np.asarray(array, np.float32) for array in arrays]
        self.sizes = tuple(sizes) if sizes is not None else tuple(array.shape[:2] for array in self.arrays)
        self.extents = tuple(extents) if extents is not None else self.sizes
        self.names = tuple(f"picture{index}" for index in range(len(arrays)))
        self.grids = tuple((array.shape[0], array.shape[1]) for array in self.arrays)
        self.channels = self.arrays[0].shape[2]
        self.vectors = sum(h * w for h, w in self.grids)
        self.key = key

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for array in self.arrays:
            yield array.reshape(-1, self.channels).copy()

    def together(self) -> Iterator[tuple[NDArray[np.float32], ...]]:
        return ((block,) for block in self)

    def hold(self) -> MemoryMaps:
        return self

    def block(self, index: int, which: int = 0) -> NDArray[np.float32]:
        block: NDArray[np.float32] = self.arrays[index].reshape(-1, self.channels).copy()
        return block

    def tap_of(self, which: int = 0) -> Tap:
        return Tap(name="memory", channels=self.channels, stride=self.sizes[0][0] / self.grids[0][0])

    def grid(self, index: int, which: int = 0) -> tuple[int, int]:
        return self.grids[index]

    def axes(
        self, index: int, which: int = 0, *, at: Literal["label", "input"] = "label"
    ) -> tuple[dense.Axis, dense.Axis]:
        pixels = self.sizes[index] if at == "label" else self.extents[index]
        rows, columns = (
            dense.axis(side, cells, cells, 1) for side, cells in zip(pixels, self.grids[index], strict=True)
        )
        return rows, columns


_BRIGHTNESS_STEP = 40
"""What tells a class from the next in `painted` pictures."""


def painted(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A label map as a picture whose brightness is the class, for `PaintedLabels`: uint8 (H, W, 3)."""
    classes = np.where(label == IGNORE, 0, label)
    return np.repeat((classes * _BRIGHTNESS_STEP).astype(np.uint8)[..., None], 3, axis=2)


class PaintedLabels(torch.nn.Module):
    """A network that reads the class out of the brightness of a pixel: one-hot maps of `painted` pictures."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))
        self.classes = classes

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """float (B, 3, H, W) of 0 … 255 -> (B, classes, H, W)."""
        levels = torch.arange(self.classes, device=pictures.device).view(1, -1, 1, 1)
        one_hot: torch.Tensor = self.gain * (1 - (pictures[:, :1] / _BRIGHTNESS_STEP - levels).abs()).clamp_min(0)
        return one_hot


class _MemoryExamples:
    """Painted pictures of a split, and their labels."""

    def __init__(self, labels: Sequence[NDArray[np.uint8]]) -> None:
        self.labels = labels
        self.names = tuple(f"picture{index}" for index in range(len(labels)))
        self.sizes = tuple((label.shape[0], label.shape[1]) for label in labels)

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return painted(self.labels[index]), self.labels[index]

    def label(self, index: int) -> NDArray[np.uint8]:
        return self.labels[index]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemorySplit:
    """Pictures of one split: maps, float (h, w, D), and label maps, uint8 (H, W), H a multiple of h.

    logits: the method's own foreground, float (h', w'), H a multiple of h'; None where it gives none.
    masks: mask files, bool (H, W). kind: what the maps hold, as in `bench.records.Tap`. extents: (H, W) of what the
    network saw, before padding; None where that was the pictures at their own size.
    """

    maps: Sequence[NDArray[np.floating[Any]]]
    labels: Sequence[NDArray[np.uint8]]
    logits: Sequence[NDArray[np.floating[Any]]] | None = None
    masks: Sequence[NDArray[np.bool_]] | None = None
    kind: str = "feature"
    extents: Sequence[tuple[int, int]] | None = None

    def only(self, pictures: Sequence[int]) -> MemorySplit:
        """Some of the pictures."""
        return MemorySplit(
            maps=[self.maps[index] for index in pictures],
            labels=[self.labels[index] for index in pictures],
            logits=self.logits and [self.logits[index] for index in pictures],
            masks=self.masks and [self.masks[index] for index in pictures],
            kind=self.kind,
            extents=self.extents and [self.extents[index] for index in pictures],
        )


class MemoryWork:
    """A `Work` without files, as a protocol sees it. Whatever name of a mask set is asked for, it is `masks`.

    network: by default one that reads `painted` labels; pictures are painted for any network.
    """

    def __init__(
        self,
        scored: MemorySplit,
        *,
        classes: int,
        background: int | None = 0,
        train: MemorySplit | None = None,
        class_names: Sequence[str] = (),
        network: Adapter | None = None,
    ) -> None:
        self.classes, self.background, self.device, self.precision = classes, background, "cpu", "fp32"
        self.method_name = "memory"
        self.network: Any = network or Backbone(
            PaintedLabels(classes), stride=1, channels=classes, mean=(0, 0, 0), std=(1, 1, 1), scale=1, pad_to=1
        )
        self.taps: tuple[str, ...] = (self.network.default_tap,)
        self.lists: dict[str, tuple[str, ...]] = {}
        self.arrays: dict[str, Mapping[str, NDArray[Any]]] = {}
        self.class_names = tuple(class_names) or tuple(str(index) for index in range(classes))
        self.foreground, self.kind = scored.logits is not None, scored.kind
        self.said: list[str] = []
        self.splits = {"eval": scored, "train": train or scored}
        self._maps = {
            name: MemoryMaps(split.maps, name, _MemoryExamples(split.labels).sizes, split.extents)
            for name, split in self.splits.items()
        }
        self._remembered: dict[str, Mapping[str, NDArray[Any]]] = {}

    def maps(self, split: str = "eval") -> MemoryMaps:
        return self._maps[split]

    def alone(self, which: int) -> MemoryWork:
        assert which == 0, "there is one tap"
        return self

    def part(self, pictures: Sequence[int]) -> MemoryWork:
        train = self.splits["train"]
        inside, outside = list(pictures), [i for i in range(len(train.labels)) if i not in set(pictures)]
        return MemoryWork(
            train.only(inside),
            classes=self.classes,
            background=self.background,
            train=train.only(outside),
            class_names=self.class_names,
            network=self.network,
        )

    def forward(self, pictures: torch.Tensor, labels: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            maps = self.network(self.network.preprocess(pictures), self.taps, labels=labels)
        return tuple(maps[name].permute(0, 2, 3, 1) for name in self.taps)

    def maps_by(self, network: Adapter, tap: str, split: str = "eval") -> MemoryMaps:
        examples, found = self.examples(split), []
        for index in range(len(examples.names)):
            picture = torch.from_numpy(examples.read(index)[0].transpose(2, 0, 1).copy())[None]
            with torch.no_grad():
                found.append(network(network.preprocess(picture), (tap,))[tap][0].permute(1, 2, 0).float().numpy())
        return MemoryMaps(found, f"{split} by another", examples.sizes)

    def examples(self, split: str = "train") -> Examples:
        return _MemoryExamples(self.splits[split].labels)

    def labels(self, split: str = "eval") -> list[Sequence[NDArray[Any]]]:
        found: list[Sequence[NDArray[Any]]] = []
        for (h, w), label in zip(self._maps[split].grids, self.splits[split].labels, strict=True):
            cells = np.arange(h * w).reshape(h, w).repeat(label.shape[0] // h, 0).repeat(label.shape[1] // w, 1)
            counts = count_pixels(cells, label, h * w, self.classes)
            cell, value = np.nonzero(counts)
            found.append((cell, value, counts[cell, value]))
        return found

    def label_counts(self, split: str = "train") -> NDArray[np.int64]:
        counts = [np.bincount(label.reshape(-1), minlength=IGNORE + 1) for label in self.splits[split].labels]
        return np.stack([np.append(found[: self.classes], found[IGNORE]) for found in counts])

    def count_scores(
        self, maps: Maps, scores: Iterable[Scores], *, at: Literal["label", "input"] = "label"
    ) -> list[Predicted]:
        split = self.splits["train" if maps.key.startswith("train") else "eval"]
        tables: list[list[NDArray[np.int64]]] = []
        decided: list[list[NDArray[np.uint8]]] = []
        for name, heads in self._decided(maps, scores, at):
            label = split.labels[int(name.removeprefix("picture"))]
            tables.append([count_pixels(ids, label, self.classes, self.classes) for ids in heads])
            decided.append(heads)
        of_heads = zip(zip(*tables, strict=True), zip(*decided, strict=True), strict=True)
        return [Predicted(counts=Counts.from_dense(list(own)), maps=maps_) for own, maps_ in of_heads]

    def paint_scores(
        self, maps: Maps, scores: Iterable[Scores], *, at: Literal["label", "input"] = "label"
    ) -> Iterator[NDArray[np.uint8]]:
        return (heads[0] for _, heads in self._decided(maps, scores, at))

    def _decided(
        self, maps: Maps, scores: Iterable[Scores], at: Literal["label", "input"]
    ) -> Iterator[tuple[str, list[NDArray[np.uint8]]]]:
        for index, (name, of_picture) in enumerate(zip(maps.names, scores, strict=True)):
            found: list[NDArray[np.uint8]] = []
            for which, logits in of_picture:
                decided = dense.argmax(logits, *maps.axes(index, which, at=at))
                if at == "input":
                    rows, columns = (
                        images.cell_index(len(axis), side, side, 1)
                        for axis, side in zip(maps.axes(index, which), decided.shape[1:], strict=True)
                    )
                    decided = decided[:, rows[:, None], columns]
                found += list(decided.numpy())
            yield name, found

    def train(self, learner: Learner, optimizer: torch.optim.Optimizer, lessons: Lessons, seed: int) -> None:
        batches = Batches(lessons.samples, min(lessons.batch, lessons.samples), seed, drop_last=lessons.drop_last)
        fetched = fetch(lessons.make, batches, range(lessons.steps), collate=lessons.collate, workers=0, pin=False)
        epoch = batches.per_epoch
        course = Course(steps=lessons.steps, schedule=lessons.schedule, seed=seed, epoch=epoch)
        train(
            learner, optimizer, fetched, course, observers=[lambda report: _end_of_epoch(lessons, report.done, epoch)]
        )

    def stored(self, key: str) -> Mapping[str, NDArray[Any]]:
        return self.arrays[key]

    def keep_list(self, name: str, lines: Sequence[str]) -> None:
        self.lists[name] = tuple(lines)

    def remember(
        self, record: Mapping[str, Any], compute: Callable[[], dict[str, NDArray[Any]]], *, keep: bool
    ) -> Mapping[str, NDArray[Any]]:
        key = repr(sorted(record.items()))
        if key not in self._remembered:
            self._remembered[key] = compute()
        return self._remembered[key]

    def count(
        self,
        assignments: Sequence[NDArray[np.integer[Any]]],
        clusters: int,
        *,
        inside: ObjectSettings | None = None,
    ) -> Counts:
        tables = []
        for index, (ids, labels) in enumerate(zip(assignments, self.splits["eval"].labels, strict=True)):
            full = ids.repeat(labels.shape[0] // ids.shape[0], 0).repeat(labels.shape[1] // ids.shape[1], 1)
            if inside is not None:
                full = np.where(self._foreground(self.splits["eval"], index, inside)[0], full, 0)
            tables.append(count_pixels(full, labels, clusters, self.classes))
        return Counts.from_dense(tables)

    def cells(self, split: str, inside: ObjectSettings) -> list[NDArray[np.bool_]]:
        found = []
        for index, (h, w) in enumerate(self._maps[split].grids):
            mask = self._foreground(self.splits[split], index, inside)[0]
            found.append(np.asarray(mask.reshape(h, mask.shape[0] // h, w, mask.shape[1] // w).any(axis=(1, 3))))
        return found

    def objects(self, split: str, how: ObjectSettings, *, labels: bool = True) -> Objects:
        held = self.splits[split]
        vectors: list[NDArray[np.float64] | None] = []
        pixels = []
        for index, (block, label) in enumerate(zip(self._maps[split], held.labels, strict=True)):
            mask, weights = self._foreground(held, index, how)
            frame = _frame(label.shape, self._maps[split].grids[index])
            vectors.append(frame.pool(weights, block) / max(mask.sum(), 1) if mask.any() else None)
            pixels.append(tally(mask, label, self.classes))
        return gather(vectors, self._maps[split].channels, pixels if labels else None)

    def _foreground(
        self, split: MemorySplit, index: int, how: ObjectSettings
    ) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        if how.foreground == "adapter":
            assert split.logits is not None, "there are no logits"
            logits = split.logits[index]
            return foreground(logits, _frame(split.labels[index].shape, logits.shape), how.threshold, how.pooling)
        assert mask_set(how.foreground), f"foreground must be settled, got {how.foreground}"
        assert split.masks is not None, "there are no masks"
        return split.masks[index], split.masks[index]

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, total: int, what: str) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(lambda steps: None)


def _end_of_epoch(lessons: Lessons, done: int, epoch: int) -> None:
    if lessons.after_epoch and done % epoch == 0:
        lessons.after_epoch(done // epoch)


def _frame(pixels: tuple[int, ...], cells: tuple[int, ...]) -> Frame:
    """Cells that are repeated a whole number of times."""
    stride = pixels[0] / cells[0]
    return Frame.of((pixels[0], pixels[1]), (pixels[0], pixels[1]), (cells[0], cells[1]), stride)


def _known_answer(
    classes: int, pictures: int = 4, side: int = 24
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.uint8]]]:
    """One-hot label maps and the labels they were made from: features that hold everything there is to know."""
    rng = np.random.default_rng(1)
    labels = []
    for _ in range(pictures):
        cells = rng.integers(0, classes, (side // 4, side // 4), np.uint8)
        cells.flat[:classes] = np.arange(classes)
        labels.append(cells.repeat(4, 0).repeat(4, 1))
    return [np.eye(classes, dtype=np.float32)[label] for label in labels], labels


def _known_objects(classes: int, side: int = 24) -> MemorySplit:
    """Four pictures per class but the first, one object in each, with its true mask and a logit map that knows it."""
    maps, labels, masks = [], [], []
    for index in range(4 * (classes - 1)):
        label = np.zeros((side, side), np.uint8)
        label[4 : 16 - index % 3, 6 + index % 4 : 18] = 1 + index % (classes - 1)
        maps.append(np.eye(classes, dtype=np.float32)[label])
        labels.append(label)
        masks.append(label > 0)
    logits = [np.where(mask, 4.0, -4.0) for mask in masks]
    return MemorySplit(maps=maps, labels=labels, masks=masks, logits=logits)


def check_protocol(card: ProtocolCard, given: Mapping[str, Any] | None = None) -> None:
    """A protocol keeps its contract: typed settings, sourced presets, exact counts, known answers, no hidden state.

    given: settings that make a run short.
    """
    base = card.settings()
    assert isinstance(base, InputSettings), f"the settings of {card.name} must extend bench.settings.InputSettings"
    names = [preset.name for preset in card.presets]
    for needed in ("paper", "native"):
        assert needed in names, f"{card.name} needs a preset {needed!r}, has {names}"
    for preset in card.presets:
        settings = apply(base, preset.values(), card.name)
        parse_size(settings.size)
    for field in dataclasses.fields(base):
        assert field.metadata.get("about"), f"{card.name}.{field.name} needs a description (bench.settings.setting)"

    native = apply(base, {preset.name: preset for preset in card.presets}["native"].values(), card.name)
    native = apply(native, given or {}, card.name)
    classes = 4
    if not card.needs_objects:
        maps, labels = _known_answer(classes)
        labels[0][0, :3] = IGNORE
        for kind in card.kinds:
            _check_runs(card, native, MemorySplit(maps=maps, labels=labels, kind=kind), classes)
    if isinstance(native, ObjectSettings):
        objects = _known_objects(classes)
        objects.labels[0][0, :3] = IGNORE
        for source in ("auto", "masks:true"):
            _check_runs(card, apply(native, {"foreground": source}, card.name), objects, classes)


def _check_runs(card: ProtocolCard, settings: Any, split: MemorySplit, classes: int) -> None:
    """Every row of the settings counts each pixel once, gives the same for one seed, and finds the known answer."""
    variants = [settings]
    if card.expand:
        scope = Scope(
            classes=classes,
            device="cpu",
            vectors=sum(m.shape[0] * m.shape[1] for m in split.maps),
            pictures=len(split.maps),
            foreground=split.logits is not None,
            train=len(split.maps),
            own_clusters=split.maps[0].shape[2] if split.kind == "cluster_prob" else None,
        )
        variants = [variant.settings for variant in registry.load(card.expand)(settings, scope)]
    run = registry.load(card.run)
    for variant in variants:
        logging.getLogger(__name__).info("checking %s with %s", card.name, variant)
        outcome: Outcome = run(MemoryWork(split, classes=classes), variant, 0)
        pixels = [label.size for label in split.labels]
        counted = np.bincount(outcome.counts.picture, weights=outcome.counts.pixels, minlength=len(pixels))
        assert counted.tolist() == pixels, f"{card.name} counted {counted.tolist()} pixels of {pixels}"
        again: Outcome = run(MemoryWork(split, classes=classes), variant, 0)
        assert np.array_equal(outcome.counts.dense(), again.counts.dense()), (
            f"{card.name} must give the same for one seed"
        )
        assert outcome.layout is not None, f"{card.name} must say which id its pixels have: assignments, or a painting"
        about: dict[str, Any] = {"names": [f"picture{i}" for i in range(len(pixels))], "background": 0, "seed": 0}
        if outcome.matched is None:
            scores = evaluate(outcome.counts, given=outcome.given, **about)["scores"]
        else:
            scores = evaluate_predictions(outcome.counts, outcome.matched, given=outcome.given, **about)["scores"]
        assert scores[card.headline]["miou"] == 1.0, (
            f"{card.name} must score 1.0 on one-hot labels, got {scores[card.headline]}"
        )
