"""From `bench train` as typed to a producer at work: names, preset, settings, device, processes, run folder."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import distributed, paths, registry, weights
from bench.datasets import FolderDataset, default_dataset, open_dataset
from bench.errors import CheckpointError, DownloadError, SettingError
from bench.kernels import Kernels, settle
from bench.plan import parse_method
from bench.processes import on_rank_0, processes
from bench.records import AdapterRequest, Preset, ProducerCard
from bench.runs import RunFolder, latest, new_folder
from bench.settings import apply, parse_overrides, pick_preset

__all__ = ["Order", "TrainRequest", "init_body", "produce"]

log = logging.getLogger(__name__)

_LIBRARIES = ("densebench", "torch", "torchvision", "numpy", "pillow")
_CPU_WORKERS, _GPU_WORKERS = 1, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """One `bench train`, as typed."""

    producer: str
    dataset: str | None = None
    masks: str | None = None
    preset: str | None = None
    init: str | None = None
    overrides: Sequence[str] = ()
    steps: int | None = None
    output: Path | None = None
    resume: bool = False
    export: str | None = None
    device: str = "auto"
    precision: str = "fp32"
    seed: int = 0
    workers: int = -1
    threads: int | None = None
    deterministic: bool = False
    wandb: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One run, settled: what a producer's `run` function is called with.

    settings: an instance of the card's `settings`. dataset_spec: how the data set was named. device: of this process.
    workers: processes that make batches, for each training process. kernels: in use while the run function runs.
    output: None = a new folder below the results. export: one of the card's, None for none.
    """

    card: ProducerCard
    preset: Preset
    settings: Any
    dataset: FolderDataset
    dataset_spec: str
    device: str
    precision: str
    seed: int
    workers: int
    kernels: Kernels
    output: Path | None
    resume: bool
    export: str | None
    wandb: bool

    def open(self, facts: Mapping[str, Any]) -> tuple[RunFolder, dict[str, Any]]:
        """The run's folder, begun or taken up again, and its record; rank 0 chooses and writes for all processes.

        facts: what the producer knows of the run, plain data: data set, initial weights, architecture.
        """
        record = json.loads(json.dumps({
            "producer": self.card.name,
            "preset": {"name": self.preset.name, "version": self.preset.version},
            "settings": dataclasses.asdict(self.settings),
            "seed": self.seed,
            "precision": self.precision,
            "processes": distributed.world(),
            **self.kernels.facts(),
            "device": self.device.partition(":")[0],
            **facts,
            "versions": {name: metadata.version(name) for name in _LIBRARIES},
        }))  # fmt: skip

        def choose() -> Path:
            folder = self._folder()
            folder.open(record, resume=self.resume)
            return folder.path

        return RunFolder(on_rank_0(choose)), record

    def _folder(self) -> RunFolder:
        if self.output is not None:
            return RunFolder(self.output)
        return new_folder(*_unnamed(self.card, self.dataset, self.preset))


def produce(request: TrainRequest) -> Path:
    """Train what was asked for; returns the run's folder.

    Under `torchrun` every process calls this. Raises InputErrors for what cannot be as asked, before any work.
    """
    card: ProducerCard = registry.card("producers", request.producer)
    if request.precision not in ("fp32", "bf16"):
        raise SettingError(f"--precision {request.precision} does not fit: expected fp32 or bf16")
    if request.export is not None and request.export not in card.exports:
        known = f"expected {' or '.join(card.exports)}" if card.exports else f"{card.name} has none"
        raise SettingError(f"--export {request.export} is no layout of checkpoints here: {known}")
    spec = request.dataset or default_dataset()
    with processes(request.device) as device:
        dataset: FolderDataset = on_rank_0(lambda: open_dataset(spec))
        preset = pick_preset(registry.card("producers", request.producer), request.preset, dataset.default_preset)
        settings = _settings(card, preset, request)
        there = on_rank_0(lambda: _taken_up(request, card, dataset, preset))
        kernels = settle(request.threads, request.deterministic, there.record() if there else None)
        usual = min(_GPU_WORKERS, os.cpu_count() or 1) if device.startswith("cuda") else _CPU_WORKERS
        order = Order(
            card=card,
            preset=preset,
            settings=settings,
            dataset=dataset,
            dataset_spec=spec,
            device=device,
            precision=request.precision,
            seed=request.seed,
            kernels=kernels,
            output=there.path if there else request.output,
            resume=request.resume,
            export=request.export,
            workers=request.workers if request.workers >= 0 else usual,
            wandb=request.wandb,
        )
        log.info(
            "%s: preset %s (version %d), data set %s, %s, %s, seed %d, %s",
            card.name,
            preset.name,
            preset.version,
            spec,
            device,
            request.precision,
            request.seed,
            kernels.said,
        )
        with kernels.used("--threads"):
            folder: Path = registry.load(card.run)(order)
        return folder


def _unnamed(card: ProducerCard, dataset: FolderDataset, preset: Preset) -> tuple[Path, str]:
    """Where runs without `--output` lie, and how their names begin."""
    return paths.results_root(), f"{card.name}-{dataset.name}-{preset.name}"


def _taken_up(request: TrainRequest, card: ProducerCard, dataset: FolderDataset, preset: Preset) -> RunFolder | None:
    """The folder of the run to go on with, None where a run begins."""
    if not request.resume:
        return None
    return RunFolder(request.output) if request.output else latest(*_unnamed(card, dataset, preset))


def _settings(card: ProducerCard, preset: Preset, request: TrainRequest) -> Any:
    """The preset's values, changed by what was asked for."""
    given: dict[str, Any] = {}
    for override in parse_overrides(request.overrides):
        owner = override.owner.removeprefix(card.name).removeprefix(".")
        given[f"{owner}.{override.key}" if owner else override.key] = override.value
    for key, option, value in (
        ("masks.name", "--masks", request.masks),
        ("init", "--init", request.init),
        ("steps", "--steps", request.steps),
    ):
        if value is not None:
            if key in given:
                raise SettingError(f"{option} {value} and --set {key}={given[key]} say the same thing: drop one")
            given[key] = value
    return _apply_groups(_apply_groups(card.settings(), preset.values(), card.name), given, card.name)


def _apply_groups(base: Any, values: Mapping[str, Any], owner: str) -> Any:
    """As `bench.settings.apply`, for settings of which some are groups: `group.key` is a key of the group."""
    groups = {field.name for field in dataclasses.fields(base) if dataclasses.is_dataclass(getattr(base, field.name))}
    plain: dict[str, Any] = {}
    grouped: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        group, _, key = name.partition(".")
        if group not in groups or not key:
            plain[name] = value
        else:
            grouped.setdefault(group, {})[key] = value
    for name in groups & plain.keys():
        keys = ", ".join(f"{name}.{field.name}" for field in dataclasses.fields(getattr(base, name)))
        raise SettingError(f"{name}={plain[name]} was not understood: {name} is a group of settings: {keys}")
    changed = {name: apply(getattr(base, name), inner, name) for name, inner in grouped.items()}
    return dataclasses.replace(apply(base, plain, owner), **changed)


# --- weights to begin with ---------------------------------------------------------------------------------


def init_body(spec: str, body: nn.Module, seed: int) -> dict[str, Any]:
    """Give a network the weights of a method's body, all of them or none; `random` leaves it as it is.

    spec: METHOD[@CHECKPOINT], reached through the registry. Returns what a record says of it, plain.
    Raises UnknownNameError, CheckpointError (weights that are not there, or of another body) and DownloadError.
    """
    if spec != "random":
        method = parse_method(spec)
        if not method.card.trainable:
            raise CheckpointError(f"--init {spec}: {method.card.name} has no weights; choose another method, or random")
        try:
            checkpoint = on_rank_0(lambda: weights.resolve(
                method.card, method.checkpoint, weights_dir=paths.weights_dir(), seed=seed, argument=method.argument
            ))  # fmt: skip
        except DownloadError as error:
            raise DownloadError(f"{error}; or begin without weights: --init random") from error
        request = AdapterRequest(
            card=method.card, checkpoint=checkpoint, argument=method.argument, options=method.card.options()
        )
        _copy_body(registry.load(method.card.factory)(request).state_dict(), body, spec)
    return {"spec": spec, "weights": weights.state_sha256(body)}


def _copy_body(source: Mapping[str, torch.Tensor], body: nn.Module, spec: str) -> None:
    state = body.state_dict()
    expected = {key: tuple(value.shape) for key, value in state.items()}
    parts = [name for name, _ in body.named_children()]
    try:
        rule = weights.detect(source, expected, source=f"--init {spec}", parts=parts)
        found, _ = weights.select(source, [rule], expected, source=f"--init {spec}", parts=parts)
    except CheckpointError as error:
        raise CheckpointError(f"{error}, or choose the body that fits with --set arch=…, or --init random") from error
    body.load_state_dict({**state, **found}, strict=True)
