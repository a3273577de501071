"""Two ways of doing something, timed in turn: what one takes more than the other, and how sure that is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

RESAMPLES = 2000
T = TypeVar("T")


@dataclass(frozen=True)
class Middle:
    """A median of `n` numbers: its 95 % interval (bootstrap, percentiles, seeded), and their quartiles."""

    median: float
    low: float
    high: float
    quartiles: tuple[float, float]
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Middle:
        """Raises ValueError where there is no number."""
        if not len(values):
            raise ValueError("there is no number to take the median of.")
        given = np.asarray(values, dtype=float)
        drawn = np.random.default_rng(0).integers(0, len(given), (RESAMPLES, len(given)))
        low, high = np.percentile(np.median(given[drawn], axis=1), [2.5, 97.5])
        first, third = np.percentile(given, [25, 75])
        return cls(float(np.median(given)), float(low), float(high), (float(first), float(third)), len(given))

    def scaled(self, factor: float) -> Middle:
        """The same in another unit; `factor` > 0."""
        ends = (self.quartiles[0] * factor, self.quartiles[1] * factor)
        return Middle(self.median * factor, self.low * factor, self.high * factor, ends, self.n)


def turns(
    count: int,
    seconds: float = float("inf"),
    least: int = 5,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[int]:
    """0 to `count` - 1; after so many `seconds` no more, once there were `least`.

    Args:
        progress: called with (turns that are over, all).
    """
    began = time.perf_counter()
    for number in range(count):
        if number >= least and time.perf_counter() - began > seconds:
            return
        yield number
        progress(number + 1, count)


def pair(first: Callable[[], T], second: Callable[[], T], found: tuple[list[T], list[T]]) -> None:
    """Add what both return to `found`; which of them runs first alternates from pair to pair.

    A machine that slows down, or is slower on what comes second, so slows both alike.
    """
    for which in (0, 1) if len(found[0]) % 2 == 0 else (1, 0):
        found[which].append((first, second)[which]())
