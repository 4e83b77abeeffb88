"""The network of MaskContrast: a dilated ResNet, a decoder, and two 1×1 heads on the decoder's map.

Source: Van Gansbeke et al., "Unsupervised Semantic Segmentation by Contrasting Object Mask Proposals" (arXiv
2102.06191). Names and shapes of all tensors are those of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

from bench.errors import CheckpointError, SettingError
from bench.networks.deeplab import DeepLabHead, NarrowHead
from bench.networks.resnet import Arch as ResNet
from bench.networks.resnet import OutputStride, dilated_resnet
from bench.records import Tap
from bench.registry import near

__all__ = ["ARCHS", "Arch", "LinearMaskContrast", "MaskContrastNetwork", "arch_in", "from_description"]

Arch = Literal["resnet18", "resnet34", "resnet50", "small"]
ARCHS: tuple[Arch, ...] = get_args(Arch)

_SMALL_WIDTHS = (32, 64, 128)
_SMALL_DECODER = 128


class MaskContrastNetwork(nn.Module):
    """Pictures to a decoder map, pixel embeddings and saliency logits.

    arch: a ResNet with a DeepLab-v3 head of 256 channels; or `small` (0.46 M parameters): the first three stages of a
        ResNet of one basic block per stage and half the width, one 3×3 convolution as the decoder, of 128 channels.
    dim: D, the width of the embedding. output_stride: input pixels per cell of the maps.
    dropout: of the DeepLab head; `small` has none.
    taps: the three maps it gives.
    Raises SettingError for an architecture it does not know.
    """

    def __init__(
        self, arch: Arch = "resnet50", *, dim: int = 32, output_stride: OutputStride = 8, dropout: float = 0.5
    ) -> None:
        super().__init__()
        if arch not in ARCHS:
            known = ", ".join(ARCHS)
            raise SettingError(f"MaskContrast has no architecture {arch!r}.{near(arch, ARCHS)} Known: {known}")
        self._description = {"arch": arch, "dim": dim, "output_stride": output_stride, "dropout": dropout}
        self.backbone = _SmallResNet(output_stride) if arch == "small" else dilated_resnet(arch, output_stride)
        deepest = self.backbone.taps[-1]
        decoder = (
            NarrowHead(deepest.channels, width=_SMALL_DECODER)
            if arch == "small"
            else DeepLabHead(deepest.channels, dropout=dropout)
        )
        # In the released order, which is also that of the parameters in the state of a released optimizer.
        self.head = nn.Conv2d(decoder.width, dim, 1)
        self.decoder = decoder
        self.classification_head = nn.Conv2d(decoder.width, 1, 1, bias=False)
        self.taps = (
            Tap(name="decoder", channels=decoder.width, stride=deepest.stride),
            Tap(name="embedding", channels=dim, stride=deepest.stride),
            Tap(name="saliency", channels=1, stride=deepest.stride, kind="foreground_logit"),
        )

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps at feature resolution of float (B, 3, H, W): `decoder` (B, C, h, w), not negative; `embedding`
        (B, D, h, w), not normalised; `saliency` (B, 1, h, w), logits.

        h = ceil(H / output stride), likewise w.
        """
        deepest = self.backbone.taps[-1].name
        decoded = self.decoder(self.backbone(images, [deepest])[deepest])
        return {"decoder": decoded, "embedding": self.head(decoded), "saliency": self.classification_head(decoded)}

    def upsampled(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (B, D, H, W), not normalised, and saliency logits (B, H, W) of float (B, 3, H, W).

        Bilinear with align_corners False, as the reference does before its losses and its evaluation.
        """
        maps = self(images)
        size = (images.shape[2], images.shape[3])
        embedding = functional.interpolate(maps["embedding"], size, mode="bilinear", align_corners=False)
        saliency = functional.interpolate(maps["saliency"], size, mode="bilinear", align_corners=False)
        return embedding, saliency.squeeze(1)

    def describe(self) -> dict[str, Any]:
        """The architecture as plain data, for a checkpoint to name; `from_description` builds it again."""
        return {"network": "maskcontrast", **self._description}


class LinearMaskContrast(nn.Module):
    """The network of the released linear-finetuned files: ResNet-50 and decoder with a 1×1 classifier on its map.

    Names and shapes as there: the classifier is the decoder's last module, `decoder.4`. classes: as many as it knows.
    arch: of the body; the released files have a ResNet-50.
    """

    def __init__(self, classes: int, arch: ResNet = "resnet50") -> None:
        super().__init__()
        self.backbone = dilated_resnet(arch)
        deepest = self.backbone.taps[-1]
        self.decoder = DeepLabHead(deepest.channels)
        self.decoder.add_module("4", nn.Conv2d(self.decoder.width, classes, 1))
        self.taps = (
            Tap(name="decoder", channels=self.decoder.width, stride=deepest.stride),
            Tap(name="classes", channels=classes, stride=deepest.stride, kind="class_logit"),
        )

    def heads(self, deepest: torch.Tensor) -> dict[str, torch.Tensor]:
        """`decoder` (B, 256, h, w), not negative, and `classes` (B, classes, h, w) of the deepest map of the body."""
        *decoder, classifier = self.decoder
        decoded = deepest
        for module in decoder:
            decoded = module(decoded)
        return {"decoder": decoded, "classes": classifier(decoded)}


def from_description(description: Mapping[str, Any]) -> MaskContrastNetwork:
    """The network, with random weights, that `describe` tells of.

    Raises CheckpointError where the description is not one of this network.
    """
    known = {"network", "arch", "dim", "output_stride", "dropout"}
    if description.get("network") != "maskcontrast" or not set(description) <= known or "arch" not in description:
        raise CheckpointError(
            f"the architecture {dict(description)} is not one of MaskContrast; expected network=maskcontrast and "
            f"{', '.join(sorted(known - {'network'}))}; give a checkpoint that this version wrote"
        )
    return MaskContrastNetwork(**{key: value for key, value in description.items() if key != "network"})


def arch_in(state: Mapping[str, Any]) -> tuple[Arch, int] | None:
    """The architecture and the width of the embedding that the keys of a state dict tell, under any prefix.

    The width is 32 where there is no embedding. None where there is no body. A ResNet-101 is told as the ResNet-50 that
    it is not: loading it names what is too much.
    """
    first = "backbone.layer1.0.conv1.weight"
    prefix = next((key.removesuffix(first) for key in state if key.endswith(first)), None)
    if prefix is None:
        return None
    held = {key.removeprefix(f"{prefix}backbone.") for key in state if key.startswith(f"{prefix}backbone.")}
    head = state.get(f"{prefix}head.weight")
    dim = int(head.shape[0]) if isinstance(head, torch.Tensor) and head.ndim else 32
    if "layer4.0.conv1.weight" not in held:
        return "small", dim
    if "layer1.0.conv3.weight" in held:
        return "resnet50", dim
    return ("resnet34" if "layer1.2.conv1.weight" in held else "resnet18"), dim


class _SmallResNet(nn.Module):
    """The first three stages of a ResNet of one basic block each, in torchvision's names; its deepest map only."""

    def __init__(self, output_stride: OutputStride) -> None:
        super().__init__()
        if output_stride not in (8, 16):
            raise SettingError(f"the architecture 'small' has an output stride of 8 or 16, not {output_stride}")
        first, second, third = _SMALL_WIDTHS
        self.conv1 = nn.Conv2d(3, first, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(first, first))
        self.layer2 = nn.Sequential(_widening_block(first, second, stride=2))
        self.layer3 = nn.Sequential(_widening_block(second, third, stride=output_stride // 8))
        self.taps = (Tap(name="layer3", channels=third, stride=output_stride),)

    def forward(self, images: torch.Tensor, taps: Sequence[str] = ("layer3",)) -> dict[str, torch.Tensor]:
        stem = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return {"layer3": self.layer3(self.layer2(self.layer1(stem)))}


def _widening_block(inputs: int, width: int, stride: int) -> nn.Module:
    """A basic block of more channels; where it keeps the size of the map, its second convolution is dilated."""
    shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
    block = BasicBlock(inputs, width, stride, shortcut)
    if stride == 1:
        block.conv2.dilation = block.conv2.padding = (2, 2)
    widening: nn.Module = block
    return widening
