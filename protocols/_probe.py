"""The linear probe at work: heads on one or several maps, trained side by side over the same batches.

Every setting that is tried has a head trained on the whole train split. Where there are several, each has a second one
that never sees a tenth of it: by the mIoU on that tenth one setting is chosen, and its first head is scored. Where the
scored split chooses, as in papers, there are no second ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.batches import per_epoch
from bench.contracts import Examples, Lessons, Maps, Outcome, Painting, Predicted, Scores, Work
from bench.errors import InputError, SettingError
from bench.metrics import Counts, score
from bench.records import IGNORE
from bench.settings import parse_size
from bench.warp import Warp

from ._draw import held_out, require_labels
from ._heads import Head, Heads, taps_of, unit
from ._layers import choice_note
from ._linear import LinearSettings, drop_epoch
from ._measure import above_chance
from ._samples import FromMaps, FromPictures, Group, together
from ._scores import as_they_are

__all__ = ["predict", "run"]

_DROPPED = 0.1
"""What the learning rate is multiplied by once it drops."""

_STATE = 2
"""Of the form of what a checkpoint of a training holds: 2 has the loss of the epoch so far."""


def run(work: Work, settings: LinearSettings, seed: int) -> Outcome:
    """Train heads as the settings say, or take those that are there, and score one on the scored split."""
    own = [tap.name for tap in work.network.taps.values() if tap.kind == "class_logit"]
    if settings.head == "adapter" and not own:
        raise SettingError(f"linear.head=adapter: {work.method_name} brings no classifier; take head=train")
    if settings.head == "adapter" or (settings.head == "auto" and own):
        return _score_own(work, settings, own[0])
    if settings.head.startswith("row:"):
        return _score_stored(work, settings, work.stored(settings.head.removeprefix("row:")))
    heads = _heads(work, settings)
    train = work.examples("train")
    counts = work.label_counts("train")  # opens every label map, before any forward pass
    require_labels(counts, "the train split")
    held = held_out(train.names, counts) if heads[0].judged else []
    unseen = _unseen(work, counts)
    data = _samples(work, settings, train, seed)
    probe = Heads(work, settings, heads, seed, held=held)
    record = _BestOnVal(work, settings, probe)
    batches = per_epoch(len(train.names), settings.batch, settings.drop_last)
    learner = _Watched(probe, record, batches)
    work.train(
        learner,
        probe.optimizer(settings.momentum),
        Lessons(
            make=data.make,
            collate=together,
            samples=len(train.names),
            batch=settings.batch,
            steps=settings.epochs * batches,
            schedule=_schedule(settings, batches),
            architecture={
                "network": "linear",
                "heads": len(heads),
                "widths": [t.channels for t in taps_of(work)],
                "state": _STATE,
            },
            drop_last=settings.drop_last,
            after_epoch=record.after_epoch,
            here=settings.features == "cached",
        ),
        seed,
    )
    return _outcome(work, settings, probe, record, held, unseen)


def _schedule(settings: LinearSettings, batches: int) -> Callable[[int], float]:
    """What the rates are multiplied by at a step: 1, and a tenth once the epochs before the drop are done."""
    at = drop_epoch(settings)
    last = settings.epochs * batches if at is None else at * batches
    return lambda step: 1.0 if step < last else _DROPPED


def _samples(work: Work, settings: LinearSettings, train: Examples, seed: int) -> FromMaps | FromPictures:
    stretched = parse_size(settings.size)
    if settings.features == "cached":
        return FromMaps(work.maps("train"), len(work.taps), train, grid=settings.grid, stretched=stretched)
    labelled = settings.border == "background" and work.background is not None
    warp = Warp(
        flip=settings.flip,
        rotate=settings.rotate,
        zoom=(settings.zoom[0], settings.zoom[1]),
        border=work.background if labelled and work.background is not None else IGNORE,
        area=(settings.area[0], settings.area[1]) if settings.area[0] < 1 else None,
        size=stretched,
        interpolation=settings.interpolation,
    )
    network = work.network
    return FromPictures(train, warp, seed, pad_to=network.pad_to, grid=settings.grid, whole=network.needs_labels)


def predict(work: Work, settings: LinearSettings, arrays: Mapping[str, NDArray[Any]]) -> Painting:
    """The classes that a finished row's head gives other pictures."""
    if "weight" not in arrays:
        maps = work.maps_by(work.network, next(t.name for t in work.network.taps.values() if t.kind == "class_logit"))
        return Painting(pixels=work.paint_scores(maps, as_they_are(maps, work.device), at=settings.decide))
    maps = work.maps("eval")
    return Painting(pixels=work.paint_scores(maps, _stored_scores(work, maps, arrays), at=settings.decide))


# --- heads -------------------------------------------------------------------------------------------------


def _heads(work: Work, settings: LinearSettings) -> list[Head]:
    """The heads that are judged, where pictures are held out to choose by, then those that may be scored."""
    tried = [
        Head(which=which, tap=tap, lr=lr, weight_decay=decay)
        for (which, tap), lr, decay in itertools.product(enumerate(work.taps), settings.lr, settings.weight_decay)
    ]
    if len(tried) == 1 or settings.choose_on == "scored":
        return tried
    judged = [
        Head(which=head.which, tap=head.tap, lr=head.lr, weight_decay=head.weight_decay, judged=True) for head in tried
    ]
    return [*judged, *tried]


# --- training ----------------------------------------------------------------------------------------------


class _Watched:
    """The probe as the training loop knows it: figures, heads that failed, and the best epochs so far."""

    def __init__(self, probe: Heads, record: _BestOnVal, batches: int) -> None:
        """batches: of an epoch."""
        self._probe, self._record, self._batches = probe, record, batches
        shown = [head for head in probe.heads if not head.judged]
        self._names = [f"loss {head.tap} lr={head.lr:g} wd={head.weight_decay:g}" for head in shown]

    def step(self, batch: Sequence[Group]) -> Mapping[str, torch.Tensor]:
        """One batch, in groups of equal size. A head whose loss is not a number is left behind, the others go on."""
        probe = self._probe
        if probe.steps % self._batches == 0:
            probe.epoch.begin()
        losses = probe.losses(batch)
        for norm in probe.norms:
            norm.settle()
        probe.steps += 1
        fine = torch.isfinite(losses)
        first = ~fine & (probe.failed_at < 0)
        probe.failed_at = torch.where(first, torch.full_like(probe.failed_at, probe.steps), probe.failed_at)
        # the mean over heads would be that of the highest rates alone
        figures = {"loss": torch.where(fine, losses, torch.inf).min()}
        if len(self._names) > 1:
            figures |= dict(zip(self._names, losses[-len(self._names) :], strict=True))
        return figures

    def state_dict(self) -> Mapping[str, Any]:
        return {"probe": self._probe.state_dict(), "best": self._record.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        self._probe.load_state_dict(state["probe"])
        self._record.best = [tuple(entry) for entry in state["best"]]


class _BestOnVal:
    """After every epoch, the mIoU of every head on the scored split; the best so far is kept, with its epoch."""

    def __init__(self, work: Work, settings: LinearSettings, probe: Heads) -> None:
        self._work, self._settings, self._probe = work, settings, probe
        self._numbers = probe.in_order([n for n, head in enumerate(probe.heads) if not head.judged])
        self.best: list[tuple[float, int]] = [(-1.0, 0) for _ in probe.heads]
        self._last: tuple[int, list[Predicted]] = (-1, [])

    def after_epoch(self, epoch: int) -> None:
        every = self._settings.val_every
        if not every or (epoch % every and epoch != self._settings.epochs):
            return
        for number, found in zip(self._numbers, self.predicted(epoch), strict=True):
            miou = _judge(found.counts)["miou"]
            if miou > self.best[number][0]:
                self.best[number] = (miou, epoch)

    def predicted(self, epoch: int) -> list[Predicted]:
        """What every head that may be scored predicts on the scored split, in the order of `in_order`."""
        if self._last[0] != epoch:
            self._last = (epoch, _count(self._work, self._settings, self._probe, self._numbers))
        return self._last[1]

    def figures(self) -> dict[int, Predicted]:
        """What is predicted at the end, by the number of the head."""
        return dict(zip(self._numbers, self.predicted(self._settings.epochs), strict=True))


def _count(work: Work, settings: LinearSettings, probe: Heads, numbers: Sequence[int]) -> list[Predicted]:
    maps = work.maps("eval")
    return work.count_scores(maps, probe.scores(maps, numbers), at=settings.decide)


def _judge(counts: Counts) -> dict[str, Any]:
    confusion = counts.confusion()
    return score(confusion, np.arange(confusion.shape[1]), None)


# --- what comes out ----------------------------------------------------------------------------------------


def _outcome(
    work: Work, settings: LinearSettings, probe: Heads, record: _BestOnVal, held: Sequence[int], unseen: Sequence[str]
) -> Outcome:
    found = record.figures()
    scored = list(found)
    notes: list[str] = []
    facts: dict[str, Any] = {}
    chosen = min(scored)
    failures = _failures(probe)
    if len(scored) == 1 and failures:
        raise InputError(f"{failures[chosen]}: lower it with --set linear.lr=…")
    if len(scored) > 1:
        counts = {number: of_head.counts for number, of_head in found.items()}
        chosen, facts, notes = _choose(work, settings, probe, record, counts, held)
    head = probe.heads[chosen]
    loss = probe.epoch.mean(chosen)
    facts |= {
        "chosen": {"tap": head.tap, "lr": head.lr, "weight_decay": head.weight_decay},
        **({} if loss is None else {"last_epoch_loss": loss}),
    }
    notes += above_chance(loss, work.classes, "the rate is too high or the epochs too few (linear.lr, linear.epochs)")
    notes += [*(text for number, text in failures.items() if not probe.heads[number].judged), *unseen]
    for note in notes:
        work.say(note)
    best, epoch = record.best[chosen]
    if epoch:
        facts |= {"best_on_val_miou": best, "best_on_val_epoch": epoch}
    weight, bias = probe.folded(chosen)
    return Outcome(
        counts=found[chosen].counts,
        painting=Painting(pixels=found[chosen].maps),
        arrays={
            "weight": weight.cpu().numpy(),
            "bias": bias.cpu().numpy(),
            "which": np.array(head.which, np.int32),
            "unit": np.array(settings.normalize == "l2"),
        },
        notes=tuple(notes),
        facts=facts,
        matched=np.arange(work.classes),
    )


def _choose(
    work: Work,
    settings: LinearSettings,
    probe: Heads,
    record: _BestOnVal,
    counts: Mapping[int, Counts],
    held: Sequence[int],
) -> tuple[int, dict[str, Any], list[str]]:
    """The head to be scored, by the mIoU over the classes present in what is chosen on.

    held: the pictures of the train split that are held out; empty: the scored split chooses. A setting one of whose
    heads diverged is not chosen; InputError where that is so of all.
    """
    found = _held_out_counts(work, settings, probe, held) if held else counts
    twins, failures = len(found) if held else 0, _failures(probe)
    values = {
        number: -1.0 if {number, number + twins} & failures.keys() else _judge(of_head)["miou_present"]
        for number, of_head in found.items()
    }
    best = max(sorted(values), key=values.__getitem__)
    if values[best] < 0:
        raise InputError(f"every setting diverged ({'; '.join(failures.values())}): lower --set linear.lr=…")
    varied = [
        name
        for name, several in (("tap", work.taps), ("lr", settings.lr), ("weight_decay", settings.weight_decay))
        if len(several) > 1
    ]
    tried = {}
    for number, value in sorted(values.items()):
        tried[probe.heads[number].text(varied)] = {
            **({"held_out_miou": max(value, 0.0)} if held else {}),
            "miou": _judge(counts[number + twins])["miou"],
            "best_on_val_miou": max(record.best[number + twins][0], 0.0),
        }
    notes = [choice_note(probe.heads[best].text(varied), tried, len(held)), *_edges(settings, probe.heads[best])]
    return best + twins, {"tried": tried}, notes


def _edges(settings: LinearSettings, chosen: Head) -> list[str]:
    """What is to be said where the chosen rate or decay is the largest or the smallest that was tried."""
    told = []
    for name, tried in (("lr", settings.lr), ("weight_decay", settings.weight_decay)):
        value = getattr(chosen, name)
        if len(set(tried)) < 2 or min(tried) < value < max(tried) or value == 0:
            continue
        edge, other = ("largest", "larger") if value == max(tried) else ("smallest", "smaller")
        told.append(
            f"{name}={value:g} is the {edge} that was tried: a {other} one may score more, e.g. "
            f"--set linear.{name}={_beyond(tried, value)}"
        )
    return told


def _beyond(tried: Sequence[float], edge: float) -> str:
    """The values to try next, as they are typed: the edge with its neighbour, and two steps of ten beyond it."""
    step = 10.0 if edge == max(tried) else 0.1
    neighbour = sorted(set(tried), key=lambda value: abs(math.log(value / edge)) if value else math.inf)[1]
    return ",".join(f"{value:.3g}" for value in (neighbour, edge, edge * step, edge * step * step))


def _held_out_counts(work: Work, settings: LinearSettings, probe: Heads, held: Sequence[int]) -> dict[int, Counts]:
    """Counts of the held-out pictures by every head that never saw them, by the number of the head."""
    judged = probe.in_order([number for number, head in enumerate(probe.heads) if head.judged])
    found = _count(work.part(held), settings, probe, judged)
    return {number: of_head.counts for number, of_head in zip(judged, found, strict=True)}


def _failures(probe: Heads) -> dict[int, str]:
    """What became of the heads that diverged, by number: of the loss, or of the weights in the last step."""
    told = {}
    varied = ["lr", *(["weight_decay"] if len({head.weight_decay for head in probe.heads}) > 1 else [])]
    for number, (head, step) in enumerate(zip(probe.heads, probe.failed_at.tolist(), strict=True)):
        finite = all(bool(torch.isfinite(p).all()) for p in (probe.weights[number], probe.biases[number]))
        if step >= 0 or not finite:
            what = f"its loss was not a number at step {step}" if step >= 0 else "its weights are no numbers at the end"
            told[number] = f"{head.text(varied)} diverged on {head.tap}: {what}"
    return told


def _unseen(work: Work, counts: NDArray[np.int64]) -> list[str]:
    pixels = counts.sum(0)
    absent = [name for name, count in zip(work.class_names, pixels.tolist(), strict=False) if not count]
    if not absent:
        return []
    return [f"no pixel of the train split has the class {', '.join(absent)}: it cannot be learnt and counts as missed"]


def _score_own(work: Work, settings: LinearSettings, tap: str) -> Outcome:
    """The checkpoint's own classifier; nothing is trained."""
    channels = work.network.taps[tap].channels
    if channels != work.classes:
        raise SettingError(
            f"the classifier of {work.method_name} knows {channels} classes, the data set has {work.classes}: train "
            "one with --set linear.head=train"
        )
    maps = work.maps_by(work.network, tap)
    (found,) = work.count_scores(maps, as_they_are(maps, work.device), at=settings.decide)
    note = "the checkpoint's own classifier; nothing was trained"
    return _predicted(found, note)


def _score_stored(work: Work, settings: LinearSettings, arrays: Mapping[str, NDArray[Any]]) -> Outcome:
    """A finished row's head; nothing is trained."""
    if "weight" not in arrays or len(arrays["bias"]) != work.classes:
        raise SettingError(
            f"linear.{settings.head}: that row has no head for the {work.classes} classes of this data set"
        )
    maps = work.maps("eval")
    (found,) = work.count_scores(maps, _stored_scores(work, maps, arrays), at=settings.decide)
    arrays = {name: np.asarray(arrays[name]) for name in ("weight", "bias", "which", "unit")}
    note = f"the head of the row {settings.head.removeprefix('row:')}; nothing was trained"
    return _predicted(found, note, arrays)


def _predicted(found: Predicted, note: str, arrays: Mapping[str, NDArray[Any]] | None = None) -> Outcome:
    """What a classifier predicts that was not trained here."""
    painting, matched = Painting(pixels=found.maps), np.arange(found.counts.shape[1])
    return Outcome(counts=found.counts, painting=painting, arrays=dict(arrays or {}), notes=(note,), matched=matched)


def _stored_scores(work: Work, maps: Maps, arrays: Mapping[str, NDArray[Any]]) -> Iterator[Scores]:
    which, of_unit_length = int(arrays["which"]), bool(arrays["unit"])
    weight, bias = (torch.from_numpy(np.asarray(arrays[name])).to(work.device) for name in ("weight", "bias"))
    for index, blocks in enumerate(maps.together()):
        block = torch.from_numpy(blocks[which]).to(work.device)
        vectors = unit(block) if of_unit_length else block
        logits = torch.addmm(bias, vectors, weight.T).view(*maps.grid(index, which), -1)
        yield [(which, logits.permute(2, 0, 1)[None])]
