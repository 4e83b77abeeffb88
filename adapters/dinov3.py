"""DINOv3: DINOv2 at scale, with dense maps kept from degrading.

Training code: https://github.com/facebookresearch/dinov3; the weights are timm's copies.
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
    "small": "vit_small_patch16_dinov3.lvd1689m",
    "small-plus": "vit_small_plus_patch16_dinov3.lvd1689m",
    "base": "vit_base_patch16_dinov3.lvd1689m",
    "large": "vit_large_patch16_dinov3.lvd1689m",
    "large-satellite": "vit_large_patch16_dinov3.sat493m",
    "huge-plus": "vit_huge_plus_patch16_dinov3.lvd1689m",
    "7b": "vit_7b_patch16_dinov3.lvd1689m",
    "7b-satellite": "vit_7b_patch16_dinov3.sat493m",
}
"""Checkpoint -> timm's name."""

LAYOUTS = (KeyRule(),)

_DATA = {"lvd1689m": "LVD-1689M without labels", "sat493m": "SAT-493M (satellite pictures) without labels"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DINOv3Options:
    """arch: one of `NETWORKS`."""

    arch: Literal[
        "auto", "small", "small-plus", "base", "large", "large-satellite", "huge-plus", "7b", "7b-satellite"
    ] = setting("auto", ARCH)


CARD = MethodCard(
    name="dinov3",
    summary="self-distillation at scale with anchored dense maps (DINOv3)",
    factory="bench.adapters.dinov3:build",
    paper="Siméoni et al., DINOv3, 2025, arXiv 2508.10104",
    backbone="ViT-S to ViT-7B",
    checkpoints=released(
        NETWORKS,
        LAYOUTS,
        licence="DINOv3 License",
        training_data={name: _DATA[network.partition(".")[2]] for name, network in NETWORKS.items()},
    ),
    options=DINOv3Options,
    default_tap=DEFAULT_TAP,
    notes=(
        f"{TAP_NOTE} Files in the authors' own layout are refused. A file cannot tell whether it was trained on "
        "satellite pictures, which are normalised otherwise: --set dinov3.arch=large-satellite says so. The ConvNeXts "
        "are timm:convnext_tiny.dinov3_lvd1689m and its kin."
    ),
)


def build(request: AdapterRequest) -> Adapter:
    """The adapter, in the network that the options or the checkpoint name."""
    from ._timm import build_released

    return build_released(request, NETWORKS)
