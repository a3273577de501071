"""Options that all methods of a base share, in plain numbers; those of the cache are in test_definition_cache.py."""

from __future__ import annotations

import math

import pytest
import torch

import vtc
from tests.families import batch, model_of
from tests.methods.clips import clip_tokens
from tests.methods.definitions import defines
from vtc.api import select_scoped


def shares(budget, sizes):
    """In proportion to the sizes, rounded down; what is left goes one by one to the largest remainders, then first."""
    exact = [budget * size / sum(sizes) for size in sizes]
    counts = [math.floor(x) for x in exact]
    for i in sorted(range(len(sizes)), key=lambda i: (counts[i] - exact[i], i))[: budget - sum(counts)]:
        counts[i] += 1
    return counts


@defines("Method", "scope")
@pytest.mark.parametrize("budget", [1, 7, 20, 35])
@pytest.mark.parametrize("left", [range(36), [*range(12), 13, 14, 15, *range(24, 36, 2)]], ids=["all", "some"])
def test_scope(left, budget):
    """ "clip" chooses among all tokens of a video, "frame" in each frame by itself, with its share of the budget."""
    x = torch.randn(36, 8, generator=torch.Generator().manual_seed(budget))
    left = list(left)
    budget = min(budget, len(left))
    tokens = clip_tokens(x, (3, 3, 4), left)

    def chosen(scope):
        method = vtc.DivPrune(keep=budget, scope=scope)
        return [left[i] for i in select_scoped(method, [tokens])[0].anchor.tolist()]

    def of(places, count):
        return [places[i] for i in vtc.select(vtc.DivPrune(keep=count), x[places]).anchor.tolist()]

    frames = [[i for i in left if i // 12 == frame] for frame in range(3)]
    each = [
        of(places, count) for places, count in zip(frames, shares(budget, list(map(len, frames))), strict=True) if count
    ]
    assert chosen("clip") == of(left, budget)
    assert chosen("frame") == [i for frame in each for i in frame]


@defines("LayerMethod", "layers", "keeps")
@pytest.mark.parametrize(
    ("layers", "keeps", "seen"),
    [
        ((1,), (20,), [36, 20, 20]),
        ((2,), (0.25,), [36, 36, 9]),
        ((1, 2), (20, 0.25), [36, 20, 9]),
        ((0.34, 0.6), (20, 7), [36, 20, 7]),  # layers 1.02 and 1.8 of three, rounded
        ((0.01, 0.99), (20, 7), [36, 20, 7]),  # never before the first layer, nor behind the last
        ((0.3, 0.4), (20, 7), [36, 7, 7]),  # both before layer 1: the later budget counts
        ((1, 2), (0.5, 100), [36, 18, 18]),  # tokens that are gone do not come back
    ],
)
def test_layers_and_their_budgets(layers, keeps, seen):
    """Tokens go before these layers (0-based, or a share of the depth): what each layer of the model then runs on."""
    model = model_of("llava")
    with vtc.wrapped(model, vtc.PyramidDrop(layers=layers, keeps=keeps)):
        model(**batch("llava", [[0]]))
        assert vtc.report(model).tokens_by_layer == seen


@defines("LayerMethod", "layers")
@pytest.mark.parametrize("keep", [1, 5, 20, 36, 0.5])
def test_the_papers_schedule_bent_to_a_final_budget(keep):
    """Its fractions to the one power that makes the last step `keep`; PyramidDrop's are 1/2, 1/4, 1/8."""
    last = keep if isinstance(keep, int) else round(keep * 36)
    power = math.log(last / 36) / math.log(1 / 8)
    wanted = [max(last, round(36 * share**power)) for share in (1 / 2, 1 / 4, 1 / 8)]
    assert list(vtc.PyramidDrop(keep=keep, layers=(2, 4, 6)).counts(36, 8)) == wanted


@defines("LayerMethod", "average")
@pytest.mark.parametrize("keep", [14, 20, 29, 36, 0.5])
@pytest.mark.parametrize(("layers", "starts"), [((1, 3, 6), (1, 3, 6)), ((0.25, 0.5, 0.75), (2, 4, 6))])
def test_the_papers_schedule_bent_to_an_average(layers, starts, keep):
    """With average=True to the power at which the mean over all layers is `keep`, or comes nearest from below."""
    asked = keep if isinstance(keep, int) else round(keep * 36)

    def mean(counts):
        seen = [36] * 8
        for start, count in zip(starts, counts, strict=True):
            seen[start:] = [count] * (8 - start)
        return sum(seen) / 8

    def bent(power):
        return [max(1, round(36 * share**power)) for share in (1 / 2, 1 / 4, 1 / 8)]

    turns = [math.log((m + 0.5) / 36) / math.log(share) for share in (1 / 2, 1 / 4, 1 / 8) for m in range(36)]
    means = [mean(bent(turn + side)) for turn in turns for side in (-1e-9, 1e-9)]  # counts change nowhere else
    best = max(found for found in means if found <= asked)
    assert mean(vtc.PyramidDrop(keep=keep, layers=layers, average=True).counts(36, 8)) == best
