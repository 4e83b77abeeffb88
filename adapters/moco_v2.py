"""MoCo v2: momentum contrast with an MLP head and stronger augmentation.

Weights and training code: https://github.com/facebookresearch/moco.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.records import AdapterRequest, CheckpointCard, KeyRule, MethodCard

from ._resnet_card import DEFAULT_TAP, STRIDE_NOTE, TAPS, ResNetOptions

if TYPE_CHECKING:
    from bench.contracts import Adapter

HEAD = ("fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias")

LAYOUTS = (
    KeyRule(
        entry="state_dict",
        prefix="module.encoder_q.",
        drop=HEAD,
        probe=(("module.encoder_q.fc.2.weight", (128, 2048)),),
    ),
    # trained on one GPU, without DistributedDataParallel
    KeyRule(entry="state_dict", prefix="encoder_q.", drop=HEAD, probe=(("encoder_q.fc.2.weight", (128, 2048)),)),
)

LICENCE = "not stated for the weights (repository: MIT, while its README says CC BY-NC 4.0)"

VERIFIED = (
    "URL and the beginning of the MD5: the repository's table of models. Layout: the code that writes and reads the "
    "file. Contents: not opened."
)

CARD = MethodCard(
    name="moco_v2",
    summary="momentum contrast with an MLP head (MoCo v2)",
    factory="bench.adapters.moco_v2:build",
    paper="Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020, arXiv 2003.04297",
    backbone="ResNet-50",
    checkpoints=(
        CheckpointCard(
            name="800ep",
            filename="moco_v2_800ep_pretrain.pth.tar",
            url="https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar",
            md5="a04e12f8",
            layouts=LAYOUTS,
            licence=LICENCE,
            training_data="ImageNet-1k without labels",
            verified=VERIFIED,
        ),
        CheckpointCard(
            name="200ep",
            filename="moco_v2_200ep_pretrain.pth.tar",
            url="https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_200ep/moco_v2_200ep_pretrain.pth.tar",
            md5="59fd9945",
            layouts=LAYOUTS,
            licence=LICENCE,
            training_data="ImageNet-1k without labels",
            verified=VERIFIED,
        ),
    ),
    options=ResNetOptions,
    taps=TAPS,
    default_tap=DEFAULT_TAP,
    notes=f"{STRIDE_NOTE} The query encoder is read, as its authors do.",
)


def build(request: AdapterRequest) -> Adapter:
    """The adapter; ImageNet's mean and standard deviation."""
    from ._resnet import build_resnet50

    return build_resnet50(request)
