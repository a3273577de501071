"""One check for the numbers that users give, so that every refusal reads alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real


def check_number(
    value: object,
    name: str,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    integer: bool = False,
    what: str = "",
) -> int | float:
    """Return `value` as a plain int or float if it is a finite number in the range; otherwise refuse it.

    Args:
        name: of the option, as the user writes it.
        low, high: the least and the largest value allowed. above, below: the same, but not allowed themselves.
        integer: whether it must be a whole number (an int: 2.0 is none).
        what: the number is, for the end of the sentence: "a share of the budget".

    Raises:
        TypeError: `value` is no number of that kind (True and False are none).
        ValueError: it is outside the range.
    """
    whole = isinstance(value, Integral)
    right_kind = isinstance(value, Real) and not isinstance(value, bool) and (whole or not integer)
    fits = (
        right_kind
        and (whole or math.isfinite(float(value)))  # type: ignore[arg-type]
        and (low is None or value >= low)  # type: ignore[operator]
        and (high is None or value <= high)  # type: ignore[operator]
        and (above is None or value > above)  # type: ignore[operator]
        and (below is None or value < below)  # type: ignore[operator]
    )
    if not fits:
        kind = "a whole number" if integer else "a number"
        about = f": it is {what}" if what else ""
        sentence = f"{name}={value!r} is not {kind}{_range(low, high, above, below)}{about}."
        raise ValueError(sentence) if right_kind else TypeError(sentence)
    return int(value) if whole else float(value)  # type: ignore[arg-type]


def _range(low: float | None, high: float | None, above: float | None, below: float | None) -> str:
    """The range in words: " of 1 or more", " above 0", " in [0, 1)"."""
    bottom, top = (low if above is None else above), (high if below is None else below)
    if bottom is not None and top is not None:
        return f" in {'[' if above is None else '('}{bottom:g}, {top:g}{']' if below is None else ')'}"
    if bottom is not None:
        return f" of {bottom:g} or more" if above is None else f" above {bottom:g}"
    if top is not None:
        return f" of {top:g} or less" if below is None else f" below {top:g}"
    return ""


def check_row(value: object, name: str, what: str) -> None:
    """Raise TypeError if an option is no row (a tuple or a list) of values.

    Args:
        what: they are, with an example: "budgets: give one per layer, such as (64, 0.25)".
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name}={value!r} is no row of {what}.")
