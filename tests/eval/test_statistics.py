"""Scores and intervals against values worked out by hand or by brute force."""

from pathlib import Path

import numpy as np
import pytest

from vtc.eval.datasets import Question
from vtc.eval.metrics import bootstrap, caption_f1, normalise, score, wilson


def question(*answers, objects=()):
    return Question("1", Path("a.png"), "?", answers, "task", objects)


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("A red star.", "red star"),
        ("  The   Top-Left!", "top left"),
        ("three", "3"),
        ("it's", "its"),
        ("A", "a"),  # a printed letter, not an article
        ("", ""),
    ],
)
def test_normalise(said, means):
    assert normalise(said) == means


def test_any_reference_counts():
    assert score("Three.", question("3", "several")) == 1
    assert score("four", question("3", "several")) == 0
    assert score("", question("3")) == 0


@pytest.mark.parametrize(
    ("caption", "objects", "expected"),
    [
        ("a red star, a bird", ("red star", "bird"), 1.0),
        ("A bird and a red star.", ("red star", "bird"), 1.0),
        ("a bird", ("bird", "bird"), 2 / 3),
        ("a bird, a bird, a bird, a fish", ("bird", "bird"), 2 / 3),
        ("a fish", ("bird",), 0.0),
        ("", ("bird",), 0.0),
    ],
)
def test_caption_f1(caption, objects, expected):
    assert caption_f1(caption, objects) == pytest.approx(expected)
    assert score(caption, question("x", objects=objects)) == pytest.approx(expected)


def test_wilson_by_the_textbook():
    found = wilson([1.0] * 8 + [0.0] * 2)  # 8 of 10: 0.490 to 0.943
    assert (found.mean, found.n) == (0.8, 10)
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert wilson([1.0] * 20).high == 1.0
    assert wilson([1.0] * 20).low < 0.9
    assert wilson([0.0] * 20).low == 0.0


def test_bootstrap_resamples_pictures_and_repeats_exactly():
    rng = np.random.default_rng(1)
    by_picture = rng.random(100)
    scores, groups = (
        by_picture.repeat(5).tolist(),
        np.arange(100).repeat(5).tolist(),
    )  # five questions that always agree
    clustered, naive = bootstrap(scores, groups), bootstrap(scores, range(500))
    assert clustered == bootstrap(scores, groups)
    assert clustered.mean == pytest.approx(np.mean(scores))
    assert clustered.half_width == pytest.approx(1.96 * by_picture.std() / 10, rel=0.1)
    assert clustered.half_width > 2 * naive.half_width


def test_bootstrap_of_differences_can_be_negative():
    found = bootstrap([-1.0, 0.0, -1.0, 0.0], [0, 1, 2, 3])
    assert found.low < found.mean == -0.5 <= found.high
