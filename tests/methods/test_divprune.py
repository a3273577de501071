"""divprune: farthest-first in cosine distance."""

import math

import pytest
import torch

import vtc
from tests.methods.definitions import defines


def cosine(a, b):
    dot = sum(u * v for u, v in zip(a, b, strict=True))
    return dot / (math.sqrt(sum(u * u for u in a)) * math.sqrt(sum(v * v for v in b)))


def define(x, k):
    """Algorithm 1: the rows chosen, in order of selection; ties go to the lowest index, no row is chosen twice.

    The first is the one whose nearest neighbour is farthest: the second smallest of its distances, its own being 0.
    """
    rows = x.double().tolist()
    distance = [[1 - cosine(a, b) for b in rows] for a in rows]
    left = list(range(len(rows)))
    nearest = {i: min((distance[i][j] for j in left if j != i), default=0.0) for i in left}
    chosen = []
    while len(chosen) < k:
        isolation = nearest if not chosen else {i: min(distance[i][j] for j in chosen) for i in left}
        chosen.append(max(left, key=lambda i: (isolation[i], -i)))
        left.remove(chosen[-1])
    return chosen


@defines("divprune", "order")
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("keep", "count"), [(1, 1), (2, 2), (9, 9), (40, 40), (0.3, 12)])
def test_against_the_definition(seed, keep, count):
    """Released code puts the chosen tokens in order of the picture; the paper's numbers were made without."""
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(seed))
    chosen = define(x, count)
    assert vtc.select(vtc.DivPrune(keep=keep, order="selection"), x).anchor.tolist() == chosen
    assert vtc.select(vtc.DivPrune(keep=keep, order="raster"), x).anchor.tolist() == sorted(chosen)
    assert vtc.DivPrune(keep=keep).order == "raster"


@defines("divprune", "order")
@pytest.mark.parametrize("seed", range(5))
def test_ties_and_duplicates_against_the_definition(seed):
    """Four ones and signs: norms of 2 and products that no rounding touches, so that equal cosines are equal."""
    g = torch.Generator().manual_seed(seed)
    x = torch.zeros(30, 6)
    for row in x:
        row[torch.randperm(6, generator=g)[:4]] = torch.randint(0, 2, (4,), generator=g) * 2.0 - 1
    x[20:] = x[:10]
    x[7] = -x[3]
    for keep in (3, 15, 28):
        anchors = vtc.select(vtc.DivPrune(keep=keep, order="selection"), x).anchor.tolist()
        assert anchors == define(x, keep)


def test_length_does_not_count():
    x = torch.randn(40, 8)
    scaled = x * (torch.rand(40, 1) + 0.5)
    assert torch.equal(vtc.select(vtc.DivPrune(keep=9), x).anchor, vtc.select(vtc.DivPrune(keep=9), scaled).anchor)


def test_one_token_of_each_cluster():
    centers = torch.eye(6)
    x = centers.repeat_interleave(5, 0) + 0.01 * torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    anchors = vtc.select(vtc.DivPrune(keep=6), x).anchor
    assert (anchors // 5).tolist() == [0, 1, 2, 3, 4, 5]


def test_the_paper_s_default_keeps_56_of_576():
    assert vtc.select("divprune", torch.randn(576, 8)).tokens_out == 56


def test_equal_tokens_leave_the_first_ones():
    assert vtc.select(vtc.DivPrune(keep=10), torch.ones(36, 4)).anchor.tolist() == list(range(10))
