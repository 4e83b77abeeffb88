"""The colorization network, rebuilt from its layer table, and the lightness it reads.

Source of the layers and their key names: Zhang et al., "Colorful Image Colorization" (arXiv 1603.08511), in the form of
the authors' PyTorch release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from bench.backbone import Backbone
from bench.records import AdapterRequest, Tap
from bench.weights import load_into, seeded

MEAN, STD = 50.0, 100.0
"""What the authors subtract from L* (0 … 100), and then divide by."""

_BLOCKS = (
    # name, convolutions, channels, stride of the last one, dilation
    ("model1", 2, 64, 2, 1),
    ("model2", 2, 128, 2, 1),
    ("model3", 3, 256, 2, 1),
    ("model4", 3, 512, 1, 1),
    ("model5", 3, 512, 1, 2),
    ("model6", 3, 512, 1, 2),
    ("model7", 3, 512, 1, 1),
)
_HEAD = "model8"
_HEAD_WIDTH, _COLOURS = 256, 313


class ColorizationNetwork(nn.Module):
    """Normalised lightness to the maps of every block; the layers that name colours are held for their keys alone.

    taps: `model1` … `model7`, each after its block's batch norm (so of both signs), and `model8`, the 256 non-negative
        channels that the 313 colours are read from.
    """

    def __init__(self) -> None:
        super().__init__()
        channels, stride, taps = 1, 1, []
        for name, convolutions, width, last_stride, dilation in _BLOCKS:
            self.add_module(name, _block(channels, width, convolutions, last_stride, dilation))
            channels, stride = width, stride * last_stride
            taps.append(Tap(name=name, channels=channels, stride=stride))
        self.model8 = nn.Sequential(
            nn.ConvTranspose2d(channels, _HEAD_WIDTH, 4, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(_HEAD_WIDTH, _HEAD_WIDTH, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(_HEAD_WIDTH, _HEAD_WIDTH, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(_HEAD_WIDTH, _COLOURS, 1),
        )
        self.model_out = nn.Conv2d(_COLOURS, 2, 1, bias=False)
        self.taps = (*taps, Tap(name=_HEAD, channels=_HEAD_WIDTH, stride=stride / 2))
        _initialise(self)

    def forward(self, inputs: torch.Tensor, taps: Sequence[str]) -> dict[str, torch.Tensor]:
        """Maps (B, D, h, w) of the taps asked for, from float (B, 1, H, W); stops after the deepest of them.

        h = ceil(H / stride), likewise w; `model8` is twice `model7` on each side.
        """
        maps: dict[str, torch.Tensor] = {}
        x = inputs
        for tap in self.taps:
            if len(maps) == len(set(taps)):
                break
            block = self.model8[:-1] if tap.name == _HEAD else self.get_submodule(tap.name)
            x = block(x)
            if tap.name in taps:
                maps[tap.name] = x
        return maps


def _block(channels: int, width: int, convolutions: int, last_stride: int, dilation: int) -> nn.Sequential:
    """3×3 convolutions, a ReLU after each, and one batch norm at the end; the last convolution has the stride."""
    layers: list[nn.Module] = []
    for index in range(convolutions):
        layers += [
            nn.Conv2d(
                width if index else channels,
                width,
                3,
                stride=last_stride if index == convolutions - 1 else 1,
                padding=dilation,
                dilation=dilation,
            ),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.BatchNorm2d(width))


def _initialise(network: nn.Module) -> None:
    """He et al. (arXiv 1502.01852): variance 2 / fan-in, biases 0; the release only loads, so this choice is ours.

    Under torch's own the biases drown the picture: on noise, the inner cells of `model7` differ by a thousandth of its
    largest value, against a twentieth here.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def lightness(pictures: torch.Tensor) -> torch.Tensor:
    """CIE L* of sRGB pictures: uint8 (B, 3, H, W) -> float32 (B, 1, H, W) in [0, 100].

    IEC 61966-2-1 for the linear values, and their luminance relative to D65's white, which is 1 (CIE 15:2004).
    """
    # Multiplied and added one by one: a matrix product would be taken to bfloat16 under autocast.
    encoded = pictures.to(torch.float32) / 255
    linear = torch.where(encoded > 0.04045, ((encoded + 0.055) / 1.055) ** 2.4, encoded / 12.92)
    red, green, blue = linear.unbind(1)
    luminance = (0.212671 * red + 0.715160 * green + 0.072169 * blue).unsqueeze(1)
    return torch.where(luminance > 0.008856, 116 * luminance ** (1 / 3) - 16, 903.292 * luminance)


class ColorizationBackbone(Backbone):
    """A `ColorizationNetwork` that reads RGB pictures."""

    def preprocess(self, pictures: torch.Tensor) -> torch.Tensor:
        """uint8 RGB (B, 3, H, W) -> float32 (B, 1, H, W): L* less 50, divided by 100."""
        return super().preprocess(lightness(pictures))

    def maps(self, inputs: torch.Tensor, taps: Sequence[str]) -> Mapping[str, torch.Tensor]:
        maps: Mapping[str, torch.Tensor] = self.body(inputs, taps)
        return maps


def build_colorization(request: AdapterRequest) -> ColorizationBackbone:
    """The network of a request, with the weights of its checkpoint or a seeded random initialisation."""
    with seeded(request.checkpoint.seed):
        network = ColorizationNetwork()
    loaded = load_into(network, request.checkpoint)
    return ColorizationBackbone(
        network,
        taps=network.taps,
        default_tap=request.card.default_tap,
        mean=(MEAN,),
        std=(STD,),
        scale=1.0,
        account=loaded.as_dict() if loaded else None,
    )
