"""A run's last checkpoint in the layout of the released files, for the reference code to read."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import torch

from bench.checkpoints import read_checkpoint
from bench.errors import SettingError
from bench.files import write_atomic

from .maskcontrast import MaskContrastSettings

__all__ = ["check_reference", "export_reference"]

_PREFIX = "module."


def check_reference(settings: MaskContrastSettings) -> None:
    """SettingError for an architecture that the reference code does not know."""
    if settings.arch != "resnet50":
        raise SettingError(
            f"--export reference is for arch=resnet50, the architecture of the released files, not {settings.arch}: "
            "drop it, or train with --set arch=resnet50"
        )


def export_reference(checkpoint: Path, target: Path, steps_per_epoch: int) -> None:
    """Write the file atomically: `model` (both networks and the queue, keys as of a data-parallel module),
    `optimizer`, and `epoch`, the number of whole epochs done.

    In the format of torch before 1.6, which the reference code needs. Raises StorageError.
    """
    held = read_checkpoint(checkpoint)
    state = {
        "optimizer": held["optimizer"],
        "model": {_PREFIX + name: tensor.contiguous() for name, tensor in held["model"].items()},
        "epoch": held["step"] // steps_per_epoch,
    }

    def write(file: BinaryIO) -> None:
        torch.save(state, file, _use_new_zipfile_serialization=False)

    write_atomic(target, write, fix="make room, or choose another folder with --output")
