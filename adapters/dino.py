"""DINO: a vision transformer taught by the running mean of itself.

Training code: https://github.com/facebookresearch/dino; the weights are timm's copies.
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
    "small16": "vit_small_patch16_224.dino",
    "small8": "vit_small_patch8_224.dino",
    "base16": "vit_base_patch16_224.dino",
    "base8": "vit_base_patch8_224.dino",
}
"""Checkpoint -> timm's name; the number is the side of a patch in pixels."""

LAYOUTS = (KeyRule(), KeyRule(entry="teacher", prefix="backbone."))
"""The backbone alone, as timm and the authors release it, and a training checkpoint, of which the teacher is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DINOOptions:
    """arch: one of `NETWORKS`."""

    arch: Literal["auto", "small16", "small8", "base16", "base8"] = setting("auto", ARCH)


CARD = MethodCard(
    name="dino",
    summary="self-distillation of vision transformers (DINO)",
    factory="bench.adapters.dino:build",
    paper="Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021, arXiv 2104.14294",
    backbone="ViT-S, ViT-B",
    checkpoints=released(NETWORKS, LAYOUTS, licence="Apache-2.0", training_data="ImageNet-1k without labels"),
    options=DINOOptions,
    default_tap=DEFAULT_TAP,
    notes=TAP_NOTE,
)


def build(request: AdapterRequest) -> Adapter:
    """The adapter, in the network that the options or the checkpoint name."""
    from ._timm import build_released

    return build_released(request, NETWORKS)
