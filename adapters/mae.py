"""MAE: paint in the three quarters of a picture's patches that are hidden.

Training code: https://github.com/facebookresearch/mae; the weights are timm's copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.records import AdapterRequest, KeyRule, MethodCard
from bench.settings import setting

from ._timm_card import ARCH, DEFAULT_TAP, TAP_NOTE, released

if TYPE_CHECKING:
    from bench.contracts import Adapter

NETWORKS = {
    "base": "vit_base_patch16_224.mae",
    "large": "vit_large_patch16_224.mae",
    "huge": "vit_huge_patch14_224.mae",
}
"""Checkpoint -> timm's name."""

LAYOUTS = (KeyRule(), KeyRule(entry="model", drop=("decoder_*", "mask_token")))
"""The encoder alone, as timm has it, and the authors' files, with or without the decoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MAEOptions:
    """arch: one of `NETWORKS`."""

    arch: Literal["auto", "base", "large", "huge"] = setting("auto", ARCH)


CARD = MethodCard(
    name="mae",
    summary="hidden patches painted in (masked autoencoder, MAE)",
    factory="bench.adapters.mae:build",
    paper="He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, arXiv 2111.06377",
    backbone="ViT-B, ViT-L, ViT-H",
    checkpoints=released(NETWORKS, LAYOUTS, licence="CC BY-NC 4.0", training_data="ImageNet-1k without labels"),
    options=MAEOptions,
    default_tap=DEFAULT_TAP,
    notes=TAP_NOTE,
)


def build(request: AdapterRequest) -> Adapter:
    """The adapter, in the network that the options or the checkpoint name."""
    from ._timm import build_released

    return build_released(request, NETWORKS)
