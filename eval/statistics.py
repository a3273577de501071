"""How sure one can be of an average, of a difference between two methods, and of many differences at once.

Questions on one picture succeed and fail together, so pictures, not questions, are the independent draws. All intervals
are score intervals: they hold the values that the data do not reject, where the variance is the one under that value.
So they stay inside what is possible, and ties or a clean sweep give no interval of width 0. What a picture's questions
have in common enters as an effective number of questions (`_effective`); the quantile is Student's for the effective
number of pictures (`_pictures`), which is less than their number where some have many more questions than others.

Why not from a library: scipy's BCa bootstrap is undefined for ties and too narrow where little changes; statsmodels
has score intervals of independent samples, not of paired ones. Coverage of these: tests/eval/test_coverage.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FEWEST = 6  # pictures, effectively; fewer have no interval
_Z = 1.959964  # two-sided 95 %
_FLIPS = 10_000
_EXACT = 12  # up to so many groups that differ, all sign flips are tried


@dataclass(frozen=True)
class Score:
    """An average over `n` questions with its 95 % confidence interval, None below FEWEST effective pictures."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def errors(self) -> tuple[float, float]:
        """How far the interval reaches below and above the mean; 0 where there is none."""
        if self.low is None or self.high is None:
            return 0.0, 0.0
        return max(0.0, self.mean - self.low), max(0.0, self.high - self.mean)

    @property
    def half_width(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Difference(Score):
    """A mean of paired differences, its interval, and the two-sided p-value of "there is none"."""

    p: float


def average(scores: Sequence[float], groups: Sequence[Any]) -> Score:
    """Mean of scores in [0, 1] with Wilson's score interval (1927) for the effective number of questions.

    Scores that pass 1 (CIDEr) are taken as parts of the largest of them.
    """
    unit = max(1.0, *scores)
    values = np.asarray(scores, dtype=float) / unit
    mean = float(values.mean())
    pictures = _pictures(groups)
    if pictures < FEWEST:
        return Score(unit * mean, None, None, len(values))
    n, t = _effective(values - mean, groups, mean * (1 - mean)), student(pictures - 1)
    middle = (mean + t**2 / (2 * n)) / (1 + t**2 / n)
    half = t * math.sqrt(mean * (1 - mean) / n + t**2 / (4 * n**2)) / (1 + t**2 / n)
    return Score(unit * mean, unit * max(0.0, middle - half), unit * min(1.0, middle + half), len(values))


def difference(scores: Sequence[float], base: Sequence[float], groups: Sequence[Any]) -> Score:
    """Mean of `scores - base` per question, in [-1, 1], with the score interval of paired proportions (Tango 1998).

    Graded scores count in parts: 0.3 gained is 0.3 of a question that is right now and was wrong.

    Example: of 40 pictures with a question each, 1 is gained and 5 are lost. The mean is -4/40 = -0.1. A true
    difference of 0 would have the variance 6/40 per question, so the statistic is 0.1 / sqrt(6/40/40) = 1.63, less than
    the quantile 2.02: the interval, from -0.248 to 0.032, holds 0.
    """
    unit = max(1.0, *scores, *base)
    values = (np.asarray(scores, dtype=float) - np.asarray(base, dtype=float)) / unit
    mean = float(values.mean())
    pictures = _pictures(groups)
    if pictures < FEWEST:
        return Score(unit * mean, None, None, len(values))
    gained, lost = float(np.maximum(values, 0).mean()), float(np.maximum(-values, 0).mean())
    n, t = _effective(values - mean, groups, gained + lost - mean**2), student(pictures - 1)

    def fits(true: float) -> bool:
        """Whether `true` is not rejected; `least` is the share lost that is most likely under it."""
        b = gained + lost - (2 - gained + lost) * true
        least = (b + math.sqrt(max(0.0, b**2 + 8 * lost * true * (1 - true)))) / 4
        return n * (mean - true) ** 2 <= t**2 * max(0.0, 2 * least + true * (1 - true))

    low, high = _edge(fits, mean, -1.0), _edge(fits, mean, 1.0)
    return Score(unit * mean, unit * low, unit * high, len(values))


def ratio(scores: Sequence[float], base: Sequence[float], groups: Sequence[Any]) -> Score | None:
    """Mean of `scores` over that of `base`, paired; None where the base is 0.

    With the score interval of a ratio of paired proportions (Nam and Blackwelder 2002); graded scores as above.
    """
    unit = max(1.0, *scores, *base)
    above, below = (np.asarray(x, dtype=float) / unit for x in (scores, base))
    a, b = float(above.mean()), float(below.mean())
    if b <= 0:
        return None
    mean = a / b
    pictures = _pictures(groups)
    if pictures < FEWEST:
        return Score(mean, None, None, len(above))
    gained, lost = float(np.maximum(above - below, 0).mean()), float(np.maximum(below - above, 0).mean())
    n = _effective(above - mean * below, groups, mean * (gained + lost), max(1.0, mean) ** 2)
    t = student(pictures - 1)

    def fits(true: float) -> bool:
        expected = _likely(true, gained, lost, b)
        return n * (a - true * b) ** 2 <= t**2 * true * max(0.0, sum(expected))

    beyond = 2 * mean + 1
    while fits(beyond):  # ends: the statistic grows with the ratio
        beyond *= 2
    low = _edge(fits, mean, 0.0) if mean else 0.0
    return Score(mean, low, _edge(fits, mean, beyond), len(above))


def _likely(true: float, gained: float, lost: float, b: float) -> tuple[float, float]:
    """The shares gained and lost that are most likely where the ratio is `true`; `b` is the base's mean.

    With y lost, and s not wrong in both, gained is s (1 - 1/true) + y / true and right in both (s - y) / true - y.
    Setting the derivative of lost log(y) + gained log(..) + both log(..) to 0 gives a quadratic equation in y.
    """
    some = gained + b
    half = (gained + lost + (1 - true**2) * b) / 2
    root = math.sqrt(max(0.0, half**2 + (1 + true) * lost * some * (true - 1)))
    y = min(max((half + root) / (1 + true), (1 - true) * some, 0.0), some / (1 + true))
    return some * (1 - 1 / true) + y / true, y


def paired(scores: Sequence[float], base: Sequence[float], groups: Sequence[Any]) -> Difference:
    """`difference` and a paired test.

    The test is McNemar's exact one where every question is its own group and right or wrong, else a sign-flip
    permutation test over groups: all flips where few groups differ, else 10,000 seeded ones.
    """
    values = np.asarray(scores, dtype=float) - np.asarray(base, dtype=float)
    found = difference(scores, base, groups)
    single = len(set(groups)) == len(values)
    if single and set(np.unique(values)) <= {-1.0, 0.0, 1.0}:
        p = mcnemar(int((values > 0).sum()), int((values < 0).sum()))
    else:
        p = sign_flip(_by_group(values, groups)[0])
    return Difference(found.mean, found.low, found.high, found.n, p)


def student(freedom: float) -> float:
    """97.5 % quantile of Student's t, for 4 degrees of freedom or more (Abramowitz and Stegun, 26.7.5; to 0.001)."""
    z = _Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def _effective(residuals: np.ndarray, groups: Sequence[Any], variance: float, swing: float = 1.0) -> float:
    """How many independent right-or-wrong questions say as much as these (Rao and Scott 1992).

    Questions over the design effect: the sum of squares of the pictures' residuals over that of independent questions
    that are right or wrong (`variance` each). Half a picture, on which all questions differ by what is usual, is added
    to both: without it a few pictures that happen not to vary would pass for many. Right-or-wrong questions that are
    each on a picture of its own have the design effect 1; where nothing varies it is the number of questions on the
    picture of the average question.

    Args:
        swing: square of the most that a question's residual can be.
    """
    totals, counts = _by_group(residuals, groups)
    each, squares = float((counts**2).sum() / counts.sum()), variance * len(residuals)
    graded = max(0.5, math.sqrt((residuals**2).sum() / squares)) if squares > 1e-9 else 1.0  # 1 for right or wrong
    between = max((totals**2).sum(), _alike(residuals, totals, counts, each))
    effect = (between + graded * swing * each**2 / 2) / (squares + swing * each / 2)
    return len(residuals) / float(effect)


def _alike(residuals: np.ndarray, totals: np.ndarray, counts: np.ndarray, each: float) -> float:
    """The sum of squares of the pictures' residuals that goes with how alike the questions of a picture fare.

    1 + (each - 1) r times the questions' own sum of squares, where r is the correlation within pictures by analysis of
    variance (Kish 1965, section 5.4). Where all pictures have the same number of questions it is exactly the sum of
    squares found. Where a few have most of them, that sum hangs on how these few came out, and this does not.

    Example: 36 pictures have a question each, 4 have 20, and all questions of a picture fare alike. Then r = 1, and the
    design effect is `each` = (36 + 4 * 400) / 116 = 14.1, whether the four lie far from the mean or by chance near it.
    """
    n, own = len(residuals), float((residuals**2).sum())
    if n == len(counts):
        return own
    within = own - float((totals**2 / counts).sum())
    return each * own - (each - 1) * within * n / (n - len(counts))


def _pictures(groups: Sequence[Any]) -> float:
    """How many pictures with a question each weigh on a sum as unevenly as these do (Kish 1965, section 11.7).

    Example: 36 pictures with a question each and 4 with 20 count as 116^2 / (36 + 4 * 400) = 8.2; 40 with the same
    number of questions as 40.
    """
    counts = np.array(list(Counter(groups).values()), dtype=float)
    return float(counts.sum() ** 2 / (counts**2).sum())


def _edge(fits: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where `fits` ends between a value that does and one beyond, by bisection."""
    for _ in range(50):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if fits(middle) else (inside, middle)
    return inside


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value that a question flips as likely one way as the other (McNemar 1947, binomial form)."""
    n, few = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n)


def sign_flip(totals: np.ndarray) -> float:
    """Two-sided p-value that the groups' totals are symmetric about 0."""
    totals = totals[np.abs(totals) > 1e-12]
    seen = abs(totals.sum()) - 1e-9
    if len(totals) <= _EXACT:
        signs = 1 - 2 * ((np.arange(2 ** len(totals))[:, None] >> np.arange(len(totals))) & 1)
        return float((np.abs(signs @ totals) >= seen).mean()) if len(totals) else 1.0
    rng, beyond = np.random.default_rng(0), 0
    for _ in range(_FLIPS // 500):
        signs = 1 - 2 * rng.integers(0, 2, (500, len(totals)), dtype=np.int8)
        beyond += int((np.abs(signs @ totals) >= seen).sum())
    return (1 + beyond) / (1 + _FLIPS)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being looked at together (Holm 1979), in the order given."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _by_group(values: np.ndarray, groups: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each group."""
    numbers: dict[Any, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    return np.bincount(index, values), np.bincount(index).astype(float)
