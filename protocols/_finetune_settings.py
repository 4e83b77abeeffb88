"""The settings of few-label fine-tuning, its presets, and what `auto` comes to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.errors import SettingError
from bench.records import Choice, Preset, Source
from bench.settings import InputSettings, setting

__all__ = ["PRESETS", "FinetuneSettings", "crop_of", "fraction", "listed", "settle", "share"]

LARGEST_CROP, CROP_STEP = 512, 32
"""Pixels: `crop=0` is the median of the pictures' shorter sides, up to a multiple of the step, at most the largest."""

FEW = 0.02
"""Up to this share of the labels the seed trains MaskContrast at other rates."""


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(InputSettings):
    """Which labels are used, what is trained, and how."""

    fractions: tuple[str, ...] = setting(
        ("1%", "2%", "5%", "12.5%", "100%"),
        "shares of the train split, a row each: 5% or 0.05; all of it is 100% or 1.0",
    )
    split: Literal["random", "stratified"] = setting(
        "random", "purely random, or rare classes first: every class that the whole split has, as far as pictures go"
    )
    names: str = setting("", "file that lists the pictures to learn from, one name a line, in place of fractions")
    names_sha256: str = setting("", "of that file's content; filled in")
    reads: str = setting("", "the map of `tap`, where it names one: not that of the method's body; filled in")
    arm: Literal["auto", "maskcontrast", "imagenet-baseline"] = setting(
        "auto", "whose rates, batch norm and decoder; auto: maskcontrast where the method carries a decoder"
    )
    decoder: Literal["auto", "own", "deeplab", "none"] = setting(
        "auto",
        "the method's own, a DeepLab-v3 head from scratch, or none; auto: own in the arm maskcontrast of a method that "
        "carries one, else deeplab",
    )
    bn: Literal["auto", "frozen", "frozen-body", "train"] = setting(
        "auto",
        "statistics of batch norm; frozen-body: those of a new decoder are trained; auto: frozen for maskcontrast (but "
        "never those of a new decoder), trained for the baseline",
    )
    lr: float = setting(0.0, "learning rate; 0: that of the arm and the share of labels", minimum=0)
    last_lr: float = setting(0.0, "that of the last convolution; 0: that of the arm and the share of labels", minimum=0)
    decoder_lr_mult: float = setting(1.0, "the decoder's rate is that of the body times this", minimum=0)
    iterations: int = setting(20_000, "steps, the same at every fraction", minimum=1)
    batch: int = setting(8, "pictures a step", minimum=1)
    drop_last: bool = setting(True, "leave out an epoch's last batch where it is smaller than the others")
    momentum: float = setting(0.9, "momentum of SGD", minimum=0, maximum=1)
    weight_decay: float = setting(1e-4, "weight decay of all parameters", minimum=0)
    power: float = setting(0.9, "of the polynomial decay of the learning rate, by steps", minimum=0)
    init_std: float = setting(0.01, "standard deviation of the last convolution's initial weights", minimum=0)
    crop: int = setting(
        0, "side of the square crops in pixels; 0: by the sizes of the train split", minimum=0, maximum=4096
    )
    scale: tuple[float, ...] = setting((0.5, 2.0), "pictures are resized by a factor between these first", minimum=0.05)
    flip: float = setting(0.5, "probability of a mirrored picture", minimum=0, maximum=1)
    decide: Literal["label", "input"] = setting(
        "label", "where a pixel's class is decided: at the label's own size, or at the input's and then nearest"
    )
    network: str = setting("train", "train, or row:KEY: that of a finished row is scored, without training")
    keep: bool = setting(True, "keep the trained networks beside the row", decides=False)

    @property
    def reads_of_train(self) -> Literal["nothing", "pictures", "labels"]:
        return "labels" if self.network == "train" else "nothing"


_SHARED = {
    "fractions": Choice(("1%", "2%", "5%", "12.5%", "100%"), Source.SEED, "Figure 4 and section 5"),
    "split": Choice("random", Source.SEED, "three random splits"),
    "arm": Choice("auto", Source.SEED, "MaskContrast, and the baseline for all other weights"),
    "decoder": Choice("auto", Source.SEED, "encoder and decoder of MaskContrast; the baseline has a decoder"),
    "bn": Choice("auto", Source.SEED, "batch-norm statistics of MaskContrast are frozen"),
    "lr": Choice(0.0, Source.SEED, "0.004; MaskContrast at 1 and 2 %: 0.001"),
    "last_lr": Choice(0.0, Source.SEED, "as the others; MaskContrast at 1 and 2 %: 0.1"),
    "decoder_lr_mult": Choice(1.0, Source.SEED, "10 was tried"),
    "batch": Choice(8, Source.SEED),
    "momentum": Choice(0.9, Source.SEED),
    "weight_decay": Choice(1e-4, Source.SEED),
    "power": Choice(0.9, Source.OURS, "a poly schedule is stated, its power is not; that of DeepLab"),
    "iterations": Choice(20_000, Source.OURS, "not published; 15 epochs of trainaug"),
    "crop": Choice(0, Source.OURS, "not published"),
    "scale": Choice((0.5, 2.0), Source.OURS, "not published; as DeepLab"),
    "flip": Choice(0.5, Source.OURS, "not published"),
    "init_std": Choice(0.01, Source.CODE, "as the released code's linear probe"),
    "drop_last": Choice(True, Source.OURS, "batch norm sees batches of one size"),
    "interpolation": Choice("bicubic", Source.CODE, "the released loader"),
    "decide": Choice("label", Source.OURS, "not published"),
}

PRESETS = (
    Preset(
        name="paper",
        version=1,
        summary="five fractions, three random splits, SGD 0.004 with poly decay; scored at 512×512",
        choices={"size": Choice("512", Source.CODE, "the released evaluation config"), **_SHARED},
    ),
    Preset(
        name="native",
        version=1,
        summary="as `paper`, each picture scored at its own size",
        choices={"size": Choice("native", Source.OURS, "no picture is stretched"), **_SHARED},
    ),
    Preset(
        name="stratified",
        version=1,
        summary="as `native`, with splits that begin with the rare classes",
        choices={
            "size": Choice("native", Source.OURS, "no picture is stretched"),
            **_SHARED,
            "split": Choice("stratified", Source.OURS, "1 % of a small split misses classes"),
        },
    ),
)


def fraction(text: str) -> float:
    """`5%` or `0.05` -> 0.05. Raises SettingError for what is above 100 % or not above 0, for `1` and for `5`."""
    number, percent = (text[:-1], True) if text.endswith("%") else (text, False)
    try:
        value = float(number)
    except ValueError:
        raise SettingError(f"finetune.fractions={text} was not understood: expected 5% or 0.05") from None
    if not percent and value == 1 and "." not in number:
        raise SettingError(f"finetune.fractions={text} may mean {text}% or all of it: write {text}% or {text}.0")
    if not percent and 1 < value <= 100:
        raise SettingError(f"finetune.fractions={text} does not fit: write {text}% or {value / 100}")
    value = value / 100 if percent else value
    if not 0 < value <= 1:
        raise SettingError(f"finetune.fractions={text} does not fit: expected above 0 and at most 100%")
    return value


def share(value: float) -> str:
    """0.125 -> `12.5%`."""
    return f"{100 * value:.6g}%"


def crop_of(sizes: Sequence[tuple[int, int]]) -> int:
    """The side of a crop where none is given: the median shorter side, up to a multiple of 32, at most 512 pixels."""
    shorter = sorted(min(size) for size in sizes)[len(sizes) // 2]
    return min(math.ceil(shorter / CROP_STEP) * CROP_STEP, LARGEST_CROP)


def listed(path: Path) -> list[str]:
    """The names that a list of pictures holds, one a line, each once."""
    lines = (line.strip() for line in path.read_text("utf-8", errors="replace").split("\n"))
    return list(dict.fromkeys(line for line in lines if line))


def _is_few(settings: FinetuneSettings, pictures: int) -> bool:
    """Few enough labels for the seed's other rates; a list is as few as a fraction that takes as many pictures."""
    if settings.names:
        return bool(pictures) and len(listed(Path(settings.names))) <= max(1, round(FEW * pictures))
    return bool(settings.fractions) and fraction(settings.fractions[0]) <= FEW


def settle(settings: FinetuneSettings, *, own: str, pictures: int = 0) -> FinetuneSettings:
    """The settings of one row with every `auto` and 0 replaced by what it comes to, but for the crop.

    own: the map of the method's pre-trained decoder, "" where it carries none. pictures: of the train split, whose
    share decides the rates of a list. Source of the rates: supplement, section 5.
    Raises SettingError for the method's own decoder where it has none, and for a map that is not read beside it.
    """
    arm = settings.arm if settings.arm != "auto" else "maskcontrast" if own else "imagenet-baseline"
    decoder = settings.decoder if settings.decoder != "auto" else "own" if own and arm == "maskcontrast" else "deeplab"
    if decoder == "own" and not own:
        raise SettingError("finetune.decoder=own: the method carries no decoder; take decoder=deeplab or none")
    if decoder == "own" and settings.reads not in ("", own):
        raise SettingError(
            f"finetune.tap={settings.reads} is not read: the method's own decoder gives the map {own}; drop it, or "
            "take finetune.decoder=deeplab or none"
        )
    bn = settings.bn
    if bn == "auto":
        # statistics of a new decoder that were never trained would be those of nothing
        frozen: Literal["frozen", "frozen-body"] = "frozen-body" if decoder == "deeplab" else "frozen"
        bn = frozen if arm == "maskcontrast" else "train"
    few = arm == "maskcontrast" and _is_few(settings, pictures)
    lr = settings.lr or (0.001 if few else 0.004)
    return dataclasses.replace(
        settings,
        arm=arm,
        decoder=decoder,
        bn=bn,
        lr=lr,
        last_lr=settings.last_lr or (0.1 if few and not settings.lr else lr),
    )
