"""vispruner, as its paper and released code define it: lists of tokens, one at a time."""

import pytest
import torch

import vtc
from tests.methods.definitions import defines
from tests.methods.plain import cosine, rows


def define(x, attention, k, important, step):
    likeness = [[cosine(a, b) for b in rows(x)] for a in rows(x)]
    falling = sorted(range(len(likeness)), key=lambda i: (-float(attention[i]), i))
    first = int(k * important)
    kept, rest = falling[:first], falling[first:]
    while len(rest) > k - first:
        if k == first:
            return sorted(kept)
        gone = min(step, len(rest) - (k - first))
        ones, others = rest[::2], rest[1::2]
        most = {i: max(likeness[i][j] for j in others) for i in ones}
        ones = sorted(ones, key=lambda i: (-most[i], ones.index(i)))
        rest = ones[gone:] + others
    return sorted(kept + rest)


@defines("vispruner", "important", "step")
@pytest.mark.parametrize("step", [1, 8])
@pytest.mark.parametrize("important", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("keep", [1, 2, 9, 16, 40, 41])
def test_against_the_definition(keep, important, step):
    """Also where an odd number of tokens is left, which the released code fails on."""
    g = torch.Generator().manual_seed(keep)
    seen, attention = torch.randn(41, 6, generator=g), torch.rand(41, generator=g)
    method = vtc.VisPruner(keep=keep, important=important, step=step)
    got = vtc.select(method, torch.randn(41, 3), cls_attention=attention, tower_features=seen)
    assert got.anchor.tolist() == define(seen, attention, keep, important, step)


def test_look_alikes_go():
    """Pairs of equal tokens: of each one stays."""
    seen = torch.eye(8).repeat_interleave(2, dim=0)
    method = vtc.VisPruner(keep=8, important=0.0, step=8)
    got = vtc.select(method, seen, cls_attention=torch.linspace(1, 0, 16), tower_features=seen)
    assert (got.anchor // 2).tolist() == list(range(8))


def test_rows_that_are_no_numbers():
    g = torch.Generator().manual_seed(4)
    seen, attention = torch.randn(20, 4, generator=g), torch.rand(20, generator=g)
    seen[3], attention[7] = float("nan"), float("nan")
    kept = vtc.select(vtc.VisPruner(keep=12), torch.randn(20, 3), cls_attention=attention, tower_features=seen)
    assert kept.tokens_out == 12
    assert (
        7
        not in vtc.select(
            vtc.VisPruner(keep=12, important=1.0), torch.randn(20, 3), cls_attention=attention, tower_features=seen
        ).anchor
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"important": 1.5}, r"important=1.5 is not a number in \[0, 1\]: it is a share of the kept tokens\.$"),
        ({"step": 0}, r"step=0 is not a whole number of 1 or more: it is a number of tokens\.$"),
    ],
)
def test_refusals(options, says):
    with pytest.raises(ValueError, match=says):
        vtc.VisPruner(**options)
