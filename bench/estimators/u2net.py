"""U²-Net and its narrow form, U²-NetP: saliency networks.

Weights and code: https://github.com/xuebinqin/U-2-Net.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.records import CheckpointCard, EstimatorCard, EstimatorRequest, KeyRule
from bench.settings import setting

if TYPE_CHECKING:
    from bench.contracts import Estimator
    from bench.networks.u2net import Arch


@dataclass(frozen=True, slots=True, kw_only=True)
class U2NetOptions:
    """arch: the architecture."""

    arch: Literal["auto", "u2net", "u2netp"] = setting(
        "auto", "architecture; auto: that of the checkpoint, u2net for `random`"
    )


PROBE = "stage1.rebnconv1.conv_s1.weight"
INSIDE = {"u2net": 32, "u2netp": 16}
"""Channels inside the first stage: what tells the two architectures apart."""

INPUT = 320
"""Side of the network's input in pixels (the repository's test script)."""


def _layouts(arch: Arch) -> tuple[KeyRule, ...]:
    probe = (("outconv.weight", (1, 6, 1, 1)), (PROBE, (INSIDE[arch], 64, 3, 3)))
    return (KeyRule(probe=probe),)


_LICENCE = "Apache-2.0"
_DATA = "DUTS-TR with masks of salient objects"


def _verified(size: str) -> str:
    return (
        f"Address, size ({size}) and layout: the repository's README and code; no hash is published. Training data: as "
        "the paper is remembered. Contents: not opened."
    )


CARD = EstimatorCard(
    name="u2net",
    summary="U²-Net, a saliency network, and the narrow U²-NetP",
    factory="bench.estimators.u2net:build",
    paper="Qin et al., U²-Net: Going Deeper with Nested U-Structure for Salient Object Detection, arXiv 2005.09007",
    checkpoints=(
        CheckpointCard(
            name="u2net",
            filename="u2net.pth",
            url="https://drive.google.com/file/d/1ao1ovG1Qtx4b7EoskHXmi2E9rp5CHLcZ/view",
            layouts=_layouts("u2net"),
            licence=_LICENCE,
            training_data=_DATA,
            verified=_verified("176.3 MB"),
        ),
        CheckpointCard(
            name="u2netp",
            filename="u2netp.pth",
            url="https://drive.google.com/file/d/1rbSTGKAE-MTxBYHd-51l2hMOQPT_7EPy/view",
            layouts=_layouts("u2netp"),
            licence=_LICENCE,
            training_data=_DATA,
            verified=_verified("4.7 MB"),
        ),
    ),
    options=U2NetOptions,
    notes="Pictures are stretched to 320x320, maps from their least to their largest value, as its authors do.",
)


def build(request: EstimatorRequest) -> Estimator:
    """The estimator, in the architecture that the options or the checkpoint name."""
    from bench.networks.u2net import U2Net

    from ._network import first_output, load, width_in_file

    options: U2NetOptions = request.options
    arch: Arch = "u2net" if options.arch == "auto" else options.arch
    if options.arch == "auto" and width_in_file(request.checkpoint, PROBE) == INSIDE["u2netp"]:
        arch = "u2netp"
    return first_output(load(lambda: U2Net(arch), request), request, size=INPUT)
