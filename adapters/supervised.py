"""ImageNet-supervised ResNet-50, torchvision's first recipe: the reference that self-supervised features are held to.

Weights: https://pytorch.org/vision/stable/models/generated/torchvision.models.resnet50.html (IMAGENET1K_V1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.records import AdapterRequest, CheckpointCard, KeyRule, MethodCard

from ._resnet_card import DEFAULT_TAP, STRIDE_NOTE, TAPS, ResNetOptions

if TYPE_CHECKING:
    from bench.contracts import Adapter

LAYOUT = KeyRule(drop=("fc.weight", "fc.bias"), probe=(("fc.weight", (1000, 2048)),))

CARD = MethodCard(
    name="supervised",
    summary="ResNet-50 trained to classify ImageNet (torchvision, IMAGENET1K_V1)",
    factory="bench.adapters.supervised:build",
    paper="He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385",
    backbone="ResNet-50",
    checkpoints=(
        CheckpointCard(
            name="imagenet1k-v1",
            filename="resnet50-0676ba61.pth",
            url="https://download.pytorch.org/models/resnet50-0676ba61.pth",
            sha256="0676ba61",
            layouts=(LAYOUT,),
            licence="BSD-3-Clause (torchvision)",
            training_data="ImageNet-1k with labels",
            verified=(
                "URL and size (97.8 MiB): torchvision's weight enum. The beginning of the SHA-256 is in the name. "
                "Contents: not opened."
            ),
        ),
        CheckpointCard(
            name="imagenet1k-v1-2017",
            filename="resnet50-19c8e357.pth",
            url="https://download.pytorch.org/models/resnet50-19c8e357.pth",
            sha256="19c8e357",
            layouts=(LAYOUT,),
            licence="BSD-3-Clause (torchvision)",
            training_data="ImageNet-1k with labels",
            verified=(
                "URL: the released code of MaskContrast. The beginning of the SHA-256 is in the name. Written before "
                "num_batches_tracked existed; said to be the same weights as imagenet1k-v1. Contents: not opened."
            ),
        ),
    ),
    options=ResNetOptions,
    taps=TAPS,
    default_tap=DEFAULT_TAP,
    notes=f"{STRIDE_NOTE} IMAGENET1K_V2 is another recipe and not this method: its file would load, do not give it.",
)


def build(request: AdapterRequest) -> Adapter:
    """The adapter; ImageNet's mean and standard deviation."""
    from ._resnet import build_resnet50

    return build_resnet50(request)
