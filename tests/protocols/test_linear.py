"""The linear probe: one step and the optimum against independent computations, many heads as one, known answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from bench import registry
from bench.backbone import Backbone
from bench.contracts import Scope
from bench.errors import DatasetError, InputError, SettingError
from bench.metrics import evaluate_predictions, score
from bench.protocols import _draw, _heads, _measure, _probe, _samples, linear
from bench.protocols._linear import LinearSettings, drop_epoch
from bench.settings import apply
from bench.testing import MemorySplit, MemoryWork

CARD = linear.CARD
CLASSES, WIDTH, STRIDE = 3, 6, 4


def settings(preset: str = "cached", **changes: Any) -> LinearSettings:
    values = next(p for p in CARD.presets if p.name == preset).values()
    found = apply(CARD.settings(), values | changes, CARD.name)
    assert isinstance(found, LinearSettings)
    (variant,) = linear.expand(found, Scope(classes=CLASSES, device="cpu", explicit=frozenset(changes)))
    final: LinearSettings = variant.settings
    return final


def split(pictures: int = 5, seed: int = 0, cells: tuple[int, int] = (4, 5), signal: float = 1.0) -> MemorySplit:
    """Maps that say something of the labels, with some void; label maps are STRIDE times as large."""
    rng = np.random.default_rng(seed)
    maps, labels = [], []
    directions = np.random.default_rng(9).normal(size=(CLASSES, WIDTH))
    for _ in range(pictures):
        coarse = rng.integers(0, CLASSES, cells)
        maps.append(signal * directions[coarse] + rng.normal(size=(*cells, WIDTH)))
        label = coarse.repeat(STRIDE, 0).repeat(STRIDE, 1).astype(np.uint8)
        label[rng.random(label.shape) < 0.1] = 255
        labels.append(label)
    return MemorySplit(maps=maps, labels=labels)


def work(scored: MemorySplit | None = None, train: MemorySplit | None = None, **more: Any) -> MemoryWork:
    network = Backbone(torch.nn.Conv2d(3, WIDTH, STRIDE, STRIDE), stride=STRIDE, channels=WIDTH)
    return MemoryWork(scored or split(seed=1), train=train or split(), classes=CLASSES, network=network, **more)


def group(of: MemorySplit, indices: list[int]) -> _samples.Group:
    labels = torch.from_numpy(np.stack([of.labels[i] for i in indices]))
    maps = torch.from_numpy(np.stack([of.maps[i] for i in indices]))
    return _samples.Group(labels, (labels.shape[1], labels.shape[2]), tuple(indices), maps=(maps,))


def head(lr: float = 0.1, decay: float = 1e-4, judged: bool = False) -> _heads.Head:
    return _heads.Head(which=0, tap="last", lr=lr, weight_decay=decay, judged=judged)


def transcription(weight: torch.Tensor, bias: torch.Tensor, groups: list[_samples.Group]) -> torch.Tensor:
    """The mean cross-entropy over the labelled pixels of all groups, in plain torch."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for each in groups:
        logits = functional.conv2d(each.maps[0].permute(0, 3, 1, 2), weight[..., None, None], bias)
        logits = functional.interpolate(logits, each.labels.shape[1:], mode="bilinear", align_corners=False)
        total = total + functional.cross_entropy(logits, each.labels.long(), ignore_index=255, reduction="sum")
        count += int((each.labels != 255).sum())
    return total / count


@pytest.mark.parametrize("normalize", ["none", "l2", "standardize", "bn"])
def test_one_step_equals_a_plain_transcription(normalize):
    train, odd = split(4), split(3, seed=5, cells=(3, 7))
    place = work(train=train)
    probe = _heads.Heads(place, settings(normalize=normalize), [head()], 0, torch.float64)
    groups = [group(train, [0, 2]), group(odd, [1])]
    losses = probe.losses(groups)
    weight, bias = (value.detach().clone().requires_grad_() for value in (probe.weights[0], probe.biases[0]))
    plain = [normalised(each, groups, train, normalize) for each in groups]
    expected = transcription(weight, bias, plain)
    expected.backward()
    assert losses[0].item() == pytest.approx(expected.item(), rel=1e-6)
    for mine, theirs in ((probe.weights[0], weight), (probe.biases[0], bias)):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-9)
    before = [probe.weights[0].detach().clone(), probe.biases[0].detach().clone()]
    probe.optimizer(0.9).step()
    for value, old, theirs in zip((probe.weights[0], probe.biases[0]), before, (weight, bias), strict=True):
        torch.testing.assert_close(value.detach(), old - 0.1 * (theirs.grad + 1e-4 * old), rtol=1e-9, atol=1e-12)


def normalised(each: _samples.Group, groups: list[_samples.Group], train: MemorySplit, how: str) -> _samples.Group:
    x = each.maps[0]
    if how == "l2":
        x = functional.normalize(x, dim=-1)
    if how == "standardize":
        every = torch.from_numpy(np.concatenate([m.astype(np.float32).reshape(-1, WIDTH) for m in train.maps])).double()
        x = (x - every.mean(0)) / every.std(0, unbiased=False)
    if how == "bn":
        every = torch.cat([g.maps[0].reshape(-1, WIDTH) for g in groups])
        x = (x - every.mean(0)) / (every.var(0, unbiased=False) + 1e-5).sqrt()
    return _samples.Group(each.labels, each.extent, each.index, maps=(x,))


def test_batch_norm_gathers_what_torch_gathers():
    train = split(4)
    probe = _heads.Heads(work(train=train), settings(normalize="bn"), [head()], 0, torch.float64)
    torchs = torch.nn.BatchNorm2d(WIDTH, affine=False, dtype=torch.float64)
    for indices in ([0, 1], [2, 3]):
        probe.losses([group(train, indices)])
        torchs(group(train, indices).maps[0].permute(0, 3, 1, 2))
    torch.testing.assert_close(probe.norms[0].mean, torchs.running_mean)
    torch.testing.assert_close(probe.norms[0].variance, torchs.running_var)
    single = _samples.Group(torch.zeros(1, 4, 4, dtype=torch.uint8), (4, 4), (0,), maps=(torch.ones(1, 1, 1, WIDTH),))
    probe.norms[0].settle()
    before = probe.norms[0].mean.clone()
    assert torch.isfinite(probe.losses([single])).all()
    assert torch.equal(probe.norms[0].mean, before)


def test_the_optimum_is_that_of_logistic_regression():
    train, decay = split(4, signal=0.5), 1e-2
    one = group(train, [0, 1, 2, 3])
    probe = _heads.Heads(work(train=train), settings(normalize="none"), [head(decay=decay)], 0, torch.float64)
    parameters = [probe.weights[0], probe.biases[0]]
    descent = torch.optim.LBFGS(parameters, max_iter=2000, tolerance_grad=1e-12, tolerance_change=0, history_size=50,
                                line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> torch.Tensor:
        for parameter in parameters:
            parameter.grad = None
        loss = probe.losses([one])[0]
        assert probe.weights[0].grad is not None
        probe.weights[0].grad += decay * probe.weights[0].detach()
        return loss + decay / 2 * probe.weights[0].detach().square().sum()

    descent.step(closure)
    upsampled = functional.interpolate(
        one.maps[0].permute(0, 3, 1, 2), one.labels.shape[1:], mode="bilinear", align_corners=False
    )
    valid = (one.labels != 255).numpy().ravel()
    x = upsampled.permute(0, 2, 3, 1).reshape(-1, WIDTH).numpy()[valid]
    y = one.labels.numpy().ravel()[valid]
    theirs = LogisticRegression(C=1 / (len(y) * decay), tol=1e-10, max_iter=5000).fit(x, y)
    weight, bias = torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_)
    weight, bias = weight - weight.mean(0), bias - bias.mean()
    mine = [probe.weights[0].detach(), probe.biases[0].detach()]

    def objective(w: torch.Tensor, b: torch.Tensor) -> float:
        return float(transcription(w, b, [one]) + decay / 2 * w.square().sum())

    assert objective(*mine) == pytest.approx(objective(weight, bias), rel=1e-5)
    labels = one.labels.numpy().ravel()[valid]
    found = [miou(x @ w.T.numpy() + b.numpy(), labels) for w, b in (mine, (weight, bias))]
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def miou(scores: np.ndarray, labels: np.ndarray) -> float:
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    np.add.at(confusion, (scores.argmax(1), labels), 1)
    return float(score(confusion, np.arange(CLASSES), None)["miou"])


def trained(heads: list[_heads.Head], steps: int, held: frozenset[int], dtype: torch.dtype) -> _heads.Heads:
    train = split(8)
    probe = _heads.Heads(work(train=train), settings(), heads, 0, dtype, held=sorted(held))
    optimizer = probe.optimizer(0.9)
    for step in range(steps):
        optimizer.zero_grad()
        probe.losses([group(train, [(2 * step) % 8, (2 * step + 1) % 8])])
        optimizer.step()
    return probe


def test_many_heads_are_each_as_if_alone():
    tried = [head(lr, decay) for lr in (0.01, 0.1, 1.0) for decay in (0.0, 1e-2)]
    held = frozenset({1, 6})
    both = [*(head(h.lr, h.weight_decay, judged=True) for h in tried), *tried]
    together = trained(both, 50, held, torch.float64)
    for number in (1, 4, 8, 11):
        alone = trained([both[number]], 50, held, torch.float64)
        torch.testing.assert_close(together.weights[number], alone.weights[0], rtol=0, atol=1e-8)
        torch.testing.assert_close(together.biases[number], alone.biases[0], rtol=0, atol=1e-8)
    assert not torch.allclose(together.weights[1], together.weights[1 + len(tried)])
    start = [trained(heads, 0, held, torch.float64).weights[0] for heads in (both, [both[3]])]
    assert torch.equal(*start)


def test_what_a_judged_head_learns_does_not_depend_on_the_held_out_pictures():
    train = split(4)
    changed = MemorySplit(maps=train.maps, labels=[train.labels[0], train.labels[1] * 0, *train.labels[2:]])
    probes = []
    for of in (train, changed):
        probe = _heads.Heads(work(train=train), settings(), [head(judged=True), head()], 0, torch.float64, held=[1])
        probe.losses([group(of, [0, 1, 2, 3])])
        probes.append(probe)
    assert torch.equal(probes[0].weights[0].grad, probes[1].weights[0].grad)
    assert not torch.allclose(probes[0].weights[1].grad, probes[1].weights[1].grad)


def run(place: MemoryWork, how: LinearSettings, seed: int = 0) -> tuple[dict[str, Any], Any]:
    outcome = _probe.run(place, how, seed)
    assert outcome.matched is not None
    found = evaluate_predictions(outcome.counts, outcome.matched, background=place.background, seed=0)
    return found["scores"]["as_predicted"], outcome


def test_a_search_chooses_by_the_held_out_tenth_and_shows_all():
    place = work(split(6, seed=1, signal=2), split(20, signal=2))
    alone, _ = run(place, settings(lr="0.1", epochs=12))
    figures, outcome = run(place, settings(lr="1e-6,0.1", weight_decay="0,1e-4", epochs=12))
    tried = outcome.facts["tried"]
    assert set(tried) == {f"lr={lr} weight_decay={d}" for lr in ("1e-06", "0.1") for d in ("0", "0.0001")}
    best = max(tried, key=lambda name: tried[name]["held_out_miou"])
    assert best.startswith("lr=0.1")
    assert figures["miou"] == tried[best]["miou"]
    assert figures["miou"] == pytest.approx(alone["miou"], abs=1e-3)
    assert any(note.startswith("chosen by a tenth of the train split (2 pictures): lr=0.1") for note in outcome.notes)


def test_the_last_epoch_is_scored_and_the_best_stands_beside_it():
    place = work(split(6, seed=1, signal=0.5), split(6, signal=0.5))

    def after(epochs: int, **changes: Any):
        return run(place, settings(epochs=epochs, lr="1", batch=2, drop="none", normalize="none", **changes))

    course = [after(epochs)[0]["miou"] for epochs in range(1, 7)]
    assert max(course) > course[-1], "a course that ends at its best tells nothing"
    figures, outcome = after(6)
    assert figures["miou"] == course[-1]
    best = {"best_on_val_miou": max(course), "best_on_val_epoch": 1 + course.index(max(course))}
    assert outcome.facts.items() >= best.items()
    assert not after(6, val_every=0)[1].facts.keys() & best.keys()


def test_a_rate_that_diverges_is_named_and_the_others_go_on():
    place = work(split(6, seed=1, signal=2), split(10, signal=2))
    figures, outcome = run(place, settings(lr="1e38,0.1", epochs=6))
    assert figures["miou"] == pytest.approx(run(place, settings(lr="0.1", epochs=6))[0]["miou"], abs=1e-3)
    assert any("lr=1e+38 diverged on last: its loss was not a number at step" in note for note in outcome.notes)
    assert any("lr=0.1" in note for note in outcome.notes)
    with pytest.raises(InputError, match=r"the loss of step \d+ is (nan|inf) at a learning rate of 1e\+38"):
        run(place, settings(lr="1e38", epochs=6))


def test_a_setting_of_which_either_head_diverges_is_not_chosen():
    """The held-out pictures are enormous: heads that never see them learn at every rate, the scored ones do not."""
    train = split(20, signal=2)
    held = _draw.held_out([f"picture{index}" for index in range(20)], work(train=train).label_counts("train"))
    for index in held:
        train.maps[index][...] *= 1e30
    with pytest.raises(InputError, match=r"every setting diverged \(.*lr=0\.1 diverged on last.*lower"):
        run(work(split(6, seed=1, signal=2), train), settings(lr="0.01,0.1", epochs=4, normalize="none"))
    for index in held:
        train.maps[index][...] /= 1e10
    _, outcome = run(work(split(6, seed=1, signal=2), train), settings(lr="1e-33,0.1", epochs=4, normalize="none"))
    assert any("lr=1e-33" in note and note.startswith("chosen by") for note in outcome.notes)
    assert np.isfinite(outcome.arrays["weight"]).all()


def test_weights_that_diverge_in_the_last_step_are_told():
    train = split(6, signal=2)
    for of_picture in train.maps:
        of_picture[...] *= 100
    with pytest.raises(InputError, match=r"lr=1e\+38 .*its weights are no numbers at the end: lower it"):
        run(work(split(6, seed=1, signal=2), train), settings(lr="1e38", epochs=1, normalize="none"))


def test_a_class_that_training_never_sees_is_named():
    train = split(6)
    for label in train.labels:
        label[label == 2] = 1
    _, outcome = run(work(train=train, class_names=("sky", "road", "tree")), settings(epochs=2))
    assert any("no pixel of the train split has the class tree" in note for note in outcome.notes)


def test_noise_scores_as_the_best_constant_prediction():
    rng = np.random.default_rng(3)
    scored, train = split(8, seed=1, signal=0), split(30, signal=0)
    for of in (scored, train):
        for label in of.labels:
            label[rng.random(label.shape) < 0.6] = 0
    figures, _ = run(work(scored, train), settings(epochs=20))
    truth = np.concatenate([label[label != 255] for label in scored.labels])
    constant = max(np.mean(truth == c) for c in range(CLASSES)) / CLASSES
    assert figures["miou"] == pytest.approx(constant, abs=0.01)


@pytest.mark.parametrize("preset", ["native", "cached"])
def test_labels_as_features_give_everything(preset):
    rng = np.random.default_rng(1)
    labels = [rng.integers(0, 4, (24, 24)).astype(np.uint8) for _ in range(4)]
    maps = [np.eye(4, dtype=np.float32)[label] for label in labels]
    place = MemoryWork(MemorySplit(maps=maps, labels=labels), classes=4)
    assert run(place, settings(preset, lr="1", epochs=40))[0]["miou"] == 1.0


def test_a_grid_takes_the_labels_at_its_cells():
    label = np.arange(36, dtype=np.uint8).reshape(6, 6)
    assert _samples._nearest(label, (3, 2)).tolist() == [[7, 10], [19, 22], [31, 34]]
    assert _samples._nearest(label, (6, 6)) is label
    figures, _ = run(work(split(6, seed=1, signal=3), split(12, signal=3)), settings(grid=4, epochs=20))
    assert figures["miou"] > 0.5


def test_epochs_scale_the_drop_of_the_learning_rate():
    assert settings("paper").drop == "40/60"
    assert settings("paper", epochs=6).drop == "4/6"
    assert settings("released-code").drop == "26/60"
    assert drop_epoch(settings("paper", drop="none")) is None
    factor = _probe._schedule(settings("paper", epochs=6), 10)
    assert [factor(step) for step in (0, 39, 40, 59)] == [1.0, 1.0, 0.1, 0.1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"drop": "3"}, "linear.drop=3 does not fit: expected E/N"),
        ({"drop": "9/3"}, "linear.drop=9/3 does not fit"),
        ({"drop": "0/60"}, "linear.drop=0/60 does not fit: expected E/N with E from 1 to N"),
        ({"head": "row:abc", "lr": "1"}, "linear.head=row:abc trains nothing and does not read lr"),
        ({"head": "adapter", "epochs": 3}, "linear.head=adapter trains nothing and does not read epochs"),
        ({"zoom": "2,1"}, "linear.zoom=2.0,1.0 does not fit: expected two numbers, the smaller first"),
        ({"head": "mine"}, "linear.head=mine does not fit: expected auto, train, adapter or row:KEY"),
        ({"lr": ""}, "linear.lr is empty"),
        ({"lr": "0"}, "linear.lr=0 does not fit: expected numbers above 0"),
        ({"lr": "0.1,-0.1"}, "linear.lr=0.1,-0.1 does not fit: expected numbers above 0"),
        ({"lr": "nan"}, "linear.lr=nan does not fit: expected a finite number"),
        ({"lr": "1e39"}, "linear.lr=1e39 does not fit"),
        ({"flip": "0.2"}, "features=cached does not augment pictures and does not read flip"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(SettingError) as caught:
        settings(**changes)
    assert said in str(caught.value)


def test_a_classifier_that_is_not_there_cannot_be_scored():
    with pytest.raises(SettingError, match="brings no classifier"):
        _probe.run(work(), settings(head="adapter"), 0)


def test_one_picture_cannot_be_held_out():
    with pytest.raises(InputError, match="there is 1 picture with labels to train on: none can be held out"):
        _probe.run(work(train=split(1)), settings(lr="0.1,1"), 0)


def test_a_short_train_split_is_one_batch_and_a_last_batch_counts_unless_dropped():
    from bench.batches import Batches

    for pictures, drop, wanted in ((5, True, [5]), (5, False, [5]), (20, True, [16]), (20, False, [16, 4])):
        batches = Batches(pictures, min(16, pictures), 0, drop_last=drop)
        assert [len(batches.keys(step)) for step in range(batches.per_epoch)] == wanted
        if not drop:
            drawn = [index for step in range(batches.per_epoch) for _, index in batches.keys(step)]
            assert sorted(drawn) == list(range(pictures))


def test_parts_of_a_split_are_nested_and_depend_on_names_alone():
    names = [f"picture {n}" for n in range(40)]
    small, large = (_draw.drawn(names, number, 3) for number in (4, 20))
    assert set(small) < set(large)
    assert {names[i] for i in small} == {names[::-1][i] for i in _draw.drawn(names[::-1], 4, 3)}
    assert small != _draw.drawn(names, 4, 4)


def test_the_price_counts_forward_passes():
    scope = Scope(classes=3, device="cpu", train=70)
    assert "70 forward passes" in linear.price(settings("cached"), scope)
    assert "4200 forward passes" in linear.price(settings("native"), scope)


def test_a_stored_head_scores_without_training():
    place = work(split(6, seed=1, signal=2), split(10, signal=2))
    for of in place.splits.values():
        for of_picture in of.maps:
            of_picture[..., 0] = 100 * of_picture[..., 0] + 1000
    for normalize in ("none", "l2", "standardize", "bn"):
        figures, outcome = run(place, settings(epochs=8, normalize=normalize, lr="0.01,0.001"))
        place.arrays["abc"] = outcome.arrays
        again, other = run(place, settings(head="row:abc"))
        assert again == figures
        assert "nothing was trained" in other.notes[0]


def test_the_protocol_is_registered_with_what_the_table_needs():
    card = registry.card("protocols", "linear")
    assert (card.headline, card.seeds, card.probes) == ("as_predicted", 1, True)
    assert math.isclose(settings("leopart").lr[0], 0.01)
    for preset in ("leopart", "leopart-resnet"):
        assert (settings(preset).drop_last, settings(preset).init_std) == (True, "uniform")
    assert math.isclose(settings("leopart-resnet").lr[0], 0.1)
    assert settings("paper").border == settings("released-code").border == "background"


# --- rates, and what is standardised -------------------------------------------------------------------------


def test_native_and_cached_serve_any_network_and_paper_stays():
    for preset, version in (("native", 3), ("cached", 2)):
        found = settings(preset)
        assert (found.lr, found.normalize, found.choose_on) == ((0.1, 0.01, 0.001, 0.0003), "standardize", "train")
        assert next(p for p in CARD.presets if p.name == preset).version == version
    for preset in ("paper", "paper-search", "released-code"):
        assert (settings(preset).lr, settings(preset).normalize, settings(preset).init_std) == ((0.1,), "none", 0.01)


def test_moments_are_those_of_numpy_and_a_constant_has_no_variance():
    rng = np.random.default_rng(4)
    blocks = [rng.normal(1e4, 1e-1, (cells, 5)).astype(np.float32) for cells in (1, 7, 300, 2)]
    for block in blocks:
        block[:, 3], block[:, 4] = 0.1, 1e20 * rng.normal(size=len(block))
    moments = _heads.Moments(5)
    for block in blocks:
        moments.add(_heads.Moments.of(block))
    every = np.concatenate(blocks).astype(np.float64)
    np.testing.assert_allclose(moments.mean, every.mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.variance[[0, 1, 2, 4]], every.var(0)[[0, 1, 2, 4]], rtol=1e-9)
    assert moments.variance[3] == 0.0
    assert moments.mean[3] == np.float32(0.1)


def test_dimensions_that_do_not_vary_are_not_stretched():
    """Constants, also up to what float32 rounds, are centred only; a picture that differs there is not blown up."""
    train = split(6)
    rng = np.random.default_rng(0)
    for of_picture in train.maps:
        of_picture[..., 0] = 0.1
        of_picture[..., 1] = 5 * (1 + 1e-7 * rng.choice([-1, 0, 1], of_picture.shape[:2]))
        of_picture[..., 2] *= 1e-6
    (norm,) = _heads.norms(work(train=train), settings(), [])
    _, scale = norm.shift()
    assert scale[:2].tolist() == [1.0, 1.0]
    assert 0 < scale[2] < 1e-4
    probe = torch.tensor([[0.1, 5.0, 0, 0, 0, 0], [1.1, 6.0, 0, 0, 0, 0]])
    assert norm(probe)[0, :2].abs().max() < 1e-5
    torch.testing.assert_close(norm(probe)[1, :2], torch.ones(2), rtol=0, atol=1e-5)


def test_a_judged_head_is_standardised_by_the_pictures_it_sees():
    """As if it were alone, on a train split without the held-out picture, whose features are of another scale."""
    train = split(4)
    train.maps[1][...] = 50 * train.maps[1] + 7
    place = work(train=train)
    probe = _heads.Heads(place, settings(), [head(judged=True), head()], 0, torch.float64, held=[1])
    rest = train.only([0, 2, 3])
    alone = _heads.Heads(work(train=rest), settings(), [head()], 0, torch.float64)
    losses = probe.losses([group(train, [0, 1, 2, 3])])
    expected = alone.losses([group(rest, [0, 1, 2])])
    assert losses[0].item() == pytest.approx(expected[0].item(), rel=1e-9)
    torch.testing.assert_close(probe.weights[0].grad, alone.weights[0].grad, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(probe.biases[0].grad, alone.biases[0].grad, rtol=1e-6, atol=1e-10)
    for mine, theirs in zip(probe.folded(0), alone.folded(0), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(probe.folded(0)[0], probe.folded(1)[0], rtol=0.1)


def test_the_default_does_not_depend_on_the_scale_of_the_features():
    found = []
    for scale, offset in ((1, 0), (1e4, 0), (1e-4, 0), (1e15, 0), (1, 50)):
        scored, train = split(6, seed=1, signal=2), split(20, signal=2)
        for of in (scored, train):
            for of_picture in of.maps:
                of_picture[...] = scale * of_picture + offset
        found.append(run(work(scored, train), settings(epochs=10))[0]["miou"])
    assert found[0] > 0.6
    assert found == pytest.approx([found[0]] * 5, abs=2e-3)


def test_the_chosen_rate_is_in_the_row_and_one_at_the_edge_is_said():
    place = work(split(6, seed=1, signal=2), split(20, signal=2))
    _, outcome = run(place, settings(lr="1e-6,1e-2", epochs=12))
    assert outcome.facts["chosen"] == {"tap": "last", "lr": 0.01, "weight_decay": 1e-4}
    (said,) = [note for note in outcome.notes if "that was tried" in note]
    assert said == (
        "lr=0.01 is the largest that was tried: a larger one may score more, e.g. --set linear.lr=1e-06,0.01,0.1,1"
    )
    _, outcome = run(place, settings(lr="1e-2,1e30,1e38", epochs=12, normalize="none"))
    assert any(note.startswith("lr=0.01 is the smallest that was tried: a smaller one") for note in outcome.notes)
    _, outcome = run(place, settings(lr="1e-9,1e-2,1e38", epochs=12, normalize="none"))
    assert outcome.facts["chosen"]["lr"] == 0.01
    assert not any("that was tried" in note for note in outcome.notes), "beyond it lies one that diverged"
    assert run(place, settings(lr="0.1", epochs=2))[1].facts["chosen"]["lr"] == 0.1


def test_a_last_epoch_worse_than_guessing_is_said():
    """With 1 step an epoch at a rate that moves nothing, the loss of the last epoch is that of the first weights."""
    train = split(6)
    place = work(train=train)
    how = settings(lr="1e-12", epochs=2, init_std=10.0, batch=6)
    probe = _heads.Heads(place, how, [head()], 0)
    one = normalised(group(train, list(range(6))), [], train, "standardize")
    expected = transcription(probe.weights[0].detach().double(), probe.biases[0].detach().double(), [one]).item()
    _, outcome = run(place, how)
    assert outcome.facts["last_epoch_loss"] == pytest.approx(expected, rel=1e-5)
    assert expected > math.log(CLASSES)
    (said,) = [note for note in outcome.notes if "cross-entropy" in note]
    assert f"is {expected:.3g} per labelled pixel, above ln(3) = 1.1, which guessing gives" in said
    assert "linear.lr, linear.epochs" in said
    _, outcome = run(place, settings(lr="1e-12", epochs=2, init_std=0.0, batch=6))
    assert outcome.facts["last_epoch_loss"] == pytest.approx(math.log(CLASSES), rel=1e-6)


def test_the_loss_of_an_epoch_is_over_all_its_pixels():
    measured = _measure.EpochLoss(2, torch.device("cpu"))
    for losses, pixels in (((1.0, 5.0), (10, 0)), ((4.0, 2.0), (20, 5))):
        measured.add(torch.tensor(losses), torch.tensor(pixels, dtype=torch.float64))
    assert (measured.mean(0), measured.mean(1)) == (3.0, 2.0)
    measured.begin()
    assert measured.mean(0) is None
    assert _measure.above_chance(None, 3, "") == []


def test_the_loss_that_is_shown_is_that_of_the_best_head():
    train = split(6)
    probe = _heads.Heads(work(train=train), settings(), [head(1e-9), head(100.0)], 0)
    watched = _probe._Watched(probe, _probe._BestOnVal(work(train=train), settings(), probe), 1)
    optimizer = probe.optimizer(0.0)
    for _ in range(3):
        optimizer.zero_grad()
        figures = watched.step([group(train, [0, 1, 2])])
        optimizer.step()
    assert figures["loss"] == figures["loss last lr=1e-09 wd=0.0001"] < 1.2
    assert figures["loss last lr=100 wd=0.0001"] > 2


def test_uniform_weights_are_those_of_a_convolution_of_torch():
    probe = _heads.Heads(work(), settings("leopart"), [head(), head()], 0, torch.float64)
    torchs = torch.nn.Conv2d(WIDTH, CLASSES, 1)
    bound = WIDTH**-0.5
    drawn = [_heads.Heads(work(), settings("leopart"), [head()], seed) for seed in range(300)]
    for name, shape in (("weights", (CLASSES, WIDTH)), ("biases", (CLASSES,))):
        assert getattr(probe, name)[0].shape == shape
        assert torch.equal(getattr(probe, name)[0], getattr(probe, name)[1])
        values = torch.cat([getattr(each, name)[0].detach().flatten() for each in drawn])
        assert values.abs().max() <= bound
        assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert torchs.weight.abs().max() <= bound
    assert torchs.bias is not None
    assert torchs.bias.abs().max() <= bound
    assert not _heads.Heads(work(), settings("paper"), [head()], 0).biases[0].any()


def test_pictures_without_labels_are_not_held_out():
    train = split(12)
    names = [f"picture{index}" for index in range(12)]
    counts = work(train=train).label_counts("train")
    (first,) = _draw.held_out(names, counts)
    assert first == _draw.drawn(names, 1, "held out")[0]
    train.labels[first][...] = 255
    (second,) = _draw.held_out(names, work(train=train).label_counts("train"))
    assert second != first
    for index in range(12):
        if index != second:
            train.labels[index][...] = 255
    with pytest.raises(InputError, match=r"1 picture with labels.*none can be held out.*linear\.lr=0\.001"):
        run(work(train=train), settings(epochs=1))
    run(work(train=train), settings(epochs=1, lr="0.1"))


def test_train_labels_that_are_void_alone_are_refused():
    train = split(3)
    for label in train.labels:
        label[...] = 255
    for changes in ({}, {"lr": "0.1"}, {"choose_on": "scored"}):
        with pytest.raises(DatasetError, match=r"label maps of the train split hold nothing but void \(255\)"):
            run(work(train=train), settings(epochs=1, **changes))
