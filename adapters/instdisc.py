"""Instance discrimination: every picture is a class of its own, told apart through a memory bank.

Weights and training code: https://github.com/zhirongw/lemniscate.pytorch; a re-training in
https://github.com/HobbitLong/PyContrast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.records import AdapterRequest, CheckpointCard, KeyRule, MethodCard

from ._resnet_card import DEFAULT_TAP, STRIDE_NOTE, TAPS, ResNetOptions

if TYPE_CHECKING:
    from bench.contracts import Adapter

HOST = "https://frontiers.blob.core.windows.net/pretraining/checkpoints/pil_pretrained_models/lemniscate"

LEMNISCATE = KeyRule(
    entry="state_dict",
    prefix="module.",
    drop=("fc.weight", "fc.bias"),
    probe=(("module.fc.weight", (128, 2048)),),
)


def _vissl(prefix: str) -> KeyRule:
    """One of the prefixes that VISSL puts before torchvision's names; which one this file has was not seen."""
    return KeyRule(
        entry="model_state_dict", prefix=prefix, drop=("fc.*",), probe=((f"{prefix}conv1.weight", (64, 3, 7, 7)),)
    )


CARD = MethodCard(
    name="instdisc",
    summary="every picture its own class, with a memory bank (InstDisc)",
    factory="bench.adapters.instdisc:build",
    paper=(
        "Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018, "
        "arXiv 1805.01978"
    ),
    backbone="ResNet-50",
    checkpoints=(
        CheckpointCard(
            name="lemniscate",
            filename="lemniscate_resnet50.pth",
            url=f"{HOST}/lemniscate_resnet50.pth",
            layouts=(LEMNISCATE,),
            legacy_pickle=True,
            licence="not stated (the repository has no licence file)",
            training_data="ImageNet-1k without labels",
            verified=(
                "The original release: NCE with 4,096 negatives. URL: the repository's README; it publishes no hash. "
                "Layout: the code that writes the file, which pickles the memory bank (about 600 MB) as a whole "
                "module. Contents: not opened."
            ),
        ),
        CheckpointCard(
            name="lemniscate-update",
            filename="lemniscate_resnet50_update.pth",
            url=f"{HOST}/lemniscate_resnet50_update.pth",
            layouts=(LEMNISCATE,),
            legacy_pickle=True,
            licence="not stated (the repository has no licence file)",
            training_data="ImageNet-1k without labels",
            verified=(
                "The release of August 2020: softmax over 65,536 negatives. URL: the repository's README; it publishes "
                "no hash. Layout: assumed to be that of the original release. Contents: not opened."
            ),
        ),
        CheckpointCard(
            name="vissl",
            filename="converted_vissl_rn50_npid_lemniscate_neg4k_stepLR_8gpu.torch",
            url=(
                "https://dl.fbaipublicfiles.com/vissl/model_zoo/"
                "converted_vissl_rn50_npid_lemniscate_neg4k_stepLR_8gpu.torch"
            ),
            layouts=tuple(
                _vissl(prefix)
                for prefix in ("_feature_blocks.", "trunk.base_model._feature_blocks.", "trunk.base_model.", "")
            ),
            licence="not stated (the original repository has no licence file)",
            training_data="ImageNet-1k without labels",
            verified=(
                "The original release without its pickled module, converted by VISSL. URL and entry: VISSL's model zoo "
                "and configurations. Prefix: one of four. Contents: not opened."
            ),
        ),
        CheckpointCard(
            name="pycontrast",
            filename="InsDis.pth",
            url="https://www.dropbox.com/sh/87d24jqsl6ra7t2/AACcsSIt1_Njv7GsmsuzZ6Sta/InsDis.pth?dl=1",
            layouts=(KeyRule(entry="model", prefix="module.encoder.", probe=(("module.head.0.weight", (128, 2048)),)),),
            licence="BSD-2-Clause (PyContrast)",
            training_data="ImageNet-1k without labels",
            verified=(
                "Re-trained by PyContrast for 200 epochs, 59.5 % linear on ImageNet. Folder "
                "(https://www.dropbox.com/sh/87d24jqsl6ra7t2/AABdDXZZBTnMQCBrg1yrQKVCa) and file name: the "
                "repository's model zoo; it publishes no hash. Link: other projects that use the file. Layout: the "
                "code that writes it. Contents: not opened."
            ),
        ),
    ),
    options=ResNetOptions,
    taps=TAPS,
    default_tap=DEFAULT_TAP,
    notes=(
        f"{STRIDE_NOTE} MaskContrast's paper does not say which release it compares with; the default is the older "
        "one, since scores as low as the paper's point to it. That is a guess."
    ),
)


def build(request: AdapterRequest) -> Adapter:
    """The adapter; ImageNet's mean and standard deviation."""
    from ._resnet import build_resnet50

    return build_resnet50(request)
