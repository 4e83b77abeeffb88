"""What the cards of methods share whose networks timm holds. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.records import CheckpointCard, KeyRule

DEFAULT_TAP = "last"

ARCH = "the network, by the name of its checkpoint; auto: what the checkpoint holds, else the first"

TAP_NOTE = (
    "Taps: block1 … and last, which is the deepest; all through the network's final norm, without class and register "
    "tokens. Positions are interpolated to the size of the picture by timm. Transformers of one size have the same "
    "keys whatever they were trained for: a file of another method cannot be found out by its keys alone."
)


def released(
    networks: Mapping[str, str], layouts: Sequence[KeyRule], *, licence: str, training_data: str | Mapping[str, str]
) -> tuple[CheckpointCard, ...]:
    """timm's copies of the weights, as they lie on its hub; networks: checkpoint name -> timm's name.

    layouts: of timm's copy and of the authors' files with the same keys. training_data: of all, or by checkpoint name.
    """
    return tuple(
        CheckpointCard(
            name=name,
            filename=f"{network}.safetensors",
            url=f"https://huggingface.co/timm/{network}/resolve/main/model.safetensors",
            layouts=tuple(layouts),
            licence=licence,
            training_data=training_data if isinstance(training_data, str) else training_data[name],
            verified=(
                "Host, names and licence: timm's own record of its weights, which has no hash; the address is formed "
                "as its loader does. Keys and shapes: timm's network. Contents: not opened."
            ),
        )
        for name, network in networks.items()
    )
