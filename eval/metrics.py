"""How an answer is scored, and how sure one can be of an average of scores."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vtc.eval.datasets import Question

_ARTICLES = {"a", "an", "the"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(value) for value, word in enumerate(_NUMBERS)}
_Z = 1.959964  # two-sided 95 %
_RESAMPLES = 2000


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, number words as digits: "A red star." -> "red star"."""
    words = re.sub(r"[^\w\s]", " ", text.lower().replace("'", "")).split()
    kept = [word for word in words if word not in _ARTICLES] or words  # a printed "A" is an answer, not an article
    return " ".join(_DIGITS.get(word, word) for word in kept)


def score(answer: str, question: Question) -> float:
    """1 for an exact match with any reference after `normalise`, else 0; captions: F1 over the objects named."""
    if question.objects:
        return caption_f1(answer, question.objects)
    return float(normalise(answer) in {normalise(reference) for reference in question.answers})


def caption_f1(caption: str, objects: Sequence[str]) -> float:
    """F1 between the objects in a caption ("a red star, a bird and a fish") and those present, as multisets."""
    named = Counter(filter(None, (normalise(phrase) for phrase in re.split(r",|\band\b", caption.lower()))))
    present = Counter(normalise(phrase) for phrase in objects)
    return 2 * sum((named & present).values()) / max(1, named.total() + present.total())


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


def wilson(scores: Sequence[float]) -> Score:
    """Average of 0/1 scores with Wilson's interval, which stays inside [0, 1] and is honest near its ends."""
    n, mean = len(scores), float(np.mean(scores))
    middle = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    return Score(mean, max(0.0, middle - half), min(1.0, middle + half), n)


def bootstrap(scores: Sequence[float], groups: Sequence[int]) -> Score:
    """Average of any scores, with a percentile interval from resampling whole groups (pictures), seeded.

    Questions on one picture succeed and fail together, so pictures, not questions, are the independent draws.
    """
    values, (_, index) = np.asarray(scores, dtype=float), np.unique(groups, return_inverse=True)
    totals, counts = np.bincount(index, values), np.bincount(index)
    draws = np.random.default_rng(0).multinomial(len(totals), np.full(len(totals), 1 / len(totals)), _RESAMPLES)
    low, high = np.percentile((draws @ totals) / (draws @ counts), [2.5, 97.5])
    return Score(float(values.mean()), float(low), float(high), len(values))
