"""Intervals and tests against values worked out by hand or by brute force."""

import itertools

import numpy as np
import pytest

from vtc.eval.statistics import average, bootstrap, holm, mcnemar, paired, ratio, sign_flip, wilson


def test_wilson_by_the_textbook():
    found = wilson([1.0] * 8 + [0.0] * 2)  # 8 of 10: 0.490 to 0.943
    assert (found.mean, found.n) == (0.8, 10)
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert wilson([1.0] * 20).high == 1.0
    assert wilson([1.0] * 20).low < 0.9
    assert wilson([0.0] * 20).low == 0.0


def test_bootstrap_resamples_pictures_and_repeats_exactly():
    rng = np.random.default_rng(1)
    by_picture = rng.random(100)
    scores, groups = (
        by_picture.repeat(5).tolist(),
        np.arange(100).repeat(5).tolist(),
    )  # five questions that always agree
    clustered, naive = bootstrap(scores, groups), bootstrap(scores, range(500))
    assert clustered == bootstrap(scores, groups)
    assert clustered.mean == pytest.approx(np.mean(scores))
    assert clustered.half_width == pytest.approx(1.96 * by_picture.std() / 10, rel=0.1)
    assert clustered.half_width > 2 * naive.half_width


def test_bootstrap_of_differences_can_be_negative():
    found = bootstrap([-1.0, 0.0, -1.0, 0.0], [0, 1, 2, 3])
    assert found.low < found.mean == -0.5 <= found.high


def test_average_knows_right_or_wrong_from_graded():
    assert average([1.0, 0.0, 1.0], [0, 1, 2]) == wilson([1.0, 0.0, 1.0])
    assert average([1.0, 0.5, 1.0], [0, 1, 2]) == bootstrap([1.0, 0.5, 1.0], [0, 1, 2])


def test_questions_on_one_picture_count_as_one_draw():
    """Where they fare alike the interval is as wide as that of the pictures alone."""
    fates, groups = [float(i % 4 > 0) for i in range(40)], [i for i in range(40) for _ in range(5)]
    five = average([fate for fate in fates for _ in range(5)], groups)
    one = wilson(fates)
    assert five.mean == one.mean
    assert five.half_width == pytest.approx(one.half_width, rel=0.1)
    assert five.half_width > 2 * wilson([fate for fate in fates for _ in range(5)]).half_width


@pytest.mark.parametrize("scores", [[1.0] * 10, [0.0] * 10, [1.0, 0.0] * 5])
def test_what_resampling_cannot_vary_is_not_certain(scores):
    groups = [0] * 10 if 1.0 in scores and 0.0 in scores else [i // 2 for i in range(10)]
    found = average(scores, groups)
    assert found.high - found.low > 0.3


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
    assert alone.low > 0


def test_ratio_is_paired():
    base = [0.2, 0.4, 0.6, 0.8] * 5
    found = ratio([x / 2 for x in base], base, range(20))
    assert found is not None
    assert found.mean == pytest.approx(0.5)
    assert (found.low, found.high) == pytest.approx((0.5, 0.5), abs=1e-6)
    assert ratio([0.0, 1.0], [0.0, 0.0], [0, 1]) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
