"""DyCoke: which tokens of a window stay, and which are active while decoding."""

import pytest
import torch

import vtc
from tests.methods.clips import clip_tokens, cosine, random_clip, still_clip
from vtc.methods.dycoke import Resting


def define(x, t, hw, share, left=None):
    """The paper's rule, frame by frame: `share[f]` tokens of frame f stay, those least like the frame they go by."""
    left = set(range(t * hw)) if left is None else set(left)
    kept = []
    for f in range(t):
        own = [f * hw + p for p in range(hw) if f * hw + p in left]
        place = f % 4
        if place == 0:
            kept += own
            continue
        other = f - 2 if place == 2 else f - 1
        likeness = {i: cosine(x[i], x[i - (f - other) * hw]) if i - (f - other) * hw in left else -2 for i in own}
        kept += sorted(own, key=lambda i: (likeness[i], i))[: share[f]]
    return sorted(kept)


@pytest.mark.parametrize("t", [1, 2, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("k", [0.0, 0.5, 0.7, 1.0])
def test_the_papers_k_keeps_so_many_whatever_the_video(t, k):
    for x in (random_clip(t * 20), still_clip(t, 4, 5)):
        selection = vtc.select(vtc.DyCoke(k=k, keep=3), x, grid=(t, 4, 5))
        few = {0.0: 20, 0.5: 10, 0.7: 6, 1.0: 0}[k]
        assert selection.anchor.tolist() == define(x, t, 20, [few] * t)
        whole = -(-t // 4)
        assert selection.tokens_out == 20 * whole + few * (t - whole)


def test_the_default_is_the_papers_k():
    x = random_clip(160)
    ours = vtc.select("dycoke", x, grid=(8, 4, 5))
    assert ours.anchor.tolist() == vtc.select(vtc.DyCoke(k=0.7), x, grid=(8, 4, 5)).anchor.tolist()
    assert ours.tokens_out == 0.475 * 160


@pytest.mark.parametrize("keep", [40, 41, 47, 100, 0.5, 159, 160])
def test_a_budget_is_exact_and_shared_by_the_later_frames(keep):
    x = random_clip(160)
    selection = vtc.select(vtc.DyCoke(keep=keep), x, grid=(8, 4, 5))
    count = round(keep * 160) if isinstance(keep, float) else keep
    frames = torch.bincount(selection.anchor // 20, minlength=8).tolist()
    assert sum(frames) == count
    assert frames[0] == frames[4] == 20
    later = frames[1:4] + frames[5:]
    assert max(later) - min(later) <= 1
    assert selection.anchor.tolist() == define(x, 8, 20, frames)


@pytest.mark.parametrize("keep", [1, 5, 0.1, 39])
def test_small_budgets_thin_the_first_frames(keep):
    selection = vtc.select(vtc.DyCoke(keep=keep), random_clip(160), grid=(8, 4, 5))
    assert selection.tokens_out == (16 if keep == 0.1 else keep)
    assert set((selection.anchor // 20).tolist()) <= {0, 4}
    shared = vtc.select(vtc.DyCoke(keep=20, first=0.5), random_clip(160), grid=(8, 4, 5))
    assert int((shared.anchor // 20 % 4 == 0).sum()) == 10
    assert shared.tokens_out == 20


def test_what_moves_stays():
    x = still_clip(8)
    moved = [1 * 12 + 3, 2 * 12 + 5, 3 * 12 + 5, 6 * 12 + 7]
    x[moved] = -x[moved]
    kept = set(vtc.select(vtc.DyCoke(k=0.9), x, grid=(8, 3, 4)).anchor.tolist())
    assert {15, 29, 79} <= kept
    assert 41 not in kept  # as in the frame before, which the fourth frame goes by


def test_after_an_earlier_stage():
    """A clip with holes and a newline: a token without counterpart counts as new."""
    x, left = random_clip(97), sorted({*range(0, 96, 3), *range(12, 40), 96})
    tokens = clip_tokens(x, (8, 3, 4), left, separators=1)
    sizes = [sum(f * 12 <= i < f * 12 + 12 for i in left) for f in range(8)]
    shares = [int(0.5 * size + 1e-6) for size in sizes]
    kept = [left[i] for i in vtc.DyCoke(k=0.5).select(tokens).anchor.tolist()]
    assert kept == [*define(x, 8, 12, shares, set(left) - {96}), 96]
    exact = vtc.DyCoke(keep=20).select(tokens).check()
    assert exact.tokens_out == 20
    assert left[int(exact.anchor[-1])] != 96


def test_what_is_active():
    """The best of each row by itself, counted from that row's own tokens; ties to the lowest index."""
    attention = torch.tensor([[0.1, 0.5, 0.2, 0.9, 0.3], [0.2, 0.2, 0.2, 0.2, 0.9], [0.0, 0.1, 0.2, 0.3, 0.4]])
    visual = torch.tensor([[1, 1, 1, 0, 1], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]]).bool()
    for keep in (0.5, 2):
        active = Resting(keep=keep).active(attention, visual)
        assert active.tolist() == [[False, True, False, False, True], [True, True, False, False, False], [False] * 5]
    assert Resting(keep=0.01).active(attention, visual).sum(dim=1).tolist() == [1, 1, 0]


def test_what_is_stale():
    before, now = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.8, 0.6], [2.0, 2.0]])
    assert Resting(refresh=0.9).stale(before, now).tolist() == [True, False]
    assert Resting(refresh=0.7).stale(before, now).tolist() == [False, False]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": 1.5}, "k=1.5 is not a number in"),
        ({"k": True}, "k=True is not a number in"),
        ({"first": 0.0}, r"first=0\.0 is not a number in \(0, 1\]"),
        ({"p": 1.0}, r"p=1\.0 is not a number in \[0, 1\)"),
        ({"p": -0.1}, "p=-0.1 is not a number in"),
        ({"refresh": 2.0}, "refresh=2.0 is not a number in"),
        ({"layer": 0}, "layer=0 is not a whole number of 1 or more"),
        ({"layer": "three"}, "layer='three' is not a number in"),
        ({"windows": "short"}, "windows='short' is not one of paper, released"),
        ({"scope": "frame"}, "scope='frame' is not one of"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises((ValueError, TypeError), match=says) as caught:
        vtc.DyCoke(**options)
    assert "\n" not in str(caught.value)


def test_parts():
    one, two = vtc.DyCoke(keep=0.5, p=0.6, layer=5).parts()
    assert (one.stage, two.stage, two.keep, two.first) == ("input", "cache", 0.4, 5)  # type: ignore[attr-defined]
    assert vtc.DyCoke(p=None).parts() == (vtc.DyCoke(p=None),)
    with pytest.raises(ValueError, match="chooses in every decode step"):
        Resting(every=2)
