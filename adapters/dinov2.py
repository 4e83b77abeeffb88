"""DINOv2: self-distillation and masked patches on curated pictures.

Training code: https://github.com/facebookresearch/dinov2; the weights are timm's copies.
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
    "small": "vit_small_patch14_dinov2.lvd142m",
    "base": "vit_base_patch14_dinov2.lvd142m",
    "large": "vit_large_patch14_dinov2.lvd142m",
    "giant": "vit_giant_patch14_dinov2.lvd142m",
    "small-registers": "vit_small_patch14_reg4_dinov2.lvd142m",
    "base-registers": "vit_base_patch14_reg4_dinov2.lvd142m",
    "large-registers": "vit_large_patch14_reg4_dinov2.lvd142m",
    "giant-registers": "vit_giant_patch14_reg4_dinov2.lvd142m",
}
"""Checkpoint -> timm's name; with registers: four tokens more, trained anew."""

LAYOUTS = (KeyRule(drop=("mask_token",)),)


@dataclass(frozen=True, slots=True, kw_only=True)
class DINOv2Options:
    """arch: one of `NETWORKS`."""

    arch: Literal[
        "auto", "small", "base", "large", "giant",
        "small-registers", "base-registers", "large-registers", "giant-registers",
    ] = setting("auto", ARCH)  # fmt: skip


CARD = MethodCard(
    name="dinov2",
    summary="self-distillation with masked patches on curated pictures (DINOv2)",
    factory="bench.adapters.dinov2:build",
    paper=(
        "Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024, arXiv 2304.07193; "
        "registers: Darcet et al., ICLR 2024, arXiv 2309.16588"
    ),
    backbone="ViT-S, ViT-B, ViT-L, ViT-g",
    checkpoints=released(
        NETWORKS, LAYOUTS, licence="Apache-2.0", training_data="LVD-142M without labels, which curated data sets chose"
    ),
    options=DINOv2Options,
    default_tap=DEFAULT_TAP,
    notes=(
        f"{TAP_NOTE} Patches are 14 pixels wide. The authors' files without registers have the same keys up to ViT-L; "
        "those with registers name them otherwise and are refused, as is their ViT-g."
    ),
)


def build(request: AdapterRequest) -> Adapter:
    """The adapter, in the network that the options or the checkpoint name."""
    from ._timm import build_released

    return build_released(request, NETWORKS)
