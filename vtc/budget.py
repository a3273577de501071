"""What `keep` means: a fraction in (0, 1] of a span's visual tokens, or a count per image or video."""

from __future__ import annotations

import math
from numbers import Integral, Real

_MEANING = "keep is a fraction in (0, 1] (a float) or a number of visual tokens per image, at least 1 (an int)"


def check_keep(keep: object) -> int | float:
    """Return `keep` as a plain int or float; raise TypeError or ValueError with one sentence if it means nothing."""
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise TypeError(f"keep={keep!r} is not a number: {_MEANING}.")
    if isinstance(keep, Integral):
        if keep < 1:
            raise ValueError(f"keep={keep} keeps nothing: {_MEANING}.")
        return int(keep)
    value = float(keep)
    if not math.isfinite(value) or not 0 < value <= 1:
        hint = f" Did you mean keep={round(value)}?" if math.isfinite(value) and value > 1 else ""
        raise ValueError(f"keep={value} is outside (0, 1]: {_MEANING}.{hint}")
    return value


def token_count(keep: int | float, total: int) -> int:
    """How many of `total` visual tokens `keep` asks for: max(1, round(keep * total)), never more than `total`.

    A half rounds to the even neighbour, as Python's `round` does.
    """
    count = keep if isinstance(keep, int) else max(1, round(keep * total))
    return min(count, total)
