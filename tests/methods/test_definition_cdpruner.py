"""cdpruner, as its paper and released code define it: determinants of lists of numbers."""

import math

import pytest
import torch

import vtc
from tests.kernels.test_greedy_determinantal import define as largest_determinant
from tests.methods.definitions import defines
from tests.methods.plain import cosine, rows
from vtc.layout import single_span
from vtc.methods.shared.relevance import worded
from vtc.signals import VisualTokens


def scaled(relevance, theta=None):
    """To (0, 1], as released; the paper's knob on top."""
    low, high = min(relevance), max(relevance)
    found = [(r - low + 1e-6) / (high - low) for r in relevance] if high > low else [1.0] * len(relevance)
    return found if theta is None else [math.exp(theta / (2 * (1 - theta)) * r) for r in found]


def define(x, k, relevance, theta=None):
    return sorted(largest_determinant(x, k, torch.tensor(scaled(relevance, theta))))


@defines("cdpruner", "judge", "theta")
@pytest.mark.parametrize("theta", [None, 0.0, 0.7])
@pytest.mark.parametrize("keep", [1, 9, 30])
def test_by_the_text(keep, theta):
    """Relevance is the mean cosine of a token and each word, as it is."""
    g = torch.Generator().manual_seed(keep)
    x, text = torch.randn(30, 12, generator=g), torch.randn(5, 12, generator=g)
    relevance = [sum(cosine(a, w) for w in rows(text)) / 5 for a in rows(x)]
    got = vtc.select(vtc.CDPruner(keep=keep, judge="text", theta=theta), x, text=text)
    expected = define(x, min(keep, 12), relevance, theta)  # of width 12, beyond which nothing is left
    assert set(expected) <= set(got.anchor.tolist())
    assert got.tokens_out == keep
    assert got.anchor.tolist() == sorted(got.anchor.tolist())


@defines("cdpruner", "judge", "scorer", "negate")
@pytest.mark.parametrize("negate", [True, False])
def test_by_a_clip_pair(negate):
    """A patch of CLIP is the less like the text the more it shows it: the cosine counts the other way round."""
    g = torch.Generator().manual_seed(1)
    x, likeness = torch.randn(30, 12, generator=g), torch.rand(30, generator=g)
    method = vtc.CDPruner(keep=8, judge="clip", scorer=lambda tokens: likeness, negate=negate)
    sign = -1 if negate else 1
    assert vtc.select(method, x).anchor.tolist() == define(x, 8, [sign * r for r in likeness.double().tolist()])


@defines("cdpruner", "judge")
@pytest.mark.parametrize("judge", ["none", "text"])
def test_without_relevance_diversity_alone_decides(judge):
    """Also where all tokens are equally relevant, which divides by zero in the released code, or nothing is asked."""
    x = torch.randn(30, 12, generator=torch.Generator().manual_seed(2))
    x /= x.norm(dim=1, keepdim=True)
    expected = sorted(largest_determinant(x, 8))
    method = vtc.CDPruner(keep=8, judge=judge)
    for text in (torch.zeros(3, 12), torch.zeros(0, 12)):
        assert vtc.select(method, x, text=text).anchor.tolist() == expected
    even = vtc.CDPruner(keep=8, judge="clip", scorer=lambda tokens: torch.full((30,), 0.3))
    assert vtc.select(even, x).anchor.tolist() == expected


def test_beyond_the_rank_the_most_relevant_follow():
    g = torch.Generator().manual_seed(3)
    x, likeness = torch.randn(40, 4, generator=g), torch.rand(40, generator=g)
    method = vtc.CDPruner(keep=20, judge="clip", scorer=lambda tokens: likeness, negate=False)
    kept = vtc.select(method, x).anchor.tolist()
    spread = largest_determinant(x, 4, torch.tensor(scaled(likeness.double().tolist())))
    rest = sorted((i for i in range(40) if i not in spread), key=lambda i: (-float(likeness[i]), i))
    assert kept == sorted(spread + rest[:16])


@pytest.mark.parametrize("judge", ["text", "none"])
def test_rows_that_are_no_numbers(judge):
    x, text = torch.randn(30, 12, generator=torch.Generator().manual_seed(4)), torch.randn(5, 12)
    x[[2, 7]] = float("nan")
    kept = vtc.select(vtc.CDPruner(keep=12, judge=judge), x, text=text).anchor.tolist()
    assert not {2, 7} & set(kept)
    assert len(set(kept)) == 12


def test_where_there_is_no_text():
    tokens = VisualTokens(torch.randn(9, 4), single_span(9, None), torch.arange(9), lambda name: torch.zeros(0, 4))
    assert worded(tokens) is None


def test_what_an_instance_asks_for():
    assert vtc.CDPruner().requires() == ("text",)
    assert vtc.CDPruner().query_aware
    none = vtc.CDPruner(judge="none")
    assert none.requires() == ()
    assert not none.query_aware
    judged = vtc.CDPruner(judge="clip", scorer=lambda tokens: torch.ones(4))
    assert judged.requires() == ()
    assert judged.query_aware


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"judge": "clip"}, r'judge="clip" asks a CLIP pair, and none is given: pass scorer=.*\.$'),
        ({"judge": "words"}, r"judge='words' is not one of text, clip, none\.$"),
        ({"scorer": len}, r"scorer= is what judge=\"clip\" asks, but judge='text'\.$"),
        ({"scorer": 3, "judge": "clip"}, r"scorer=3 is not a function from VisualTokens to a relevance per token"),
        ({"theta": 1.0}, r"theta=1.0 is not a number in \[0, 1\): it is how much relevance counts"),
        ({"negate": 1}, r"negate=1 of cdpruner is neither True nor False\.$"),
    ],
)
def test_refusals(options, says):
    with pytest.raises((ValueError, TypeError), match=says):
        vtc.CDPruner(**options)


def test_a_judge_that_says_nothing_is_refused():
    method = vtc.CDPruner(keep=3, judge="clip", scorer=lambda tokens: torch.tensor([float("nan")] * 9))
    with pytest.raises(ValueError, match=r"scorer= returned a tensor of shape \(9,\), 0 of whose numbers are finite"):
        vtc.select(method, torch.randn(9, 4))
