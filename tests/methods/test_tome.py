"""tome and pitome: pairs that resemble each other merge, and every output is the mean of what went into it."""

import pytest
import torch

import vtc
from vtc import ops


@pytest.mark.parametrize("name", ["tome", "pitome"])
@pytest.mark.parametrize("keep", [1, 2, 13, 64, 99, 100])
def test_outputs_are_means_of_all_tokens(name, keep):
    x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    selection = vtc.select(name, x, keep=keep)
    assert selection.tokens_out == keep
    assert (selection.source >= 0).all()
    out = selection.apply(x)
    for i in range(keep):
        torch.testing.assert_close(out[i], x[selection.source == i].mean(dim=0), atol=1e-6, rtol=1e-5)


def test_one_round_is_the_papers_matching():
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    selection = vtc.select(vtc.ToMe(keep=30, rate=0.5), x)
    merged = ops.bipartite_match(x[None], 10, None)[0]
    stands = selection.anchor[selection.source]  # the token in whose place each one is
    assert stands.tolist() == merged.tolist()


def test_copies_merge_with_each_other():
    g = torch.Generator().manual_seed(0)
    kinds = 3 * torch.eye(5, 16)
    truth = torch.arange(5).repeat_interleave(8)[torch.randperm(40, generator=g)]
    x = kinds[truth] + 0.01 * torch.randn(40, 16, generator=g)
    selection = vtc.select("tome", x, keep=10)
    for i in range(10):
        assert truth[selection.source == i].unique().numel() == 1


def test_loners_are_protected():
    """A pair of near-opposites would be ToMe's last resort; PiToMe takes from the crowd as long as there is one."""
    g = torch.Generator().manual_seed(0)
    crowd = torch.ones(20, 32) + 0.2 * torch.randn(20, 32, generator=g)
    x = torch.cat([crowd, 3 * torch.eye(4, 32)])
    selection = vtc.select(vtc.PiToMe(keep=10), x)
    alone = selection.source[20:]
    assert alone.unique().numel() == 4
    assert all(int((selection.source == i).sum()) == 1 for i in alone)
