"""IIC: a network whose heads give clusters, trained so that the clusters of near pixels tell of each other.

Weights and training code: https://github.com/xu-ji/IIC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.records import AdapterRequest, CheckpointCard, KeyRule, MethodCard
from bench.settings import setting

if TYPE_CHECKING:
    from bench.contracts import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class IICOptions:
    """width: of the trunk's first convolution."""

    width: int = setting(
        0, "channels of the trunk's first convolution; 0: what the checkpoint has, else 64 as released", minimum=0
    )


ARCHIVE = "https://www.robots.ox.ac.uk/~xuji/models/models.tar.gz"


def _released(name: str, model: int, heads: dict[str, int], task: str) -> CheckpointCard:
    probe = tuple((f"{head}.heads.0.0.weight", (clusters, 512, 1, 1)) for head, clusters in heads.items())
    return CheckpointCard(
        name=name,
        filename=f"iic_{model}.pytorch",
        url=ARCHIVE,
        member=f"{model}/best.pytorch",
        layouts=(KeyRule(entry="net", probe=(*probe, ("trunk.features.0.weight", (64, 5, 3, 3)))),),
        licence="not stated for the weights (repository: MIT)",
        training_data=f"COCO-Stuff (train2017 and val2017, {task}); labels hide what is not stuff, and chose the epoch",
        verified=(
            "Address: the repository's examples/trained_models.txt; it publishes neither hash nor size. Model numbers "
            "and K: its examples/commands.txt. Place in the archive: a folder a model, as an author says (issue 48), "
            "and the name that the training code gives. Layout: that code. Contents: not opened."
        ),
    )


CARD = MethodCard(
    name="iic",
    summary="clusters of near pixels with the largest mutual information (IIC)",
    factory="bench.adapters.iic:build",
    paper=(
        "Ji et al., Invariant Information Clustering for Unsupervised Image Classification and Segmentation, ICCV "
        "2019, arXiv 1807.06653"
    ),
    backbone="six 3×3 convolutions at half resolution",
    checkpoints=(
        _released("coco-stuff-15", 512, {"head_A": 45, "head_B": 15}, "15 classes of stuff"),
        _released("coco-stuff-3", 555, {"head_A": 15, "head_B": 3}, "3 classes of stuff"),
        _released("coco-stuff-15-over", 521, {"head": 45}, "15 classes of stuff; one head"),
        _released("coco-stuff-3-over", 496, {"head": 15}, "3 classes of stuff; one head"),
    ),
    options=IICOptions,
    taps=("trunk", "head_B", "head_A"),
    default_tap="head_B",
    feature_tap="trunk",
    notes=(
        "K-means matches the clusters of head B as they are, whatever their number; other protocols read the trunk "
        "(512-d, half resolution, 4 pixels short on every side). head_A is the over-clustering head; the networks of "
        "one head have `head` in place of both. Input as the released code makes it: blue, green, red in [0, 1] and "
        "edges of a grey in which blue and red are swapped. The released networks saw pictures at a third of COCO's "
        "size: --size 170 is nearer to that than 512. Those for Potsdam read infrared and cannot be used. No network "
        "for PASCAL VOC was released. `random` has the data set's classes as K of head B, three times as many in A."
    ),
)


def build(request: AdapterRequest) -> Adapter:
    """The adapter, with the heads that the checkpoint holds."""
    from ._iic import build_iic

    return build_iic(request, width=request.options.width)
