"""Intervals and tests against values worked out by hand or by brute force."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest

from vtc.eval.statistics import FEWEST, holm, mcnemar, paired, sign_flip, student
from vtc.eval.statistics import average as any_average
from vtc.eval.statistics import difference as any_difference
from vtc.eval.statistics import ratio as any_ratio


class Known(NamedTuple):
    """A score that has an interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def known(score) -> Known:
    assert score is not None
    assert score.low is not None
    return Known(score.mean, score.low, score.high, score.n)


def average(scores, groups) -> Known:
    return known(any_average(scores, groups))


def difference(scores, base, groups) -> Known:
    return known(any_difference(scores, base, groups))


def ratio(scores, base, groups) -> Known:
    return known(any_ratio(scores, base, groups))


def test_students_quantiles_by_the_textbook():
    for freedom, expected in ((5, 2.5706), (9, 2.2622), (12, 2.1788), (30, 2.0423), (120, 1.9799), (10**6, 1.9600)):
        assert student(freedom) == pytest.approx(expected, abs=4e-4)


def test_an_average_by_wilsons_formula():
    found, t = average([1.0] * 8 + [0.0] * 2, range(10)), 2.2622
    assert (found.mean, found.n) == (0.8, 10)
    for end in (found.low, found.high):  # where the score statistic is the quantile
        assert (0.8 - end) ** 2 == pytest.approx(t * t * end * (1 - end) / 10, rel=1e-3)
    assert average([1.0] * 20, range(20)).high == 1.0
    assert average([0.0] * 20, range(20)).low == 0.0
    assert 0.7 < average([1.0] * 20, range(20)).low < 0.9


def test_scores_that_pass_1():
    """CIDEr's go to 10: the interval scales with them."""
    tens, ones = average([10.0, 5.0] * 10, range(20)), average([1.0, 0.5] * 10, range(20))
    assert (tens.mean, tens.low, tens.high) == pytest.approx((10 * ones.mean, 10 * ones.low, 10 * ones.high))
    tens, ones = (difference([x, 0.0] * 10, [0.0, x / 2] * 10, range(20)) for x in (10.0, 1.0))
    assert (tens.low, tens.high) == pytest.approx((10 * ones.low, 10 * ones.high))


@pytest.mark.parametrize("how", ["average", "difference", "ratio"])
def test_questions_on_one_picture_count_as_one_draw(how):
    """Where they fare alike the interval is nearly as wide as that of the pictures alone."""

    def measure(repeat: int, alone: bool):
        scores, base = ([float(i % k > 0) for i in range(40) for _ in range(repeat)] for k in (3, 5))
        groups = range(40 * repeat) if alone else [i for i in range(40) for _ in range(repeat)]
        return {"average": average, "difference": difference, "ratio": ratio}[how](
            *([scores] if how == "average" else [scores, base]), groups
        )

    five, one, naive = measure(5, False), measure(1, True), measure(5, True)
    assert five.mean == pytest.approx(one.mean)
    assert five.half_width == pytest.approx(one.half_width, rel=0.1)
    assert five.half_width > 1.8 * naive.half_width
    assert five == measure(5, False)


def test_a_difference_by_a_search():
    """The ends are where the score statistic is the quantile, its variance found by trying every split (Tango 1998)."""
    gained, lost, n, t = 2, 7, 40, 2.0227
    scores = [1.0] * gained + [0.0] * lost + [1.0] * 20 + [0.0] * 11
    found = difference(scores, [0.0] * gained + [1.0] * lost + scores[gained + lost :], range(n))
    for end in (found.low, found.high):
        best, variance = -np.inf, 0.0
        for step in range(1, 20_000):  # the share lost; gained is `end` more
            y = step / 20_000
            x = y + end
            if x > 0 and x + y < 1:
                likely = gained * np.log(x) + lost * np.log(y) + (n - gained - lost) * np.log(1 - x - y)
                if likely > best:
                    best, variance = likely, x + y - end**2
        assert ((gained - lost) / n - end) ** 2 == pytest.approx(t * t * variance / n, rel=2e-3)


def test_a_ratio_by_a_search():
    """As above, with the ratio of the shares right as what is tried (Nam and Blackwelder 2002)."""
    gained, lost, both, n, t = 2, 7, 20, 40, 2.0227
    scores = [1.0] * gained + [0.0] * lost + [1.0] * both + [0.0] * (n - gained - lost - both)
    found = ratio(scores, [0.0] * gained + [1.0] * lost + scores[gained + lost :], range(n))
    assert found.mean == pytest.approx(22 / 27)
    some = (gained + lost + both) / n
    for end in (found.low, found.high):
        best, variance = -np.inf, 0.0
        for step in range(1, 20_000):  # the share lost; gained + both = end * (lost + both)
            y = some * step / 20_000
            b = (some - y) / end - y
            x = some - y - b
            if x > 0 and b > 0:
                likely = gained * np.log(x) + lost * np.log(y) + both * np.log(b)
                if likely > best:
                    best, variance = likely, end * (x + y)
        assert ((gained + both) / n - end * (lost + both) / n) ** 2 == pytest.approx(t * t * variance / n, rel=2e-3)


@pytest.mark.parametrize("scores", [[1.0] * 9 + [0.0] * 4, [1.0] * 13, [0.0] * 13, [0.5] * 13])
def test_ties_are_symmetric_and_not_certain(scores):
    found = difference(scores, scores, range(13))
    assert found.mean == 0
    assert found.low == pytest.approx(-found.high)
    assert 0.05 < found.high < 0.4
    if any(scores):
        share = ratio(scores, scores, range(13))
        assert share.mean == 1
        assert share.low == pytest.approx(1 / share.high, rel=1e-3)
        assert share.high > 1.05


def test_ends_are_bounded_and_not_certain():
    nothing, everything = [0.0] * 13, [1.0] * 13
    lost, won = difference(nothing, everything, range(13)), difference(everything, nothing, range(13))
    assert lost.low == lost.mean == -1 < -0.9 < lost.high < -0.4
    assert (won.low, won.high) == pytest.approx((-lost.high, 1.0))
    share = ratio(nothing, everything, range(13))
    assert share.low == share.mean == 0 < 0.1 < share.high < 0.5
    assert any_ratio(everything, nothing, range(13)) is None


@pytest.mark.parametrize("swap", [False, True])
def test_better_and_worse_mirror_each_other(swap):
    scores, base = [0.2, 1.0, 0.4, 1.0, 0.0, 1.0, 0.7] * 3, [1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 0.1] * 3
    groups = [i // 2 for i in range(21)]
    there, back = difference(scores, base, groups), difference(base, scores, groups)
    assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low))
    share, inverse = ratio(scores, base, groups), ratio(base, scores, groups)
    assert 0 < share.low < share.mean < share.high
    assert (share.low < 1 < share.high) == (inverse.low < 1 < inverse.high)


@pytest.mark.parametrize("pictures", range(1, FEWEST + 1))
def test_few_pictures_have_no_interval(pictures):
    scores, base = [1.0, 0.0, 1.0] * pictures, [1.0, 1.0, 1.0] * pictures
    groups = [i for i in range(pictures) for _ in range(3)]
    for found in (any_average(scores, groups), any_difference(scores, base, groups), any_ratio(scores, base, groups)):
        assert found is not None
        assert (found.low is None, found.high is None, found.half_width is None) == (pictures < FEWEST,) * 3
        assert (found.errors == (0, 0)) == (pictures < FEWEST)
    assert paired(scores, base, groups).p == pytest.approx(2 / 2**pictures)  # of few, too


def test_mcnemar_by_the_binomial():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(6, 0) == mcnemar(0, 6) == pytest.approx(2 / 2**6)
    assert mcnemar(9, 1) == pytest.approx(2 * (1 + 10) / 2**10)


def test_sign_flips_by_enumeration():
    totals = np.array([1.0, 2.0, -0.5, 3.0, 0.0])
    sums = [abs(np.dot(signs, totals)) for signs in itertools.product((-1, 1), repeat=5)]
    assert sign_flip(totals) == pytest.approx(np.mean([s >= 5.5 - 1e-9 for s in sums]))
    assert sign_flip(np.zeros(4)) == 1.0


def test_many_sign_flips_are_drawn_and_repeat():
    rng = np.random.default_rng(3)
    nothing, much = rng.normal(0, 1, 60), rng.normal(1, 1, 60)
    assert sign_flip(nothing) == sign_flip(nothing) > 0.05
    assert sign_flip(much) == pytest.approx(1 / 10_001)


def test_paired_uses_mcnemar_only_where_questions_stand_alone():
    scores, base = [1.0] * 8 + [0.0] * 2, [0.0] * 8 + [0.0] * 2
    alone, together = paired(scores, base, range(10)), paired(scores, base, [0] * 5 + [1] * 5)
    assert alone.mean == together.mean == 0.8
    assert alone.p == mcnemar(8, 0)
    assert together.p == 0.5  # two pictures that agree prove little
    assert known(alone).low > 0
    assert together.low is None


def test_ratio_is_paired():
    base = [0.2, 0.4, 0.6, 0.8] * 5
    found = ratio([x / 2 for x in base], base, range(20))
    assert found.mean == pytest.approx(0.5)
    unpaired = ratio([x / 2 for x in base[::-1]], base, range(20))
    assert found.half_width < 0.8 * unpaired.half_width
    assert any_ratio([0.0, 1.0], [0.0, 0.0], [0, 1]) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize("far", [False, True])
def test_alike_questions_count_as_the_pictures_weigh(far):
    """36 pictures with a question each and 4 with 20, all alike: the design effect is 1636 / 116, give or take half a
    picture, whether the four are all right, as most are, or two of them wrong."""
    right = [True] * 27 + [False] * 9 + [True, True, not far, not far]
    groups = [i for i in range(40) for _ in range(20 if i >= 36 else 1)]
    scores = [float(right[i]) for i in groups]
    found, pictures = average(scores, groups), 116**2 / 1636
    t = student(pictures - 1)
    middle = (found.mean + t**2 / (2 * pictures)) / (1 + t**2 / pictures)
    half = t * np.sqrt(found.mean * (1 - found.mean) / pictures + t**2 / (4 * pictures**2)) / (1 + t**2 / pictures)
    assert (found.low, found.high) == pytest.approx((middle - half, min(1, middle + half)), abs=0.04)
