"""todre, stage 1: diversity grown from a pivot."""

import pytest
import torch

import vtc
from vtc.layout import Tile, VisualSpan
from vtc.signals import VisualTokens


def define(x, k, pivot, mode):
    """methods.md, section 2: s is the summed (maxsum) or largest (kcenter) similarity to the chosen ones."""
    x = x.double()
    cosine = torch.stack([torch.cosine_similarity(x, row[None]) for row in x]).tolist()
    chosen = [pivot]
    while len(chosen) < k:
        reduce = sum if mode == "maxsum" else max
        left = [i for i in range(len(x)) if i not in chosen]
        chosen.append(min(left, key=lambda i: (reduce(cosine[c][i] for c in chosen), i)))
    return sorted(chosen)


@pytest.mark.parametrize("mode", ["maxsum", "kcenter"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keep", [1, 2, 9, 40])
def test_against_the_definition(mode, seed, keep):
    g = torch.Generator().manual_seed(seed)
    x, attention = torch.randn(40, 8, generator=g), torch.rand(40, generator=g)
    selection = vtc.select(vtc.ToDRE(keep=keep, mode=mode), x, cls_attention=attention)
    assert selection.anchor.tolist() == define(x, keep, int(attention.argmax()), mode)


def test_the_two_modes_differ():
    x, attention = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), torch.arange(60.0)
    chosen = [
        vtc.select(vtc.ToDRE(keep=12, mode=m), x, cls_attention=attention).anchor.tolist()
        for m in ("maxsum", "kcenter")
    ]
    assert chosen[0] != chosen[1]


def test_pivots_by_the_features_alone():
    """ "center" is the token most similar to the mean direction, "farthest" the least similar one."""
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(2))
    unit = x.double() / x.double().norm(dim=1, keepdim=True)
    similarity = [float(row @ unit.mean(0)) for row in unit]
    for pivot, expected in (("center", max(similarity)), ("farthest", min(similarity))):
        (anchor,) = vtc.select(vtc.ToDRE(keep=1, pivot=pivot), x).anchor.tolist()
        assert similarity[anchor] == pytest.approx(expected)


def test_a_random_pivot_is_seeded():
    x = torch.randn(500, 6)
    drawn = [vtc.select(vtc.ToDRE(keep=1, pivot="random", seed=s), x).anchor.item() for s in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 4


def test_only_the_cls_pivot_asks_for_attention():
    assert vtc.ToDRE().requires() == ("cls_attention",)
    assert vtc.ToDRE(pivot="center").requires() == ()
    with pytest.raises(ValueError, match="needs the signal 'cls_attention'"):
        vtc.select(vtc.ToDRE(), torch.randn(9, 2))


def test_the_pivot_comes_from_the_thumbnail():
    tiles = (Tile(0, 1, 2, 4, role="crop"), Tile(8, 1, 2, 2, role="thumbnail"))
    span = VisualSpan(row=0, index=torch.arange(12), grid=(1, 2, 4), tiles=tiles)
    attention = torch.tensor([[9.0] * 8 + [0.1, 0.3, 0.4, 0.2]])
    tokens = VisualTokens(torch.randn(12, 3), span, torch.arange(12), {"cls_attention": attention}.__getitem__)
    assert vtc.ToDRE(keep=1).select(tokens).anchor.tolist() == [10]


def test_the_pivot_is_read_from_the_last_layer():
    assert vtc.ToDRE().tower_layers(24, 22) == (23,)


@pytest.mark.parametrize("mode", ["maxsum", "kcenter"])
def test_equal_tokens_leave_the_first_ones(mode):
    x, attention = torch.ones(36, 4), torch.ones(36)
    selection = vtc.select(vtc.ToDRE(keep=10, mode=mode), x, cls_attention=attention)
    assert selection.anchor.tolist() == list(range(10))
