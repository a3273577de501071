"""FrameFusion: what merges, when it ends, and what the prune comes to."""

from itertools import pairwise

import pytest
import torch

import vtc
from tests.families import batch, model_of
from tests.methods.clips import clip_tokens, cosine, random_clip, still_clip
from vtc.methods.framefusion import FuseLayers


def define(x, t, hw, similar, least, left=None):
    """Runs of similar tokens at one place, of those left: a list of runs; at most as many merge as leave `least`."""
    left = set(range(t * hw)) if left is None else set(left)
    pairs = {}
    for place in range(hw):
        here = [i for i in range(place, t * hw, hw) if i in left]
        pairs |= {b: cosine(x[a], x[b]) for a, b in pairwise(here)}
    best = sorted((b for b in pairs if pairs[b] >= similar), key=lambda b: (-pairs[b], b))
    merging = set(best[: max(0, len(left) - least)])
    runs = []
    for place in range(hw):
        for i in range(place, t * hw, hw):
            if i in merging:
                runs[-1].append(i)
            elif i in left:
                runs.append([i])
    return sorted(runs)


def runs_of(selection, left=None):
    left = list(range(selection.tokens_in)) if left is None else left
    return [[left[i] for i in range(len(left)) if selection.source[i] == m] for m in range(selection.tokens_out)]


@pytest.mark.parametrize("similar", [-1.0, 0.0, 0.3, 0.9])
@pytest.mark.parametrize("keep", [1, 30, 60, 96])
def test_merging_against_the_definition(similar, keep):
    x = random_clip(96)
    selection = vtc.select(vtc.FrameFusion(keep=keep, similar=similar), x, grid=(8, 3, 4))
    runs = define(x, 8, 12, similar, keep)
    assert runs_of(selection) == runs
    expected = torch.stack([x[run].mean(dim=0) for run in runs])
    torch.testing.assert_close(selection.apply(x), expected)


def test_merging_after_an_earlier_stage():
    x, left = random_clip(98), sorted({*range(0, 96, 2), *range(30, 60), 97})
    selection = vtc.FrameFusion(keep=5, similar=0.1).select(clip_tokens(x, (8, 3, 4), left, separators=2))
    assert runs_of(selection, left) == [*define(x, 8, 12, 0.1, 5, set(left) - {97}), [97]]


def test_a_still_scene_becomes_one_frame():
    selection = vtc.select(vtc.FrameFusion(keep=0.01), still_clip(8), grid=(8, 3, 4))
    assert selection.anchor.tolist() == list(range(12))
    assert selection.source.tolist() == [i % 12 for i in range(96)]


def test_when_it_merges_and_when_it_prunes():
    method = FuseLayers(keep=20, ratio=0.1)
    assert method.steps(4) == (1, 2, 3)
    assert method.due(100, (80,), 28)  # 20 % merged: go on
    assert method.due(100, (80, 78), 28)  # less than 10 %: the prune is due
    assert not method.due(100, (80, 78, 20), 28)
    assert not method.due(100, (20,), 28)  # merging alone has met the budget
    x, signals = still_clip(8), {"last_attention": torch.arange(96) % 7 + 0.0}
    merged = method.select(clip_tokens(x, (8, 3, 4), signals=signals, counts=(80, 70), depth=28))
    assert merged.merges
    pruned = method.select(clip_tokens(x, (8, 3, 4), signals=signals, counts=(80, 79), depth=28))
    assert pruned.anchor.tolist() == sorted(sorted(range(96), key=lambda i: (-(i % 7), i))[:20])
    last = method.select(clip_tokens(x, (8, 3, 4), signals=signals, counts=(80, 70, 60), depth=4))
    assert not last.merges
    assert last.tokens_out == 20


@pytest.mark.parametrize("similar", [0.99, 0.3, -1.0])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("keep", [0.5, 0.7, 24])
def test_the_budget_is_met(keep, average, similar):
    """In a model: at the end, or on average over the layers to within a token."""
    model, inputs = model_of("llava_onevision"), batch("llava_onevision", [["v0"]])
    with vtc.wrapped(model, vtc.FrameFusion(keep=keep, average=average, similar=similar)):
        model(**inputs)
        report = vtc.report(model)
    wanted = round(keep * 37) if isinstance(keep, float) else keep
    if average:
        assert abs(report.tokens_average - wanted) < 1
    else:
        assert report.tokens_out == wanted


def test_every_video_at_its_own_pace():
    """A batch gives each video what it gets alone."""
    model = model_of("qwen2_5_vl")
    with vtc.wrapped(model, vtc.FrameFusion(keep=0.4, similar=0.3)):
        model(**batch("qwen2_5_vl", [["v0", 0], [], ["v2", "v1"]]))
        many = {span.grid: span.source.tolist() for span in vtc.report(model).spans if span.modality == "video"}
        model(**batch("qwen2_5_vl", [["v0", 0]]))
        first = vtc.report(model).spans[0]
    assert many[first.grid] == first.source.tolist()
    assert len(many) == 3


@pytest.mark.parametrize("options", [{"similar": 1.5}, {"similar": True}, {"ratio": -0.1}, {"ratio": "low"}])
def test_bad_options(options):
    (name,) = options
    with pytest.raises((ValueError, TypeError), match=rf"^{name}=[^\n]* is not a number in [^\n]*\.$"):
        vtc.FrameFusion(**options)


def test_a_mean_that_no_prune_can_meet():
    with pytest.raises(ValueError, match=r"framefusion cannot keep \d+ of 10000 visual tokens on average"):
        vtc.wrap(model_of("llava_onevision"), vtc.FrameFusion(keep=0.3, average=True))
