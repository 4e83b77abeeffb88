"""Any network of timm by its name: CNNs, ViTs and their kin.

Code and weights: https://github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.records import AdapterRequest, MethodCard
from bench.settings import setting

if TYPE_CHECKING:
    from bench.contracts import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class TimmOptions:
    """output_stride: input pixels per cell of the deepest map."""

    output_stride: Literal["auto", 8, 16, 32] = setting(
        "auto", "input pixels per cell of the deepest map; auto: 8 where the network can dilate, else its own"
    )


CARD = MethodCard(
    name="timm",
    summary="any network of timm, e.g. timm:resnet50 or timm:vit_base_patch16_dinov3",
    factory="bench.adapters.timm:build",
    paper="Wightman, PyTorch Image Models, 2019, doi 10.5281/zenodo.4414861",
    backbone="by name",
    options=TimmOptions,
    argument="NAME",
    default_tap="last",
    notes=(
        "Taps: stem, stage1 … of networks in stages, block1 … of transformers, and last, the deepest. Maps of "
        "transformers are normalised by the network's final norm where it has one; class and register tokens are left "
        "out. Licence and training data are those of the weights, see timm's page for the name."
    ),
)


def build(request: AdapterRequest) -> Adapter:
    """The adapter, with the mean and standard deviation that timm keeps with the weights."""
    from ._timm import build_timm

    return build_timm(request)
