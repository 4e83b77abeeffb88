from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from bench import cluster
from bench.cluster import Moments
from bench.errors import InternalError, SettingError

needs_faiss = pytest.mark.skipif(not cluster.faiss_available(), reason="no faiss in this environment")
ENGINES = [pytest.param(name, marks=needs_faiss) if name == "faiss" else name for name in cluster.ENGINES]


def correlated(n=900, width=12, seed=0, offset=3.0):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((width, width)) * np.geomspace(1, 0.05, width)[:, None]
    return (rng.standard_normal((n, width)) @ mixing + offset).astype(np.float32)


def moments_of(x, pieces=1):
    moments = Moments(x.shape[1])
    for block in np.array_split(x, pieces):
        moments.add(block)
    return moments


def blobs(n=4000, width=8, groups=12, seed=0, spread=0.25, offset=0.0):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, width)) * 3
    which = rng.integers(0, groups, n)
    return (centres[which] + spread * rng.standard_normal((n, width)) + offset).astype(np.float32), which


# ------------------------------------------------------------------------------------------------------------ reduction


@pytest.mark.parametrize("width", [6, 600])  # products in float64 and in float32
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_moments_are_those_of_numpy(width, offset, monkeypatch):
    monkeypatch.setattr(cluster, "_GRAM_ROWS", 256)
    x = correlated(1000, width, offset=offset)
    moments = moments_of(x, pieces=7)
    exact = x.astype(np.float64)
    assert moments.count == 1000
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-6, atol=1e-6)
    expected = np.cov(exact.T)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(moments.covariance, expected, rtol=0, atol=scale * (1e-12 if width == 6 else 1e-6))


@pytest.mark.parametrize("width", [12, 600])
def test_moments_do_not_depend_on_how_vectors_are_batched(width, monkeypatch):
    monkeypatch.setattr(cluster, "_GRAM_ROWS", 100)
    x = correlated(950, width)
    whole, pieces = moments_of(x), moments_of(x, pieces=41)
    np.testing.assert_array_equal(whole.covariance, pieces.covariance)
    np.testing.assert_array_equal(whole.mean, pieces.mean)


def test_moments_without_vectors():
    moments = Moments(3)
    assert moments.count == 0
    np.testing.assert_array_equal(moments.mean, np.zeros(3))
    np.testing.assert_array_equal(moments.covariance, np.zeros((3, 3)))


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
def test_reduction_agrees_with_scikit_learn(whiten, standardize):
    x = correlated()
    exact = x.astype(np.float64)
    prepared = StandardScaler().fit_transform(exact) if standardize else exact
    pca = PCA(5, whiten=whiten, svd_solver="full").fit(prepared)
    reduction = cluster.fit_reduction(moments_of(x, 9), 5, whiten, "standardize" if standardize else "none")
    expected, found = pca.transform(prepared), reduction.apply(x)
    signs = np.sign((expected * found).sum(0))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found * signs, expected, rtol=1e-4, atol=2e-5)
    assert reduction.rank == 5
    assert reduction.explained == pytest.approx(pca.explained_variance_ratio_.sum(), rel=1e-9)
    if whiten:
        np.testing.assert_allclose(np.cov(found.T.astype(np.float64)), np.eye(5), atol=1e-5)


def test_wide_vectors_are_reduced_as_exactly():
    x = correlated(1000, 600)
    pca = PCA(8, svd_solver="full").fit(x.astype(np.float64))
    found, expected = cluster.fit_reduction(moments_of(x), 8, False, "none").apply(x), pca.transform(x)
    signs = np.sign((expected * found).sum(0))
    np.testing.assert_allclose(found * signs, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_l2_vectors_have_unit_length_and_zero_stays_zero():
    x = correlated(50)
    x[3] = 0
    unit = cluster.normalize_l2(x)
    lengths = np.linalg.norm(unit, axis=1)
    np.testing.assert_allclose(np.delete(lengths, 3), 1, rtol=1e-6)
    assert lengths[3] == 0
    reduction = cluster.fit_reduction(moments_of(unit), 4, False, "l2")
    np.testing.assert_allclose(reduction.apply(x), reduction.apply(unit), atol=1e-6)
    np.testing.assert_allclose(reduction.apply(7 * x), reduction.apply(x), atol=1e-6)


@pytest.mark.parametrize(("width", "rank"), [(10, 3), (600, 4)])
@pytest.mark.parametrize("whiten", [False, True])
def test_rank_is_kept_where_more_is_asked(width, rank, whiten):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((2000, rank)) @ rng.standard_normal((rank, width)) + 5).astype(np.float32)
    reduction = cluster.fit_reduction(moments_of(x), 8, whiten, "none")
    assert reduction.rank == rank
    assert reduction.apply(x).shape == (2000, rank)
    assert reduction.explained == pytest.approx(1.0, abs=1e-6)


def test_rare_directions_count_as_rank():
    """One-hot labels have rank C - 1, however rare a class is."""
    labels = np.repeat(np.arange(4), [50_000, 30_000, 20_000, 2])
    x = np.eye(4, dtype=np.float32)[labels]
    assert cluster.fit_reduction(moments_of(x), 4, True, "none").rank == 3


def test_fewer_vectors_than_dimensions():
    x = correlated(4, 12)
    reduction = cluster.fit_reduction(moments_of(x), 12, False, "none")
    assert reduction.rank == 3
    distances = np.linalg.norm(x[:, None] - x[None], axis=2)
    reduced = reduction.apply(x)
    np.testing.assert_allclose(np.linalg.norm(reduced[:, None] - reduced[None], axis=2), distances, atol=1e-4)


@pytest.mark.parametrize("normalize", ["none", "standardize"])
@pytest.mark.parametrize("n", [1, 30])
def test_equal_vectors_have_rank_zero(n, normalize):
    x = np.full((n, 5), 2.5, np.float32)
    reduction = cluster.fit_reduction(moments_of(x), 3, True, normalize)
    assert reduction.rank == 0
    np.testing.assert_array_equal(reduction.apply(x), np.zeros((n, 1), np.float32))


def test_no_dimensions_means_no_rotation():
    x = correlated()
    np.testing.assert_allclose(
        cluster.fit_reduction(moments_of(x), 0, False, "none").apply(x), x - x.mean(0), atol=1e-4
    )
    x[:, 2] = 4  # constant
    standard = cluster.fit_reduction(moments_of(x), 0, False, "standardize").apply(x)
    expected = StandardScaler().fit_transform(x.astype(np.float64))
    np.testing.assert_allclose(standard, expected, atol=1e-4)
    assert cluster.fit_reduction(moments_of(correlated()), 0, True, "none").rank == 12


def test_directions_have_one_sign():
    x = correlated()
    one, other = (cluster.fit_reduction(moments_of(part), 3, False, "none").components for part in (x, x[::-1].copy()))
    assert one is not None
    assert other is not None
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert (one[np.abs(one).argmax(0), range(3)] > 0).all()


def test_a_negative_number_of_dimensions_is_refused():
    with pytest.raises(SettingError, match="cannot keep -1 dimensions"):
        cluster.fit_reduction(moments_of(correlated()), -1, False, "none")


# --------------------------------------------------------------------------------------------------------------- starts


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_fewer_centres_are_the_first_of_more(candidates, weighted):
    x, _ = blobs()
    how = {"candidates": candidates, "weights": np.random.default_rng(0).integers(1, 9, len(x)) * 1.0}
    if not weighted:
        del how["weights"]
    many = cluster.kmeans_plus_plus(x, 40, [3, 4, 5], **how)
    assert many.shape == (3, 40, 8)
    np.testing.assert_array_equal(cluster.kmeans_plus_plus(x, 7, [3, 4, 5], **how), many[:, :7])
    assert not np.array_equal(many[0], many[1])


def test_every_start_is_that_of_its_seed_however_many_are_made_together(monkeypatch):
    x, _ = blobs(spread=1.0)
    together = cluster.kmeans_plus_plus(x, 9, range(6), candidates=3)
    alone = np.stack([cluster.kmeans_plus_plus(x, 9, [seed], candidates=3)[0] for seed in range(6)])
    monkeypatch.setattr(cluster, "_DISTANCES", 1)
    assert np.mean(cluster.kmeans_plus_plus(x, 9, range(6), candidates=3) == alone) == 1
    # products of other shapes differ in the last bit, by which a draw may rarely fall on the next vector
    assert np.mean((together == alone).all((1, 2))) >= 5 / 6


def test_the_best_of_several_draws_starts_nearer_to_the_end():
    x, _ = blobs(groups=12)

    def potential(starts):
        return np.square(x[:, None].astype(np.float64) - starts[None]).sum(2).min(1).sum()

    plain, greedy = (cluster.kmeans_plus_plus(x, 12, range(15), candidates=number) for number in (1, 3))
    theirs = [kmeans_plusplus(x, 12, random_state=seed, n_local_trials=3)[0] for seed in range(15)]
    ours = np.mean([potential(starts) for starts in greedy])
    assert ours < 0.8 * np.mean([potential(starts) for starts in plain])
    assert ours == pytest.approx(np.mean([potential(starts) for starts in theirs]), rel=0.5)


def test_starts_are_vectors_and_distinct():
    x, _ = blobs(n=300)
    starts = cluster.kmeans_plus_plus(x, 300, [0])[0]
    np.testing.assert_array_equal(np.unique(starts, axis=0), np.unique(x, axis=0))


@pytest.mark.parametrize("offset", [0.0, 500.0])
def test_starts_are_drawn_by_squared_distance(offset):
    """Three places at distances 1 and 3 from the first: the second centre is drawn in proportion 1 : 9."""
    places = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]], np.float32) + np.float32(offset)
    x = np.repeat(places, [2_000, 10, 10], axis=0)
    second = [cluster.kmeans_plus_plus(x, 2, [seed])[0] for seed in range(400)]
    second = [pair[1] for pair in second if (pair[0] == places[0]).all()]
    far = np.mean([(centre == places[2]).all() for centre in second])
    assert not any((centre == places[0]).all() for centre in second)
    assert len(second) > 300
    assert far == pytest.approx(0.9, abs=0.05)


def test_starts_cover_separate_groups_as_well_as_scikit_learn():
    x, _ = blobs(groups=12)

    def potential(starts):
        return np.square(x[:, None].astype(np.float64) - starts[None]).sum(2).min(1).sum()

    ours = np.median([potential(cluster.kmeans_plus_plus(x, 12, [seed])[0]) for seed in range(15)])
    plain = [kmeans_plusplus(x, 12, random_state=seed, n_local_trials=1)[0] for seed in range(15)]
    at_random = [x[np.random.default_rng(seed).choice(len(x), 12, replace=False)] for seed in range(15)]
    assert ours < 2 * np.median([potential(starts) for starts in plain])
    assert ours < np.median([potential(starts) for starts in at_random])


def test_starts_repeat_where_vectors_do():
    distinct = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32) * 10
    x = np.repeat(distinct, [1, 4000, 4000, 3, 1], axis=0)
    starts = cluster.kmeans_plus_plus(x, 9, [1])[0]
    assert len(np.unique(starts[:5], axis=0)) == 5
    assert starts.shape == (9, 6)


@pytest.mark.parametrize(("n", "k"), [(0, 2), (5, 0)])
def test_starts_need_vectors_and_clusters(n, k):
    with pytest.raises(SettingError, match=f"cannot start {k} clusters on {n} vectors"):
        cluster.kmeans_plus_plus(np.zeros((n, 3), np.float32), k, [0])


# -------------------------------------------------------------------------------------------------------------- engines


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_lloyd_agrees_with_scikit_learn_from_the_same_start(engine, offset):
    x, _ = blobs(groups=12, spread=1.0, offset=offset)
    start = cluster.kmeans_plus_plus(x, 9, [0])[0]
    expected = KMeans(9, init=start.astype(np.float64), n_init=1, tol=0, max_iter=200).fit(x.astype(np.float64))
    result = cluster.lloyd(x, start, engine=engine, iterations=200, tolerance=0)
    assert result.converged
    assert result.engine == engine
    assert result.inertia == pytest.approx(expected.inertia_, rel=1e-4)
    assert np.mean(result.labels == expected.labels_) >= 0.999
    np.testing.assert_allclose(result.centroids, expected.cluster_centers_, atol=0.05)


@pytest.mark.parametrize("clusters", [5, 60])
@pytest.mark.parametrize("iterations", [1, 8, 100])
def test_engines_agree_from_the_same_start(clusters, iterations):
    x, _ = blobs(n=20_000, width=16, groups=40, spread=1.0)
    start = cluster.kmeans_plus_plus(x, clusters, [1])[0]
    names = [name for name in cluster.ENGINES if name != "faiss" or cluster.faiss_available()]
    first, *others = [cluster.lloyd(x, start, engine=name, iterations=iterations) for name in names]
    for other in others:
        assert np.mean(other.labels == first.labels) >= 0.999
        assert other.inertia == pytest.approx(first.inertia, rel=1e-4)
        assert other.iterations == pytest.approx(first.iterations, abs=2)


@pytest.mark.parametrize("engine", ENGINES)
def test_result_is_consistent(engine, monkeypatch):
    monkeypatch.setattr(cluster, "_BLOCK", 8 * 1024)  # several blocks
    monkeypatch.setattr(cluster, "_SUM_ROWS", 500)
    x, _ = blobs(n=5000, spread=1.0)
    for iterations in (2, 100):
        result = cluster.kmeans(x, 15, 0, engine=engine, iterations=iterations, tolerance=0)
        distances = np.square(x[:, None].astype(np.float64) - result.centroids[None]).sum(2)
        assert np.mean(result.labels == distances.argmin(1)) >= 0.999
        assert result.inertia == pytest.approx(distances.min(1).sum(), rel=1e-5)
        assert np.mean(cluster.assign(x, result.centroids, engine) == result.labels) >= 0.999
        assert [str(result.labels.dtype), str(result.centroids.dtype)] == ["int32", "float32"]
        assert result.iterations <= iterations
    assert result.converged
    means = [x[result.labels == k].mean(0, dtype=np.float64) for k in range(15)]
    np.testing.assert_allclose(result.centroids, means, atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_clusters_beyond_the_distinct_vectors_are_empty(engine):
    distinct = (np.random.default_rng(0).standard_normal((6, 4)) * 5).astype(np.float32)
    x = np.repeat(distinct, [500, 3, 40, 1, 200, 9], axis=0)
    result = cluster.kmeans(x, 10, 2, engine=engine)
    assert result.empty == 4
    assert result.converged
    assert result.inertia == pytest.approx(0, abs=1e-6)
    groups = [np.unique(result.labels[(x == vector).all(1)]) for vector in distinct]
    assert [len(group) for group in groups] == [1] * 6
    assert len(np.unique(groups)) == 6


@pytest.mark.parametrize("engine", ENGINES)
def test_an_emptied_cluster_keeps_its_centroid_and_may_win_again(engine):
    x = np.array([[0], [1], [10], [11]], np.float32)
    start = np.array([[0.5], [10.5], [500.0]], np.float32)
    result = cluster.lloyd(x, start, engine=engine)
    assert result.empty == 1
    assert result.centroids[:, 0].tolist() == [0.5, 10.5, 500.0]
    # cluster 1 is empty at first (all go to 0 and 2), and wins 4 when centroid 0 has moved to the left
    x = np.array([[0], [0], [0], [4], [20]], np.float32)
    start = np.array([[4.1], [6.0], [20.0]], np.float32)
    first = cluster.lloyd(x, start, engine=engine, iterations=1)
    assert first.centroids[:, 0].tolist() == [1.0, 6.0, 20.0]
    assert first.labels.tolist() == [0, 0, 0, 1, 2]
    result = cluster.lloyd(x, start, engine=engine)
    assert result.empty == 0
    assert result.centroids[:, 0].tolist() == [0.0, 4.0, 20.0]


@pytest.mark.parametrize("engine", ENGINES)
def test_as_many_clusters_as_vectors(engine):
    x, _ = blobs(n=60)
    result = cluster.kmeans(x, 60, 0, engine=engine)
    assert sorted(result.labels.tolist()) == list(range(60))
    assert result.empty == 0
    assert result.inertia == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_clear_groups_are_found(engine):
    x, which = blobs(groups=5, spread=0.05)
    results = [cluster.kmeans(x, 5, seed, engine=engine) for seed in range(8)]
    best = min(results, key=lambda result: result.inertia)
    assert len(set(zip(best.labels.tolist(), which.tolist(), strict=True))) == 5


def test_tolerance_stops_early():
    x, _ = blobs(spread=2.0)
    start = cluster.kmeans_plus_plus(x, 10, [0])[0]
    exact = cluster.lloyd(x, start, engine="torch", iterations=500, tolerance=0)
    early = cluster.lloyd(x, start, engine="torch", iterations=500, tolerance=1e-3)
    assert early.converged
    assert exact.converged
    assert early.iterations < exact.iterations
    assert early.inertia == pytest.approx(exact.inertia, rel=0.01)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_seed_gives_the_same_bits(engine):
    x, _ = blobs(spread=1.0)
    one, same, other = (cluster.kmeans(x, 9, seed, engine=engine) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.labels, same.labels)
    np.testing.assert_array_equal(one.centroids, same.centroids)
    assert one.inertia == same.inertia
    assert not np.array_equal(one.centroids, other.centroids)


@pytest.mark.parametrize("most", [2, 100])
@pytest.mark.parametrize(
    "effort",
    [
        cluster.Effort(),
        cluster.Effort(starts=4, candidates=2, passes=3, finished=2),
        cluster.Effort(starts=3, finished=3, passes=9),
        cluster.Effort(starts=5, sample=200, passes=2),
    ],
)
def test_progress_is_told(effort, most):
    x, _ = blobs(n=500)
    ticks: list[int] = []
    cluster.kmeans(x, 6, 0, engine="torch", effort=effort, iterations=most, tick=ticks.append)
    assert sum(ticks) == effort.steps(6, most)
    assert cluster.Effort(starts=4, passes=3, finished=2).steps(6, 50) == 4 * 6 + 4 * 3 + 2 * 50
    assert cluster.Effort(starts=4, passes=3, finished=4).steps(6, 50) == 4 * 6 + 4 * 50


# --------------------------------------------------------------------------------------------------------------- effort

PRESET = cluster.Effort(starts=20, candidates=3, sample=2048, passes=10, finished=3)


def inertias(x, k, effort, seeds=5, **how):
    return np.array([cluster.kmeans(x, k, s, engine="torch", effort=effort, **how).inertia for s in range(seeds)])


@pytest.mark.parametrize(("groups", "width", "spread", "k"), [(15, 16, 1.5, 8), (40, 8, 1.0, 20)])
def test_short_starts_among_a_sample_are_as_good_as_ten_full_ones(groups, width, spread, k):
    """Groups that overlap, twice as many as there are clusters."""
    x, _ = blobs(n=8000, width=width, groups=groups, spread=spread)
    ten = inertias(x, k, cluster.Effort(starts=10, finished=10)).mean()
    assert inertias(x, k, cluster.Effort()).mean() > 1.02 * ten
    assert inertias(x, k, PRESET).mean() < 1.001 * ten


@pytest.mark.parametrize("k", [8, 19, 49])
def test_the_same_effort_does_as_well_on_few_vectors(k):
    """As on objects: 150 of them, of unit length."""
    x = cluster.normalize_l2(blobs(n=150, width=64, groups=9, spread=3.0)[0])
    ten = inertias(x, k, cluster.Effort(starts=10, finished=10)).mean()
    assert inertias(x, k, PRESET).mean() < 1.001 * ten < inertias(x, k, cluster.Effort()).mean()


def test_finishing_every_start_is_the_best_of_full_runs():
    x, _ = blobs(n=600, spread=1.5)
    effort = cluster.Effort(starts=4, finished=4, passes=1)
    found = cluster.kmeans(x, 9, 5, engine="torch", effort=effort)
    seeds = [5, *(np.random.SeedSequence(5, spawn_key=(number,)) for number in (1, 2, 3))]
    runs = [cluster.lloyd(x, start, engine="torch") for start in cluster.kmeans_plus_plus(x, 9, seeds)]
    best = min(runs, key=lambda run: run.inertia)
    np.testing.assert_array_equal(found.labels, best.labels)
    assert found.inertia == best.inertia
    assert found.inertia <= cluster.kmeans(x, 9, 5, engine="torch").inertia


@pytest.mark.parametrize("engine", ENGINES)
def test_an_effort_is_a_function_of_vectors_clusters_and_seed(engine):
    x, _ = blobs(n=5000, spread=1.5)
    one, same, other = (cluster.kmeans(x, 9, seed, engine=engine, effort=PRESET) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.labels, same.labels)
    np.testing.assert_array_equal(one.centroids, same.centroids)
    assert one.inertia == same.inertia
    assert not np.array_equal(one.centroids, other.centroids)
    assert one.labels.shape == (5000,)


def test_a_sample_lies_evenly_and_weights_are_repetitions():
    """One vector in each of as many equal parts, the same of weighted vectors and of their repetitions."""
    x = np.arange(9000, dtype=np.float32)[:, None]
    rows, weights = cluster._sample(x, 5, 3, 100, None)
    assert weights is None
    np.testing.assert_array_equal(rows[:, 0] // 90, np.arange(100))
    assert len(np.unique(rows % 90)) > 40
    times = np.random.default_rng(0).integers(1, 9, 9000)
    drawn, _ = cluster._sample(x, 5, 3, 100, times.astype(np.float64))
    repeated, _ = cluster._sample(np.repeat(x, times, axis=0), 5, 3, 100, None)
    np.testing.assert_array_equal(drawn, repeated)
    whole = np.ones(9000)
    for k, most in ((5, 9000), (5, 0), (7, 100)):  # none left out, none wanted, less than 16 for each cluster
        assert cluster._sample(x, k, 3, most, whole) == (x, whole)


def test_efforts_of_weighted_vectors_are_those_of_repeated_ones():
    rng = np.random.default_rng(0)
    distinct = rng.standard_normal((40, 3)).astype(np.float32)
    times = rng.integers(1, 30, 40)
    repeated = np.repeat(distinct, times, axis=0)
    effort = cluster.Effort(starts=20, candidates=3, passes=10, finished=3)
    weighted = inertias(distinct, 5, effort, weights=times.astype(np.float64))
    assert weighted.min() == pytest.approx(inertias(repeated, 5, effort).min(), rel=1e-5)
    assert weighted.mean() < 1.001 * inertias(repeated, 5, cluster.Effort(starts=10, finished=10)).mean()


def test_mini_batches_are_those_of_scikit_learn():
    from sklearn.cluster import MiniBatchKMeans

    x, _ = blobs()
    expected = MiniBatchKMeans(12, batch_size=1000, n_init=3, random_state=1234).fit(x)
    result = cluster.minibatch_kmeans(x, 12, 1234)
    np.testing.assert_array_equal(result.labels, expected.labels_)
    np.testing.assert_array_equal(result.centroids, expected.cluster_centers_)
    assert result.engine == "minibatch"
    with pytest.raises(SettingError, match="cannot make 12 clusters of 5 vectors"):
        cluster.minibatch_kmeans(x[:5], 12, 0)


def test_engine_names():
    x, _ = blobs(n=50)
    with pytest.raises(SettingError, match="unknown engine 'fais': choose one of faiss, sklearn, torch"):
        cluster.kmeans(x, 3, 0, engine="fais")
    with pytest.raises(InternalError, match="expected float32"):
        cluster.lloyd(x.astype(np.float64), x[:3], engine="torch")


def test_without_faiss_the_extras_are_named(monkeypatch):
    monkeypatch.setattr(cluster, "faiss_available", lambda: False)
    x, _ = blobs(n=50)
    with pytest.raises(SettingError, match=r"pip install 'densebench\[cpu\]' or 'densebench\[gpu\]'"):
        cluster.kmeans(x, 3, 0, engine="faiss")
    assert cluster.default_engine() == "torch"
    assert cluster.kmeans(x, 3, 0, engine=cluster.default_engine()).converged


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["faiss", "torch"])
def test_the_gpu_agrees_with_the_cpu(engine):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    if engine == "faiss" and not cluster.faiss_available():
        pytest.skip("no faiss in this environment")
    x, _ = blobs(n=20_000, width=16, groups=40, spread=1.0)
    start = cluster.kmeans_plus_plus(x, 20, [1])[0]
    cpu = cluster.lloyd(x, start, engine="torch")
    gpu = cluster.lloyd(x, start, engine=engine, device="cuda")
    assert np.mean(cpu.labels == gpu.labels) >= 0.999
    assert gpu.inertia == pytest.approx(cpu.inertia, rel=1e-4)


def test_weights_are_repetitions():
    """Distinct vectors with weights cluster as the repeated vectors do, from the same start."""
    rng = np.random.default_rng(0)
    distinct = rng.standard_normal((40, 3)).astype(np.float32)
    times = rng.integers(1, 30, 40)
    repeated = np.repeat(distinct, times, axis=0)
    start = distinct[:5]
    one = cluster.lloyd(distinct, start, engine="torch", weights=times.astype(np.float64), tolerance=0)
    other = cluster.lloyd(repeated, start, engine="torch", tolerance=0)
    assert np.array_equal(np.repeat(one.labels, times), other.labels)
    assert one.inertia == pytest.approx(other.inertia, rel=1e-6)
    np.testing.assert_allclose(one.centroids, other.centroids, rtol=1e-5, atol=1e-6)


def test_weighted_starts_are_drawn_by_weight():
    """First starts: one vector in four, with three quarters of the weight, is drawn three times in four."""
    x = np.eye(4, dtype=np.float32)
    weights = np.array([9.0, 1.0, 1.0, 1.0])
    first = [int(cluster.kmeans_plus_plus(x, 1, [seed], weights=weights)[0, 0].argmax()) for seed in range(400)]
    assert 0.68 < np.mean(np.array(first) == 0) < 0.82


# ---------------------------------------------------------------------------------------------------------------- range

FACTORS = [2.0**66, 2.0**-83]  # about 1e20 and 1e-25


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("engine", ENGINES)
def test_huge_and_tiny_vectors_cluster_as_ordinary_ones(engine, factor):
    x, _ = blobs(spread=1.5, offset=2.0)
    weights = np.random.default_rng(0).integers(1, 4, len(x)).astype(np.float64)
    scaled = x * np.float32(factor)
    for given in (None, weights):
        plain = cluster.kmeans(x, 12, 0, engine=engine, weights=given)
        found = cluster.kmeans(scaled, 12, 0, engine=engine, weights=given)
        assert np.array_equal(found.labels, plain.labels)
        assert np.array_equal(found.centroids, plain.centroids * np.float32(factor))
        assert found.inertia == plain.inertia * factor**2
        assert found.iterations == plain.iterations > 2
    assert np.array_equal(cluster.assign(scaled, found.centroids, engine), cluster.assign(x, plain.centroids, engine))


@pytest.mark.parametrize("factor", FACTORS)
def test_huge_and_tiny_vectors_in_mini_batches(factor):
    x, _ = blobs()
    plain, found = (cluster.minibatch_kmeans(vectors, 5, 0) for vectors in (x, x * np.float32(factor)))
    assert len(np.unique(found.labels)) == 5
    assert np.isfinite(found.centroids).all()
    assert found.inertia == pytest.approx(plain.inertia * factor**2, rel=0.05)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("width", [12, 600])  # products in float64 and in float32
@pytest.mark.parametrize("normalize", ["none", "l2", "standardize"])
@pytest.mark.parametrize("whiten", [True, False])
def test_huge_and_tiny_vectors_are_reduced_as_ordinary_ones(factor, width, normalize, whiten):
    x = correlated(900, width)
    found = []
    for vectors in (x, x * np.float32(factor)):
        given = cluster.normalize_l2(vectors) if normalize == "l2" else vectors
        reduction = cluster.fit_reduction(moments_of(given), 6, whiten, normalize)
        found.append(reduction.apply(vectors))
    plain, scaled = found
    unit = np.abs(scaled).max() / np.abs(plain).max()
    np.testing.assert_allclose(scaled / unit, plain, atol=1e-3 * np.abs(plain).max())


def test_ordinary_vectors_are_not_scaled():
    x = correlated()
    assert [cluster.exponent(x * np.float32(2.0**by)) for by in (0, 30, -30)] == [0, 0, 0]
    assert cluster.exponent(np.zeros((3, 2), np.float32)) == 0
    assert cluster.exponent(np.zeros((0, 2), np.float32)) == 0
    assert cluster.exponent(np.float32([[1.0, -(2.0**60)]])) == 61


@pytest.mark.parametrize("factor", [1e20, 1e-25, 1e-40])
def test_unit_length_of_huge_and_tiny_vectors(factor):
    x = (correlated() * factor).astype(np.float32)
    length = np.linalg.norm(cluster.normalize_l2(x).astype(np.float64), axis=1)
    np.testing.assert_allclose(length, 1, atol=1e-6)
