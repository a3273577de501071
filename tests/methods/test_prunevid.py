"""PruneVid: segments, what stands still, clusters, and what the question keeps."""

import pytest
import torch

import vtc
from tests.families import batch, model_of
from tests.methods.clips import clip_tokens, cosine, random_clip, still_clip
from vtc.methods.prunevid import AskOnce
from vtc.methods.shared.segments import segments, still_places
from vtc.methods.shared.still import MergeStill


def scenes():
    """Twelve frames of 3 x 4: five of one still scene, seven of another, in which one place flickers."""
    x = torch.cat([still_clip(5, seed=1), still_clip(7, seed=2)])
    x[[f * 12 + 4 for f in range(5, 12)]] = random_clip(7, seed=3)
    return x


@pytest.mark.parametrize(
    ("labels", "runs"),
    [
        ([0, 0, 0, 1, 1], [(0, 3), (3, 5)]),
        ([0, 0, 0, 1, 0, 0], [(0, 6)]),  # a run of one frame joins its neighbours; so does a second, shorter run
        ([0, 0, 1, 1, 1, 0], [(0, 2), (2, 6)]),
        ([0, 1, 1], [(0, 3)]),
        ([0], [(0, 1)]),
    ],
)
def test_segments(monkeypatch, labels, runs):
    found = torch.zeros(2, dtype=torch.long), torch.tensor(labels)
    monkeypatch.setattr("vtc.ops.dpc_knn", lambda *args: found)
    assert segments(torch.zeros(len(labels), 3), 2, 7) == runs


def test_segments_are_scenes():
    means = scenes().view(12, 12, 8).mean(dim=1)
    assert segments(means, 3, 7) == [(0, 5), (5, 12)]


@pytest.mark.parametrize("save", [1000, 17, 3, 0])
def test_what_stands_still(save):
    """Mean cosine over all pairs above tau; the most still first, while they save no more than asked."""
    x, runs, tau = random_clip(72), [(0, 2), (2, 6)], 0.1
    rows = torch.arange(72).view(6, 12)
    rows[3, 5] = rows[2, 6] = rows[4, 6] = rows[5, 6] = -1
    still = still_places(torch.nn.functional.normalize(x, dim=-1), rows, runs, tau, save)
    likeness = {}
    for r, (first, last) in enumerate(runs):
        for p in range(12):
            own = [int(i) for i in rows[first:last, p] if i >= 0]
            pairs = [cosine(x[a], x[b]) for a in own for b in own if a < b]
            if pairs and sum(pairs) / len(pairs) > tau:
                likeness[r, p] = sum(pairs) / len(pairs), len(own) - 1
    expected, saved = set(), 0
    for place in sorted(likeness, key=lambda place: -likeness[place][0]):
        saved += likeness[place][1]
        if saved > save:
            break
        expected.add(place)
    assert {(int(r), int(p)) for r, p in still.nonzero()} == expected


def test_the_papers_counts():
    """Half of the still places of each segment, half of the moving tokens of each frame, rounded down, one at least."""
    selection = vtc.select(vtc.PruneVid(ratio=0.5, whole=0), scenes(), grid=(12, 3, 4))
    assert selection.tokens_out == 12 // 2 + 11 // 2 + 7 * 1
    moving = [f * 12 + 4 for f in range(5, 12)]
    assert set(moving) <= set(selection.anchor.tolist())
    for m, a in enumerate(selection.anchor.tolist()):
        members = (selection.source == m).nonzero()[:, 0].tolist()
        if a in moving:
            assert members == [a]
        else:  # whole segments of places, from their first frame on
            places, frames = {i % 12 for i in members}, {i // 12 for i in members}
            assert frames in ({*range(5)}, {*range(5, 12)})
            assert len(members) == len(places) * len(frames)
            assert a // 12 == min(frames)
    torch.testing.assert_close(
        selection.apply(scenes())[0], scenes()[(selection.source == 0).nonzero()[:, 0]].mean(dim=0)
    )
    assert (selection.source >= 0).all()


@pytest.mark.parametrize("keep", [1, 5, 24, 50, 131, 140, 144, 0.3, 1.0])
@pytest.mark.parametrize("x", [scenes(), random_clip(144), torch.ones(144, 8)])
def test_budgets_are_exact(x, keep):
    selection = vtc.select(MergeStill(keep=keep), x, grid=(12, 3, 4))
    assert selection.tokens_out == (round(keep * 144) if isinstance(keep, float) else keep)
    if selection.tokens_out == 144:
        assert selection.is_identity


def test_after_an_earlier_stage():
    left = sorted({*range(0, 144, 2), *range(30, 60), 145})
    x = torch.cat([scenes(), random_clip(2)])
    for keep in (1, 20, len(left) - 1, len(left)):
        selection = MergeStill(keep=keep).select(clip_tokens(x, (12, 3, 4), left, separators=2)).check()
        assert selection.tokens_out == keep
        assert (selection.source[-1] >= 0) == (keep == len(left))  # the separator goes first


def test_the_question_chooses():
    peak = torch.rand(96, generator=torch.Generator().manual_seed(0))
    tokens = clip_tokens(random_clip(96), (8, 3, 4), signals={"peak_attention": peak}, depth=32)
    assert AskOnce(keep=10).select(tokens).anchor.tolist() == sorted(peak.topk(10).indices.tolist())
    assert AskOnce(keep=10, alpha=0.4).select(tokens).tokens_out == round(0.4 * 96)
    assert vtc.PruneVid().parts()[1].steps(32) == (11,)  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", ["llava_onevision", "qwen3_vl"])
def test_peak_attention_is_the_largest_of_any_head(family):
    """What the method hears equals the maximum of the softmax matrix that eager attention makes."""
    model, inputs = model_of(family, "eager"), batch(family, [["v0"]])
    attention = model(**inputs, output_attentions=True).attentions[0][0]  # [H, S, S]
    places = (inputs["input_ids"][0] == 5).nonzero()[:, 0]
    peak = attention[:, int(places[-1]) + 1 :, places].amax(dim=(0, 1))
    with vtc.wrapped(model, AskOnce(keep=6, layers=(1,))):
        model(**inputs)
        (span,) = vtc.report(model).spans
    assert span.kept.tolist() == sorted(peak.topk(6).indices.tolist())


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_in_a_model_the_budget_is_exact_and_the_cache_cut(family):
    model, inputs = model_of(family), batch(family, [["v0", 0], ["v2"]])
    with vtc.wrapped(model, vtc.PruneVid(keep=6, tau=0.0)):
        cache = model(**inputs, use_cache=True).past_key_values
        report = vtc.report(model)
    assert [span.tokens_out for span in report.spans if span.modality == "video"] == [6, 6]
    assert len({layer.keys.shape[2] for layer in cache.layers}) == 1
    image = next(span for span in report.spans if span.modality == "image")
    assert image.tokens_out == image.tokens_in


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ratio": 0.0}, "ratio=0.0 is not a number in"),
        ({"alpha": 1.5}, "alpha=1.5 is not a number in"),
        ({"cut": 0}, "cut=0 is not a number in"),
        ({"whole": -1}, "whole=-1 is not a whole number of 0 or more: it is a number of tokens"),
        ({"tau": -2.0}, "tau=-2.0 is not a number in"),
        ({"neighbours": 0}, "neighbours=0 is not a whole number of 1 or more"),
        ({"layer": 0}, "layer=0 is not a whole number"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(ValueError, match=says) as caught:
        vtc.PruneVid(**options)
    assert "\n" not in str(caught.value)
