"""How sure one can be of an average, of a difference between two methods, and of many differences at once.

Questions on one picture succeed and fail together, so pictures, not questions, are the independent draws: intervals
resample whole groups, and tests flip whole groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

_Z = 1.959964  # two-sided 95 %
_RESAMPLES = 2000
_FLIPS = 10_000
_EXACT = 12  # up to so many groups that differ, all sign flips are tried


@dataclass(frozen=True)
class Score:
    """An average over `n` questions with its 95 % confidence interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Difference(Score):
    """A mean of paired differences, its interval, and the two-sided p-value of "there is none"."""

    p: float


def wilson(scores: Sequence[float]) -> Score:
    """Average of 0/1 scores with Wilson's interval, which stays inside [0, 1] and is honest near its ends."""
    return _wilson(scores, len(scores))


def _wilson(scores: Sequence[float], n: int) -> Score:
    """With the interval that `n` independent draws would have."""
    mean = float(np.mean(scores))
    middle = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    return Score(mean, max(0.0, middle - half), min(1.0, middle + half), len(scores))


def bootstrap(scores: Sequence[float], groups: Sequence[Any]) -> Score:
    """Average of any scores, with a percentile interval from resampling whole groups, seeded.

    Where resampling cannot vary, of one group or of scores that are all 0 or all 1, with Wilson's for so many groups.
    """
    values, draws = np.asarray(scores, dtype=float), len(set(groups))
    if (draws == 1 and values.min() >= 0 and values.max() <= 1) or set(scores) in ({0.0}, {1.0}):
        return _wilson(scores, draws)
    totals, counts = _by_group(values, groups)
    low, high = np.percentile(_resampled(totals) / _resampled(counts), [2.5, 97.5])
    return Score(float(values.mean()), float(low), float(high), len(values))


def average(scores: Sequence[float], groups: Sequence[Any]) -> Score:
    """Wilson's interval for scores that are right or wrong and each of a group of its own, else the bootstrap's."""
    alone = len(set(groups)) == len(scores)
    return wilson(scores) if alone and set(scores) <= {0.0, 1.0} else bootstrap(scores, groups)


def ratio(scores: Sequence[float], base: Sequence[float], groups: Sequence[Any]) -> Score | None:
    """Mean of `scores` over that of `base`, paired, with a bootstrap interval; None where the base is 0."""
    above, below = (_by_group(np.asarray(x, dtype=float), groups)[0] for x in (scores, base))
    if below.sum() <= 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = _resampled(above) / _resampled(below)
    low, high = np.percentile(draws[np.isfinite(draws)], [2.5, 97.5])
    return Score(float(above.sum() / below.sum()), float(low), float(high), len(scores))


def paired(scores: Sequence[float], base: Sequence[float], groups: Sequence[Any]) -> Difference:
    """Mean of `scores - base` per question, its bootstrap interval, and a paired test.

    The test is McNemar's exact one where every question is its own group and right or wrong, else a sign-flip
    permutation test over groups: all flips where few groups differ, else 10,000 seeded ones.
    """
    values = np.asarray(scores, dtype=float) - np.asarray(base, dtype=float)
    found = bootstrap(values.tolist(), groups)
    single = len(set(groups)) == len(values)
    if single and set(np.unique(values)) <= {-1.0, 0.0, 1.0}:
        p = mcnemar(int((values > 0).sum()), int((values < 0).sum()))
    else:
        p = sign_flip(_by_group(values, groups)[0])
    return Difference(found.mean, found.low, found.high, found.n, p)


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


def _resampled(totals: np.ndarray) -> np.ndarray:
    """[draws] sums over groups drawn with replacement."""
    return _draws(len(totals)) @ totals.astype(np.float32)


@lru_cache(maxsize=8)
def _draws(groups: int) -> np.ndarray:
    """[draws, groups] how often each group is drawn."""
    rng, share = np.random.default_rng(0), np.full(groups, 1 / groups)
    return np.concatenate([rng.multinomial(groups, share, 100).astype(np.float32) for _ in range(_RESAMPLES // 100)])
