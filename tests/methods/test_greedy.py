"""GreedyMethod: what a subclass says, batches of unequal pictures, and choosing in parts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import vtc
from tests.methods.definitions import defines
from vtc import ops
from vtc.layout import single_span
from vtc.methods.base.greedy import OBJECTIVES, GreedyMethod
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class Choice(GreedyMethod):
    """Any objective, by the features and their first column."""

    keep: int | float = 0.3
    aim: str = "maxmin"
    weighted: bool = True
    above: float = 0.2

    @property
    def objective(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.aim

    def weight(self, tokens):
        return tokens.features[:, 0].sigmoid() if self.weighted else None

    def threshold(self, tokens):
        return self.above


def tokens_of(x):
    return VisualTokens(x, single_span(len(x), None), torch.arange(len(x)), lambda name: torch.zeros(0))


def chosen_by_op(x, k, aim, weighted, above=0.2):
    """What the objective's op chooses of x [N, D], in order of selection."""
    weight = x[:, 0].sigmoid()[None] if weighted else None
    if aim in ("maxmin", "maxsum"):
        first = None if weight is None else weight.argmax(dim=1)
        return ops.greedy_diversity(x[None], k, aim, first)[0].tolist()
    if aim == "coverage":
        unit = x / x.norm(dim=1, keepdim=True)
        return ops.greedy_coverage((unit @ unit.T)[None], k, weight)[0].tolist()
    if aim == "determinantal":
        return ops.greedy_determinantal(x[None], k, weight)[0].tolist()
    even = torch.ones(1, len(x)) if weight is None else weight
    return ops.greedy_suppression(x[None], k, even, above)[0][0].tolist()


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("aim", OBJECTIVES)
def test_a_batch_of_unequal_pictures_is_chosen_as_each_alone(aim, weighted):
    g = torch.Generator().manual_seed(0)
    many = [torch.randn(n, 12, generator=g) for n in (40, 13, 27, 1)]
    method = Choice(aim=aim, weighted=weighted)
    found = method.select_many([tokens_of(x) for x in many])
    for x, selection in zip(many, found, strict=True):
        assert selection.anchor.tolist() == sorted(chosen_by_op(x, method.count(tokens_of(x)), aim, weighted))
        assert selection.check().ascending


@defines("GreedyMethod", "blocks")
@pytest.mark.parametrize("aim", OBJECTIVES)
@pytest.mark.parametrize(("keep", "blocks"), [(9, 2), (9, 3), (2, 5), (40, 4), (41, 4)])
def test_in_parts(aim, keep, blocks):
    """Stretches as equal as can be; each has its share of the budget, and chooses for itself."""
    x = torch.randn(41, 12, generator=torch.Generator().manual_seed(keep))
    count = min(blocks, keep)
    ends = [41 * (i + 1) // count for i in range(count)]
    starts = [0, *ends[:-1]]
    exact = [keep * (end - start) / 41 for start, end in zip(starts, ends, strict=True)]
    shares = [int(share + 1e-9) for share in exact]
    for i in sorted(range(count), key=lambda i: (shares[i] - exact[i], i))[: keep - sum(shares)]:
        shares[i] += 1
    kept = []
    for start, end, share in zip(starts, ends, shares, strict=True):
        kept += [start + i for i in chosen_by_op(x[start:end], share, aim, True)]
    assert vtc.select(Choice(keep=keep, aim=aim, blocks=blocks), x).anchor.tolist() == sorted(kept)


def test_parts_of_shipped_methods():
    x, attention = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40.0)
    halves = [vtc.select(vtc.DivPrune(keep=5), half).anchor for half in x.split(20)]
    assert vtc.select(vtc.DivPrune(keep=10, blocks=2), x).anchor.tolist() == [*halves[0], *(halves[1] + 20)]
    pivots = vtc.select(vtc.ToDRE(keep=2, blocks=2), x, cls_attention=attention)
    assert pivots.anchor.tolist() == [19, 39]  # each part begins with its own


def test_text_of_options():
    method = vtc.DivPrune(keep=10, blocks=2)
    assert str(method) == "divprune(keep=10, blocks=2)"
    assert vtc.resolve(str(method)) == method == vtc.Method.from_dict(method.as_dict())


def test_what_an_instance_of_todre_is():
    assert vtc.ToDRE(tau=None).exact_count
    assert not vtc.ToDRE(tau=None).query_aware
    assert not vtc.ToDRE().exact_count
    assert vtc.ToDRE().query_aware


def test_the_base_asks_for_what_is_missing():
    class Unclear(GreedyMethod):
        objective = "best"

    class Bare(GreedyMethod):
        objective = "suppression"

    with pytest.raises(
        TypeError, match=r"^Unclear\.objective is 'best', which is not one of maxmin, .* suppression\.$"
    ):
        vtc.select(Unclear(keep=2), torch.randn(4, 2))
    with pytest.raises(TypeError, match=r"^Bare suppresses what is alike: define threshold\(tokens\)\.$"):
        vtc.select(Bare(keep=2), torch.randn(4, 2))


@pytest.mark.parametrize("blocks", [0, -1, 1.5, True, "2"])
def test_refusals(blocks):
    with pytest.raises(
        (ValueError, TypeError), match=r"^blocks=.* is not a whole number of 1 or more: it is a number of"
    ):
        vtc.DivPrune(blocks=blocks)
