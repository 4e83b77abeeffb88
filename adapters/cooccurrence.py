"""Co-Occurrence: whether two patches of a picture are neighbours, in the form that IIC's authors gave it.

Of the method's own authors (Isola et al., 2015) neither code nor weights are public. Weights and training code of the
stand-in: https://github.com/xu-ji/IIC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.records import AdapterRequest, CheckpointCard, KeyRule, MethodCard
from bench.settings import setting

if TYPE_CHECKING:
    from bench.contracts import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class CooccurrenceOptions:
    """width: of the trunk's first convolution."""

    width: int = setting(
        0, "channels of the trunk's first convolution; 0: what the checkpoint has, else 64 as released", minimum=0
    )


ARCHIVE = "https://www.robots.ox.ac.uk/~xuji/models/doersch_isola_models.tar.gz"

CARD = MethodCard(
    name="cooccurrence",
    summary="neighbouring patches told from others (Co-Occurrence, in a stand-in network)",
    factory="bench.adapters.cooccurrence:build",
    paper=(
        "Isola et al., Learning Visual Groups from Co-Occurrences in Space and Time, 2015, arXiv 1511.06811; network: "
        "Ji et al., arXiv 1807.06653"
    ),
    backbone="six 3×3 convolutions at half resolution",
    checkpoints=(
        CheckpointCard(
            name="coco-stuff",
            filename="cooccurrence_isola.pytorch",
            manual=(
                f"download {ARCHIVE}, unpack it, take best_net.pytorch of an Isola model for COCO-Stuff (the author's "
                "answer in issue 52 of the repository lists commands by number), name it cooccurrence_isola.pytorch"
            ),
            layouts=(
                KeyRule(
                    prefix="features.",
                    probe=(
                        ("isola_head.siamese_branch.0.weight", (1024, 512, 3, 3)),
                        ("features.features.0.weight", (64, 5, 3, 3)),
                    ),
                ),
            ),
            licence="not stated for the weights (repository: MIT)",
            training_data="COCO-Stuff (train2017 and val2017); labels hide what is not stuff, and chose the epoch",
            verified=(
                "Address: the author's answer in issue 52 of the repository; neither hash nor size is known. Layout: "
                "its training code. Names in the archive, settings of the runs and contents: not seen."
            ),
        ),
    ),
    options=CooccurrenceOptions,
    taps=("trunk",),
    default_tap="trunk",
    notes=(
        "A stand-in: the network that IIC's authors compared theirs with (patches of 11 pixels of the trunk's map; "
        "neighbours share a corner). Not known are the network, the patch size and the training of the original, and "
        "what the figures published for Co-Occurrence on PASCAL VOC were made with. The map is the trunk's (512-d, "
        "half resolution, 4 pixels short on every side); the stand-in resizes it to the input, which protocols do "
        "where they need it, by its geometry. Input and the scale of pictures as for `iic`."
    ),
)


def build(request: AdapterRequest) -> Adapter:
    """The adapter; the head that judges pairs is left aside."""
    from ._iic import build_cooccurrence

    return build_cooccurrence(request, width=request.options.width)
