"""Fine-tuning: which pictures, which rates, one step against plain torch, and known answers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.backbone import Backbone
from bench.contracts import Scope
from bench.errors import DatasetError, InputError, MismatchError, SettingError
from bench.metrics import evaluate_predictions
from bench.protocols import _draw, _finetune, _samples, finetune
from bench.protocols._finetune_settings import FinetuneSettings, crop_of, fraction, settle, share
from bench.records import Tap
from bench.settings import apply
from bench.testing import MemorySplit, MemoryWork

CARD = finetune.CARD
CLASSES = 4
QUICK = {"iterations": 60, "lr": 1.0, "decoder": "none", "crop": 24, "scale": "1,1", "batch": 4}


def variants(preset: str = "native", **changes: Any) -> list[FinetuneSettings]:
    values = next(p for p in CARD.presets if p.name == preset).values()
    found = apply(CARD.settings(), values | changes, CARD.name)
    scope = Scope(classes=CLASSES, device="cpu", explicit=frozenset(changes), train=100)
    return [variant.settings for variant in finetune.expand(found, scope)]


def one(**changes: Any) -> FinetuneSettings:
    (only,) = variants(**{"fractions": "100%", **changes})
    return only


def split(pictures: int = 4, seed: int = 0, classes: int = CLASSES) -> MemorySplit:
    rng = np.random.default_rng(seed)
    coarse = [rng.integers(0, classes, (6, 6)).astype(np.uint8) for _ in range(pictures)]
    labels = [each.repeat(4, 0).repeat(4, 1) for each in coarse]
    return MemorySplit(maps=[np.eye(CLASSES, dtype=np.float32)[label] for label in labels], labels=labels)


def conv_work(train: MemorySplit | None = None, **attributes: Any) -> MemoryWork:
    """A small network with batch norm, and a decoder of its own where `decoder_tap` is given."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    network = Backbone(body, stride=2, channels=8)
    for name, value in attributes.items():
        setattr(network, name, value)
    return MemoryWork(train or split(), classes=CLASSES, network=network)


class ThreeMaps(Backbone):
    """A body, a decoder on it and an embedding, of different widths, as MaskContrast has them."""

    body: nn.ModuleDict

    def __init__(self) -> None:
        torch.manual_seed(0)
        widths = {"deep": 8, "decoder": 6, "embedding": 5}
        super().__init__(
            nn.ModuleDict({"deep": nn.Conv2d(3, 8, 3, 2, 1), "decoder": nn.Sequential(nn.Conv2d(8, 6, 1)),
                           "embedding": nn.Conv2d(6, 5, 1)}),
            taps=[Tap(name=name, channels=width, stride=2) for name, width in widths.items()],
            default_tap="embedding",
        )  # fmt: skip
        self.body_tap, self.decoder_tap = "deep", "decoder"

    def decoder_parameters(self) -> Any:
        return self.body["decoder"].parameters()

    def maps(self, inputs: torch.Tensor, taps: Any) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for name, part in self.body.items():
            inputs = found[name] = part(inputs)
        return {name: found[name] for name in taps}


def stored(key: str) -> FinetuneSettings:
    """The network of a row that was made with QUICK."""
    (settings,) = variants(network=f"row:{key}", decoder="none")
    return settings


def score(work: MemoryWork, settings: FinetuneSettings, seed: int = 0) -> tuple[float, Any]:
    outcome = _finetune.run(work, settings, seed)
    assert outcome.matched is not None
    found = evaluate_predictions(outcome.counts, outcome.matched, background=0, seed=0)
    return found["scores"]["as_predicted"]["miou"], outcome


@pytest.mark.parametrize(
    ("text", "value"), [("1%", 0.01), ("12.5%", 0.125), ("0.05", 0.05), ("1.0", 1.0), ("100%", 1.0), ("1e-2", 0.01)]
)
def test_fractions_are_read(text, value):
    assert fraction(text) == value
    assert fraction(share(value)) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1", "fractions=1 may mean 1% or all of it: write 1% or 1.0"),
        ("5", "fractions=5 does not fit: write 5% or 0.05"),
        ("5.0", "write 5.0% or 0.05"),
        ("100", "write 100% or 1.0"),
        ("500", "at most 100%"),
        ("0%", "expected above 0 and at most 100%"),
        ("-5%", "expected above 0"),
        ("120%", "at most 100%"),
        ("1.5", "write 1.5% or 0.015"),
        ("few", "was not understood: expected 5% or 0.05"),
    ],
)
def test_fractions_that_are_none_are_refused(text, said):
    with pytest.raises(SettingError) as caught:
        variants(fractions=text)
    assert said in str(caught.value)


def test_every_fraction_is_a_row_of_its_own():
    assert [v.fractions for v in variants()] == [("1%",), ("2%",), ("5%",), ("12.5%",), ("100%",)]
    assert [v.fractions for v in variants(fractions="0.05,5%,1.0")] == [("5%",), ("100%",)]


@pytest.mark.parametrize(
    ("text", "carries", "changes", "wanted"),
    [
        ("1%", True, {}, ("maskcontrast", "own", "frozen", 0.001, 0.1)),
        ("2%", True, {}, ("maskcontrast", "own", "frozen", 0.001, 0.1)),
        ("5%", True, {}, ("maskcontrast", "own", "frozen", 0.004, 0.004)),
        ("1%", False, {}, ("imagenet-baseline", "deeplab", "train", 0.004, 0.004)),
        ("1%", False, {"arm": "maskcontrast"}, ("maskcontrast", "deeplab", "frozen-body", 0.001, 0.1)),
        ("1%", False, {"arm": "maskcontrast", "bn": "frozen"}, ("maskcontrast", "deeplab", "frozen", 0.001, 0.1)),
        ("100%", True, {"arm": "imagenet-baseline"}, ("imagenet-baseline", "deeplab", "train", 0.004, 0.004)),
        ("5%", True, {"decoder": "deeplab"}, ("maskcontrast", "deeplab", "frozen-body", 0.004, 0.004)),
        ("5%", True, {"decoder": "own", "arm": "imagenet-baseline"}, (
            "imagenet-baseline", "own", "train", 0.004, 0.004)),
        ("1%", True, {"lr": 0.5}, ("maskcontrast", "own", "frozen", 0.5, 0.5)),
        ("1%", False, {"decoder": "none", "bn": "frozen", "last_lr": 2.0}, (
            "imagenet-baseline", "none", "frozen", 0.004, 2.0)),
    ],
)  # fmt: skip
def test_arms_are_those_of_the_supplement(text, carries, changes, wanted):
    found = settle(one(fractions=text, **changes), own="decoder" if carries else "")
    assert (found.arm, found.decoder, found.bn, found.lr, found.last_lr) == wanted


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({}, "decoder"),
        ({"tap": "decoder"}, "decoder"),
        ({"decoder": "none"}, "deep"),
        ({"arm": "imagenet-baseline"}, "deep"),
        ({"decoder": "none", "tap": "embedding"}, "embedding"),
        ({"decoder": "deeplab", "tap": "decoder"}, "decoder"),
    ],
)
def test_the_map_that_is_read_is_named(changes, read):
    work = MemoryWork(split(), classes=CLASSES, network=ThreeMaps())
    settings = one(iterations=1, crop=16, **changes)
    model = _finetune.build(work, settle(settings, own="decoder"), 0)
    assert model.read == read
    if settings.decoder != "deeplab" and settings.arm == "auto":
        assert model.classifier.in_channels == ThreeMaps().taps[read].channels
    _, outcome = score(work, settings)
    assert outcome.read == (read,)
    assert outcome.facts["settled"]["map"] == read
    of_the_row = dataclasses.replace(settings, tap=settings.tap or work.network.default_tap)
    assert _finetune.predict(work, of_the_row, outcome.arrays).pixels is not None


def test_a_map_beside_the_methods_own_decoder_is_refused():
    work = MemoryWork(split(), classes=CLASSES, network=ThreeMaps())
    for tap in ("embedding", "deep"):
        with pytest.raises(SettingError, match=f"finetune.tap={tap} is not read: .* take finetune.decoder=deeplab or"):
            _finetune.run(work, one(tap=tap), 0)
    scope = Scope(classes=CLASSES, device="cpu", train=100, decoder_tap="decoder")
    with pytest.raises(SettingError, match="gives the map decoder; drop it"):
        finetune.expand(FinetuneSettings(tap="deep"), scope)


def test_what_ran_is_data_of_the_row():
    _, outcome = score(conv_work(), one(iterations=1))
    assert outcome.facts["settled"] == {
        "arm": "imagenet-baseline", "map": "last", "decoder": "deeplab", "bn": "train",
        "lr": 0.004, "last_lr": 0.004, "crop": 32,
    }  # fmt: skip


@pytest.mark.parametrize(("bn", "learns"), [("auto", True), ("frozen-body", True), ("frozen", False)])
def test_statistics_of_a_new_decoder_are_never_left_at_their_first_values_unasked(bn, learns):
    work = conv_work()
    settings = settle(one(arm="maskcontrast", bn=bn), own="")
    model = _finetune.build(work, settings, 0)
    learner = _finetune.FineTuning(work, model, bn=settings.bn)
    learner.step(batch_of(work, [0, 2, 3]))
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    moved = {name: bool(m.running_mean.any()) for name, m in norms.items() if m.running_mean is not None}
    assert {flag for name, flag in moved.items() if name.startswith("network.")} == {False}
    assert {flag for name, flag in moved.items() if name.startswith("decoder.")} == {learns}


def test_a_note_says_whose_statistics_are_frozen():
    _, outcome = score(conv_work(), one(arm="maskcontrast", iterations=1, crop=16))
    assert "decoder deeplab, batch-norm statistics frozen in the body, trained in the new decoder" in outcome.notes[0]


def test_a_decoder_that_is_not_there_is_refused():
    with pytest.raises(SettingError, match="carries no decoder"):
        settle(one(decoder="own"), own="")


def test_crops_follow_the_pictures():
    assert crop_of([(80, 80), (70, 90), (81, 200)]) == 96
    assert crop_of([(1000, 2000)]) == 512


def test_splits_are_nested_and_lists_are_kept():
    work = conv_work(split(40))
    lists = {}
    for how in ("random", "stratified"):
        for text in ("5%", "12.5%", "100%"):
            settings = one(fractions=text, split=how)
            lists[text] = set(_finetune._chosen(work, settings, work.examples("train"), 7))
        assert lists["5%"] < lists["12.5%"] < lists["100%"]
        assert [len(found) for found in lists.values()] == [2, 5, 40]
        assert work.lists[f"train-{how}-5%-seed7"] == tuple(f"picture{i}" for i in sorted(lists["5%"]))
    assert len(_finetune._chosen(work, one(fractions="0.1%"), work.examples("train"), 0)) == 1


def test_a_stratified_split_begins_with_rare_classes():
    counts = np.zeros((30, 3), np.int64)
    counts[:, 0] = 1
    counts[[4, 9], 1] = 1
    counts[22, 2] = 1
    names = [f"p{i}" for i in range(30)]
    assert _draw.rare_first(names, counts, 1, 0) == [22]
    assert set(_draw.rare_first(names, counts, 2, 0)) & {4, 9}
    assert sorted(_draw.rare_first(names, counts, 30, 0)) == list(range(30))


def test_a_given_list_is_learnt_from(tmp_path):
    listed = tmp_path / "few.txt"
    listed.write_text("picture3\n\npicture1\npicture3\n")
    work = conv_work()
    (settings,) = variants(names=str(listed))
    assert _finetune._chosen(work, settings, work.examples("train"), 0) == [3, 1]
    before = settings.names_sha256
    listed.write_text("picture3\n")
    assert variants(names=str(listed))[0].names_sha256 != before
    listed.write_text("picture3\nnobody\n")
    with pytest.raises(InputError, match="1 names are not, the first is 'nobody'"):
        _finetune._chosen(work, settings, work.examples("train"), 0)
    listed.write_text("\n")
    with pytest.raises(InputError, match="it is empty"):
        _finetune._chosen(work, settings, work.examples("train"), 0)
    with pytest.raises(SettingError, match="cannot be read"):
        variants(names=str(tmp_path / "gone.txt"))
    with pytest.raises(SettingError, match=r"drop finetune\.fractions"):
        variants(names=str(listed), fractions="5%")


def batch_of(work: MemoryWork, indices: list[int]) -> list[_samples.Group]:
    from bench.warp import Warp

    data = _samples.FromPictures(work.examples("train"), Warp(), 0, pad_to=2)
    return _samples.together([data.make((0, index)) for index in indices])


@pytest.mark.parametrize("frozen", [True, False])
def test_one_step_equals_a_plain_transcription(frozen):
    work = conv_work()
    settings = settle(one(bn="frozen" if frozen else "train", decoder="none"), own="")
    model = _finetune.build(work, settings, 0).double()
    model.preprocess = lambda pictures: work.network.preprocess(pictures).double()
    learner = _finetune.FineTuning(work, model, bn=settings.bn)
    learner._one = learner._one.double()
    plain = _finetune.build(work, settings, 0).double()
    (group,) = batch_of(work, [0, 2, 3])
    learner.step([group])
    plain.train()
    if frozen:
        plain.network.body[1].eval()
    inputs = work.network.preprocess(group.pictures).double()
    logits = plain.classifier(plain.network.body(inputs))
    logits = functional.interpolate(logits, group.labels.shape[1:], mode="bilinear", align_corners=False)
    functional.cross_entropy(logits, group.labels.long(), ignore_index=255).backward()
    for (name, mine), (_, theirs) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-10, msg=name)
    kept = torch.equal(model.network.body[1].running_mean, torch.zeros(8, dtype=torch.float64))
    assert kept is frozen


def test_rates_reach_their_layers():
    work = conv_work()
    settings = settle(one(lr=0.5, last_lr=3.0, decoder_lr_mult=10.0), own="")
    model = _finetune.build(work, settings, 0)
    groups = _finetune.FineTuning(work, model, bn="train").optimizer(settings).param_groups
    assert [group["lr"] for group in groups] == [0.5, 5.0, 3.0]
    assert model.decoder is not None
    assert [len(group["params"]) for group in groups] == [4, len(list(model.decoder.parameters())), 2]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_a_carried_decoder_is_read_and_has_its_rate():
    work = conv_work(decoder_tap="last", decoder_parameters=lambda: iter(()))
    _, outcome = score(work, one(iterations=2, crop=16))
    assert outcome.notes[0].startswith(
        "arm maskcontrast: map last, decoder own, batch-norm statistics frozen, lr 0.004"
    )


def test_labels_as_pictures_reach_everything():
    scored, train = split(4, seed=1), split(8)
    work = MemoryWork(scored, train=train, classes=CLASSES)
    miou, outcome = score(work, one(**QUICK))
    assert miou >= 0.99
    assert outcome.facts["train_pictures"] == 8


def test_the_method_itself_is_not_changed():
    work = conv_work()
    before = {name: value.clone() for name, value in work.network.state_dict().items()}
    score(work, one(iterations=3, crop=16, lr=0.1))
    after = work.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_one_picture_and_one_batch_train_with_batch_norm():
    work = conv_work(split(1))
    _, outcome = score(work, one(iterations=2, crop=16))
    assert outcome.facts["train_pictures"] == 1


def test_a_crop_of_one_cell_is_refused():
    with pytest.raises(SettingError, match="one cell of the map"):
        _finetune.run(conv_work(), one(crop=2), 0)


@pytest.mark.parametrize(("listed", "wanted"), [(1, (0.001, 0.1)), (3, (0.001, 0.1)), (4, (0.004, 0.004))])
def test_a_list_has_the_rates_of_its_share(tmp_path, listed, wanted):
    """3 of 130 pictures are more than 2 %, and what a fraction of 2 % takes."""
    file = tmp_path / "few.txt"
    file.write_text("".join(f"picture{index}\n" for index in range(listed)) + "picture0\n")
    work = conv_work(split(130), decoder_tap="last", decoder_parameters=lambda: iter(()))
    (settings,) = variants(names=str(file), iterations=1, crop=16)
    _, outcome = score(work, settings)
    assert outcome.facts["train_pictures"] == listed
    assert (outcome.facts["settled"]["lr"], outcome.facts["settled"]["last_lr"]) == wanted


def test_missing_classes_are_named():
    work = conv_work(split(4, classes=2))
    _, outcome = score(work, one(iterations=1, crop=16))
    assert outcome.notes[1] == "no pixel of the 4 pictures has the class 2, 3"


def test_a_stored_network_scores_and_paints_again():
    work = MemoryWork(split(4, seed=1), train=split(6), classes=CLASSES)
    miou, outcome = score(work, one(**QUICK))
    work.arrays["abc"] = outcome.arrays
    again, other = score(work, stored("abc"))
    assert again == miou
    assert "nothing was trained" in other.notes[0]
    painting = _finetune.predict(work, one(**QUICK), outcome.arrays)
    assert painting.pixels is not None
    counted = [np.bincount(ids.ravel(), minlength=CLASSES).sum() for ids in painting.pixels]
    assert counted == [24 * 24] * 4
    _, unkept = score(work, one(**QUICK, keep=False))
    assert unkept.arrays == {}
    work.arrays["abc"] = {}
    with pytest.raises(SettingError, match=r"make it once more with finetune\.keep=true and --again"):
        _finetune.run(work, stored("abc"), 0)
    work.arrays["abc"] = {**outcome.arrays, "network/classifier.weight": np.zeros((2, 2, 1, 1))}
    with pytest.raises(SettingError, match=r"1 tensors .* of another shape, the first is classifier\.weight"):
        _finetune.run(work, stored("abc"), 0)


def test_a_method_without_weights_is_refused():
    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    work = MemoryWork(split(), classes=CLASSES, network=Backbone(Nothing(), stride=1, channels=3))
    with pytest.raises(MismatchError, match="has no weights, which finetune trains"):
        _finetune.run(work, one(), 0)


def test_seeds_draw_other_pictures_and_other_weights():
    work = conv_work(split(40))
    chosen = [_finetune._chosen(work, one(fractions="12.5%"), work.examples("train"), seed) for seed in (0, 1)]
    assert chosen[0] != chosen[1]
    first, second = (_finetune.build(work, settle(one(), own=""), seed) for seed in (0, 1))
    assert not torch.equal(first.classifier.weight, second.classifier.weight)


def test_the_price_counts_passes():
    scope = Scope(classes=3, device="cpu", train=70)
    assert finetune.price(variants()[2], scope) == (
        "5% of 70 pictures: 160000 passes forward and backward for each seed"
    )


def test_a_rate_for_a_decoder_that_is_not_there_is_refused():
    work = conv_work()
    settings = settle(one(decoder="none", decoder_lr_mult=10.0), own="")
    model = _finetune.build(work, settings, 0)
    with pytest.raises(SettingError, match="is for a decoder"):
        _finetune.FineTuning(work, model, bn="train").optimizer(settings)


@pytest.mark.parametrize(
    "given", [{"fractions": "5%"}, {"lr": 0.1, "iterations": 3}, {"names": "list.txt"}, {"crop": 32}, {"keep": True}]
)
def test_a_stored_network_reads_no_settings_of_training(given):
    with pytest.raises(SettingError) as caught:
        variants(network="row:abc", **given)
    assert str(caught.value) == (
        f"finetune.network=row:abc trains nothing and does not read {', '.join(sorted(given))}: drop it, or drop "
        "finetune.network"
    )
    read = {"decoder": "none", "arm": "maskcontrast", "tap": "layer3", "decide": "input", "size": "64",
            "interpolation": "bilinear", "dtype": "float16"}  # fmt: skip
    variants(network="row:abc", **read)
    others = {"network", "reads", "names_sha256"}
    assert {field.name for field in dataclasses.fields(FinetuneSettings)} == {*finetune._TRAINING, *read, *others}


@pytest.mark.parametrize(("name", "of"), [("reads", "tap"), ("names_sha256", "names")])
def test_what_is_filled_in_is_not_given(name, of):
    with pytest.raises(SettingError, match=f"finetune.{name} is filled in: give finetune.{of}"):
        variants(**{name: "x"})


def test_a_stored_network_is_one_row_and_needs_no_train_split():
    (only,) = variants(network="row:abc")
    assert only.fractions == ()
    assert only.reads_of_train == "nothing"


def test_a_part_of_the_labels_that_is_void_alone_is_refused():
    train = split(10)
    place = conv_work(train)
    (chosen,) = _draw.drawn([f"picture{index}" for index in range(10)], 1, 0)
    train.labels[chosen][...] = 255
    with pytest.raises(DatasetError, match=r"the one picture to learn from hold nothing but void.*finetune\.fractions"):
        score(place, one(fractions="10%", **{**QUICK, "iterations": 1}))
    for label in train.labels:
        label[...] = 255
    with pytest.raises(DatasetError, match=r"the label maps of the train split hold nothing but void \(255\)"):
        score(place, one(fractions="50%", **{**QUICK, "iterations": 1}))


def test_the_loss_of_the_last_epoch_is_in_the_row_and_said_where_it_is_high():
    _, outcome = score(conv_work(), one(**{**QUICK, "iterations": 3, "lr": 1e-9, "init_std": 0.0}))
    assert outcome.facts["last_epoch_loss"] == pytest.approx(math.log(CLASSES), rel=1e-5)
    _, outcome = score(conv_work(), one(**{**QUICK, "iterations": 3, "lr": 1e-9, "init_std": 100.0}))
    assert outcome.facts["last_epoch_loss"] > 10
    assert any("above ln(4) = 1.39" in note and "finetune.lr" in note for note in outcome.notes)


@pytest.mark.parametrize("name", ["lr", "last_lr"])
def test_a_rate_of_0_is_refused(name):
    with pytest.raises(SettingError, match=rf"finetune\.{name}=0 does not fit: expected numbers above 0"):
        variants(**{name: 0})
