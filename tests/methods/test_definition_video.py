"""evs, uniform-frames, framefusion and quota as their papers define them, in loops."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import vtc
from tests.methods.clips import clip_tokens, random_clip, still_clip
from tests.methods.definitions import defines
from tests.methods.plain import best, cosine, mean, most_different, rows

HW = 12


@defines("evs", "first")
@pytest.mark.parametrize("first", [1.0, 0.6, 0.1])
@pytest.mark.parametrize("keep", [1, 5, 13, 30, 57, 60])
def test_evs(keep, first):
    """1 - cosine with the place one frame before, over the whole clip; `first` bounds what frame 0 takes of it."""
    t, x = 5, random_clip(5 * HW, seed=1)
    change = [2.0 if i < HW else 1 - cosine(rows(x)[i], rows(x)[i - HW]) for i in range(t * HW)]
    if first == 1:
        expected = best([math.inf] * HW + change[HW:], max(keep, HW))
    else:
        few = min(HW, max(1, round(first * keep), keep - (t - 1) * HW))
        later = best([-math.inf] * HW + change[HW:], keep - few)
        expected = sorted(most_different(rows(x)[:HW], few) + later)
    assert vtc.select(vtc.EVS(keep=keep, first=first), x, grid=(t, 3, 4)).anchor.tolist() == expected


@defines("uniform-frames")
@pytest.mark.parametrize(("t", "keep"), [(7, 1), (7, 25), (7, 59), (8, 48), (3, 36), (9, 0.5)])
def test_uniform_frames(t, keep):
    """As many whole frames as fit, each from the middle of an equal stretch of the clip."""
    budget = round(keep * t * HW) if isinstance(keep, float) else keep
    count = max(1, budget // HW)
    frames = [int((i + 0.5) * t / count) for i in range(count)]
    selection = vtc.select(vtc.UniformFrames(keep=keep), random_clip(t * HW), grid=(t, 3, 4))
    assert selection.anchor.tolist() == [f * HW + p for f in frames for p in range(HW)]


class Fusion:
    """FrameFusion on a clip that the layers pass on as it is: by the place of each token left, its value."""

    def __init__(self, x, t, wanted, similar):
        self.left, self.t, self.similar = dict(enumerate(x)), t, similar
        self.merge(wanted)

    def merge(self, least):
        """Each token into the one left at its place before it, the most similar first; runs become their mean."""
        alike = {}
        for p in range(HW):
            for a, b in pairwise(i for i in range(p, self.t * HW, HW) if i in self.left):
                alike[b] = cosine(self.left[a], self.left[b])
        order = sorted((b for b in alike if alike[b] >= self.similar), key=lambda b: (-alike[b], b))
        joining = set(order[: max(0, len(self.left) - least)])
        runs = {}
        for p in range(HW):
            start = p
            for i in (i for i in range(p, self.t * HW, HW) if i in self.left):
                start = start if i in joining else i
                runs.setdefault(start, []).append(self.left[i])
        self.left = {i: mean(run) for i, run in runs.items()}

    def prune(self, heard, count):
        kept = best([heard[i] for i in sorted(self.left)], count)
        self.left = {i: self.left[i] for n, i in enumerate(sorted(self.left)) if n in kept}


@defines("framefusion", "similar", "ratio", "average")
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("similar", [0.5, 0.8, 0.97])
@pytest.mark.parametrize(("keep", "ratio"), [(45, 0.1), (45, 0.02), (30, 0.3)])
def test_framefusion(keep, ratio, similar, average):
    """Section 4, through six layers: merge while that is worth it, then one prune that meets the budget."""
    depth, t, total = 6, 8, 8 * HW
    x = still_clip(t, noise=0.6, seed=4)
    heard = torch.rand(total, generator=torch.Generator().manual_seed(2))
    first, inside = vtc.FrameFusion(keep=keep, similar=similar, ratio=ratio, average=average).parts()
    chosen = first.select(clip_tokens(x, (t, 3, 4)))
    place, value = chosen.anchor.tolist(), chosen.apply(x)

    plain, seen, ended = Fusion(rows(x), t, keep, similar), [], False
    for layer in range(depth):
        budget = keep if not average else max(1, int((keep * depth - sum(seen)) / (depth - layer)))
        merged_much = layer == 0 or [total, *seen][layer - 1] - seen[-1] >= ratio * [total, *seen][layer - 1]
        if layer and len(plain.left) > budget and not ended:
            if merged_much and layer < depth - 1:
                plain.merge(budget)
            else:
                plain.prune(heard.tolist(), budget)
        ended = ended or not merged_much
        if layer and inside.due(total, tuple(seen), depth):  # type: ignore[attr-defined]
            signals = {"last_attention": heard[place]}
            full = torch.zeros(total, x.shape[1]).index_copy(0, torch.tensor(place), value)
            tokens = clip_tokens(full, (t, 3, 4), place, signals=signals, counts=tuple(seen), depth=depth)
            chosen = inside.select(tokens)
            place, value = [place[i] for i in chosen.anchor.tolist()], chosen.apply(value)
        assert place == sorted(plain.left), layer
        torch.testing.assert_close(value, torch.tensor([plain.left[i] for i in place]))
        seen.append(len(place))
    if average:
        assert abs(sum(seen) / depth - keep) < 1 or len(place) == 1
    else:
        assert len(place) == keep


def allocate(total, weights, least):
    """`least` tokens for each frame if that is possible, the rest by weight; what a full frame cannot take the others
    do; the largest remainders are rounded up."""
    got = [least if least * len(weights) <= total else 0] * len(weights)
    open_ = list(range(len(weights)))
    while True:
        rest, whole = total - sum(got), sum(weights[i] for i in open_)
        exact = {i: rest * weights[i] / whole for i in open_}
        full = [i for i in open_ if got[i] + exact[i] >= HW]
        if not full:
            break
        for i in full:
            got[i] = HW
        open_ = [i for i in open_ if i not in full]
    up = sorted(open_, key=lambda i: (math.floor(exact[i]) - exact[i], i))
    for i in open_:
        got[i] += math.floor(exact[i])
    for i in up[: total - sum(got)]:
        got[i] += 1
    return got


@defines("quota", "scorer", "within", "least", "power")
@pytest.mark.parametrize("within", ["pool", "divprune", "uniform"])
@pytest.mark.parametrize(
    ("keep", "options"), [(30, {}), (17, {"power": 0.5}), (9, {"least": 2}), (40, {"least": 0, "power": 5.0})]
)
@pytest.mark.parametrize("own", [False, True])
def test_quota(own, within, keep, options):
    """Tokens by the relevance of each frame, squared in the paper, by a scorer or by the model's own embeddings: for
    each word the most similar token, averaged, compared with other frames in standard deviations."""
    t, x = 6, random_clip(6 * HW, seed=3)
    words = torch.randn(4, 8, generator=torch.Generator().manual_seed(8))
    if own:
        best_of = [
            [max(cosine(rows(x)[f * HW + p], word) for p in range(HW)) for word in rows(words)] for f in range(t)
        ]
        score = [sum(row) / len(row) for row in best_of]
        middle = sum(score) / t
        spread = math.sqrt(sum((s - middle) ** 2 for s in score) / t)
        relevance = [1 / (1 + math.exp(-(s - middle) / spread)) for s in score]
        method = vtc.QuoTA(keep=keep, within=within, **options)
    else:
        relevance = [0.1, 0.9, 0.3, 0.5, 0.2, 0.7]
        method = vtc.QuoTA(keep=keep, within=within, scorer=lambda tokens: torch.tensor(relevance), **options)
    counts = allocate(keep, [r ** options.get("power", 2.0) for r in relevance], options.get("least", 1))
    selection = vtc.select(method, x, grid=(t, 3, 4), text=words)
    expected = {}
    for f, count in enumerate(counts):
        frame = list(range(f * HW, f * HW + HW))
        if within == "pool" and count:  # pool has a definition of its own
            pooled = vtc.select(vtc.Pool(keep=count), x[frame], grid=(1, 3, 4))
            expected |= {
                frame[i]: row for i, row in zip(pooled.anchor.tolist(), rows(pooled.apply(x[frame])), strict=True)
            }
        elif within == "divprune" and count:
            expected |= {frame[i]: rows(x)[frame[i]] for i in most_different([rows(x)[i] for i in frame], count)}
        elif count:
            expected |= {frame[i]: rows(x)[frame[i]] for i in (int((n + 0.5) * HW / count) for n in range(count))}
    assert selection.anchor.tolist() == sorted(expected)
    torch.testing.assert_close(selection.apply(x), torch.tensor([expected[i] for i in sorted(expected)]))
