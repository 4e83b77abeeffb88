"""BASNet: the saliency network whose masks MaskContrast learns from.

Weights and code: https://github.com/xuebinqin/BASNet; weights learnt without labels of saliency:
https://github.com/wvangansbeke/Unsupervised-Semantic-Segmentation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.records import CheckpointCard, EstimatorCard, EstimatorRequest, KeyRule

if TYPE_CHECKING:
    from bench.contracts import Estimator

LAYOUTS = tuple(
    KeyRule(
        entry=entry,
        prefix=prefix,
        probe=((f"{prefix}refunet.conv_d0.weight", (1, 64, 3, 3)), (f"{prefix}inconv.weight", (64, 3, 3, 3))),
    )
    for entry in ("", "state_dict")
    for prefix in ("", "module.")
)
"""The public file is the state dict itself; how the other one is laid out was not seen."""

INPUT = 256
"""Side of the network's input in pixels (the repository's test script)."""

CARD = EstimatorCard(
    name="basnet",
    summary="BASNet, a saliency network (the paper's masks)",
    factory="bench.estimators.basnet:build",
    paper="Qin et al., BASNet: Boundary-Aware Salient Object Detection, CVPR 2019",
    checkpoints=(
        CheckpointCard(
            name="public",
            filename="basnet.pth",
            url="https://drive.google.com/file/d/1s52ek_4YTDRt_EOkx1FS53u-vJa0c4nu/view",
            layouts=LAYOUTS,
            licence="MIT",
            training_data="DUTS-TR with masks of salient objects; ResNet-34 pre-trained on ImageNet-1k with labels",
            verified=(
                "Address and layout: the repository's README and test script; neither hash nor size is published "
                "(about 348 MB by the number of parameters). Training data: as the paper is remembered. Contents: not "
                "opened."
            ),
        ),
        CheckpointCard(
            name="unsupervised",
            filename="basnet_unsupervised.pth",
            url="https://drive.google.com/file/d/14qsoXU-NE63jKzuGPTJd8DRDnpnP4w6j/view",
            layouts=LAYOUTS,
            licence="CC BY-NC 4.0",
            training_data="MSRA-B with masks that DeepUSPS made (whose body learnt from labels of Cityscapes)",
            verified="Address: saliency/README.md of MaskContrast's repository. Layout, hash and contents: not seen.",
        ),
    ),
    notes=(
        "Pictures are stretched to 256x256. A map is stretched from its least to its largest value, as its authors do, "
        "so that every picture but a plain one gets a mask."
    ),
)


def build(request: EstimatorRequest) -> Estimator:
    """The estimator, with the weights of the request or a seeded random initialisation."""
    from bench.networks.basnet import BASNet

    from ._network import first_output, load

    return first_output(load(BASNet, request), request, size=INPUT)
