from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as reference

from bench import metrics
from bench.errors import InternalError
from bench.metrics import Counts

GOLDEN = Path(__file__).parents[1] / "golden"
VOID = 255
SIZES = [(3, 5), (5, 5), (8, 5)]  # clusters below, at and above the number of classes


def random_confusion(clusters, classes, seed=0, high=50):
    rng = np.random.default_rng(seed)
    confusion = rng.integers(0, high, (clusters, classes))
    return confusion * (rng.random((clusters, classes)) < 0.7)


def random_counts(pictures=6, clusters=7, classes=4, seed=0):
    tables = np.stack([random_confusion(clusters, classes + 1, seed * 1000 + p) for p in range(pictures)])
    return Counts.from_dense(tables)


def pixels_of(confusion):
    """Cluster and label of every pixel, from their confusion matrix."""
    clusters, classes = np.indices(confusion.shape)
    return np.repeat(clusters.ravel(), confusion.ravel()), np.repeat(classes.ravel(), confusion.ravel())


def every_number(tree):
    if isinstance(tree, dict):
        return [x for value in tree.values() for x in every_number(value)]
    if isinstance(tree, list):
        return [x for value in tree for x in every_number(value)]
    return [tree] if isinstance(tree, (int, float)) else []


# ------------------------------------------------------------------------------------------------------------- counting


@pytest.mark.parametrize(("clusters", "dtype"), [(9, np.uint8), (300, np.uint16), (9, np.int32), (4000, np.int64)])
def test_counting_agrees_with_scikit_learn(clusters, dtype, monkeypatch):
    monkeypatch.setattr(metrics, "_BLOCK", 100)  # several blocks and a short last one
    rng = np.random.default_rng(0)
    classes = 21
    ids = rng.integers(0, clusters, (31, 17)).astype(dtype)
    labels = rng.integers(0, classes, (31, 17)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = VOID
    counts = metrics.count_pixels(ids, labels, clusters, classes)
    columns = np.where(labels == VOID, classes, labels)
    whole = reference.confusion_matrix(ids.ravel(), columns.ravel(), labels=np.arange(max(clusters, classes + 1)))
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, whole[:clusters, : classes + 1])


def test_counting_without_a_pixel():
    empty = np.zeros((0, 5), np.uint8)
    np.testing.assert_array_equal(metrics.count_pixels(empty, empty, 3, 2), np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("ids", "labels", "said"),
    [
        ([0, 3], [0, 0], "cluster ids 0 … 3: expected 0 … 2"),
        ([-1, 0], [0, 0], "cluster ids -1 … 0: expected 0 … 2"),
        ([0, 1], [2, 0], "a label is 2: expected 0 … 1 or 255"),
        ([0, 1], [254, 0], "a label is 254"),
        ([0, 1, 2], [0, 1], "expected one shape"),
    ],
)
def test_counting_refuses_values_out_of_range(ids, labels, said):
    with pytest.raises(InternalError, match=said):
        metrics.count_pixels(np.array(ids), np.array(labels, np.uint8), 3, 2)


def test_counts_keep_the_dense_array():
    dense = np.random.default_rng(0).integers(0, 3, (5, 4, 3)) * np.arange(5)[:, None, None]  # picture 0 is empty
    counts = Counts.from_dense(dense)
    keep = np.array([True, False, True, False, True])
    np.testing.assert_array_equal(counts.dense(), dense)
    np.testing.assert_array_equal(counts.total(), dense.sum(0))
    np.testing.assert_array_equal(counts.confusion(), dense.sum(0)[:, :-1])
    np.testing.assert_array_equal(counts.subset(keep).dense(), dense[keep])
    np.testing.assert_array_equal(Counts.from_dense(list(dense)).dense(), dense)
    assert counts.pixels.all()


def test_counts_are_exact_beyond_float32():
    table = np.array([[[2**40 + 1, 0]], [[2**40 + 2, 1]]])
    assert Counts.from_dense(table).total().tolist() == [[2**41 + 3, 1]]


def test_shuffling_moves_whole_clusters_within_a_picture():
    counts = random_counts(clusters=30)
    shuffled = counts.shuffled(np.random.default_rng(1), np.arange(1, 30)).dense()
    for before, after in zip(counts.dense(), shuffled, strict=True):
        assert sorted(map(tuple, before)) == sorted(map(tuple, after))
        assert (before != after).any()
        assert (before[0] == after[0]).all()


# ------------------------------------------------------------------------------------------------------------- matching


@pytest.mark.parametrize(("clusters", "classes"), [(2, 4), (4, 4), (6, 4)])
@pytest.mark.parametrize("gain", ["iou", "pixels"])
@pytest.mark.parametrize("seed", range(5))
def test_one_to_one_is_the_best_of_all_assignments(clusters, classes, gain, seed):
    confusion = random_confusion(clusters, classes, seed)
    union = confusion.sum(1)[:, None] + confusion.sum(0)[None] - confusion
    gains = confusion / np.maximum(union, 1) if gain == "iou" else confusion
    short, long = sorted((clusters, classes))
    oriented = gains if clusters <= classes else gains.T
    best = max(oriented[range(short), choice].sum() for choice in itertools.permutations(range(long), short))

    matched = metrics.match(confusion, f"one_to_one_{gain}")
    partners = matched[matched >= 0]
    assert len(partners) == len(set(partners.tolist())) <= short
    assert (gains[np.flatnonzero(matched >= 0), partners] > 0).all()
    assert gains[np.flatnonzero(matched >= 0), partners].sum() == pytest.approx(best, abs=1e-12)
    assert np.count_nonzero(matched == -2) == clusters - short


@pytest.mark.parametrize("rule", metrics.RULES)
def test_a_pair_without_gain_is_no_match(rule):
    """The second cluster could only take a class of which it has no pixel: it predicts none, and is not left over."""
    confusion = np.array([[9, 0], [1, 0]])
    matched = metrics.match(confusion, rule)
    if rule.startswith("one"):
        assert matched.tolist() == [0, -1]
    assert metrics.match(np.array([[9, 0], [0, 0]]), rule).tolist() == [0, -1]
    scores = metrics.score(confusion, np.array([0, -1]), 1)
    assert scores["iou"] == [0.9, 0.0]
    for leftover in ("background", "dropped"):
        assert metrics.score(confusion, np.array([0, -1]), 1, leftover) == scores


def test_costs_can_disagree():
    confusion = np.array([[100, 60], [50, 0]])  # 60 + 50 pixels against 100; IoU 0.375 + 0.25 against 0.4762
    assert metrics.match(confusion, "one_to_one_pixels").tolist() == [1, 0]
    confusion = np.array([[100, 30], [60, 0]])  # 100 against 90 pixels; IoU 0.5263 against 0.1579 + 0.375
    assert metrics.match(confusion, "one_to_one_pixels").tolist() == [0, -1]
    assert metrics.match(confusion, "one_to_one_iou").tolist() == [1, 0]
    confusion = np.array([[60, 50], [940, 0]])  # most pixels of cluster 0 are class 0, its best IoU is class 1
    assert metrics.match(confusion, "many_to_one_pixels").tolist() == [0, 0]
    assert metrics.match(confusion, "many_to_one_iou").tolist() == [1, 0]


@pytest.mark.parametrize("rule", ["many_to_one_iou", "many_to_one_pixels"])
def test_many_to_one_ties_and_empty_clusters(rule):
    confusion = np.array([[0, 4, 4], [0, 0, 0], [0, 3, 3]])
    assert metrics.match(confusion, rule).tolist() == [1, -1, 1]


# -------------------------------------------------------------------------------------------------------------- scoring


@pytest.mark.parametrize(("clusters", "classes"), SIZES)
@pytest.mark.parametrize("rule", metrics.RULES)
@pytest.mark.parametrize("leftover", ["none", "background", "dropped"])
def test_score_agrees_with_scikit_learn_on_pixels(clusters, classes, rule, leftover):
    confusion = random_confusion(clusters, classes, seed=3)
    confusion[:, 2] = 0  # an absent class
    matched = metrics.match(confusion, rule)
    ids, labels = pixels_of(confusion)
    predicted = matched[ids]
    if leftover == "background":
        predicted = np.where(predicted == -2, 0, predicted)
    elif leftover == "dropped":
        ids, labels, predicted = ids[predicted != -2], labels[predicted != -2], predicted[predicted != -2]
    every = np.arange(classes)
    present = np.unique(labels)
    class_iou = reference.jaccard_score(labels, predicted, labels=every, average=None, zero_division=0)
    recall = reference.recall_score(labels, predicted, labels=present, average=None, zero_division=0)

    score = metrics.score(confusion, matched, 0, leftover)
    np.testing.assert_allclose(score["iou"], class_iou, rtol=1e-12)
    assert score["miou"] == pytest.approx(class_iou.mean(), rel=1e-12)
    assert score["miou_present"] == pytest.approx(class_iou[present].mean(), rel=1e-12)
    assert score["foreground_miou"] == pytest.approx(class_iou[1:].mean(), rel=1e-12)
    assert score["pixel_accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted), rel=1e-12)
    assert score["class_accuracy"] == pytest.approx(recall.mean(), rel=1e-12)


@pytest.mark.parametrize("classes", [2, 6])
def test_score_agrees_with_torchmetrics(classes):
    torch = pytest.importorskip("torch")
    torchmetrics = pytest.importorskip("torchmetrics.classification")
    confusion = random_confusion(classes, classes, seed=5)
    matched = metrics.match(confusion, "many_to_one_iou")
    ids, labels = pixels_of(confusion)
    predicted, target = torch.tensor(matched[ids]), torch.tensor(labels)
    arguments = {"task": "multiclass", "num_classes": classes}
    class_iou = torchmetrics.JaccardIndex(**arguments, average=None)(predicted, target)
    accuracy = torchmetrics.Accuracy(**arguments, average="micro")(predicted, target)
    table = torchmetrics.ConfusionMatrix(**arguments)(predicted, target)

    score = metrics.score(confusion, matched, None)
    np.testing.assert_allclose(score["iou"], class_iou.double(), rtol=1e-6)
    assert score["pixel_accuracy"] == pytest.approx(accuracy.item(), rel=1e-6)
    assert score["foreground_miou"] is None
    counted = metrics.count_pixels(matched[ids].astype(np.uint8), labels.astype(np.uint8), classes, classes)
    np.testing.assert_array_equal(counted[:, :-1].T, table)


def test_leftover_clusters_by_hand():
    confusion = np.array([[8, 0], [0, 6], [4, 2]])  # cluster 2 is left over
    matched = metrics.match(confusion, "one_to_one_iou")
    assert matched.tolist() == [0, 1, -2]
    assert metrics.score(confusion, matched, 0)["iou"] == [8 / 12, 6 / 8]
    assert metrics.score(confusion, matched, 0, "background")["iou"] == [12 / 14, 6 / 8]
    assert metrics.score(confusion, matched, 0, "dropped")["iou"] == [1.0, 1.0]
    assert metrics.score(confusion, matched, 0)["pixel_accuracy"] == 14 / 20
    with pytest.raises(InternalError, match="no background"):
        metrics.score(confusion, matched, None, "background")


# ---------------------------------------------------------------------------------------------- agreement of partitions


@pytest.mark.parametrize(("clusters", "classes"), [*SIZES, (1, 4), (4, 1), (1, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_ari_and_nmi_agree_with_scikit_learn(clusters, classes, seed):
    confusion = random_confusion(clusters, classes, seed) + (clusters == 1 or classes == 1)
    ids, labels = pixels_of(confusion)
    assert metrics.ari(confusion) == pytest.approx(reference.adjusted_rand_score(labels, ids), abs=1e-12)
    expected = reference.normalized_mutual_info_score(labels, ids)
    assert metrics.nmi(confusion) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "confusion",
    [np.zeros((3, 2)), np.diag([4, 0, 5]), [[7]], [[1, 1], [1, 1]], [[3, 4], [0, 0]], np.eye(4), np.ones((4, 1))],
)
def test_degenerate_agreement_is_that_of_scikit_learn(confusion):
    confusion = np.asarray(confusion, np.int64)
    ids, labels = pixels_of(confusion)
    assert metrics.ari(confusion) == pytest.approx(reference.adjusted_rand_score(labels, ids), abs=1e-12)
    expected = reference.normalized_mutual_info_score(labels, ids)
    assert metrics.nmi(confusion) == pytest.approx(expected, abs=1e-12)


def test_ari_does_not_overflow():
    confusion = random_confusion(6, 4, seed=1) * 10**9
    n, doubled = int(confusion.sum()), metrics.ari(confusion)
    assert n**2 > 2**64
    assert doubled == pytest.approx(metrics.ari(confusion // 10**3), rel=1e-6)
    assert metrics.ari(np.diag([10**11] * 3)) == 1.0


# ----------------------------------------------------------------------------------------------------------- evaluation


def golden_edge_case(name):
    return json.loads((GOLDEN / "matching_edge_cases.json").read_text())[name]


def nearest(prediction, shape):
    rows, columns = (np.arange(size) * source // size for size, source in zip(shape, prediction.shape, strict=True))
    return prediction[rows[:, None], columns]


def counts_of(predictions, labels, clusters, classes):
    return Counts.from_dense(
        [
            metrics.count_pixels(np.asarray(ids), np.asarray(label, np.uint8), clusters, classes)
            for ids, label in zip(predictions, labels, strict=True)
        ]
    )


@pytest.mark.parametrize(
    ("clusters", "rule"), [(21, "one_to_one_iou"), (50, "many_to_one_iou"), (100, "many_to_one_iou")]
)
def test_golden_evaluation(clusters, rule):
    expected = json.loads((GOLDEN / "evaluation.json").read_text())[f"K={clusters}"]
    with np.load(GOLDEN / "clustering_eval.npz") as arrays:
        counts = counts_of(arrays[f"clusters_{clusters}"], arrays["ground_truth"], clusters, 21)
        void = np.count_nonzero(arrays["ground_truth"] == VOID)
        pixels = arrays["ground_truth"].size - void
    result = metrics.evaluate(counts, background=0, seed=0)
    assert result["scores"][rule]["miou"] == pytest.approx(expected["miou"], abs=1e-12)
    np.testing.assert_allclose(result["scores"][rule]["iou"], expected["iou"], rtol=0, atol=1e-12)
    assert (result["pixels"], result["void"]) == (pixels, void)


@pytest.mark.parametrize(
    ("name", "rule", "same_size"),
    [
        ("one_to_one_21_clusters", "one_to_one", True),
        ("many_to_one_25_clusters", "many_to_one", True),
        ("prediction_of_another_size", "many_to_one", False),
    ],
)
def test_golden_edge_cases(name, rule, same_size):
    case = golden_edge_case(name)
    predictions = [np.array(prediction) for prediction in case["prediction"]]
    if not same_size:
        predictions = [
            nearest(prediction, np.shape(label))
            for prediction, label in zip(predictions, case["ground_truth"], strict=True)
        ]
        np.testing.assert_array_equal(predictions, case["prediction_resized"])
    counts = counts_of(predictions, case["ground_truth"], case["n_clusters"], case["n_classes"])
    scores = metrics.evaluate(counts, background=0, seed=0)["scores"]

    np.testing.assert_allclose(scores[f"{rule}_iou"]["iou"], case["iou_per_class"], rtol=0, atol=1e-12)
    assert scores[f"{rule}_iou"]["miou"] == pytest.approx(case["miou"], abs=1e-12)
    assert scores[f"{rule}_iou"]["pixel_accuracy"] == pytest.approx(case["pixel_accuracy"], abs=1e-12)
    matched, confusion = scores[f"{rule}_iou"]["match"], counts.confusion()
    for cluster, class_ in case.get("match_determined", case["match"]):
        # that code gives a class also to clusters that have no pixel of it, which changes no IoU
        assert matched[cluster] == (class_ if confusion[cluster, class_] else -1)
    if by_pixels := case.get("miou_if_matched_by_pixel_hits_instead"):
        # several assignments have the most pixels; the figure is of the one that the order of this file gives
        as_listed = metrics.score_rules(confusion, 0)[f"{rule}_pixels"]
        assert as_listed["miou"] == pytest.approx(by_pixels, abs=1e-12)
        assert scores[f"{rule}_pixels"]["pixel_accuracy"] == pytest.approx(as_listed["pixel_accuracy"], abs=1e-12)


@pytest.mark.parametrize("clusters", [4, 7])
def test_variants_are_stored_where_clusters_are_left_over(clusters):
    counts = random_counts(clusters=clusters, classes=4)
    scores = metrics.evaluate(counts, background=1, seed=0)["scores"]
    variants = {f"one_to_one_{gain}:{kind}" for gain in ("iou", "pixels") for kind in ("background", "dropped")}
    assert set(scores) - set(metrics.RULES) == (variants if clusters > 4 else set())
    if clusters > 4:
        confusion = counts.canonical()[0].confusion()
        for rule in ("one_to_one_iou", "one_to_one_pixels"):
            matched = metrics.match(confusion, rule)
            for kind in ("background", "dropped"):
                assert scores[f"{rule}:{kind}"] == metrics.score(confusion, matched, 1, kind)
        assert metrics.evaluate(counts, background=None, seed=0)["scores"]["one_to_one_iou:background"] is None


@pytest.mark.parametrize("background", [None, 0])
@pytest.mark.parametrize("clusters", [1, 3, 5, 9])
@pytest.mark.parametrize("void", ["some", "one picture", "all"])
def test_no_score_is_undefined(clusters, background, void):
    dense = random_counts(pictures=4, clusters=clusters, classes=5).dense()
    dense[:, :, 1] = 0  # an absent class
    dense[:, 0, :-1] = 0  # a cluster on void pixels alone
    dense[0 if void == "one picture" else slice(None), :, :-1] *= void == "some"
    result = metrics.evaluate(Counts.from_dense(dense), background=background, seed=0)
    json.dumps(result, allow_nan=False)
    shares = every_number({name: result[name] for name in ("null", "held_out", "constant")})
    assert all(0 <= x <= 1 for x in shares)
    assert -1 <= result["ari"] <= 1
    assert 0 <= result["nmi"] <= 1
    assert result["pixels"] + result["void"] == dense.sum()
    scored = dense[:, :, :-1].any((1, 2))
    assert result["void_pictures"] == np.count_nonzero(~scored)


def test_perfect_clusters_score_one():
    dense = np.zeros((6, 4, 5), np.int64)
    order = np.array([2, 0, 3, 1])  # cluster k is class order[k] in every picture
    dense[:, np.arange(4), order] = np.random.default_rng(0).integers(5, 90, (6, 4))
    result = metrics.evaluate(Counts.from_dense(dense), background=0, seed=0)
    for scores in (result["scores"], result["held_out"]):
        for rule in metrics.RULES:
            assert set(every_number({k: v for k, v in scores[rule].items() if k != "match"})) == {1.0}
    assert result["scores"]["many_to_one_pixels"]["match"] == order.tolist()
    assert (result["ari"], result["nmi"]) == (1.0, 1.0)
    assert result["null"]["one_to_one_iou"]["miou"] < 0.8


def test_held_out_matching_by_hand():
    """Two pictures, each predicted with the classes that its clusters have in the other, scored together."""
    dense = np.array([[[9, 1, 0], [0, 5, 0]], [[2, 8, 0], [0, 7, 0]]])
    # From the second picture both clusters are class 1; from the first, cluster k is class k.
    class_0 = 2 / (2 + 8 + 9)
    class_1 = (6 + 7) / ((6 + 7) + 9 + 8)
    result = metrics.evaluate(Counts.from_dense(dense), background=None, seed=0)
    assert result["held_out"]["many_to_one_iou"]["iou"] == pytest.approx([class_0, class_1], abs=1e-15)
    assert result["draws"]["held_out"]["number"] == metrics.DRAWS
    spread = every_number(result["draws"]["held_out"]["sd"]["many_to_one_iou"])
    assert max(spread) < 1e-15  # two pictures have one split


def test_held_out_matching_of_a_perfect_clustering_is_perfect():
    """Also where a class is in few pictures, as long as both halves know it."""
    dense = np.zeros((8, 3, 4), int)
    dense[:, [0, 1], [0, 1]] = 5
    dense[::2, 2, 2] = 1
    held_out = [metrics.evaluate(Counts.from_dense(dense), background=None, seed=s)["held_out"] for s in range(20)]
    assert max(scores["one_to_one_iou"]["miou"] for scores in held_out) == 1.0


def test_one_picture_says_why_figures_are_missing():
    counts = random_counts(pictures=1)
    for result in (
        metrics.evaluate(counts, background=None, seed=0, exchanged=[counts]),
        metrics.evaluate_predictions(counts, np.arange(7) % 4, background=None, seed=0, exchanged=[counts]),
    ):
        for name in ("held_out", "null", "exchanged"):
            assert result[name] is None
            assert result[f"{name}_note"]
        assert result["draws"] == {}
        assert result["constant"]["miou"] > 0


def test_held_out_matching_costs_more_with_many_clusters():
    """Meaningless ids gain by matching on the scored labels, and lose it on held-out pictures."""
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(0, 200, (20, 400)), rng.integers(0, 4, (20, 400))
    result = metrics.evaluate(counts_of(ids, labels, 200, 4), background=None, seed=0)
    accuracy = {kind: result[kind]["many_to_one_pixels"]["pixel_accuracy"] for kind in ("scores", "held_out", "null")}
    assert accuracy["held_out"] == pytest.approx(1 / 4, abs=0.02)
    assert accuracy["scores"] > 0.3
    assert accuracy["null"] == pytest.approx(accuracy["scores"], abs=0.02)


def test_halves_and_null_depend_on_the_seed_alone():
    counts = random_counts(pictures=9, clusters=20)
    results = [metrics.evaluate(counts, background=0, seed=seed) for seed in (3, 3, 4)]
    assert results[0] == results[1]
    assert results[0]["scores"] == results[2]["scores"]
    assert results[0]["held_out"] != results[2]["held_out"]
    assert results[0]["null"] != results[2]["null"]


def test_predicted_classes_are_scored_as_they_are():
    """Against pixels: ids mean classes, -1 predicts none, and means may be taken over some classes."""
    counts = random_counts(clusters=5, classes=4)
    matched = np.array([0, 1, 2, 3, -1])
    seen = metrics.evaluate_predictions(counts, matched, background=0, seed=0, among=(1, 3))
    ids, labels = pixels_of(counts.confusion())
    per_class = reference.jaccard_score(labels, ids, labels=range(4), average=None)
    figures = seen["scores"]["as_predicted"]
    np.testing.assert_allclose(figures["iou"], per_class)
    assert figures["miou"] == figures["foreground_miou"] == pytest.approx(per_class[[1, 3]].mean())
    recall = reference.recall_score(labels, ids, labels=range(4), average=None)
    assert figures["class_accuracy"] == pytest.approx(recall[[1, 3]].mean())
    assert figures["pixel_accuracy"] == pytest.approx((ids == labels).mean())
    assert figures["match"] == matched.tolist()
    assert seen["held_out"] is None
    whole = metrics.evaluate_predictions(counts, matched, background=0, seed=0)
    assert whole["scores"]["as_predicted"]["miou"] == pytest.approx(per_class.mean())
    assert whole["scores"]["as_predicted"]["foreground_miou"] == pytest.approx(per_class[1:].mean())
    same = {"ari", "nmi", "pixels", "void", "void_pictures"}
    clustered = metrics.evaluate(counts, background=0, seed=0)
    assert {name: seen[name] for name in same} == {name: clustered[name] for name in same}
    assert set(seen) == set(clustered)


def test_labels_that_do_not_count_become_void():
    counts = random_counts(clusters=5, classes=4)
    restricted = counts.restricted(np.array([True, False, True, False, True])).dense()
    dense = counts.dense()
    np.testing.assert_array_equal(restricted[..., [0, 2]], dense[..., [0, 2]])
    assert not restricted[..., [1, 3]].any()
    np.testing.assert_array_equal(restricted[..., 4], dense[..., [1, 3, 4]].sum(-1))
