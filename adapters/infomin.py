"""InfoMin: contrastive learning with views that share as little as is needed.

Weights and training code: https://github.com/HobbitLong/PyContrast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.records import AdapterRequest, CheckpointCard, KeyRule, MethodCard

from ._resnet_card import DEFAULT_TAP, STRIDE_NOTE, TAPS, ResNetOptions

if TYPE_CHECKING:
    from bench.contracts import Adapter

LAYOUTS = (
    KeyRule(
        entry="model",
        prefix="module.encoder.",
        probe=(("module.head.2.weight", (128, 2048)), ("module.head_jig.fc2.weight", (128, 1152))),
    ),
    KeyRule(entry="model_ema", prefix="encoder.", probe=(("head.2.weight", (128, 2048)),)),
)


def _released(name: str, filename: str, key: str, about: str) -> CheckpointCard:
    """key: of the file's own link; the model zoo links to the folder alone."""
    return CheckpointCard(
        name=name,
        filename=filename,
        url=f"https://www.dropbox.com/sh/87d24jqsl6ra7t2/{key}/{filename}?dl=1",
        layouts=LAYOUTS,
        licence="BSD-2-Clause (PyContrast)",
        training_data="ImageNet-1k without labels",
        verified=(
            f"{about} Folder (https://www.dropbox.com/sh/87d24jqsl6ra7t2/AABdDXZZBTnMQCBrg1yrQKVCa) and file name: the "
            "repository's model zoo; it publishes no hash. Link: other projects that use the file. Layout: the code "
            "that writes and reads it. Contents: not opened."
        ),
    )


CARD = MethodCard(
    name="infomin",
    summary="contrastive learning with minimally shared views (InfoMin)",
    factory="bench.adapters.infomin:build",
    paper="Tian et al., What Makes for Good Views for Contrastive Learning?, NeurIPS 2020, arXiv 2005.10243",
    backbone="ResNet-50",
    checkpoints=(
        _released("800ep", "InfoMin_800.pth", "AAAzMTynP3Qc8mIE4XWkgILUa", "800 epochs, 73.0 % linear on ImageNet."),
        _released("200ep", "InfoMin_200.pth", "AACgeWc3nQ4P4zUh48KWqhxBa", "200 epochs."),
        _released("800ep-run2", "InfoMin_800_run2.pth", "AABc8rLe91MlYOmTRgz4dO7Ja", "A second run of 800 epochs."),
    ),
    options=ResNetOptions,
    taps=TAPS,
    default_tap=DEFAULT_TAP,
    notes=STRIDE_NOTE,
)


def build(request: AdapterRequest) -> Adapter:
    """The adapter; ImageNet's mean and standard deviation."""
    from ._resnet import build_resnet50

    return build_resnet50(request)
