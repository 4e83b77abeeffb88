"""What training again would show: means and spread of rows over training seeds, and who leads by more than that."""

from __future__ import annotations

import numpy as np
import pytest

from bench.families import Family, leader
from bench.store import Row


def row(*figures: float, constant: float = 0.1) -> Row:
    """A row with one figure for each seed of its clustering."""
    per_seed = [
        {"seed": seed, "scores": {"one_to_one_iou": {"miou": figure}}, "constant": {"miou": constant}}
        for seed, figure in enumerate(figures)
    ]
    return Row.of({"method": "x"}, per_seed, headline={"rule": "one_to_one_iou", "metric": "miou"})


def family(mean: float, std: float | None) -> Family:
    return Family(mean, std, None, 3)


def test_spread_over_trainings_is_that_of_the_means_of_rows():
    figures = np.random.default_rng(0).random((3, 5))
    found = Family.of([row(*seeds) for seeds in figures])
    assert found is not None
    assert found.trainings == 3
    assert found.mean == pytest.approx(figures.mean())
    assert found.std == pytest.approx(figures.mean(1).std(ddof=1))
    assert found.within == pytest.approx(np.sqrt(figures.var(1, ddof=1).mean()))


def test_one_training_has_no_spread_and_one_clustering_none_within():
    assert Family.of([row(0.2, 0.4)]) == Family(pytest.approx(0.3), None, pytest.approx(np.sqrt(0.02)), 1)
    alone = Family.of([row(0.2), row(0.4)])
    assert alone is not None
    assert (alone.std, alone.within) == (pytest.approx(np.sqrt(0.02)), None)


def test_other_parts_and_figures_that_are_not_there():
    rows = [row(0.2, 0.4, constant=0.07), row(0.2, 0.4, constant=0.09)]
    assert Family.of(rows, "constant") == Family(pytest.approx(0.08), pytest.approx(np.sqrt(2) * 0.01), 0.0, 2)
    assert Family.of(rows, "exchanged") is None
    assert Family.of([]) is None


@pytest.mark.parametrize(
    ("families", "first"),
    [
        ([family(0.5, 0.02), family(0.4, 0.03)], 0),
        ([family(0.4, 0.03), family(0.5, 0.02)], 1),
        ([family(0.5, 0.02), family(0.48, 0.03)], None),
        ([family(0.5, 0.02), family(0.471, 0.03)], None),
        ([family(0.5, 0.02), family(0.2, 0.01), family(0.49, 0.01)], None),
        ([family(0.5, None), family(0.2, 0.01)], None),
        ([None, family(0.5, 0.02), family(0.2, 0.01)], 1),
        ([family(0.5, 0.02)], None),
        ([], None),
    ],
)
def test_who_leads_by_more_than_the_spread(families, first):
    assert leader(families) == first
