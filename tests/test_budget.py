"""What `keep` means."""

import math
from fractions import Fraction

import numpy as np
import pytest

from vtc.budget import check_keep, proportional, read_keep, token_count


@pytest.mark.parametrize("keep", [1, 64, 0.1, 1.0, np.int64(7), np.float32(0.5), Fraction(1, 4)])
def test_valid(keep):
    checked = check_keep(keep)
    assert checked == keep
    assert type(checked) in (int, float)


@pytest.mark.parametrize("keep", [0, -1, -0.5, 0.0, 1.5, 64.0, math.nan, math.inf, -math.inf])
def test_out_of_range(keep):
    with pytest.raises(ValueError, match=r"^[^\n]*fraction in \(0, 1\][^\n]*$"):
        check_keep(keep)


@pytest.mark.parametrize("keep", ["64", None, True, False, [64], 1j])
def test_not_a_number(keep):
    with pytest.raises(TypeError, match=r"^[^\n]*is not a (whole )?number[^\n]*$"):
        check_keep(keep)


def test_a_count_given_as_float_is_hinted_at():
    with pytest.raises(ValueError, match="Did you mean keep=64"):
        check_keep(64.0)


def test_fractions_follow_the_formula():
    for total in (1, 2, 3, 10, 36, 63, 576, 577, 2928):
        for keep in (0.001, 0.098, 0.1, 0.25, 1 / 3, 0.5, 0.75, 0.999, 1.0):
            assert token_count(keep, total) == max(1, round(keep * total))


def test_counts_never_exceed_what_is_there():
    assert [token_count(k, 36) for k in (1, 35, 36, 37, 10_000)] == [1, 35, 36, 36, 36]


def test_int_one_and_float_one_differ():
    assert token_count(check_keep(1), 36) == 1
    assert token_count(check_keep(1.0), 36) == 36


def test_read_from_text():
    assert [read_keep(text) for text in ("64", "0.25", "1", "1.0", " 3 ")] == [64, 0.25, 1, 1.0, 3]
    assert type(read_keep("1.0")) is float
    for text in ("0", "-3", "1.5", "nan", "inf"):
        with pytest.raises(ValueError, match=rf"^keep={text} is not a [^\n]*fraction in \(0, 1\]"):
            read_keep(text)
    with pytest.raises(TypeError, match=r"^keep='many' is not a number in \(0, 1\]"):
        read_keep("many")


@pytest.mark.parametrize("mean", [1, 1.3, 5, 50, 99, 100])
def test_proportional_counts_meet_their_mean(mean):
    counts = proportional((4, 2, 1), (1, 2, 1), mean, 100)
    assert list(counts) == sorted(counts, reverse=True)
    assert min(counts) >= 1
    assert max(counts) <= 100
    assert abs((counts[0] + 2 * counts[1] + counts[2]) / 4 - mean) <= 0.5
