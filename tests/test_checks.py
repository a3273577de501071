"""Numbers that users give: what passes, and the one wording of what does not."""

import math
from fractions import Fraction

import numpy as np
import pytest

from vtc.checks import check_number


@pytest.mark.parametrize(
    ("value", "limits", "found"),
    [
        (3, {}, 3),
        (np.int64(3), {"integer": True}, 3),
        (np.float32(0.5), {"low": 0, "high": 1}, 0.5),
        (Fraction(1, 4), {"above": 0}, 0.25),
        (0, {"low": 0, "below": 1}, 0),
        (1.0, {"above": 0, "high": 1}, 1.0),
        (10**400, {"low": 1, "integer": True}, 10**400),
    ],
)
def test_what_passes_comes_back_as_a_plain_number(value, limits, found):
    checked = check_number(value, "x", **limits)
    assert checked == found
    assert type(checked) is type(found)


@pytest.mark.parametrize("value", [True, False, None, "3", [3], 3j, math.nan.hex()])
def test_no_number_is_a_type_error(value):
    with pytest.raises(TypeError, match=r"^x=.* is not a number of 0 or more\.$"):
        check_number(value, "x", 0)
    with pytest.raises(TypeError, match=r"^x=.* is not a whole number\.$"):
        check_number(value, "x", integer=True)


def test_a_float_is_no_whole_number():
    with pytest.raises(TypeError, match=r"^x=2\.0 is not a whole number\.$"):
        check_number(2.0, "x", integer=True)


@pytest.mark.parametrize(
    ("value", "limits", "said"),
    [
        (-1, {"low": 0}, "x=-1 is not a number of 0 or more."),
        (0, {"above": 0}, "x=0 is not a number above 0."),
        (2, {"high": 1}, "x=2 is not a number of 1 or less."),
        (1, {"below": 1}, "x=1 is not a number below 1."),
        (1, {"low": 0, "below": 1}, "x=1 is not a number in [0, 1)."),
        (0.0, {"above": 0, "high": 0.5}, "x=0.0 is not a number in (0, 0.5]."),
        (0, {"low": 1, "integer": True, "what": "a count"}, "x=0 is not a whole number of 1 or more: it is a count."),
        (math.nan, {}, "x=nan is not a number."),
        (math.inf, {"low": 0}, "x=inf is not a number of 0 or more."),
    ],
)
def test_outside_the_range_is_a_value_error(value, limits, said):
    with pytest.raises(ValueError, match=r"^x=") as caught:
        check_number(value, "x", **limits)
    assert str(caught.value) == said
