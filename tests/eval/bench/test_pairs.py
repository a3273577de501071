"""Pairs: their order, when they end, and what is said of the differences."""

from __future__ import annotations

import pytest

from vtc.eval.bench.pairs import Middle, pair, turns


def test_the_order_within_a_pair_alternates():
    calls, found = [], ([], [])
    for number in range(4):
        pair(lambda: calls.append("a") or number, lambda: calls.append("b") or -number, found)  # noqa: B023
    assert "".join(calls) == "abbaabba"
    assert found == ([0, 1, 2, 3], [0, -1, -2, -3])


def test_no_turn_begins_when_the_time_is_over_but_for_the_least():
    told = []
    assert list(turns(4, progress=lambda *done: told.append(done))) == [0, 1, 2, 3]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert list(turns(50, seconds=-1.0, least=3)) == [0, 1, 2]
    assert list(turns(2, seconds=-1.0, least=3)) == [0, 1]


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
