"""How much faster one way is than another: warmed up, in turns, and only said where it is clear."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

ROUNDS = 6  # the fewest whose range is a 95 % interval of their median
_ENOUGH = 5  # rounds; of fewer, too often all agree by chance


@dataclass(frozen=True)
class SpeedUp:
    """What the base takes over what the other takes: above 1 the other is faster.

    Attributes:
        ratio: of the two medians. low, high: where the median of the rounds' ratios lies, 95 % sure (94 % for five).
    """

    ratio: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the spread leaves no doubt which is faster."""
        return not self.low <= 1 <= self.high

    def __str__(self) -> str:
        """As "1.8× faster (1.7–2.0)"."""
        if not self.clear:
            return "no clear difference"
        if self.ratio >= 1:
            return f"{self.ratio:.1f}× faster ({self.low:.1f}–{self.high:.1f})"
        return f"{1 / self.ratio:.1f}× slower ({1 / self.high:.1f}–{1 / self.low:.1f})"


def in_turns(
    works: Sequence[Callable[[], float]],
    rounds: int = ROUNDS,
    least: int = _ENOUGH,
    seconds: float = 20.0,
    go_on: Callable[[], bool] = lambda: True,
) -> list[list[float]]:
    """What each of `works` takes, in seconds that it measures itself, in every round.

    Each runs once before, for nothing: first runs allocate, compile and fill caches. Then all run in every round, every
    other round in reverse, so that a machine that slows down, or is slower on what comes second, slows all alike.

    Args:
        least: after so many rounds, no more begin once `seconds` have passed. go_on: asked before each work but those
            of the first round; False ends it all.
    Returns:
        as many lists as works, all of one length, of at least one round.
    """
    for work in works:
        work()
    began = time.perf_counter()
    found: list[list[float]] = [[] for _ in works]
    for number in range(rounds):
        if number >= max(1, least) and time.perf_counter() - began > seconds:
            break
        once: dict[int, float] = {}
        for index in range(len(works)) if number % 2 == 0 else reversed(range(len(works))):
            if number and not go_on():
                return found
            once[index] = works[index]()
        for index, value in once.items():
            found[index].append(value)
    return found


def speed_up(base: Sequence[float], own: Sequence[float]) -> SpeedUp | None:
    """How much faster `own` is, from the seconds of rounds in which both ran; None below five rounds.

    The spread is the distribution-free interval of a median: of n ordered ratios the k-th from either end, where the
    chance that fewer than k of n fall on one side of the median is 2.5 % at most.
    """
    ratios = sorted(a / b for a, b in zip(base, own, strict=True))
    n = len(ratios)
    if n < _ENOUGH:
        return None
    outside = [2 * sum(math.comb(n, i) for i in range(k)) / 2**n for k in range(1, n // 2 + 1)]
    k = max(1, sum(chance <= 0.05 for chance in outside))
    ratio = statistics.median(base) / statistics.median(own)
    return SpeedUp(ratio, min(ratio, ratios[k - 1]), max(ratio, ratios[-k]))


def first_token(model: Any, inputs: Any, wrapped: Callable[[], Any] = nullcontext) -> float:
    """Seconds of one `generate` to its first token, the vision tower included, inside of what `wrapped` opens."""
    import torch

    with torch.inference_mode(), wrapped():
        start = time.perf_counter()
        model.generate(**inputs, max_new_tokens=1, do_sample=False, num_beams=1)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        return time.perf_counter() - start
