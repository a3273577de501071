"""Methods inside the language model: schedules, and each choice against a definition written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

import vtc
from vtc.budget import layer_average
from vtc.layout import single_span
from vtc.methods.visiondrop import VisualVote
from vtc.signals import VisualTokens

N = 36


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- schedules -----------------------------------------------------------------------------------------------------


def test_the_papers_numbers():
    """576 tokens, 32 layers: the counts that the papers and their code give."""
    assert vtc.TransPrune().steps(32) == (7, 9, 12)
    assert vtc.TransPrune().counts(576, 32) == (504, 360, 72)
    assert layer_average((504, 360, 72), (7, 9, 12), 576, 32) == 236.25
    assert vtc.PyramidDrop().steps(32) == (8, 16, 24)
    assert vtc.PyramidDrop().counts(576, 32) == (288, 144, 72)
    assert vtc.SparseVLM().steps(32) == (3, 7, 16)
    assert vtc.SparseVLM().counts(576, 32) == (300, 200, 110)
    assert vtc.FastV().steps(32) == (2,)
    assert vtc.FastV().counts(576, 32) == (288,)
    assert vtc.DART().counts(576, 32) == (64,)
    first, vote = vtc.VisionDrop(keep=32).parts()
    x, attention = torch.zeros(576, 4), torch.rand(576)
    assert vtc.select(first, x, cls_attention=attention, keys=torch.randn(576, 4)).tokens_out == 48
    assert (vote.steps(32), vote.counts(576, 32)) == ((8, 16, 24), (35, 26, 19))  # type: ignore[attr-defined]


def test_fractions_of_depth_and_shallow_models():
    assert vtc.PyramidDrop().steps(6) == (2, 3, 4)
    assert vtc.TransPrune().steps(3) == (1,)  # three steps fall on one layer: one step, with the last budget
    assert vtc.TransPrune().counts(100, 3) == (12,)
    assert vtc.FastV(layers=0.5).steps(24)  # type: ignore[arg-type]
    assert vtc.FastV(layers=(0.5,)).steps(24) == (12,)


def test_budgets_by_layer():
    method = vtc.PyramidDrop(layers=(1, 2, 5), keeps=(0.5, 100, 0.1))
    assert method.counts(576, 8) == (288, 100, 58)
    assert vtc.PyramidDrop(keep=1.0).counts(576, 8) == (576, 576, 576)
    assert vtc.PyramidDrop(keep=10**6).counts(576, 8) == (576, 576, 576)


@pytest.mark.parametrize("mean", [150, 192, 288, 400, 576])
@pytest.mark.parametrize("depth", [4, 24, 32])
def test_average_budgets(mean, depth):
    for method in (vtc.PyramidDrop, vtc.TransPrune, vtc.SparseVLM, vtc.FastV, vtc.DART):
        asked = method(keep=mean, average=True)
        steps = asked.steps(depth)
        least = layer_average((1,) * len(steps), steps, 576, depth)
        if mean < least:
            with pytest.raises(ValueError, match=rf"cannot keep {mean} of 576 visual tokens on average"):
                asked.counts(576, depth)
            continue
        got = layer_average(asked.counts(576, depth), steps, 576, depth)
        assert abs(got - mean) <= 1.5


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: vtc.FastV(layers=(0,)), "layers=0 is not a whole number of 1 or more"),
        (lambda: vtc.FastV(layers=(-1,)), "layers=-1 is not a whole number of 1 or more"),
        (lambda: vtc.FastV(layers=(1.5,)), r"layers=1\.5 is not a number in \(0, 1\): .*a share of the depth"),
        (lambda: vtc.FastV(layers=(math.nan,)), "layers=nan is not a number in"),
        (lambda: vtc.FastV(layers=("two",)), "not a number"),  # type: ignore[arg-type]
        (lambda: vtc.FastV(layers=()), "at least one layer"),
        (lambda: vtc.PyramidDrop(keeps=(0.5, 0.2)), "2 budgets for 3 layers"),
        (lambda: vtc.PyramidDrop(keeps=(0.1, 0.2, 0.3)), "grows"),
        (lambda: vtc.PyramidDrop(keeps=(0.3, 0.2, 0.1), average=True), "either keeps= or average"),
        (lambda: vtc.SparseVLM(recycle=2), "recycle=2 is not a number in"),
        (lambda: vtc.DART(pivots=0), "pivots=0"),
        (lambda: vtc.DART(order="place"), 'order=.place. is not one of "norm", "released"'),
        (lambda: vtc.ToDRE(tau=3), "tau=3 is not a number in"),
        (lambda: vtc.ToDRE(check=0), "check=0 is not a whole number of 1 or more"),
        (lambda: vtc.MustDrop(share=-1), "share=-1 is not a number in"),
        (lambda: vtc.MustDrop(similar=2), "similar=2 is not a number in .*a cosine"),
    ],
)
def test_impossible_schedules(build, says):
    with pytest.raises((ValueError, TypeError), match=says) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_layers_that_a_model_does_not_have():
    with pytest.raises(ValueError, match="this model's layers are 0 to 3"):
        vtc.FastV(layers=(4,)).steps(4)
    with pytest.raises(ValueError, match="do not ascend"):
        vtc.PyramidDrop(layers=(3, 2, 0.9)).steps(8)


# -- what is chosen ------------------------------------------------------------------------------------------------


def best(score, k):
    return sorted(sorted(range(len(score)), key=lambda i: (-float(score[i]), i))[:k])


def test_visiondrop_votes_and_absorbs():
    x, votes, keys = seeded(N, 8), seeded(N, seed=1), seeded(N, 2, 5, seed=2)
    chosen = vtc.select(VisualVote(keep=13), x, visual_attention=votes, layer_keys=keys)
    few = round(13 * 3 / 19)  # the last step's share
    dominant = best(votes, 13 - few)
    rest = [i for i in range(N) if i not in dominant]
    targets = [rest[j * (len(rest) // few)] for j in range(few)]
    assert chosen.anchor.tolist() == [*dominant, *targets]
    mean_keys = keys.mean(1)
    out = chosen.apply(x)
    absorbed = {t: [] for t in targets}
    for i in rest:
        if i not in targets:
            absorbed[
                max(targets, key=lambda t: float(torch.cosine_similarity(mean_keys[i], mean_keys[t], dim=0)))
            ].append(i)
    for m, t in enumerate(targets):
        expected = x[t] + (x[absorbed[t]].mean(0) if absorbed[t] else 0)
        torch.testing.assert_close(out[len(dominant) + m], expected)


@pytest.mark.parametrize("keep", [1, 2, 3, 100, 288, 500, 576, 0.1, 0.25, 0.8, 0.9, 0.97, 1.0])
@pytest.mark.parametrize("depth", [2, 3, 4, 7, 24, 28, 32])
def test_visiondrops_mean_is_its_budget(keep, depth):
    """In layers of any number, with counts that the picture's size cuts off."""
    total = 576
    first, vote = vtc.VisionDrop(keep=keep).parts()
    signals: dict[str, torch.Tensor] = {}
    index, span = torch.arange(total), single_span(total, None)
    opening = first.count(VisualTokens(torch.zeros(total, 1), span, index, signals.__getitem__, depth=depth))
    steps, counts = vote.steps(depth), vote.counts(total, depth)  # type: ignore[attr-defined]
    edges = [0, *steps, depth]
    seen = [opening, *counts]
    assert seen == sorted(seen, reverse=True)
    mean = sum(count * (edges[i + 1] - edges[i]) for i, count in enumerate(seen)) / depth
    wanted = keep if isinstance(keep, int) else round(keep * total)
    assert abs(mean - wanted) <= 0.5


def test_visiondrops_last_count_is_its_budget_without_the_average():
    for keep in (1, 100, 576, 0.25, 1.0):
        vote = vtc.VisionDrop(keep=keep, average=False).parts()[1]
        assert vote.counts(576, 32)[-1] == (keep if isinstance(keep, int) else round(keep * 576))  # type: ignore
    assert vtc.VisionDrop(keep=19, average=False).parts()[1].counts(576, 32) == (35, 26, 19)  # type: ignore
