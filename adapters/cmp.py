"""CMP: complete the motion of a picture from a few vectors of it.

Weights and training code: https://github.com/XiaohangZhan/conditional-motion-propagation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.records import AdapterRequest, CheckpointCard, KeyRule, MethodCard
from bench.settings import setting

if TYPE_CHECKING:
    from bench.contracts import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class CMPOptions:
    """arch: the image encoder."""

    arch: Literal["auto", "resnet50", "alexnet", "alexnet_8x"] = setting(
        "auto",
        "image encoder: resnet50, alexnet (output stride 32, as trained), alexnet_8x (its weights at a stride of 8); "
        "auto: what the checkpoint holds, else resnet50",
    )


def _layouts(*probe: tuple[str, tuple[int, ...]]) -> tuple[KeyRule, ...]:
    """A training checkpoint, and what the authors' conversion makes of it: the image encoder alone."""
    prefix = "module.image_encoder."
    return (
        KeyRule(entry="state_dict", prefix=prefix, probe=tuple((f"{prefix}{name}", shape) for name, shape in probe)),
        KeyRule(probe=probe),
    )


LAYOUTS = {
    "resnet50": _layouts(("conv1.weight", (64, 3, 7, 7)), ("conv5.weight", (256, 2048, 1, 1))),
    "alexnet": _layouts(("conv1.0.weight", (96, 3, 11, 11)), ("conv8.weight", (256, 4096, 1, 1))),
}

TAPS = (
    "layer1", "layer2", "layer3", "layer4",
    "conv1", "conv2", "conv3", "conv4", "conv5", "pool5", "fc6", "fc7", "conv8",
)  # fmt: skip

_FOLDER = "https://drive.google.com/open?id=1Kx-OIcr2U44p9mlpV-SbhANQdtbn2rJR"


def _released(arch: str, configuration: str, about: str) -> CheckpointCard:
    filename = f"cmp_{arch}.pth.tar"
    return CheckpointCard(
        name=arch,
        filename=filename,
        manual=f"download the model of the configuration {configuration} from the folder {_FOLDER}, name it {filename}",
        layouts=LAYOUTS[arch],
        licence="MIT",
        training_data="video frames of YFCC100M with optical flow, no labels",
        verified=(
            f"{about} Folder: the repository's README, which publishes neither names, sizes nor hashes of its files. "
            "Training data: that configuration. Layout and layers: the code that writes and converts checkpoints, maps "
            "compared in float64 on weights drawn for the purpose. Contents: not opened."
        ),
    )


CARD = MethodCard(
    name="cmp",
    summary="motion completed from a few vectors (Conditional Motion Propagation)",
    factory="bench.adapters.cmp:build",
    paper=("Zhan et al., Self-Supervised Learning via Conditional Motion Propagation, CVPR 2019, arXiv 1903.11412"),
    backbone="ResNet-50 or AlexNet",
    checkpoints=(
        _released("resnet50", "resnet50_yfcc_voc_16gpu_42k", "Trained for 42,000 steps."),
        _released("alexnet", "alexnet_yfcc_voc_16gpu_70k", "Trained for 70,000 steps."),
    ),
    options=CMPOptions,
    taps=TAPS,
    default_tap="layer4",
    notes=(
        "ResNet-50 gives layer1 … layer4 (the default) and conv5, AlexNet conv1 … conv5 (the default), pool5, fc6, fc7 "
        "and conv8; conv5 of the one and conv8 of the other are what the motion decoder reads. MaskContrast's paper "
        "reports the best of several layers and says neither which nor of which encoder: choose on the train split "
        "(--split train --set kmeans.tap=layer3). Every 3×3 convolution of layer3 has dilation 2, of layer4 4, "
        "also the first, unlike in the other ResNet-50s here. Cells lie as in all networks of odd kernels padded by "
        "half: cell i of stride s looks at what surrounds pixel s·i. The authors' demo model, trained on videos of "
        "people, is another one."
    ),
)


def build(request: AdapterRequest) -> Adapter:
    """The adapter, of the encoder that the options or the checkpoint name."""
    from ._cmp import build_cmp

    options: CMPOptions = request.options
    return build_cmp(request, arch=options.arch, layouts=LAYOUTS)
