"""Reading ahead: order, errors, and how far."""

from __future__ import annotations

import pytest

from bench.prefetch import prefetch


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_prefetch_keeps_the_order_and_passes_errors_on(workers):
    batches = [[index] for index in range(20)]
    assert [loaded for _, loaded in prefetch(batches, lambda batch: batch[0] ** 2, workers)] == [
        n**2 for n in range(20)
    ]

    def load(batch):
        return 1 // (3 - batch[0])

    stream = prefetch(batches, load, workers)
    assert [next(stream)[0] for _ in range(3)] == [[0], [1], [2]]
    with pytest.raises(ZeroDivisionError):
        next(stream)


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_is_taken_than_can_wait(workers):
    taken = []
    stream = prefetch((taken.append(number) or number for number in range(20)), lambda number: number, workers)
    for index in range(5):
        assert next(stream) == (index, index)
        assert len(taken) <= index + 1 + workers
    stream.close()
