"""Colorization: guess the colours of a picture from its lightness.

Weights and code: https://github.com/richzhang/colorization.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.records import AdapterRequest, CheckpointCard, KeyRule, MethodCard

if TYPE_CHECKING:
    from bench.contracts import Adapter

CARD = MethodCard(
    name="colorization",
    summary="colours guessed from lightness (Colorful Image Colorization)",
    factory="bench.adapters.colorization:build",
    paper="Zhang et al., Colorful Image Colorization, ECCV 2016, arXiv 1603.08511",
    backbone="VGG-like network of 8 blocks, dilated",
    checkpoints=(
        CheckpointCard(
            name="eccv16",
            filename="colorization_release_v2-9b330a0b.pth",
            url="https://colorizers.s3.us-east-2.amazonaws.com/colorization_release_v2-9b330a0b.pth",
            sha256="9b330a0b",
            layouts=(KeyRule(probe=(("model1.0.weight", (64, 1, 3, 3)), ("model8.6.weight", (313, 256, 1, 1)))),),
            licence="BSD-2-Clause (as a third-party catalogue has it; the repository's licence file was not seen)",
            training_data="ImageNet-1k without labels",
            verified=(
                "URL and beginning of the SHA-256: the loader of the authors' PyTorch port. Size: about 130 MB, as a "
                "third-party catalogue has it. Layout, layers and maps: that port, compared in float64 on weights "
                "drawn for the purpose. Contents: not opened."
            ),
        ),
    ),
    taps=("model1", "model2", "model3", "model4", "model5", "model6", "model7", "model8"),
    default_tap="model7",
    notes=(
        "Reads CIE L* alone. Maps of model1 … model7 are taken after the block's batch norm, of both signs; model8 is "
        "the 256-d map that colours are read from. MaskContrast's paper reports the best of several layers and does "
        "not name it. The default, model7, is the deepest before the colour head, as the other methods' is their "
        "deepest; model5 is the other candidate: choose on the train split (--split train --set kmeans.tap=model5). "
        "Cells lie as in all networks of odd kernels padded by half: cell i of stride s looks at what surrounds pixel "
        "s·i. The authors' other network, siggraph17, and the ResNet-50 of Goyal et al. 2019 are not this method."
    ),
)


def build(request: AdapterRequest) -> Adapter:
    """The adapter; RGB pictures become lightness in its preprocessing."""
    from ._colorization import build_colorization

    return build_colorization(request)
