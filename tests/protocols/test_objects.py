"""K-means of objects: known answers, the released code's pipeline, and what happens when objects are few."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA

from bench import registry
from bench.contracts import Scope
from bench.errors import SettingError
from bench.metrics import evaluate
from bench.protocols import kmeans, overclustering
from bench.protocols._clustering import run
from bench.protocols._settings import ClusterSettings, settle
from bench.settings import apply
from bench.testing import MemorySplit, MemoryWork, check_protocol

CARD = kmeans.CARD
MASKS = {"foreground": "masks:true"}


def settings(preset: str = "native", clusters: int = 4, **changes: Any) -> ClusterSettings:
    values = next(p for p in CARD.presets if p.name == preset).values()
    found = apply(CARD.settings(), values | {"clusters": clusters, "engine": "faiss"} | changes, CARD.name)
    assert isinstance(found, ClusterSettings)
    return found


def split_of(pictures: int = 40, classes: int = 4, seed: int = 0, noise: float = 0.3, width: int = 6) -> MemorySplit:
    """One object in each picture, at another place each time, with embeddings around a direction of its class."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(np.random.default_rng(9).standard_normal((width, width)))[0]
    maps, labels, masks = [], [], []
    for index in range(pictures):
        top, left = rng.integers(0, 8, 2)
        mask = np.zeros((32, 32), bool)
        mask[top : top + 20, left : left + 20] = True
        label = np.where(mask, 1 + index % (classes - 1), 0).astype(np.uint8)
        cells = label[2::4, 2::4]
        maps.append(directions[cells] + noise * rng.standard_normal((8, 8, width)))
        labels.append(label)
        masks.append(mask)
    logits = [np.where(mask[2::4, 2::4], 2.0, -2.0) for mask in masks]
    return MemorySplit(maps=maps, labels=labels, masks=masks, logits=logits)


def by_cells(split: MemorySplit) -> MemorySplit:
    """The same with masks and labels that follow the cells: no vector of the ground lies inside a mask."""
    masks = [np.repeat(np.repeat(mask[2::4, 2::4], 4, 0), 4, 1) for mask in split.masks or ()]
    labels = [np.where(mask, 1 + index % 3, 0).astype(np.uint8) for index, mask in enumerate(masks)]
    return replace(split, masks=masks, labels=labels)


def miou(work: MemoryWork, how: ClusterSettings, seed: int = 0) -> float:
    outcome = run(work, how, seed)
    return float(evaluate(outcome.counts, background=work.background, seed=0)["scores"]["one_to_one_iou"]["miou"])


@pytest.mark.parametrize("card", [CARD, overclustering.CARD], ids=["kmeans", "overclustering"])
def test_the_protocols_keep_their_contract(card):
    check_protocol(card)


@pytest.mark.parametrize("clusters", [4, 9])
def test_true_masks_and_telling_embeddings_score_one(clusters):
    work = MemoryWork(split_of(), classes=4)
    outcome = run(work, settings(clusters=clusters, **MASKS), 0)
    scores = evaluate(outcome.counts, background=0, seed=0)["scores"]
    assert scores["many_to_one_iou"]["miou"] == 1.0
    assert (scores["one_to_one_iou"]["miou"] == 1.0) == (clusters == 4)
    assert outcome.counts.shape[1] == clusters
    assert outcome.facts["objects"] == 40
    np.testing.assert_allclose(np.linalg.norm(outcome.arrays["centroids"], axis=1), 1, atol=0.05)


def test_the_methods_own_foreground_is_taken_where_there_is_one():
    split = split_of()
    own = run(MemoryWork(split, classes=4), settings(), 0)
    assert "objects: mean embedding of the method's own foreground (logit above 0), L2-normalised, no PCA" in own.notes
    assert 0.8 < miou(MemoryWork(split, classes=4), settings()) < 1
    pixels = run(MemoryWork(replace(split, logits=None), classes=4), settings(), 0)
    assert pixels.assignments is not None
    for how in (settings(background="cluster"), settings(unit="pixel"), settings(foreground="none")):
        same = run(MemoryWork(split, classes=4), how, 0)
        assert np.array_equal(same.counts.dense(), pixels.counts.dense())
    assert settle(settings(), False).pca == 32
    assert settle(settings(), True).pca == 0
    assert settle(settings(pca=3), True).pca == 3


def test_a_saliency_background_and_objects_are_worth_something():
    noisy = split_of(noise=1.5)
    objects = miou(MemoryWork(noisy, classes=4), settings(**MASKS))
    pixels = miou(MemoryWork(noisy, classes=4), settings(background="cluster"))
    assert objects > pixels + 0.2


def test_the_released_preset_is_the_released_pipeline():
    """Against scikit-learn on prototypes pooled pixel by pixel: cluster + 1 on the mask, zero vectors take part."""
    split = split_of(pictures=50, classes=6, noise=0.8)
    logits = [logit + np.random.default_rng(i).standard_normal((8, 8)) for i, logit in enumerate(split.logits or ())]
    logits[3] = np.full((8, 8), 0.4)
    work = MemoryWork(replace(split, logits=logits), classes=6)
    outcome = run(work, settings("released-code", clusters=6, pca=6), 2)

    import torch

    prototypes, masks = [], []
    for block, logit in zip(split.maps, logits, strict=True):
        both = torch.from_numpy(np.concatenate([block, logit[..., None]], 2)).permute(2, 0, 1)[None]
        full = torch.nn.functional.interpolate(both, (32, 32), mode="bilinear", align_corners=False)[0].numpy()
        masks.append(full[-1] > 0.5)
        total = (full[:-1] * np.where(masks[-1], full[-1], 0)).sum((1, 2))
        prototypes.append(total / max(np.linalg.norm(total), 1e-12))
    reduced = PCA(6, whiten=True, svd_solver="full").fit_transform(np.array(prototypes))
    model = MiniBatchKMeans(5, batch_size=1000, n_init=3, random_state=1236).fit(reduced)
    wanted = [np.where(mask, 1 + own, 0) for mask, own in zip(masks, model.labels_, strict=True)]
    assert not masks[3].any()
    for index, ids in enumerate(wanted):
        for inside in np.unique(ids):
            counts = np.bincount(split.labels[index][ids == inside], minlength=7)
            assert counts.tolist() == outcome.counts.dense()[index, inside].tolist()
    assert outcome.notes[0].startswith("objects: logit-weighted embedding")


def test_k_is_cut_to_the_objects_there_are_and_said():
    split = split_of(pictures=6)
    blank = [np.zeros((32, 32), bool), *(split.masks or ())[1:]]
    work = MemoryWork(replace(split, masks=blank), classes=12)
    outcome = run(work, settings(clusters=12, **MASKS), 0)
    assert outcome.counts.shape[1] == 6
    assert outcome.arrays["objects"][0] == 0
    assert sorted(outcome.arrays["objects"][1:]) == [1, 2, 3, 4, 5]
    assert "K was cut from 12 to 6: there are 5 objects" in work.said
    assert "1 of 6 pictures have no foreground: they are all background" in outcome.notes


@pytest.mark.parametrize("preset", ["native", "released-code"])
def test_without_any_object_everything_is_background(preset):
    split = split_of(pictures=5)
    work = MemoryWork(replace(split, logits=[np.full((8, 8), -1.0)] * 5), classes=4)
    outcome = run(work, settings(preset), 0)
    assert outcome.counts.shape == (5, 1, 5)
    assert outcome.counts.pixels.sum() == 5 * 32 * 32
    assert outcome.facts["pictures_without_foreground"] == 5
    assert "everything is background" in " ".join(work.said)


def test_without_a_background_class_what_is_not_painted_is_one_cluster_more():
    split = split_of()
    shifted = [(label + 255).astype(np.uint8) for label in split.labels]  # the ground becomes void
    work = MemoryWork(replace(split, labels=shifted), classes=3, background=None)
    outcome = run(work, settings(clusters=3, **MASKS), 0)
    assert outcome.counts.shape[1] == 4
    scores = evaluate(outcome.counts, background=None, seed=0)["scores"]["one_to_one_iou"]
    assert scores["miou"] == 1.0
    assert "no background class" in " ".join(outcome.notes)


def test_objects_of_the_train_split_give_the_clusters():
    scored, train = split_of(pictures=9, seed=1), split_of(pictures=60, seed=2)
    work = MemoryWork(scored, classes=4, train=train)
    assert miou(work, settings(fit="train", **MASKS)) == 1.0
    assert settings(fit="train").reads_of_train == "pictures"


def test_more_starts_never_do_worse():
    work = MemoryWork(split_of(pictures=60, classes=12, noise=1.0, width=12), classes=12)
    one = settings(clusters=12, restarts=1, candidates=1, **MASKS)
    single = [run(work, one, seed).facts["inertia"] for seed in range(5)]
    several = [run(work, settings(clusters=12, **MASKS), seed).facts["inertia"] for seed in range(5)]
    assert all(best <= one for best, one in zip(several, single, strict=True))
    assert np.std(several) < np.std(single)


def test_pixels_of_the_foreground_leave_the_rest_to_the_background():
    """The masks are not aligned with cells, so that pixels around them lie in cells that are clustered."""
    split = split_of(pictures=12, noise=0.0)
    shifted = [np.roll(mask, (1, 2), (0, 1)) for mask in split.masks or ()]
    labels = [np.roll(label, (1, 2), (0, 1)) for label in split.labels]
    ragged = replace(split, labels=labels, masks=shifted)
    work = MemoryWork(ragged, classes=4)
    how = settings(unit="pixel", **MASKS)
    outcome = run(work, how, 0)
    dense = outcome.counts.dense().sum(0)
    assert dense[0].tolist() == [sum(int((label == 0).sum()) for label in labels), 0, 0, 0, 0]
    assert (dense[1:, 0] == 0).all()
    assert outcome.assignments is not None
    assert [ids.shape for ids in outcome.assignments] == [(8, 8)] * 12
    assert "pixels of the masks true; the rest is background" in outcome.notes
    assert miou(work, how) > miou(MemoryWork(ragged, classes=4), settings(background="cluster")) + 0.05
    assert settle(how, False).background == "saliency"
    aligned = by_cells(split_of(pictures=12, noise=0.2))
    work = MemoryWork(aligned, classes=4, train=by_cells(split_of(pictures=20, noise=0.2)))
    for changes in ({}, {"fit": "train"}, {"algorithm": "minibatch"}):
        assert miou(work, settings(unit="pixel", **MASKS, **changes)) == 1.0
    nothing = MemoryWork(replace(aligned, masks=[np.zeros((32, 32), bool)] * 12), classes=4)
    assert run(nothing, how, 0).counts.shape == (12, 1, 5)
    assert "everything is background" in " ".join(nothing.said)


CONTRADICTIONS = {
    "no foreground": ({"unit": "object"}, False, "unit=object needs a foreground.*foreground=masks:NAME"),
    "no saliency head": ({"foreground": "adapter"}, False, "foreground=adapter needs a method"),
    "objects without their background": ({"unit": "object", "background": "cluster"}, True, "drop --set unit=object"),
    "a background without a foreground": ({"background": "saliency"}, False, "background=saliency needs a foreground"),
    "released code without a foreground": ({"preset": "released-code"}, False, "released-code is for objects"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_refused_before_any_work(case):
    changes, own, says = CONTRADICTIONS[case]
    for card in (CARD, overclustering.CARD):
        values = next(p for p in card.presets if p.name == changes.get("preset", "native")).values()
        how = apply(card.settings(), values | {k: v for k, v in changes.items() if k != "preset"}, card.name)
        scope = Scope(classes=4, device="cpu", vectors=999, pictures=40, foreground=own)
        with pytest.raises(SettingError, match=says):
            registry.load(card.expand)(how, scope)


def test_k_of_objects_holds_at_least_the_background_and_one():
    scope = Scope(classes=4, device="cpu", vectors=999, pictures=40, foreground=True)
    with pytest.raises(SettingError, match="K=1 holds nothing but the background"):
        kmeans.expand(settings(clusters=1), scope)
    assert kmeans.expand(settings(clusters=99), scope)[0].settings.clusters == 99


def test_the_default_list_of_overclustering_stops_at_half_of_the_pictures():
    scope = Scope(classes=4, device="cpu", vectors=10**6, pictures=120, foreground=True)
    how = overclustering.CARD.settings()
    variants = overclustering.expand(how, scope)
    assert [variant.settings.clusters for variant in variants] == [4, 50]
    assert "more than half of the 120 pictures" in variants[0].notes[0]
    pixels = overclustering.expand(how, replace(scope, foreground=False))
    assert [variant.settings.clusters for variant in pixels] == [4, 50, 100, 200, 500]
