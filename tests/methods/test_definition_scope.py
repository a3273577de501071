"""SCOPE (method): saliency times coverage, in loops over numbers."""

import pytest
import torch

import vtc
from tests.methods.definitions import defines
from tests.methods.plain import cosine, rows


def define(x, attention, k, alpha):
    """Section 3: the gain of a token is what it adds to max(0, cosine), summed over all; times attention^alpha."""
    likeness = [[cosine(a, b) for b in rows(x)] for a in rows(x)]
    covered, chosen = [0.0] * len(likeness), []
    while len(chosen) < k:
        left = [j for j in range(len(likeness)) if j not in chosen]
        score = {}
        for j in left:
            gain = sum(max(0.0, likeness[i][j] - covered[i]) for i in range(len(likeness)))
            score[j] = gain * float(attention[j]) ** alpha
        chosen.append(max(left, key=lambda j: (score[j], -j)))
        covered = [max(c, likeness[i][chosen[-1]]) for i, c in enumerate(covered)]
    return sorted(chosen)


@defines("scope", "alpha")
@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("keep", [1, 9, 40])
def test_against_the_definition(keep, alpha):
    """By what the tower makes of the tokens, whatever the projector makes of that."""
    g = torch.Generator().manual_seed(keep)
    seen, attention = torch.randn(40, 6, generator=g), torch.rand(40, generator=g)
    got = vtc.select(
        vtc.SCOPE(keep=keep, alpha=alpha), torch.randn(40, 3), cls_attention=attention, tower_features=seen
    )
    assert got.anchor.tolist() == define(seen, attention.double(), keep, alpha)


def test_two_rows_of_attention_are_added_up():
    g = torch.Generator().manual_seed(0)
    seen, attention = torch.randn(20, 4, generator=g), torch.rand(2, 20, generator=g)
    got = vtc.select(vtc.SCOPE(keep=5), torch.randn(20, 3), cls_attention=attention, tower_features=seen)
    assert got.anchor.tolist() == define(seen, attention.double().sum(0), 5, 1.0)


def test_rows_that_are_no_numbers():
    g = torch.Generator().manual_seed(4)
    seen, attention = torch.randn(20, 4, generator=g), torch.rand(20, generator=g)
    seen[3], attention[7] = float("nan"), float("nan")
    kept = vtc.select(vtc.SCOPE(keep=12), torch.randn(20, 3), cls_attention=attention, tower_features=seen)
    assert not {3, 7} & set(kept.anchor.tolist())
    assert kept.tokens_out == 12


def test_refusals():
    with pytest.raises(ValueError, match=r"alpha=-1 is not a number in \[0, 100\]: it is an exponent\.$"):
        vtc.SCOPE(alpha=-1)
