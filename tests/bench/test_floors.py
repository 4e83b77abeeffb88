"""Floors, and that no figure depends on how clusters are numbered or pictures are listed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench import metrics
from bench.exchange import donors
from bench.metrics import Counts, count_pixels

CLASSES, PICTURES, SIDE = 5, 40, 48


def tables(ids, labels, clusters):
    return Counts.from_dense([count_pixels(*pair, clusters, CLASSES) for pair in zip(ids, labels, strict=True)])


def scenes(seed=0, pictures=PICTURES):
    """Label maps: a background, and on it one square of a random class, somewhere near the middle; a little void."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((pictures, SIDE, SIDE), np.uint8)
    for label in labels:
        top, left = rng.integers(6, 22, 2)
        label[top : top + 20, left : left + 20] = rng.integers(1, CLASSES)
        label[0, :3] = 255
    return labels


def exchange(ids, labels, clusters, draws=metrics.DRAWS):
    names = [f"{number:03d}" for number in range(len(ids))]
    return [tables(ids[donor], labels, clusters) for donor in donors(names, draws)]


def noise(rng, labels, clusters, block=8):
    cells = rng.integers(0, clusters, (len(labels), SIDE // block, SIDE // block))
    return cells.repeat(block, 1).repeat(block, 2)


# ------------------------------------------------------------------------------------------------------ what floors are


def miou(result, part, rule="one_to_one_iou"):
    return result[part]["miou"] if part == "constant" else result[part][rule]["miou"]


def simulated(make, given=(), clusters=CLASSES):
    """Mean over 20 seeds of the score of a clustering of a kind, and of its floors."""
    found = []
    for seed in range(20):
        labels = scenes(seed)
        ids = make(np.random.default_rng(seed), labels)
        about = {"background": 0, "seed": seed, "given": given, "exchanged": exchange(ids, labels, clusters)}
        result = metrics.evaluate(tables(ids, labels, clusters), **about)
        found.append([miou(result, part) for part in ("scores", "constant", "null", "exchanged")])
    return dict(zip(("scores", "constant", "null", "exchanged"), np.mean(found, 0), strict=True))


def test_constant_is_the_score_of_one_cluster():
    found = simulated(lambda rng, labels: np.zeros(labels.shape, int))
    assert found["scores"] == pytest.approx(found["constant"], abs=1e-12)


def test_null_is_the_score_of_noise_with_true_masks():
    """The background is given: permuting it too would put the floor far below what meaningless objects score."""

    def make(rng, labels):
        return np.where(labels == 0, 0, rng.integers(1, CLASSES, (len(labels), 1, 1)))

    found = simulated(make, given=(0,))
    assert found["null"] == pytest.approx(found["scores"], abs=0.005)
    assert simulated(make)["null"] < found["scores"] - 0.1


def test_null_is_the_score_of_noise_without_masks():
    found = simulated(lambda rng, labels: noise(rng, labels, CLASSES))
    assert found["null"] == pytest.approx(found["scores"], abs=0.005)


def test_exchanged_is_the_score_of_layouts_that_are_not_the_pictures_own():
    def make(rng, labels):
        others = scenes(int(rng.integers(1000, 2000)))
        return np.where(others == 255, 0, others).astype(int)

    found = simulated(make)
    assert found["exchanged"] == pytest.approx(found["scores"], abs=0.005)
    assert found["exchanged"] > found["null"] + 0.05


def test_a_perfect_clustering_lies_far_above_all():
    found = simulated(lambda rng, labels: np.where(labels == 255, 0, labels).astype(int))
    assert found["scores"] == 1.0
    assert max(found["constant"], found["null"], found["exchanged"]) < 0.5


def test_constant_predicts_the_most_frequent_class_with_all_its_metrics():
    counts = tables(scenes() * 0, scenes(), 1)
    truth = counts.confusion().sum(0)
    figures = metrics.evaluate(counts, background=0, seed=0)["constant"]
    assert figures["pixel_accuracy"] == truth[0] / truth.sum()
    assert figures["iou"] == [truth[0] / truth.sum(), 0, 0, 0, 0]
    assert figures["class_accuracy"] == pytest.approx(1 / CLASSES)
    among = metrics.evaluate_predictions(counts, np.array([0]), background=0, seed=0, among=(1, 2))["constant"]
    assert among["miou"] == pytest.approx(max(truth[1:3]) / truth.sum() / 2)


def test_null_of_predictions_permutes_the_classes_that_were_predicted():
    """Classes 0 and 1 alone are predicted: each picture keeps them or swaps them."""
    labels = np.zeros((2, 4, 4), np.uint8)
    labels[:, :2] = 1
    counts = tables(labels.astype(int), labels, CLASSES)
    result = metrics.evaluate_predictions(counts, np.arange(CLASSES), background=0, seed=0)
    kept = {0: 0.0, 1: (1 / 3 + 1 / 3) / CLASSES, 2: 2 / CLASSES}
    nulls = [
        metrics.evaluate_predictions(counts, np.arange(CLASSES), background=0, seed=s)["null"]["as_predicted"]["miou"]
        for s in range(200)
    ]
    assert np.mean(nulls) == pytest.approx((kept[0] + 2 * kept[1] + kept[2]) / 4, abs=0.01)
    assert result["scores"]["as_predicted"]["miou"] == 2 / CLASSES
    given = metrics.evaluate_predictions(counts, np.arange(CLASSES), background=0, seed=0, given=(0,))
    assert given["null"]["as_predicted"] == _without_match(given["scores"]["as_predicted"])


def _without_match(figures):
    return {name: value for name, value in figures.items() if name != "match"}


def test_draws_are_means_with_their_spread():
    labels = scenes()
    ids = noise(np.random.default_rng(0), labels, 7)
    drawn = exchange(ids, labels, 7)
    result = metrics.evaluate(tables(ids, labels, 7), background=0, seed=0, exchanged=drawn)
    each = [metrics.evaluate(one, background=0, seed=0)["scores"]["many_to_one_iou"] for one in drawn]
    for metric in ("miou", "pixel_accuracy", "iou"):
        values = [scores[metric] for scores in each]
        assert result["exchanged"]["many_to_one_iou"][metric] == pytest.approx(np.mean(values, 0))
        spread = result["draws"]["exchanged"]["sd"]["many_to_one_iou"][metric]
        assert spread == pytest.approx(np.std(values, 0, ddof=1))
    assert {name: part["number"] for name, part in result["draws"].items()} == dict.fromkeys(
        ("held_out", "null", "exchanged"), metrics.DRAWS
    )


def test_miou_occurring_counts_what_is_predicted_or_labelled():
    confusion = np.array([[50, 0, 0], [0, 40, 0], [5, 5, 0]])
    figures = metrics.score(confusion, np.arange(3), None)
    assert figures["miou_occurring"] == pytest.approx((50 / 55 + 40 / 45 + 0) / 3)
    assert figures["miou_present"] == pytest.approx((50 / 55 + 40 / 45) / 2)
    # what predicts no class is no prediction: the third class occurs nowhere then
    figures = metrics.score(confusion, np.array([0, 1, -1]), None)
    assert figures["miou_occurring"] == figures["miou_present"]


# -------------------------------------------------------------------------------------------------------------- donors


def test_every_picture_takes_the_layout_of_another():
    names = [f"picture {number}" for number in np.random.default_rng(0).permutation(17)]
    drawn = donors(names, 8)
    for donor in drawn:
        assert sorted(donor.tolist()) == list(range(17))
        assert (donor != np.arange(17)).all()
    assert len({tuple(donor.tolist()) for donor in drawn}) == 8
    taken = {(names[i], names[donor[i]]) for donor in drawn for i in range(17)}
    again = {(sorted(names)[i], sorted(names)[donor[i]]) for donor in donors(sorted(names), 8) for i in range(17)}
    assert taken == again
    assert donors(["alone"]) == []
    assert all(donor.tolist() == [1, 0] for donor in donors(["a", "b"]))


# ------------------------------------------------------------------------------------------------------------ numbering


def every_figure(result):
    """All figures, and for each rule which cluster took which class is left to the caller."""
    scores = {rule: figures and _without_match(figures) for rule, figures in result["scores"].items()}
    return json.dumps({**result, "scores": scores}, sort_keys=True)


def sample(seed, clusters):
    """A coarse clustering with ties: equal clusters, empty ones, clusters of void alone."""
    rng = np.random.default_rng(seed)
    labels = scenes(seed, pictures=8)
    ids = np.where(rng.random(labels.shape) < 0.5, noise(rng, labels, clusters), labels % clusters)
    ids[labels == 255] = clusters - 1
    return ids, labels


@pytest.mark.parametrize("given", [(), (0,)])
@pytest.mark.parametrize("clusters", [3, 5, 9])
@pytest.mark.parametrize("seed", range(4))
def test_no_figure_depends_on_numbering(given, clusters, seed):
    """Bit by bit: ids that were not given renamed, pictures reordered, and an id without a pixel added."""
    rng = np.random.default_rng([seed, clusters])
    ids, labels = sample(seed, clusters)
    names = np.array([f"p{number}" for number in rng.permutation(len(ids))])

    def figures(ids, labels, names, clusters):
        drawn = [tables(ids[donor], labels, clusters) for donor in donors(names.tolist())]
        return metrics.evaluate(
            tables(ids, labels, clusters),
            names=names.tolist(),
            background=0,
            seed=seed,
            given=given,
            exchanged=drawn,
        )

    before = figures(ids, labels, names, clusters)
    rename = np.arange(clusters)
    rename[len(given) :] = rng.permutation(rename[len(given) :])
    order = rng.permutation(len(ids))
    after = figures(rename[ids][order], labels[order], names[order], clusters)
    assert every_figure(after) == every_figure(before)
    for rule in metrics.RULES:
        match, renamed = (np.array(result["scores"][rule]["match"]) for result in (before, after))
        assert sorted(match.tolist()) == sorted(renamed.tolist())

    more = figures(ids, labels, names, clusters + 1)
    variants = {rule for rule in more["scores"] if ":" in rule} - set(before["scores"])
    for rule in variants:
        assert _without_match(more["scores"].pop(rule)) == _without_match(before["scores"][rule.partition(":")[0]])
    assert every_figure(more) == every_figure(before)
    assert bool(variants) == (clusters == CLASSES)


def test_a_match_names_the_clusters_as_they_were_numbered():
    labels = np.array([[[0, 1, 2, 3]]] * 2, np.uint8)
    ids = np.array([[[4, 2, 0, 1]]] * 2)
    result = metrics.evaluate(tables(ids, labels, 6), background=0, seed=0)
    assert result["scores"]["one_to_one_iou"]["match"] == [2, 3, 1, -1, 0, -1]


def test_names_must_tell_pictures_apart():
    counts = tables(scenes(pictures=2) * 0, scenes(pictures=2), 1)
    with pytest.raises(metrics.InternalError, match="2 pictures and 1 different names"):
        metrics.evaluate(counts, names=["a", "a"], background=None, seed=0)
