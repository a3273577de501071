"""How often the 95 % intervals hold the true value, by simulation: 93 % or more everywhere, 92 % where a few pictures
have most of the questions. Where there is enough to go by, 98 % or less; 99 % where pictures have unlike numbers of
questions, which ratios may pass."""

from __future__ import annotations

import numpy as np
import pytest

from vtc.eval.statistics import FEWEST, Score, average, difference, ratio

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
# Questions on the pictures in turn, the chance that one fares as its picture's others do, whether scores are graded.
SETS = {
    "one each": ((1,), 0.0, False),
    "one each, graded": ((1,), 0.0, True),
    "three, alike": ((3,), 0.6, False),
    "three, graded": ((3,), 0.5, True),
    "eight, alike": ((8,), 0.5, False),
    "uneven": ((1, 1, 2, 12), 0.5, False),
    "uneven, graded": ((2, 1, 4, 3, 10), 0.5, True),
    "a few with most": ((*[1] * 9, 20), 1.0, False),
}
WRONG, RIGHT = 0.2, 0.8  # means of graded scores


def numbers(pictures: int, kind: str) -> list[int]:
    """How many questions each picture has."""
    return [SETS[kind][0][i % len(SETS[kind][0])] for i in range(pictures)]


def numbered(pictures: int, kind: str) -> list[int]:
    """The picture of each question."""
    return [i for i, count in enumerate(numbers(pictures, kind)) for _ in range(count)]


def effective(pictures: int, kind: str) -> float:
    """How many pictures with a question each are as uneven (Kish)."""
    counts = numbers(pictures, kind)
    return sum(counts) ** 2 / sum(count**2 for count in counts)


def coverage(pictures: int, shares: str, kind: str, draws: int) -> dict[str, float]:
    """How often each interval holds the true value, in so many simulated comparisons; of a ratio, how often when it is
    shown, which takes a base above 0."""
    _, alike, graded = SETS[kind]
    groups = numbered(pictures, kind)
    bounds, n = np.cumsum(SHARES[shares])[:-1], len(groups)
    both, gained, lost, _ = SHARES[shares]
    low, high = (WRONG, RIGHT) if graded else (0.0, 1.0)
    own, base = (low + (high - low) * share for share in (both + gained, both + lost))
    truth = {"average": own, "difference": own - base, "ratio": own / base}
    rng = np.random.default_rng([pictures, *shares.encode(), *kind.encode()])
    hits, shown = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
    for _ in range(draws):
        fate = np.where(rng.random(n) < alike, rng.random(pictures)[groups], rng.random(n))
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
            if score is None:
                continue
            assert score.low is not None
            assert score.high is not None
            shown[name] += 1
            hits[name] += score.low - 1e-9 <= truth[name] <= score.high + 1e-9
    return {name: hits[name] / shown[name] for name in truth}


def away(pictures: float, shares: str) -> set[str]:
    """Intervals that are away from ties and ends: eight pictures or more change, and a few do not; six or more are
    right, and as many wrong."""
    both, gained, lost, _ = SHARES[shares]
    changed, right = gained + lost, both + gained
    clear = {"difference", "ratio"} if pictures * changed >= 8 and pictures * (1 - changed) >= 4 else set()
    return clear | ({"average"} if min(right, 1 - right) * pictures >= 6 else set())


@pytest.mark.parametrize(
    ("pictures", "shares", "kind"),
    [
        (13, "little lost", "one each"),
        (40, "only lost", "three, alike"),
        (16, "good models", "uneven"),
        (40, "some of each", "a few with most"),
    ],
)
def test_intervals_hold_the_truth(pictures, shares, kind):
    found = coverage(pictures, shares, kind, 250)
    assert min(found.values()) >= 0.92  # of 250: see below for all of it


def test_many_pictures_of_which_two_have_nearly_all_questions_have_no_interval():
    groups = [*range(20), *[20] * 100, *[21] * 100]
    scores, base = [float(i % 2) for i in range(220)], [1.0] * 220
    for score in (average(scores, groups), difference(scores, base, groups), ratio(scores, base, groups)):
        assert score is not None
        assert (score.low, score.high) == (None, None)


@pytest.mark.full
@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("pictures", [6, 8, 10, 13, 20, 40, 100])
def test_coverage(pictures, shares, kind):
    independent = effective(pictures, kind)
    if independent < FEWEST:
        assert average([1.0] * sum(numbers(pictures, kind)), numbered(pictures, kind)).low is None
        return
    found = coverage(pictures, shares, kind, 2000)
    assert min(found.values()) >= (0.92 if kind == "a few with most" else 0.93), found
    if independent >= 20:
        even = len(SETS[kind][0]) == 1
        most = [found[name] for name in away(independent, shares) if even or name != "ratio"]
        assert max(most, default=0) <= (0.98 if even else 0.99), found
