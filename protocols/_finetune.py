"""Few-label fine-tuning at work: a copy of the method with a decoder and a classifier, trained and scored."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bench import distributed
from bench.batches import generator, per_epoch
from bench.contracts import Examples, Key, Lessons, Outcome, Painting, Work
from bench.dense import axis, cells_of, cross_entropy, weighted_pixels
from bench.errors import InputError, MismatchError, SettingError
from bench.networks.deeplab import DeepLabHead
from bench.networks.segmenter import Segmenter
from bench.trainer import poly
from bench.warp import Warp

from ._draw import drawn, rare_first, require_labels
from ._finetune_settings import FinetuneSettings, crop_of, fraction, listed, settle
from ._measure import EpochLoss, above_chance
from ._samples import FromPictures, Group, together
from ._scores import as_they_are

__all__ = ["FineTuning", "build", "predict", "run"]

_INIT = 6
"""What a generator is for: the first number of its key."""

_STATE = 2
"""Of the form of what a checkpoint of a training holds: 2 has the loss of the epoch so far."""

_KEPT = "network/"
"""How the tensors of a trained network are called beside the row."""


def run(work: Work, settings: FinetuneSettings, seed: int) -> Outcome:
    """Train a copy of the method on a part of the train split, or take a stored network, and score it."""
    pictures = len(work.examples("train").names) if settings.names else 0
    settings = settle(settings, own=_own(work), pictures=pictures)
    model = build(work, settings, seed)
    if settings.network != "train":
        _load(model, work.stored(settings.network.removeprefix("row:")), settings.network)
        outcome = _scored(work, settings, model)
        outcome.notes = (f"the network of the {settings.network.replace(':', ' ')}; nothing was trained",)
        outcome.facts = {"settled": {"arm": settings.arm, "map": model.read, "decoder": settings.decoder}}
        return outcome
    train = work.examples("train")
    chosen = _chosen(work, settings, train, seed)
    crop = settings.crop or crop_of(train.sizes)
    if crop < 2 * model.taps["classes"].stride:
        raise SettingError(
            f"finetune.crop={crop} is one cell of the map, which batch norm cannot train on: take at least "
            f"{2 * model.taps['classes'].stride:g} pixels"
        )
    settings = dataclasses.replace(settings, crop=crop)
    notes = [_about(settings, model.read), *_missed(work, chosen)]
    for note in notes:
        work.say(note)
    warp = Warp(
        flip=settings.flip,
        scale=(settings.scale[0], settings.scale[1]),
        crop=crop,
        interpolation=settings.interpolation,
    )
    data = _Part(FromPictures(train, warp, seed, pad_to=model.pad_to), chosen)
    batches = per_epoch(len(chosen), settings.batch, settings.drop_last)
    learner = FineTuning(work, model, bn=settings.bn, last_epoch=settings.iterations - batches)
    work.train(
        learner,
        learner.optimizer(settings),
        Lessons(
            make=data.make,
            collate=together,
            samples=len(chosen),
            batch=settings.batch,
            steps=settings.iterations,
            schedule=poly(settings.iterations, settings.power),
            architecture={
                "network": "segmenter",
                "decoder": settings.decoder,
                "tensors": len(model.state_dict()),
                "state": _STATE,
            },
            drop_last=settings.drop_last,
        ),
        seed,
    )
    distributed.broadcast_(buffer for buffer in model.buffers() if buffer.is_floating_point())
    outcome = _scored(work, settings, model)
    if settings.keep:
        state = model.state_dict().items()
        outcome.arrays |= {f"{_KEPT}{name}": value.detach().contiguous().cpu().numpy() for name, value in state}
    loss = learner.epoch.mean()
    told = above_chance(
        loss, work.classes, "the rate is too high or the iterations too few (finetune.lr, finetune.iterations)"
    )
    for note in told:
        work.say(note)
    outcome.notes = (*notes, *told)
    outcome.facts = {
        "train_pictures": len(chosen),
        "settled": _settled(settings, model.read),
        **({} if loss is None else {"last_epoch_loss": loss}),
    }
    return outcome


def predict(work: Work, settings: FinetuneSettings, arrays: Mapping[str, NDArray[Any]]) -> Painting:
    """The classes that a finished row's network gives other pictures."""
    settings = settle(settings, own=_own(work))
    model = build(work, settings, 0)
    _load(model, arrays, "the row")
    model.eval()
    maps = work.maps_by(model, "classes")
    return Painting(pixels=work.paint_scores(maps, as_they_are(maps, work.device), at=settings.decide))


def build(work: Work, settings: FinetuneSettings, seed: int) -> Segmenter:
    """The network to be trained, on the device: a copy of the method, and what is new drawn from the seed.

    settings: settled. Raises MismatchError for a method without parameters.
    """
    network = work.network
    if not isinstance(network, nn.Module) or not any(True for _ in network.parameters()):
        raise MismatchError(f"{work.method_name} has no weights, which finetune trains: choose another method")
    body: Any = copy.deepcopy(network).requires_grad_(True)
    read = _own(work) if settings.decoder == "own" else settings.reads or _body(work)
    width = body.taps[read].channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(_INIT, seed).integers(2**62)))
        decoder = DeepLabHead(width) if settings.decoder == "deeplab" else None
        model = Segmenter(
            body,
            read,
            decoder,
            width=decoder.width if decoder is not None else width,
            classes=work.classes,
            init_std=settings.init_std,
        )
    model.to(work.device)
    return model.to(memory_format=torch.channels_last)


def _own(work: Work) -> str:
    """The map of the method's pre-trained decoder, "" where it carries none."""
    return str(getattr(work.network, "decoder_tap", ""))


def _body(work: Work) -> str:
    """The map that a new decoder is put on where none is named."""
    return str(getattr(work.network, "body_tap", "") or work.taps[0])


def _load(model: Segmenter, arrays: Mapping[str, NDArray[Any]], source: str) -> None:
    state = model.state_dict()
    missing = [
        name
        for name, value in state.items()
        if f"{_KEPT}{name}" not in arrays or np.shape(arrays[f"{_KEPT}{name}"]) != tuple(value.shape)
    ]
    if missing:
        kept = any(name.startswith(_KEPT) for name in arrays)
        fix = (
            f"{len(missing)} tensors are missing or of another shape, the first is {missing[0]}: give a row of the "
            "same method, map, arm and decoder"
            if kept
            else "it has none, as with finetune.keep=false: make it once more with finetune.keep=true and --again"
        )
        raise SettingError(f"{source} keeps no network of this form: {fix}")
    model.load_state_dict({name: torch.from_numpy(np.array(arrays[f"{_KEPT}{name}"])) for name in state})


# --- which pictures ----------------------------------------------------------------------------------------


class _Part:
    """Samples of some pictures of a split, numbered anew."""

    def __init__(self, whole: FromPictures, chosen: Sequence[int]) -> None:
        self._whole, self._chosen = whole, tuple(chosen)

    def make(self, key: Key) -> Group:
        """The sample of (epoch, number within the part)."""
        epoch, number = key
        return self._whole.make((epoch, self._chosen[number]))


def _chosen(work: Work, settings: FinetuneSettings, train: Examples, seed: int) -> list[int]:
    """Indices of the pictures to learn from; the list of their names is kept."""
    if settings.names:
        chosen = _listed(Path(settings.names), train)
        _require_labels(work, chosen)
        return chosen
    text = settings.fractions[0]
    number = max(1, round(fraction(text) * len(train.names)))
    if settings.split == "stratified":
        counts = work.label_counts("train")[:, :-1]
        chosen = rare_first(train.names, counts, number, seed)
    else:
        chosen = drawn(train.names, number, seed)
    _require_labels(work, chosen)
    work.keep_list(f"train-{settings.split}-{text}-seed{seed}", [train.names[index] for index in chosen])
    return chosen


def _listed(path: Path, train: Examples) -> list[int]:
    names = listed(path)
    place = {name: index for index, name in enumerate(train.names)}
    unknown = [name for name in names if name not in place]
    if unknown or not names:
        seen = f"{len(unknown)} names are not, the first is {unknown[0]!r}" if unknown else "it is empty"
        raise InputError(f"the list {path} must name pictures of the train split, one a line: {seen}; correct the list")
    return [place[name] for name in names]


def _settled(settings: FinetuneSettings, read: str) -> dict[str, Any]:
    """What every `auto` and 0 came to, for the row."""
    return {
        "arm": settings.arm,
        "map": read,
        "decoder": settings.decoder,
        "bn": settings.bn,
        "lr": settings.lr,
        "last_lr": settings.last_lr,
        "crop": settings.crop,
    }


_STATISTICS = {
    "frozen": "frozen",
    "frozen-body": "frozen in the body, trained in the new decoder",
    "train": "trained",
}


def _about(settings: FinetuneSettings, read: str) -> str:
    listed = f"; pictures of a list (sha256 {settings.names_sha256[:8]})" if settings.names else ""
    rates = f"lr {settings.lr:g}"
    rates += f", last layer {settings.last_lr:g}" if settings.last_lr != settings.lr else ""
    rates += f", decoder ×{settings.decoder_lr_mult:g}" if settings.decoder_lr_mult != 1 else ""
    return (
        f"arm {settings.arm}: map {read}, decoder {settings.decoder}, batch-norm statistics "
        f"{_STATISTICS[settings.bn]}, {rates}; {settings.iterations} iterations of {settings.batch} crops of "
        f"{settings.crop} pixels{listed}"
    )


def _require_labels(work: Work, chosen: Sequence[int]) -> None:
    """DatasetError where the pictures to learn from, or all of the train split, hold nothing but void."""
    counts = work.label_counts("train")
    require_labels(counts, "the train split")
    require_labels(
        counts[list(chosen)],
        f"the {len(chosen)} pictures to learn from" if len(chosen) > 1 else "the one picture to learn from",
        ", or take a larger part, --set finetune.fractions=…, or other seeds, --seed N",
    )


def _missed(work: Work, chosen: Sequence[int]) -> list[str]:
    """The classes that the pictures to learn from do not hold."""
    pixels = work.label_counts("train")[list(chosen)].sum(0)
    absent = [name for name, count in zip(work.class_names, pixels.tolist(), strict=False) if not count]
    return [f"no pixel of the {len(chosen)} pictures has the class {', '.join(absent)}"] if absent else []


# --- training ----------------------------------------------------------------------------------------------


class FineTuning:
    """The whole network as the training loop knows it.

    bn: `frozen`, batch norm keeps its statistics; `frozen-body`, that of the method does, and that of a new decoder
    learns its own; `train`. last_epoch: the step from which on the mean loss is taken.
    """

    def __init__(self, work: Work, model: Segmenter, *, bn: str, last_epoch: int = 0) -> None:
        self._work, self._model, self._last_epoch = work, model, last_epoch
        self._steps = 0
        kept: dict[str, tuple[nn.Module, ...]] = {"frozen": (model,), "frozen-body": (model.network,), "train": ()}
        self._frozen = [
            module
            for part in kept[bn]
            for module in part.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        self._device = torch.device(work.device)
        self._one = torch.ones(1, 1, device=self._device)
        self.epoch = EpochLoss(1, self._device)

    def optimizer(self, settings: FinetuneSettings) -> torch.optim.Optimizer:
        """SGD with rates of their own for the decoder and the last convolution."""
        model = self._model
        last = set(model.classifier.parameters())
        decoder = set(model.decoder.parameters()) if model.decoder is not None else _own_decoder(model)
        if settings.decoder_lr_mult != 1 and not decoder:
            raise SettingError(
                f"finetune.decoder_lr_mult={settings.decoder_lr_mult:g} is for a decoder, and none that can be told "
                "apart is trained here: drop it, or take decoder=deeplab"
            )
        groups = [
            {"params": [p for p in model.parameters() if p not in last and p not in decoder], "lr": settings.lr},
            {"params": [p for p in model.parameters() if p in decoder], "lr": settings.lr * settings.decoder_lr_mult},
            {"params": list(model.classifier.parameters()), "lr": settings.last_lr},
        ]
        return torch.optim.SGD(
            [group for group in groups if group["params"]],
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )

    def step(self, batch: Sequence[Group]) -> Mapping[str, torch.Tensor]:
        """The gradients of one batch: mean cross-entropy over the labelled pixels of all processes."""
        if self._steps == self._last_epoch:
            self.epoch.begin()
        self._steps += 1
        self._model.train()
        for module in self._frozen:
            module.eval()
        total = torch.zeros(1, dtype=torch.float64, device=self._device)
        for group in batch:
            total += weighted_pixels(group.labels.to(self._device), self._one.expand(1, len(group.labels)))
        distributed.sum_([total])
        loss = torch.zeros(1, device=self._device)
        for group in batch:
            loss += self._add(group, total)
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        distributed.sum_([loss, *gradients])
        self.epoch.add(loss, total)
        return {"loss": loss[0]}

    def _add(self, group: Group, total: torch.Tensor) -> torch.Tensor:
        """Loss (1,) of one group of crops, its gradients added."""
        assert group.pictures is not None
        model, labels = self._model, group.labels.to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._work.precision == "bf16"):
            inputs = model.preprocess(group.pictures.to(self._device, non_blocking=True))
            logits = model(inputs.contiguous(memory_format=torch.channels_last))["classes"]
        tap = model.taps["classes"]
        height, width = (
            cells_of(extent, cells, tap.stride, tap.offset)
            for extent, cells in zip(group.extent, logits.shape[2:], strict=True)
        )
        logits = logits[:, :, :height, :width]  # what is scored has no cells of the padding either
        rows, columns = (
            axis(pixels, extent, cells, tap.stride, tap.offset)
            for pixels, extent, cells in zip(labels.shape[1:], group.extent, logits.shape[2:], strict=True)
        )
        weights = self._one.expand(1, len(labels))
        found = cross_entropy(logits.unsqueeze(1), labels, rows, columns, weights, total)
        found.sum().backward()  # type: ignore[no-untyped-call]
        return found.detach()

    def state_dict(self) -> Mapping[str, Any]:
        return {"network": self._model.state_dict(), "epoch": self.epoch.state(), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        self._steps = state["steps"]
        self.epoch.load(state["epoch"])
        return self._model.load_state_dict(state["network"], strict=True)


def _own_decoder(model: Segmenter) -> set[nn.Parameter]:
    """The parameters of the decoder that the method brings along."""
    named = getattr(model.network, "decoder_parameters", None)
    return set(named()) if named is not None else set()


# --- scoring -----------------------------------------------------------------------------------------------


def _scored(work: Work, settings: FinetuneSettings, model: Segmenter) -> Outcome:
    model.eval()
    maps = work.maps_by(model, "classes")
    (found,) = work.count_scores(maps, as_they_are(maps, work.device), at=settings.decide)
    painting = Painting(pixels=found.maps)
    return Outcome(counts=found.counts, painting=painting, matched=np.arange(work.classes), read=(model.read,))
