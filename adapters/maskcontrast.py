"""MaskContrast: pixel embeddings contrasted over mask proposals, with a saliency head.

Weights and training code: https://github.com/wvangansbeke/Unsupervised-Semantic-Segmentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.records import AdapterRequest, CheckpointCard, KeyRule, MethodCard
from bench.settings import setting

if TYPE_CHECKING:
    from bench.contracts import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskContrastOptions:
    """arch: the architecture. embedding: what the map `embedding` holds; the other maps are always the network's."""

    arch: Literal["auto", "resnet50", "resnet34", "resnet18", "small"] = setting(
        "auto", "architecture; auto: that of the checkpoint, else resnet50"
    )
    embedding: Literal["trained", "random"] = setting(
        "trained", "random: noise in place of the embedding, below the same saliency head (a floor)"
    )


def _drive(name: str) -> str:
    return f"https://drive.google.com/file/d/{name}/view"


def _layouts(queue: int) -> tuple[KeyRule, ...]:
    """The training state of the released code, whole or its weights alone; the queue's length tells which run it is."""
    probe = (("module.model_q.head.weight", (32, 256, 1, 1)), ("module.queue", (32, queue)))
    return tuple(KeyRule(entry=entry, prefix="module.model_q.", probe=probe) for entry in ("model", ""))


_LINEAR_LAYOUT = KeyRule(probe=(("decoder.4.weight", (21, 256, 1, 1)), ("backbone.conv1.weight", (64, 3, 7, 7))))
"""The bare state of the released code's linear probe, with its classifier."""

OWN_LAYOUT = KeyRule(entry="model", prefix="model_q.")
"""Checkpoints of the producer `maskcontrast`."""

_LICENCE = "CC BY-NC 4.0"
_VERIFIED = (
    "Address: the repository's README; it publishes neither hash nor size. Layout: its training and evaluation code. "
    "Contents: not opened."
)

CARD = MethodCard(
    name="maskcontrast",
    summary="contrast of pixels over object mask proposals (MaskContrast)",
    factory="bench.adapters.maskcontrast:build",
    paper=(
        "Van Gansbeke et al., Unsupervised Semantic Segmentation by Contrasting Object Mask Proposals, ICCV 2021, "
        "arXiv 2102.06191"
    ),
    backbone="ResNet-50 with a DeepLab-v3 head",
    checkpoints=(
        CheckpointCard(
            name="supervised-saliency",
            filename="maskcontrast_supervised_saliency.pth.tar",
            url=_drive("1UkzAZMBG1U8kTqO3yhO2nTtoRNtEvyRq"),
            layouts=_layouts(128),
            licence=_LICENCE,
            training_data="PASCAL VOC 2012 without labels, masks of a supervised saliency network; ImageNet-1k labels",
            verified=_VERIFIED,
        ),
        CheckpointCard(
            name="unsupervised-saliency",
            filename="maskcontrast_unsupervised_saliency.pth.tar",
            url=_drive("1efL1vWVcrGAqeC6OLalX8pwec41c6NZj"),
            layouts=_layouts(256),
            licence=_LICENCE,
            training_data="PASCAL VOC 2012 and ImageNet-1k without labels, masks of an unsupervised saliency network",
            verified=_VERIFIED,
        ),
        CheckpointCard(
            name="supervised-saliency-linear",
            filename="maskcontrast_supervised_saliency_linear.pth.tar",
            url=_drive("1C2iv8wFV8MNLYLKw2E0Do2aeO-eaWNw3"),
            layouts=(_LINEAR_LAYOUT,),
            licence=_LICENCE,
            training_data="as supervised-saliency; a classifier with the labels of PASCAL VOC 2012 trainaug",
            verified=_VERIFIED,
        ),
        CheckpointCard(
            name="unsupervised-saliency-linear",
            filename="maskcontrast_unsupervised_saliency_linear.pth.tar",
            url=_drive("1y-HZTHHTyAceiFDLAraLXooGOdyQqY2Z"),
            layouts=(_LINEAR_LAYOUT,),
            licence=_LICENCE,
            training_data="as unsupervised-saliency; a classifier with the labels of PASCAL VOC 2012 trainaug",
            verified=_VERIFIED,
        ),
    ),
    options=MaskContrastOptions,
    taps=("layer1", "layer2", "layer3", "layer4", "decoder", "embedding", "saliency"),
    default_tap="embedding",
    probe_tap="decoder",
    notes=(
        "K-means and retrieval read the embedding (32-d, not normalised), the linear probe of the paper the decoder "
        "(256-d). The files `…-linear` hold the classifier of the released probe, which `linear` scores as it is; they "
        "have the map `classes`, and no embedding. An untrained network is in eval mode: its batch norm has mean 0 and "
        "variance 1. `small` has no layer4."
    ),
)


def build(request: AdapterRequest) -> Adapter:
    """The adapter, in the architecture that the options or the checkpoint name."""
    from ._maskcontrast import build_maskcontrast

    options: MaskContrastOptions = request.options
    random = options.embedding == "random"
    return build_maskcontrast(request, arch=options.arch, random_embedding=random, own_layout=OWN_LAYOUT)
