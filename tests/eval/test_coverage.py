"""How often the 95 % intervals hold the true value, by simulation: 93 % or more everywhere, 98 % or less where there is
enough to go by."""

from __future__ import annotations

import numpy as np
import pytest

from vtc.eval.statistics import Score, average, difference, ratio

# Shares of questions right in both, gained, lost, wrong in both: ties, ends, and what lies between.
SHARES = {
    "nearly tied": (0.80, 0.00, 0.02, 0.18),
    "little lost": (0.60, 0.02, 0.10, 0.28),
    "good models": (0.80, 0.05, 0.05, 0.10),
    "some of each": (0.50, 0.10, 0.10, 0.30),
    "much of each": (0.30, 0.20, 0.20, 0.30),
    "only lost": (0.40, 0.00, 0.30, 0.30),
    "mostly lost": (0.20, 0.00, 0.60, 0.20),
    "nearly all lost": (0.02, 0.00, 0.93, 0.05),
    "much gained": (0.20, 0.50, 0.05, 0.25),
}
# Questions on a picture, the chance that one fares as the picture's others do, and whether scores are graded.
SETS = {
    "one each": (1, 0.0, False),
    "one each, graded": (1, 0.0, True),
    "three, alike": (3, 0.6, False),
    "three, graded": (3, 0.5, True),
    "eight, alike": (8, 0.5, False),
}
WRONG, RIGHT = 0.2, 0.8  # means of graded scores


def coverage(pictures: int, shares: str, kind: str, draws: int) -> dict[str, float]:
    """How often each interval holds the true value, in so many simulated comparisons."""
    each, alike, graded = SETS[kind]
    bounds, n = np.cumsum(SHARES[shares])[:-1], pictures * each
    both, gained, lost, _ = SHARES[shares]
    low, high = (WRONG, RIGHT) if graded else (0.0, 1.0)
    own, base = (low + (high - low) * share for share in (both + gained, both + lost))
    truth = {"average": own, "difference": own - base, "ratio": own / base}
    rng = np.random.default_rng([pictures, *shares.encode(), *kind.encode()])
    groups = [i // each for i in range(n)]
    hits = dict.fromkeys(truth, 0)
    for _ in range(draws):
        fate = np.where(rng.random(n) < alike, rng.random(pictures).repeat(each), rng.random(n))
        case = np.searchsorted(bounds, fate, side="right")
        scores = [np.where(np.isin(case, good), high, low) for good in ((0, 1), (0, 2))]
        if graded:  # noise of the picture, or of each answer
            noise = [rng.uniform(-0.2, 0.2, n) for _ in scores]
            scores = [s + noise[0 if alike else i] for i, s in enumerate(scores)]
        mine, theirs = (s.tolist() for s in scores)
        found: dict[str, Score | None] = {
            "average": average(mine, groups),
            "difference": difference(mine, theirs, groups),
            "ratio": ratio(mine, theirs, groups),
        }
        for name, score in found.items():
            if score is None:  # the base is 0: nothing is shown
                hits[name] += 1
                continue
            assert score.low is not None
            assert score.high is not None
            hits[name] += score.low - 1e-9 <= truth[name] <= score.high + 1e-9
    return {name: count / draws for name, count in hits.items()}


def away(pictures: int, shares: str) -> set[str]:
    """Intervals that are away from ties and ends: eight pictures or more change, and a few do not; six or more are
    right, and as many wrong."""
    both, gained, lost, _ = SHARES[shares]
    changed, right = gained + lost, both + gained
    clear = {"difference", "ratio"} if pictures * changed >= 8 and pictures * (1 - changed) >= 4 else set()
    return clear | ({"average"} if min(right, 1 - right) * pictures >= 6 else set())


@pytest.mark.parametrize(
    ("pictures", "shares", "kind"), [(13, "little lost", "one each"), (40, "only lost", "three, alike")]
)
def test_intervals_hold_the_truth(pictures, shares, kind):
    found = coverage(pictures, shares, kind, 250)
    assert min(found.values()) >= 0.92  # of 250: see below for all of it


@pytest.mark.full
@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("pictures", [6, 8, 10, 13, 20, 40, 100])
def test_coverage(pictures, shares, kind):
    found = coverage(pictures, shares, kind, 2000)
    assert min(found.values()) >= 0.93, found
    if pictures >= 20:
        assert max([found[name] for name in away(pictures, shares)], default=0) <= 0.98, found
