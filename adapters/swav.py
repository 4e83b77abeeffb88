"""SwAV: swapped prediction of cluster assignments between crops.

Weights and training code: https://github.com/facebookresearch/swav.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.records import AdapterRequest, CheckpointCard, KeyRule, MethodCard

from ._resnet_card import DEFAULT_TAP, STRIDE_NOTE, TAPS, ResNetOptions

if TYPE_CHECKING:
    from bench.contracts import Adapter

STD = (0.228, 0.224, 0.225)
"""SwAV divides red by 0.228 where others have 0.229, in training and in its own evaluation."""

HEAD = ("projection_head.*", "prototypes.*")
PROBE = (("module.prototypes.weight", (3000, 128)),)

CARD = MethodCard(
    name="swav",
    summary="swapped cluster assignments with multi-crop (SwAV)",
    factory="bench.adapters.swav:build",
    paper=(
        "Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020, "
        "arXiv 2006.09882"
    ),
    backbone="ResNet-50",
    checkpoints=(
        CheckpointCard(
            name="800ep",
            filename="swav_800ep_pretrain.pth.tar",
            url="https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
            layouts=(
                KeyRule(prefix="module.", drop=HEAD, probe=PROBE),
                KeyRule(entry="state_dict", prefix="module.", drop=HEAD, probe=PROBE),
            ),
            licence="CC BY-NC 4.0",
            training_data="ImageNet-1k without labels",
            verified=(
                "URL: the repository's model zoo; it publishes no hash. Layout: its hub file and evaluation scripts. "
                "Its own ResNet pads in two steps, which gives the same values as torchvision's. Contents: not opened."
            ),
        ),
    ),
    options=ResNetOptions,
    taps=TAPS,
    default_tap=DEFAULT_TAP,
    notes=f"{STRIDE_NOTE} Its features are of another scale than MoCo's: a linear probe needs its own learning rate.",
)


def build(request: AdapterRequest) -> Adapter:
    """The adapter; ImageNet's mean, SwAV's own standard deviation."""
    from ._resnet import build_resnet50

    return build_resnet50(request, std=STD)
