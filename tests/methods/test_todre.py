"""todre, stage 1: diversity grown from a pivot."""

import math

import pytest
import torch

import vtc
from tests.families import IMAGE, batch, model_of
from tests.methods.definitions import defines
from tests.methods.eager import eager
from vtc.layout import Tile, VisualSpan, single_span
from vtc.methods.todre import RelevanceCheck
from vtc.signals import VisualTokens


def likeness(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def define(x, k, pivot, mode):
    """arXiv 2505.18757: next is the token of least summed (maxsum) or largest (kcenter) similarity to the chosen."""
    x = x.double().tolist()
    cosine = [[likeness(a, b) for b in x] for a in x]
    chosen = [pivot]
    while len(chosen) < k:
        reduce = sum if mode == "maxsum" else max
        left = [i for i in range(len(x)) if i not in chosen]
        chosen.append(min(left, key=lambda i: (reduce(cosine[c][i] for c in chosen), i)))
    return sorted(chosen)


@defines("todre", "mode")
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


@defines("todre", "pivot")
@pytest.mark.parametrize("keep", [1, 8])
def test_pivots_by_the_features_alone(keep):
    """ "center" is the token most similar to the mean direction, "farthest" the least similar one."""
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(2))
    unit = [[number / math.hypot(*row) for number in row] for row in x.double().tolist()]
    mean = [sum(column) for column in zip(*unit, strict=True)]
    similarity = [likeness(row, mean) for row in unit]
    for pivot, choose in (("center", max), ("farthest", min)):
        chosen = vtc.select(vtc.ToDRE(keep=keep, pivot=pivot), x)
        assert chosen.anchor.tolist() == define(x, keep, similarity.index(choose(similarity)), "maxsum")


@defines("todre", "seed", "pivot")
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


# -- stage 2: all visual tokens or none ----------------------------------------------------------------------------


@defines("todre", "tau")
@pytest.mark.parametrize("tau", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("shares", [(0.05, 0.0), (0.05, 0.2), (0.2, 0.0), (0.1, 0.1), (0.5, 0.9)])
def test_all_go_if_both_shares_are_below_the_threshold(shares, tau):
    n = 36
    tokens = VisualTokens(torch.randn(n, 8), single_span(n, None), torch.arange(n), lambda name: torch.tensor(shares))
    check = vtc.ToDRE(tau=tau).parts()[1]
    assert isinstance(check, RelevanceCheck)
    gone = shares[0] < tau and shares[1] < tau
    assert check.select(tokens).tokens_out == (0 if gone else n)


@defines("todre", "check", "tau")
@pytest.mark.parametrize("check", [1, 2, 0.7])
def test_the_check_in_a_model(check):
    """Shares by loops over the eager attention of the layer before: text is what stands behind the first picture."""
    model, inputs = model_of("llava", "eager"), batch("llava", [[0, 1]])
    attention = model(**inputs, output_attentions=True).attentions[round(3 * check if check < 1 else check) - 1]
    heads = attention[0].mean(dim=0).tolist()
    visual = [i for i, word in enumerate(inputs["input_ids"][0].tolist()) if word == IMAGE]
    text = [i for i in range(visual[0], len(heads)) if i not in visual]
    heard = sum(heads[t][v] for t in text for v in visual) / sum(sum(heads[t]) for t in text)
    given = sum(heads[v][t] for v in visual for t in text) / sum(sum(heads[v]) for v in visual)
    assert 0 < given < heard
    for tau, gone in ((heard + 1e-4, True), (heard - 1e-4, False)):
        with vtc.wrapped(model, vtc.ToDRE(keep=1.0, tau=tau, check=check)):
            model(**inputs)
            assert vtc.report(model).tokens_out == (0 if gone else len(visual))


def test_stage_1_in_a_model():
    """The CLS row of the tower's last layer, and what the language model is given."""
    seen = eager()
    with torch.no_grad():
        tower = seen.model.model.vision_tower(seen.inputs["pixel_values"], output_attentions=True).attentions
    cls = tower[-1][0].mean(dim=0)[0, 1:].tolist()
    features = seen.states[0][seen.visual]
    expected = define(features, 9, cls.index(max(cls)), "maxsum")
    assert seen.kept(vtc.ToDRE(keep=9, tau=None)) == expected
