"""Pairs: their order, when they end, and what is said of the differences."""

from __future__ import annotations

import pytest

from vtc.eval.bench.pairs import Middle, interleaved


def test_the_order_within_a_pair_alternates():
    calls, told = [], []
    first, second = interleaved(
        lambda: calls.append("a"), lambda: calls.append("b"), 4, progress=lambda *done: told.append(done)
    )
    assert "".join(calls) == "abbaabba"
    assert len(first) == len(second) == 4
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_no_pair_begins_when_the_time_is_over_but_for_the_least():
    numbers = iter(range(100))
    first, second = interleaved(lambda: next(numbers), lambda: next(numbers), 50, seconds=-1.0, least=3)
    assert (first, second) == ([0, 3, 4], [1, 2, 5])


def test_a_median_with_its_interval_and_quartiles():
    middle = Middle.of([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (middle.median, middle.quartiles, middle.n) == (3.0, (2.0, 4.0), 5)
    assert 1.0 <= middle.low <= 3.0 <= middle.high <= 5.0
    assert middle == Middle.of([5.0, 1.0, 3.0, 2.0, 4.0])  # seeded
    assert Middle.of([2.0] * 9) == Middle(2.0, 2.0, 2.0, (2.0, 2.0), 9)
    narrow, wide = Middle.of(range(101)), Middle.of([10 * x for x in range(101)])
    assert (wide.low, wide.high) == (10 * narrow.low, 10 * narrow.high)
    assert 35 < narrow.low < 50 < narrow.high < 65  # the exact interval of a median of 101: ranks 41 to 61
    assert middle.scaled(1000.0).quartiles == (2000.0, 4000.0)


def test_no_numbers_have_no_median():
    with pytest.raises(ValueError, match="no number"):
        Middle.of([])
