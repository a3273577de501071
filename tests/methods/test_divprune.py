"""divprune: farthest-first in cosine distance."""

import pytest
import torch

import vtc


def define(x, k):
    """methods.md, section 5, on the full distance matrix D = 1 - cosine; no token twice."""
    x = x.double()
    n = len(x)
    distance = [[1 - float(torch.cosine_similarity(x[i], x[j], dim=0)) for j in range(n)] for i in range(n)]
    nearest = [min((distance[i][j] for j in range(n) if j != i), default=0.0) for i in range(n)]
    chosen = [max(range(n), key=lambda i: (nearest[i], -i))]
    while len(chosen) < k:
        left = [i for i in range(n) if i not in chosen]
        chosen.append(max(left, key=lambda i: (min(distance[i][j] for j in chosen), -i)))
    return chosen


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("keep", [1, 2, 9, 40])
def test_against_the_definition(seed, keep):
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(seed))
    chosen = define(x, keep)
    assert vtc.select(vtc.DivPrune(keep=keep, order="selection"), x).anchor.tolist() == chosen
    assert vtc.select(vtc.DivPrune(keep=keep), x).anchor.tolist() == sorted(chosen)


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
