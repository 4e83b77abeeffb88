"""MaskContrast's network as an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

from bench.backbone import Backbone
from bench.checkpoints import read_checkpoint
from bench.errors import CheckpointError, SettingError
from bench.networks.maskcontrast import Arch, LinearMaskContrast, MaskContrastNetwork, arch_in, from_description
from bench.networks.resnet import Arch as ResNet
from bench.records import AdapterRequest, Checkpoint, KeyRule
from bench.weights import architecture_of, in_layout, load_into, seeded

from ._floors import ContentNoise

_RELEASED: Arch = "resnet50"
_DIM = 32
_HEADS = ("decoder", "embedding", "saliency")


class MaskContrastBackbone(Backbone):
    """The maps of a `MaskContrastNetwork`, and those of its ResNet; it stops after the deepest of the maps asked for.

    noise: takes the place of the embedding.
    """

    body: MaskContrastNetwork

    def __init__(self, network: MaskContrastNetwork, noise: ContentNoise | None, account: Mapping[str, Any]) -> None:
        super().__init__(
            network,
            taps=(*network.backbone.taps, *network.taps),
            default_tap="embedding",
            fingerprint=f"noise seed={noise.seed}" if noise else "",
            account=account,
        )
        self._noise = noise
        self.body_tap, self.decoder_tap = network.backbone.taps[-1].name, "decoder"

    def decoder_parameters(self) -> Iterator[torch.nn.Parameter]:
        """Those of the pre-trained decoder."""
        return self.body.decoder.parameters()

    def maps(self, inputs: torch.Tensor, taps: Sequence[str]) -> Mapping[str, torch.Tensor]:
        network = self.body
        deepest = network.backbone.taps[-1].name
        wanted = [tap for tap in taps if tap not in _HEADS]
        headed = len(wanted) < len(taps)
        maps: dict[str, torch.Tensor] = dict(network.backbone(inputs, {*wanted, deepest} if headed else wanted))
        if headed:
            maps["decoder"] = network.decoder(maps[deepest])
        if "embedding" in taps:
            noise = self._noise
            maps["embedding"] = network.head(maps["decoder"]) if noise is None else noise(self._seen(inputs))
        if "saliency" in taps:
            maps["saliency"] = network.classification_head(maps["decoder"])
        return maps

    def _seen(self, inputs: torch.Tensor) -> torch.Tensor:
        """The pictures 0 … 255 again: no rounding of the normalisation may change the noise, nor the sign of a 0."""
        shape = (-1, 1, 1)
        mean, std = (torch.tensor(values, device=inputs.device).view(shape) for values in (self.mean, self.std))
        return ((inputs.float() * std + mean) / self.scale).round().abs()


class LinearBackbone(Backbone):
    """The maps of a `LinearMaskContrast`, and those of its ResNet."""

    body: LinearMaskContrast

    def __init__(self, network: LinearMaskContrast, account: Mapping[str, Any]) -> None:
        super().__init__(network, taps=(*network.backbone.taps, *network.taps), default_tap="decoder", account=account)
        self.body_tap, self.decoder_tap = network.backbone.taps[-1].name, "decoder"

    def decoder_parameters(self) -> Iterator[torch.nn.Parameter]:
        """Those of the fine-tuned decoder, and of the classifier on it."""
        return self.body.decoder.parameters()

    def maps(self, inputs: torch.Tensor, taps: Sequence[str]) -> Mapping[str, torch.Tensor]:
        network, wanted = self.body, {tap for tap in taps if tap not in ("decoder", "classes")}
        headed = len(wanted) < len(taps)
        maps: dict[str, torch.Tensor] = dict(network.backbone(inputs, {*wanted, "layer4"} if headed else wanted))
        return maps | network.heads(maps["layer4"]) if headed else maps


def build_maskcontrast(
    request: AdapterRequest, *, arch: Arch | Literal["auto"], random_embedding: bool, own_layout: KeyRule
) -> Backbone:
    """The network of a request, with the weights of its checkpoint or a seeded random initialisation.

    arch: `auto` is what the checkpoint names, else what its keys tell, else the released architecture. own_layout: of
    files that name one.
    Raises CheckpointError for a file of another architecture, SettingError for a random embedding where there is none.
    """
    checkpoint = in_layout(request.checkpoint, own_layout)
    description = architecture_of(checkpoint)
    told, dim = _told_by_keys(checkpoint) or (None, _DIM)
    held = description.get("arch") if description is not None else told
    if held is not None and arch not in ("auto", held):
        raise CheckpointError(
            f"{checkpoint.path} holds the architecture {held}, not {arch}: drop --set {request.card.name}.arch={arch}"
        )
    arch = (told or _RELEASED) if arch == "auto" else arch
    classes = _classes_of(checkpoint)
    if classes and arch != "small":
        if random_embedding:
            setting = f"{request.card.name}.embedding=random"
            raise SettingError(f"{checkpoint.path} holds a classifier and no embedding: drop --set {setting}")
        return _build_linear(checkpoint, classes, arch)
    with seeded(checkpoint.seed):
        network = MaskContrastNetwork(arch, dim=dim) if description is None else from_description(description)
    loaded = load_into(network, checkpoint)
    noise = None
    if random_embedding:
        embedding = next(tap for tap in network.taps if tap.name == "embedding")
        noise = ContentNoise(embedding.channels, int(embedding.stride), seed=0)
    return MaskContrastBackbone(network, noise, loaded.as_dict() if loaded else {})


def _classes_of(checkpoint: Checkpoint) -> int:
    """The classes that the classifier of a linear-finetuned file knows; 0 for any other file. Tensors are not read."""
    held = {} if checkpoint.path is None else read_checkpoint(checkpoint.path)
    return len(held.get("decoder.4.weight", ()))


def _told_by_keys(checkpoint: Checkpoint) -> tuple[Arch, int] | None:
    """What the keys of a file tell of its architecture, None for nothing."""
    held = {} if checkpoint.path is None else read_checkpoint(checkpoint.path)
    states = (held, *(state for state in held.values() if isinstance(state, Mapping)))
    named = ({key: value for key, value in state.items() if isinstance(key, str)} for state in states)
    return next(filter(None, map(arch_in, named)), None)


def _build_linear(checkpoint: Checkpoint, classes: int, arch: ResNet) -> LinearBackbone:
    with seeded(checkpoint.seed):
        network = LinearMaskContrast(classes, arch)
    loaded = load_into(network, checkpoint)
    return LinearBackbone(network, loaded.as_dict() if loaded else {})
