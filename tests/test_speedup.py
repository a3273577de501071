"""Speed-ups: cold first runs, drifting machines and noise make none."""

from __future__ import annotations

import itertools
import random

import pytest

from vtc import speedup
from vtc.speedup import SpeedUp, in_turns, speed_up


def clock(*plan):
    """A work that takes what the plan says, call by call; the last entry for ever."""
    seconds = itertools.chain(plan, itertools.repeat(plan[-1]))
    return lambda: next(seconds)


def test_a_cold_first_run_is_no_speed_up():
    cold, warm = in_turns([clock(9.0, 1.0), clock(1.0)])
    assert cold == warm == [1.0] * 6
    assert str(speed_up(cold, warm)) == "no clear difference"


def test_a_machine_that_slows_down_slows_both():
    elapsed = itertools.count()

    def work(factor):
        return lambda: factor * (1 + next(elapsed))

    base, same = in_turns([work(1.0), work(1.0)])
    assert base[-1] > 4 * base[0]
    assert not speed_up(base, same).clear  # type: ignore[union-attr]
    elapsed = itertools.count(20)
    found = speed_up(*in_turns([work(2.0), work(1.0)]))
    assert found is not None
    assert found.clear
    assert found.ratio == pytest.approx(2, rel=0.1)


def test_rounds_alternate_and_all_run_in_each():
    calls = []

    def work(name):
        return lambda: calls.append(name) or 1.0

    assert in_turns([work("a"), work("b"), work("c")], rounds=3) == [[1.0] * 3] * 3
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"


def test_time_and_whoever_leaves_end_it():
    assert len(in_turns([clock(1.0)], seconds=-1)[0]) == 5
    assert len(in_turns([clock(1.0)], least=1, seconds=-1)[0]) == 1
    left = iter([True, True, True, False])
    assert in_turns([clock(1.0), clock(2.0)], go_on=lambda: next(left)) == [[1.0] * 2, [2.0] * 2]


def test_the_spread_by_counting():
    """Of five ratios all; of nine the second from either end: 2 (1 + 9) / 2^9 = 3.9 %."""
    own = [1.0] * 5
    assert speed_up([1.5, 2.0, 2.5, 3.0, 1.2], own) == SpeedUp(2.0, 1.2, 3.0)
    assert speed_up([1.0, 2, 3, 4, 5, 6, 7, 8, 9], [1.0] * 9) == SpeedUp(5.0, 2.0, 8.0)
    assert speed_up([2.0] * 4, [1.0] * 4) is None  # too few to be sure


def test_the_spread_holds_the_truth():
    rng, hits = random.Random(0), 0
    for _ in range(400):
        base, own = ([t * rng.lognormvariate(0, 0.2) for _ in range(7)] for t in (1.5, 1.0))
        found = speed_up(base, own)
        assert found is not None
        hits += found.low <= 1.5 <= found.high
    assert hits >= 0.95 * 400  # of seven rounds, 98 %


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (SpeedUp(1.84, 1.71, 2.02), "1.8× faster (1.7–2.0)"),
        (SpeedUp(0.5, 0.4, 0.8), "2.0× slower (1.2–2.5)"),
        (SpeedUp(7.5, 0.9, 8.0), "no clear difference"),
        (SpeedUp(1.1, 1.0, 1.2), "no clear difference"),
    ],
)
def test_what_is_said(found, said):
    assert str(found) == said


def test_one_place():
    """The demo, `vtc ask` and `vtc eval` take their ratios from here."""
    from vtc.cli import ask
    from vtc.demos import studio
    from vtc.eval import timing

    for module in (ask, studio, timing):
        assert module.speed_up is speedup.speed_up
